"""Frames: what came over a COPY stream, many messages in one buffer.

A transport delivers a run of CopyData contents in one buffer with the place of each; nothing is
looked at one by one. Between them may stand what the transport skipped: a socket's reader leaves
the heads of the messages where they came.

::

    data    | head | frame 0      | head | frame 1 | notice | head | frame 2      |
                   ^ starts[0]    ^ ends[0]

A message of WHOLE_BYTES or more is never copied: it is a view of the buffer that it came in, and so
is what is cut from it. All else is `bytes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
Bytes: TypeAlias = bytes | memoryview

WHOLE_BYTES = 1 << 19
"""From so many bytes on a message is handed on as a view. More than a batch holds of others."""

_LARGE = 1024
"""From so many bytes a frame on, a copy of each by itself is quicker than a mask over all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """Messages `data[starts[i]:ends[i]]`, in the order they came."""

    data: Bytes
    starts: I64
    ends: I64

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int) -> Bytes:
        return self.data[self.starts[i] : self.ends[i]]

    def content(self, i: int, head: int) -> Bytes:
        """A message without its first `head` bytes."""
        return self.data[self.starts[i] + head : self.ends[i]]

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

    data: Bytes
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


def without_heads(frames: Frames, keep: npt.NDArray[np.bool_] | None, head: int) -> Run:
    """The kept frames' contents without their first `head` bytes, end to end; None keeps all.

    One pass over the bytes: a mask that alternates between what is left out and contents. Of large
    frames, which would take thrice their size at once, piece by piece; of a single one, a view.
    """
    low, ends = frames.starts + head, frames.ends
    if keep is not None:
        low, ends = low[keep], ends[keep]
    lengths = ends - low
    if not len(lengths):
        return Run(data=b"", ends=lengths)
    if len(lengths) * _LARGE < len(frames.data):
        whole = memoryview(frames.data)
        pieces = [whole[at:end] for at, end in zip(low.tolist(), ends.tolist(), strict=True)]
        alone = len(pieces) == 1 and len(pieces[0]) >= WHOLE_BYTES
        return Run(data=pieces[0] if alone else b"".join(pieces), ends=np.cumsum(lengths))
    first, stop = int(low[0]), int(ends[-1])
    turns = np.empty(2 * len(lengths) - 1, np.int64)
    turns[0::2] = lengths
    turns[1::2] = low[1:] - ends[:-1]
    flags = np.zeros(len(turns), np.bool_)
    flags[0::2] = True
    data: U8 = np.frombuffer(frames.data, np.uint8)
    kept = data[first:stop][np.repeat(flags, turns)]
    return Run(data=kept.tobytes(), ends=np.cumsum(lengths))


def words_at(data: U8, at: I64) -> npt.NDArray[np.uint32]:
    """The big-endian words of 32 bits at these places."""
    value = np.zeros(len(at), np.uint32)
    for i in range(4):
        value = (value << np.uint32(8)) | data[at + i]
    return value
