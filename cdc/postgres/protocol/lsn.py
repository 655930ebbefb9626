"""A place in the server's write-ahead log, which prints as Postgres prints it.

::

    16/B374D848      two hexadecimal halves of an unsigned 64-bit byte position
    0/0              Postgres's "no position"

PostgreSQL 19 pads the second half with zeroes; both forms are read, the short one is written.
"""

from __future__ import annotations

import re
from typing import Self

from eventlog.errors import UsageError

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")


class Lsn(int):
    """A byte position in the write-ahead log; an int that knows its notation.

    Compares and sorts as the integer. Arithmetic gives plain ints: a difference of two positions
    is a number of bytes, not a position.
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `16/B374D848`. Raises UsageError for anything else."""
        match = _LSN.fullmatch(text)
        if match is None:
            raise UsageError(
                f"{text!r} is not a position in a write-ahead log",
                hint="write it as Postgres does, two hexadecimal numbers such as 16/B374D848",
            )
        return cls(int(match[1], 16) << 32 | int(match[2], 16))

    def __str__(self) -> str:
        return f"{int(self) >> 32:X}/{int(self) & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"Lsn({str(self)!r})"
