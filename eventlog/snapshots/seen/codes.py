"""Codes: numbers that are equal exactly where texts are, for columns of several tables at once.

Values are compared as the source's text. A nothing has no equal: its code is NOTHING.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from eventlog.changes.split import Texts
from eventlog.snapshots.seen.compacting import WORD_BYTES, binary

Codes = npt.NDArray[np.int64]
"""Small integers from 0 on, dense over all that were coded together."""

NOTHING = -1
_MASKS = np.array([(1 << 8 * length) - 1 for length in range(WORD_BYTES + 1)], np.uint64)


def coded(sides: Sequence[Sequence[Texts]]) -> list[Codes]:
    """Give codes to sides of as many columns each: one code a row, over all of its columns.

    A row of which any column is a nothing has NOTHING.
    """
    widths = {len(columns) for columns in sides}
    assert len(widths) == 1 and 0 not in widths
    found: Codes | None = None
    for columns in zip(*sides, strict=True):
        codes = _of_texts(columns)
        found = codes if found is None else _paired(found, codes)
    assert found is not None
    bounds = np.cumsum([len(columns[0]) for columns in sides])[:-1]
    return np.split(found, bounds)


def _of_texts(sides: Sequence[Texts]) -> Codes:
    """Codes of one column of all sides, one behind the other."""
    import pyarrow as pa

    if any(int(texts.lengths.max(initial=0)) > WORD_BYTES for texts in sides):
        return _dense(pa.chunked_array([binary(texts) for texts in sides]).combine_chunks())
    nothing = np.concatenate([texts.lengths < 0 for texts in sides])
    words = np.concatenate([_words(texts) for texts in sides])
    return _dense(pa.array(words, mask=nothing))


def _words(texts: Texts) -> npt.NDArray[np.uint64]:
    """Values of at most WORD_BYTES, each as a number: one fetch instead of a walk along the text.

    Behind a text is 0, which none holds, so that numbers are equal exactly where texts are.
    """
    lengths = np.maximum(texts.lengths, 0)
    starts = np.where(lengths > 0, texts.starts, 0)
    data = texts.data
    if int(starts.max(initial=0)) + WORD_BYTES > len(data):
        data = np.concatenate([data, np.zeros(WORD_BYTES, np.uint8)])
    words = np.ndarray(len(data) - WORD_BYTES + 1, "<u8", data, strides=(1,))
    found: npt.NDArray[np.uint64] = words[starts] & _MASKS[lengths]
    return found


def _paired(left: Codes, right: Codes) -> Codes:
    """Codes of pairs."""
    import pyarrow as pa

    pairs = left * (int(right.max(initial=0)) + 1) + right
    return _dense(pa.array(pairs, mask=(left < 0) | (right < 0)))


def _dense(values: Any) -> Codes:
    """Places in an Arrow array's dictionary; NOTHING where it is null."""
    indices = values.dictionary_encode().indices
    found: Codes = indices.fill_null(NOTHING).to_numpy(zero_copy_only=False).astype(np.int64)
    return found
