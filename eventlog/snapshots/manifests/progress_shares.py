"""A progress of several parts, shown as one."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Told of what is done, and of all that will be."""

_STEPS = 1_000


def share(progress: Progress | None, place: int, places: int) -> Progress | None:
    """What tells of part `place` of so many, which are taken for equal."""
    if progress is None:
        return None
    return lambda done, total: progress(
        place * _STEPS + done * _STEPS // max(total, 1), places * _STEPS
    )
