"""Frames: what came over a COPY stream, many messages in one buffer.

A transport delivers a run of CopyData contents end to end with the place of each; nothing is
looked at one by one. The libpq transport is `libpq.py`; one that reads the socket itself (D1)
needs no more than to fill the same arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]


_LARGE = 1024
"""From so many bytes a frame on, a copy of each by itself is quicker than a mask over all."""


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

    def cut(self, low: int) -> Frames:
        """The messages from `low` on."""
        return Frames(data=self.data, starts=self.starts[low:], ends=self.ends[low:])

    @classmethod
    def of(cls, messages: list[bytes] | list[memoryview]) -> Frames:
        """Put separate messages end to end."""
        ends = np.cumsum(np.fromiter(map(len, messages), np.int64, len(messages)))
        starts = np.empty_like(ends)
        starts[:1] = 0
        starts[1:] = ends[:-1]
        return cls(data=_joined(messages), starts=starts, ends=ends)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Records end to end, and where each one ends: a batch's content without its description."""

    data: bytes
    ends: I64

    def __len__(self) -> int:
        return len(self.ends)

    @classmethod
    def joined(cls, runs: Sequence[Run]) -> Run:
        """The records of several runs, end to end."""
        if len(runs) == 1:
            return runs[0]
        bases = accumulate((len(run.data) for run in runs), initial=0)
        shifted = [run.ends + base for run, base in zip(runs, bases, strict=False)]
        ends = np.concatenate(shifted) if shifted else np.zeros(0, np.int64)
        return cls(data=b"".join([run.data for run in runs]), ends=ends)

    def cut(self, low: int, high: int) -> Run:
        """The records `[low, high)`."""
        base = int(self.ends[low - 1]) if low else 0
        stop = int(self.ends[high - 1]) if high else 0
        return Run(data=self.data[base:stop], ends=self.ends[low:high] - base)


def _joined(messages: list[bytes] | list[memoryview]) -> bytes:
    """End to end; a message that came alone, which may be of 1 GB, as it is."""
    if len(messages) == 1:
        only = messages[0]
        held = only.obj if isinstance(only, memoryview) else only
        if isinstance(held, bytes) and len(held) == len(only):
            return held
    return b"".join(messages)


def without_heads(frames: Frames, keep: npt.NDArray[np.bool_], head: int) -> Run:
    """The kept frames' contents without their first `head` bytes, end to end.

    One pass over the bytes: a mask that alternates between heads and contents. Of large frames,
    which would take thrice their size at once, piece by piece.
    """
    starts, ends = frames.starts, frames.ends
    if len(frames) * _LARGE < len(frames.data):
        whole = memoryview(frames.data)
        places = zip(starts[keep].tolist(), ends[keep].tolist(), strict=True)
        pieces = [whole[start + head : end] for start, end in places]
        return Run(data=b"".join(pieces), ends=np.cumsum(ends[keep] - starts[keep] - head))
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


def words_at(data: U8, at: I64) -> npt.NDArray[np.uint32]:
    """The big-endian words of 32 bits at these places."""
    value = np.zeros(len(at), np.uint32)
    for i in range(4):
        value = (value << np.uint32(8)) | data[at + i]
    return value
