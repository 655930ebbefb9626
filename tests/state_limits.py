"""How much a state may hold, small enough for a few records to exceed it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple
from unittest import mock

from eventlog.snapshots.state import row_pass, span, table_state


class Limits(NamedTuple):
    """Generous for what tests store, unless others are given."""

    run_events: int = 1 << 18
    key_bytes: int = 1 << 28
    keep_bytes: int = 1 << 28
    fetch_rows: int = 4096


@contextmanager
def limited(limits: Limits) -> Iterator[None]:
    """Let a state be found under these limits."""
    with ExitStack() as end:
        for module, name, value in [
            (table_state, "RUN_EVENTS", limits.run_events),
            (table_state, "KEY_BYTES", limits.key_bytes),
            (table_state, "KEEP_BYTES", limits.keep_bytes),
            (span, "SHARES_MAX", 4),
            (row_pass, "_FIRST_FETCH", limits.fetch_rows),
            (row_pass, "FETCH_BYTES", limits.fetch_rows * 10),
        ]:
            end.enter_context(mock.patch.object(module, name, value))
        yield
