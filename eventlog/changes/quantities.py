"""Quantities as people write them: durations, sizes, numbers of things: `3d`, `10GB`, `2 rows`."""

from __future__ import annotations

import math
import re
from datetime import timedelta

from eventlog.errors import UsageError

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s|m|h|d|w)")
_MICROSECONDS = {
    "us": 1,
    "ms": 1_000,
    "s": 1_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
    "w": 604_800_000_000,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


def duration_us(age: str | timedelta) -> int:
    """µs of a timedelta, or of text such as `90s`, `15m`, `1.5h`, `3d` or `2w`.

    Raises UsageError for what is neither, and for a negative one.
    """
    if isinstance(age, timedelta) and age >= timedelta(0):
        return age // timedelta(microseconds=1)
    found = _DURATION.fullmatch(age.strip()) if isinstance(age, str) else None
    if found is None:
        raise UsageError(
            f"{age!r} is no duration", hint="write a number and one of s, m, h, d, w, as in 30d"
        )
    return round(_finite(found[1], _MICROSECONDS[found[2]]))


def byte_count(size: str | int) -> int:
    """Bytes of a size such as `500MB` (10⁶), `2GiB` (2³⁰) or a plain number. Raises UsageError."""
    if isinstance(size, int) and not isinstance(size, bool):
        if size >= 0:
            return size
        raise UsageError(f"{size} bytes are no size", hint="give a size of 0 or more")
    found = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    if found is None:
        raise UsageError(f"{size!r} is no size", hint="write bytes, or as in 500MB or 2GiB")
    base = 1024 if found[3] else 1000
    power = " kmgt".index(found[2].lower() or " ")
    return int(_finite(found[1], base**power))


def _finite(digits: str, unit: int) -> float:
    """So many of a unit. Raises UsageError for more than a number can be."""
    found = float(digits) * unit
    if found == math.inf:
        raise UsageError(
            f"a number of {len(digits)} digits is more than there is of anything",
            hint="write it shorter, with a greater unit",
        )
    return found


def counted(count: int, noun: str) -> str:
    """A number of things: `1 row`, `2,000 rows`, `1 batch`, `3 batches`, `2 entries`."""
    if count == 1:
        return f"1 {noun}"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        noun = f"{noun[:-1]}ie"
    elif noun.endswith(("s", "x", "ch", "sh")):
        noun += "e"
    return f"{count:,} {noun}s"
