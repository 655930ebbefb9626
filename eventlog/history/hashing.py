"""The hash of a key's texts: what the key index is sorted by.

::

    h = mix(relation)                          2**32 for the keys of events
    for each column of the key, in the order of the schema version's columns:
        h = mix(h ^ length)                    64 bits; all ones for NULL
        for each 8 bytes of the text, little-endian, the last ones filled up with zeros:
            h = mix(h ^ word)                  a text above LONG bytes: its xxh3-64 as the only word

    mix(h): h ^= h >> 32, h *= M, h ^= h >> 29, h *= M, h ^= h >> 32     modulo 2**64

Equal keys have equal hashes under every schema version with the same columns in the key. Unequal
ones may collide: whoever looks a key up compares texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from eventlog.changes.split import Bytes, Texts

VERSION = 2
"""Of the hash and of what is indexed, stored in every run: other versions are rebuilt.

Version 1 knew no primary keys under REPLICA IDENTITY FULL.
"""

EVENTS = 2**32
"""What stands for the relation where the keys are those of events."""

LONG = 256
"""Above it the words are not walked one by one: the longest text would set the pace of all."""

KEPT = 2**64 - 1
"""The bits of a hash that are stored: all of them, but for tests of what collides."""

U64 = npt.NDArray[np.uint64]

_M = np.uint64(0xD6E8FEB86659FD93)
_29, _32 = np.uint64(29), np.uint64(32)
_MASKS = np.array([(1 << 8 * kept) - 1 for kept in range(9)], np.uint64)


def key_hashes(relation: int, columns: Sequence[Texts]) -> U64:
    """The hash of each of n keys, which `columns` hold column by column."""
    state = np.full(len(columns[0]), relation, np.uint64)
    _mix(state)
    data, words = None, np.zeros(1, np.uint64)
    for column in columns:
        if column.data is not data:
            data, words = column.data, _words(column.data)
        state = _with_column(state, column, words)
    return state


def key_hash(relation: int, key: Sequence[bytes | None]) -> int:
    """The hash of one key, as it is stored."""
    columns = [
        Texts(
            data=np.frombuffer(text or b"", np.uint8),
            starts=np.zeros(1, np.int64),
            lengths=np.array([-1 if text is None else len(text)], np.int64),
        )
        for text in key
    ]
    return int(key_hashes(relation, columns)[0]) & KEPT


def order_of(hashes: U64) -> npt.NDArray[np.int64]:
    """The places of the hashes in ascending order; equal ones stay in theirs.

    Sorts the hashes with their places in the lowest bits: a plain sort of numbers is several times
    as fast as a stable one of places. Two that differ in these bits alone are rare, and noticed.
    """
    low = np.uint64((1 << len(hashes).bit_length()) - 1)
    packed = (hashes & ~low) | np.arange(len(hashes), dtype=np.uint64)
    packed.sort()
    order = (packed & low).astype(np.int64)
    found = hashes[order]
    if np.any(found[1:] < found[:-1]):
        return np.argsort(hashes, kind="stable")
    return order


def _with_column(state: U64, texts: Texts, words: U64) -> U64:
    lengths = texts.lengths
    state = state ^ lengths.view(np.uint64)
    _mix(state)
    longest = int(lengths.max(initial=0))
    if longest <= 0:
        return state
    if longest > LONG:
        lengths = _hash_long(state, texts)
        longest = int(lengths.max(initial=0))
    for at in range(0, longest, 8):
        rows = np.flatnonzero(lengths > at)
        whole = len(rows) == len(lengths)
        left = lengths - at if whole else lengths[rows] - at
        places = (texts.starts if whole else texts.starts[rows]) + at
        word = words[places] & _MASKS[np.minimum(left, 8)]
        if whole:
            state ^= word
            _mix(state)
        else:
            word ^= state[rows]
            _mix(word)
            state[rows] = word
    return state


def _hash_long(state: U64, texts: Texts) -> npt.NDArray[np.int64]:
    """Take in the texts above LONG bytes; returns the lengths with theirs as 0: they are done."""
    rows = np.flatnonzero(texts.lengths > LONG)
    for row in rows.tolist():
        start = int(texts.starts[row])
        text = texts.data[start : start + int(texts.lengths[row])].tobytes()
        word = state[row : row + 1] ^ np.uint64(xxhash.xxh3_64_intdigest(text))
        _mix(word)
        state[row : row + 1] = word
    lengths = texts.lengths.copy()
    lengths[rows] = 0
    return lengths


def _words(data: Bytes) -> U64:
    """The 8 bytes from every place on, as one overlapping array; behind the end are zeros."""
    padded = np.zeros(len(data) + 8, np.uint8)
    padded[: len(data)] = data
    return np.ndarray((len(data) + 1,), np.dtype("<u8"), padded.data, strides=(1,))


def _mix(state: U64) -> None:
    """Mix in place."""
    state ^= state >> _32
    state *= _M
    state ^= state >> _29
    state *= _M
    state ^= state >> _32
