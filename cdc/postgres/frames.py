"""Frames: what came over a COPY stream, many messages in one buffer.

A transport delivers a run of CopyData contents end to end with the place of each; nothing is
looked at one by one. The libpq transport is `libpq.py`; one that reads the socket itself (D1)
needs no more than to fill the same arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """Messages `data[starts[i]:ends[i]]`, in the order they came."""

    data: bytes
    starts: I64
    ends: I64

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int) -> bytes:
        return self.data[self.starts[i] : self.ends[i]]

    @classmethod
    def of(cls, messages: list[bytes] | list[memoryview]) -> Frames:
        """Put separate messages end to end."""
        ends = np.cumsum(np.fromiter(map(len, messages), np.int64, len(messages)))
        starts = np.empty_like(ends)
        starts[:1] = 0
        starts[1:] = ends[:-1]
        return cls(data=b"".join(messages), starts=starts, ends=ends)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Records end to end, and where each one ends: a batch's content without its description."""

    data: bytes
    ends: I64

    def __len__(self) -> int:
        return len(self.ends)

    def cut(self, low: int, high: int) -> Run:
        """The records `[low, high)`."""
        base = int(self.ends[low - 1]) if low else 0
        stop = int(self.ends[high - 1]) if high else 0
        return Run(data=self.data[base:stop], ends=self.ends[low:high] - base)


def without_heads(frames: Frames, keep: npt.NDArray[np.bool_], head: int) -> Run:
    """The kept frames' contents without their first `head` bytes, end to end.

    One pass over the bytes: a mask that alternates between heads and contents.
    """
    starts, ends = frames.starts, frames.ends
    lengths = np.empty(2 * len(frames), np.int64)
    lengths[0::2] = np.minimum(ends - starts, head)
    lengths[1::2] = ends - starts - lengths[0::2]
    flags = np.zeros(2 * len(frames), np.bool_)
    flags[1::2] = keep
    kept_lengths = lengths[1::2][keep]
    if not len(kept_lengths):
        return Run(data=b"", ends=np.zeros(0, np.int64))
    data: U8 = np.frombuffer(frames.data, np.uint8)
    low, high = int(starts[0]), int(ends[-1])
    kept = data[low:high][np.repeat(flags, lengths)]
    return Run(data=kept.tobytes(), ends=np.cumsum(kept_lengths))
