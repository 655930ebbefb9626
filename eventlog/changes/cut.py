"""Cuts and times: what `at=`, `start=` and `stop=` mean (API.md).

::

    at     = OFFSET | TIME | "end"          everything below that offset
    OFFSET = int | text of digits only
    TIME   = date | datetime | ISO 8601 text; without a zone it is UTC, a date is its first moment

A time is the first offset whose running greatest commit time has reached it. A cut inside a source
transaction is moved back to where the transaction starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from operator import index
from typing import TypeAlias

from eventlog.engine import Engine
from eventlog.errors import CutInsideTransaction, UsageError

At: TypeAlias = int | str | date | datetime

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Everything of a stream below `stop`, which lies between two source transactions.

    `time` is the commit time of the last record below it, in UTC; None where there is none.
    """

    stream: str
    stop: int
    time: datetime | None


def cut_of(engine: Engine, stream: str, at: At, *, strict: bool = False) -> Cut:
    """Resolve `at` to a cut; with `strict`, refuse an offset inside a transaction.

    Raises OffsetOutOfRange, OffsetsDropped, CutInsideTransaction, UsageError.
    """
    offset = offset_of(engine, stream, at)
    low, _ = engine.checked_range(stream, None, offset)
    stop = offset
    if engine.stream(stream).kind == "captured":
        stop = max(engine.transaction_start(stream, offset), low)
    if strict and stop != offset:
        raise CutInsideTransaction(
            f"offset {offset} of stream {stream!r} lies inside a source transaction",
            hint=f"cut at {stop}, where the transaction starts, or leave out strict=True",
        )
    time = None if stop == low else utc(engine.transaction_time(stream, stop - 1))
    return Cut(stream=stream, stop=stop, time=time)


def offset_of(engine: Engine, stream: str, at: At) -> int:
    """The offset that `at` names, wherever it lies; `begin` is the first retained one.

    Raises UsageError for what is neither an offset nor a time.
    """
    # NumPy's integers, too: the offsets of rows come as such.
    if hasattr(at, "__index__") and not isinstance(at, bool):
        return index(at)
    if isinstance(at, str):
        if at in ("begin", "end"):
            return engine.bounds(stream)[at == "end"]
        if at.isascii() and at.isdigit():
            return int(at)
    return engine.offset_at(stream, microseconds(at))


def microseconds(time: At) -> int:
    """µs since 1970 UTC of a time. Raises UsageError for what is none."""
    moment: object = time
    if isinstance(time, str):
        try:
            moment = datetime.fromisoformat(time)
        except ValueError as error:
            raise _no_time(time) from error
    elif isinstance(time, date) and not isinstance(time, datetime):
        moment = datetime(time.year, time.month, time.day, tzinfo=UTC)
    if not isinstance(moment, datetime):
        raise _no_time(time)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // _MICROSECOND


def utc(microseconds: int) -> datetime:
    """The aware datetime of µs since 1970 UTC."""
    return _EPOCH + timedelta(microseconds=microseconds)


def _no_time(at: object) -> UsageError:
    return UsageError(
        f"{at!r} is neither an offset nor a time",
        hint="give an offset such as 4711, a time such as 2026-01-31T12:00Z, `begin` or `end`",
    )
