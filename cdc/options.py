"""What a capture may be told, and what it tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Report = Callable[["Event"], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a source is captured.

    Privacy: `tables` may list columns, as in `public.customers(id,tier)`: others do not leave the
    source. Of the columns `hash` (`public.customers.email`) a keyed hash is stored instead of each
    value; `hash_key` is a file or `env:VAR` with the key, None for a file beside the log.

    Behaviour: `until` ends the capture at the server's position at the start (`current`), or at a
    position in the source's own notation; None captures for ever. `copy` reads the rows that are
    there first. `temporary` uses a slot that ends with the connection. `slot` and `publication`
    name what is there already, instead of names that derive from the source's.

    Performance: `copy_workers` connections read the rows that are there, at `copy_rate` megabytes a
    second together, None for as fast as they can. `buffer_bytes` is gathered before the source is
    made to wait; of a transaction that is larger than `stage_bytes`, what came is stored before its
    end.
    """

    tables: tuple[str, ...]
    until: str | None = None
    copy: bool = True
    temporary: bool = False
    slot: str | None = None
    publication: str | None = None
    hash: tuple[str, ...] = ()
    hash_key: str | None = None
    copy_workers: int = 2
    copy_rate: float | None = None
    buffer_bytes: int = 16 << 20
    stage_bytes: int = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something a user may want to see: `kind` for machines, `text` for people.

    Kinds: `warning`, `copying`, `copied`, `streaming`, `progress`, `retry`, and of tables `joined`,
    `left`, `dropped`, `renamed`.
    `rows` counts what was captured, `lag_bytes` what the server has and the log has not. `bytes` is
    the text of copied rows. What `rows` and `bytes` of a table will come to at its end are
    `rows_estimate` and `bytes_estimate`, None while nothing is known.
    """

    kind: str
    text: str
    table: str | None = None
    rows: int = 0
    rows_estimate: int | None = None
    bytes: int = 0
    bytes_estimate: int | None = None
    position: str | None = None
    lag_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a capture ended. `slot` names a slot that still makes the server keep WAL.

    `slot_drop` is the source's own statement that removes it, where the user brought the slot and
    `drop-source` leaves it alone.
    """

    position: str
    rows: int
    slot: str | None
    slot_drop: str | None = None
