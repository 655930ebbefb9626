"""Names of streams and consumers."""

from __future__ import annotations

import re

from eventlog.errors import UsageError

NAME_BYTES_MAX = 200
"""Names are parts of LMDB keys, which have a limit of 511 bytes."""

_NAME = re.compile(r"[a-z][a-z0-9_-]*")


def checked_name(name: str, *, kind: str) -> str:
    """Return `name`, or raise UsageError where it cannot be that of a `kind`."""
    if len(name) > NAME_BYTES_MAX or not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:NAME_BYTES_MAX]!r} cannot be the name of a {kind}",
            hint="a name is a-z, then any of a-z, 0-9, _ and -, up to 200 characters",
        )
    return name
