"""Which row stood under a code just below an offset: the look-up as it was known then.

::

    code 7    ├── version 0 ──┤├── version 4 ────┤          ├── version 11 ──
                    ▲ asked: 0                       ▲ -1

Versions of one code follow each other where the code is a key; then the last that began is the
only one that may stand. Where they overlap, the one that began last of those that stand is wanted,
which a sweep along the offsets finds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from eventlog.snapshots.seen.codes import Codes

I64 = npt.NDArray[np.int64]


def standing(
    codes: Codes, starts: I64, ends: I64, *, asked: Codes, offsets: I64
) -> npt.NDArray[np.int64]:
    """For each question, the place of the latest version that stood; -1 where none did.

    A version of code `codes[i]` stands for offsets q with starts[i] < q <= ends[i]. `starts` is
    ascending. Codes below 0 stand for nothing.
    """
    found = np.full(len(asked), -1, np.int64)
    versions = np.flatnonzero((codes >= 0) & (ends > starts))
    bits = (len(codes) + 1).bit_length()
    keys = np.sort((codes[versions] << bits) | versions)
    if not len(keys):
        return found
    low_bits = (1 << bits) - 1
    # In the order of their codes, questions find their places in one go through memory.
    question_bits = len(asked).bit_length()
    order = np.sort((asked << question_bits) | np.arange(len(asked)))
    order &= (1 << question_bits) - 1
    below = np.searchsorted(starts, offsets)[order]
    codes_asked = asked[order]
    last = np.searchsorted(keys, (codes_asked << bits) | below) - 1
    candidate = keys[np.maximum(last, 0)]
    begun = (last >= 0) & (codes_asked >= 0) & (candidate >> bits == codes_asked)
    place = candidate & low_bits
    stands = begun & (ends[place] >= offsets[order])
    found[order[stands]] = place[stands]
    ended = order[begun & ~stands]
    if len(ended):
        ordered = keys & low_bits
        same = keys[1:] >> bits == keys[:-1] >> bits
        overlaps = same & (ends[ordered[:-1]] > starts[ordered[1:]])
        lapping = keys[:-1][overlaps] >> bits
        left = ended[np.isin(asked[ended], lapping)]
        if len(left):
            part = ordered[np.isin(keys >> bits, asked[left])]
            found[left] = _swept(codes, starts, ends, part, asked[left], offsets[left])
    return found


def _swept(codes: Codes, starts: I64, ends: I64, versions: I64, asked: Codes, offsets: I64) -> I64:
    """The same, along the offsets: per code a stack from which versions that ended are dropped.

    What ended stays so; the stack holds what may still be the latest. Linear in both.
    """
    found = np.full(len(asked), -1, np.int64)
    by_offset = np.argsort(offsets, kind="stable")
    versions = np.sort(versions)
    columns = (codes[versions], starts[versions], ends[versions], versions)
    coming = list(zip(*(column.tolist() for column in columns), strict=True))
    stacks: dict[int, list[tuple[int, int]]] = {}
    at = 0
    for question in by_offset.tolist():
        offset = int(offsets[question])
        while at < len(coming) and coming[at][1] < offset:
            code, _, end, version = coming[at]
            stacks.setdefault(code, []).append((end, version))
            at += 1
        stack = stacks.get(int(asked[question]), [])
        while stack and stack[-1][0] < offset:
            stack.pop()
        if stack:
            found[question] = stack[-1][1]
    return found
