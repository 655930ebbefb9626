"""Rounds of contenders, in turn, and what their samples say.

::

    warm-up     A B C          dropped
    round 1     A B C          a ratio is taken within a round: what a disk or a neighbour does
    round 2     A B C          to one contender it does to the next a moment later
    ...

Every figure is a median with the least, the greatest and the quartiles of its samples.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

SAMPLES_MIN = 5

Sample = Mapping[str, float]
Contender = Callable[[], Sample]
Note = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Samples of one quantity of one contender. `role`: subject, peer, or limit."""

    case: str
    contender: str
    role: str
    quantity: str
    unit: str
    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def to_map(self) -> dict[str, Any]:
        """The figure for a results file."""
        return {
            "case": self.case,
            "contender": self.contender,
            "role": self.role,
            "quantity": self.quantity,
            "unit": self.unit,
            **summary(self.samples),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A figure over another's, round by round. `at_least` and `at_most` are the target, if any."""

    case: str
    quantity: str
    of: str
    to: str
    samples: tuple[float, ...]
    at_least: float | None = None
    at_most: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def met(self) -> bool | None:
        """Whether the median meets the target; None without one."""
        if self.at_least is not None:
            return self.median >= self.at_least
        if self.at_most is not None:
            return self.median <= self.at_most
        return None

    @property
    def target(self) -> str:
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}"

    def to_map(self) -> dict[str, Any]:
        """The ratio for a results file."""
        return {
            "case": self.case,
            "quantity": self.quantity,
            "of": self.of,
            "to": self.to,
            "at_least": self.at_least,
            "at_most": self.at_most,
            "met": self.met,
            **summary(self.samples),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one program found. `about` says what was measured, under which settings."""

    name: str
    question: str
    about: Mapping[str, Any]
    figures: tuple[Figure, ...]
    ratios: tuple[Ratio, ...]

    def to_map(self) -> dict[str, Any]:
        """The result for a results file."""
        return {
            "name": self.name,
            "question": self.question,
            "about": dict(self.about),
            "figures": [figure.to_map() for figure in self.figures],
            "ratios": [ratio.to_map() for ratio in self.ratios],
        }


def in_turn(
    contenders: Mapping[str, Contender], *, samples: int, note: Note, warm_ups: int = 1
) -> dict[str, list[Sample]]:
    """Run each contender once a round; the first `warm_ups` rounds are dropped."""
    if samples < SAMPLES_MIN:
        raise ValueError(f"{samples} samples are fewer than {SAMPLES_MIN}")
    taken: dict[str, list[Sample]] = {name: [] for name in contenders}
    for number in range(warm_ups + samples):
        counted = number >= warm_ups
        place = f"round {number - warm_ups + 1} of {samples}" if counted else "warm-up"
        for name, run in contenders.items():
            note(f"{place}: {name}")
            sample = run()
            if counted:
                taken[name].append(sample)
    return taken


def figures_of(
    taken: Mapping[str, list[Sample]],
    case: str,
    *,
    roles: Mapping[str, str],
    units: Mapping[str, str],
) -> list[Figure]:
    """A figure for each quantity that a contender's samples have, by its unit and its role."""
    return [
        Figure(
            case=case,
            contender=name,
            role=roles[name],
            quantity=quantity,
            unit=unit,
            samples=tuple(sample[quantity] for sample in samples),
        )
        for quantity, unit in units.items()
        for name, samples in taken.items()
        if quantity in samples[0]
    ]


def ratio_samples(
    taken: Mapping[str, list[Sample]], quantity: str, *, of: str, to: str
) -> tuple[float, ...]:
    """The quotients of two contenders' samples of the same rounds."""
    pairs = zip(taken[of], taken[to], strict=True)
    return tuple(mine[quantity] / theirs[quantity] for mine, theirs in pairs)


def summary(samples: tuple[float, ...]) -> dict[str, Any]:
    """Median, extremes, quartiles and the samples themselves, to six digits."""
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return {
        "median": _short(statistics.median(samples)),
        "min": _short(min(samples)),
        "max": _short(max(samples)),
        "quartiles": [_short(low), _short(high)],
        "samples": [_short(sample) for sample in samples],
    }


def _short(number: float) -> float:
    return float(f"{number:.6g}")
