"""An hourly score in event time, of predictions whose truth has come.

For labels in the hour `[start, stop)`: log loss −mean(y·ln p + (1−y)·ln(1−p)), p kept within
[1e-15, 1 − 1e-15], and bias, mean p − mean y (MODELS: calibration). The hour closes with the first
label beyond it; a label that comes for a closed hour counts in the one that is open.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

HOUR_US = 3_600_000_000
_LEAST = 1e-15


class HourlyScore:
    """Sums of the open hour. Deterministic: depends on the labels and their order alone."""

    def __init__(self) -> None:
        self._start: int | None = None
        self._n = 0
        self._loss = 0.0
        self._predicted = 0.0
        self._true = 0.0

    def add(self, label_us: int, proba: float, truth: float) -> Iterator[dict[str, Any]]:
        """Take in a label; yields the metric events of the hour that it closes."""
        hour = label_us - label_us % HOUR_US
        if self._start is not None and hour > self._start:
            yield from self._close()
        if self._start is None or hour > self._start:
            self._start = hour
        p = min(max(proba, _LEAST), 1 - _LEAST)
        self._n += 1
        self._loss -= truth * math.log(p) + (1 - truth) * math.log(1 - p)
        self._predicted += proba
        self._true += truth

    def _close(self) -> Iterator[dict[str, Any]]:
        assert self._start is not None
        n = self._n
        window = [self._start, self._start + HOUR_US]
        for name, value in (
            ("log_loss", self._loss / n),
            ("bias", (self._predicted - self._true) / n),
        ):
            yield {"v": 1, "name": name, "value": value, "status": "ok", "n": n, "window": window}
        self._n, self._loss, self._predicted, self._true = 0, 0.0, 0.0, 0.0
