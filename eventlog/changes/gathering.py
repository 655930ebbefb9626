"""Copying many values end to end."""

from __future__ import annotations

import numpy as np

from eventlog.changes.split import Bytes, Places

_GATHER_BYTES = 256
"""Values that are longer on average are copied one by one: that is a memcpy each."""


def gathered(data: Bytes, starts: Places, lengths: Places) -> tuple[Bytes, Places]:
    """Copy values end to end; returns them, and where each one starts. Nothings are empty."""
    sizes = np.maximum(lengths, 0)
    stops = np.cumsum(sizes)
    total = int(stops[-1]) if len(stops) else 0
    if total > _GATHER_BYTES * len(sizes):
        view = memoryview(data)  # type: ignore[arg-type]
        pieces = [
            view[start : start + size]
            for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)
        ]
        return np.frombuffer(b"".join(pieces), np.uint8), stops - sizes
    places = np.repeat(starts - (stops - sizes), sizes) + np.arange(total)
    return data[places], stops - sizes
