"""The columnar state, held to the fold that goes record by record, whatever the log holds."""

from __future__ import annotations

import re
import tempfile
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eventlog
from eventlog import UNCHANGED
from eventlog.changes.arrow_texts import binary_array
from eventlog.changes.fold import Placed
from eventlog.changes.schema import Schema
from eventlog.changes.split import texts_of
from eventlog.snapshots.state import row_pass, table_state
from eventlog.snapshots.state.checkpoint import Checkpoint
from eventlog.snapshots.state.checkpoint_folder import CheckpointFolder
from eventlog.snapshots.state.hashing import _SPREAD, NUMBER, Hashes, KeyHasher
from eventlog.snapshots.state.offset_set import OffsetSet
from eventlog.snapshots.state.survivors import grouped, latest, latest_numbers, unmatched
from eventlog.snapshots.state.table_state import TableState
from tests.fix_log import INT, MadeSource, column, insert, update
from tests.held_memory import measured
from tests.made_histories import RELATION, MadeHistory, folded
from tests.state_limits import Limits, limited

LARGE_ROWS, LARGE_BYTES = 12_000, 8_000
LIMITS = st.one_of(
    st.just(Limits()),
    st.builds(
        Limits,
        st.sampled_from([1, 2, 7]),
        st.sampled_from([1, 150, 400, 1 << 28]),
        st.sampled_from([0, 3000, 1 << 28]),
        st.sampled_from([1, 3]),
    ),
)


def state_at(
    log: eventlog.Log, table: Schema, stop: int, base: Checkpoint | None = None
) -> TableState:
    return table_state.table_state(log.engine, log._history("shop"), table, stop=stop, base=base)


def rows_of(state: TableState, max_rows: int = 3) -> list[Placed]:
    found: list[Placed] = []
    width = len(state.version.columns)
    for rows in state.rows(range(width), max_rows=max_rows):
        assert 0 < len(rows) <= max_rows
        columns = [rows.texts(place).to_list() for place in range(width)]
        values: Any = zip(*columns, strict=True) if width else [()] * len(rows)
        found += zip(rows.offsets.tolist(), values, strict=True)
    return found


def assert_same(log: eventlog.Log, stop: int, base: Checkpoint | None = None) -> None:
    """The state at the cut is what the definition has, rows and facts alike."""
    table = log._history("shop").in_force(stop)[RELATION]
    fold, rows = folded(log, table, stop)
    state = state_at(log, table, stop, base)
    assert rows_of(state) == rows, f"at {stop}"
    assert state.num_rows == len(rows)
    known = state.facts
    assert (known.seen, known.copying, known.copied_from, known.lost) == (
        fold.seen,
        fold.copying,
        fold.copied_from,
        fold.lost,
    )


def cuts(log: eventlog.Log, random: Random) -> list[int]:
    """Some cuts of the log, its end among them."""
    end = log.stream("shop").end
    return [*random.sample(range(end), min(5, end)), end]


@given(seed=st.integers(0, 1 << 32), limits=LIMITS, identities=st.sampled_from(["d", "f", "dfni"]))
@settings(max_examples=40, deadline=None)
def test_any_history_has_the_state_that_the_fold_defines(
    seed: int, limits: Limits, identities: str
) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        eventlog.open(folder + "/log", create=True) as log,
        limited(limits),
    ):
        history = MadeHistory(log, Random(seed), identities=identities)
        history.write(12)
        for stop in cuts(log, Random(seed)):
            assert_same(log, stop)
        history.source.close()
        assert log.check() == []


@given(seed=st.integers(0, 1 << 32), limits=LIMITS)
@settings(max_examples=25, deadline=None)
def test_a_state_is_the_same_from_any_checkpoint(seed: int, limits: Limits) -> None:
    random = Random(seed)
    with (
        tempfile.TemporaryDirectory() as folder,
        eventlog.open(folder + "/log", create=True) as log,
        limited(limits),
    ):
        history = MadeHistory(log, random)
        history.write(12)
        end = log.stream("shop").end
        codec = eventlog.changes.change_view.source_codec(log.engine, log._history("shop"))
        checkpoints = CheckpointFolder(log.engine, log._history("shop"))
        for at in random.sample(range(end + 1), min(3, end + 1)):
            table = log._history("shop").in_force(at)[RELATION]
            base = checkpoints.nearest(RELATION, at)
            checkpoints.write(state_at(log, table, at, base), codec, stop=at)
        for stop in cuts(log, random):
            assert_same(log, stop, checkpoints.nearest(RELATION, stop))
        history.source.close()
        assert log.check() == []


def test_unsent_values_outlive_another_key_however_many_rows_there_are(
    log: eventlog.Log, shop: MadeSource
) -> None:
    """Rows that live are told apart anew in runs; the values of later ones were given up."""
    columns = column("id", INT, key=True, attribute=1), column("a", attribute=2)
    table = shop.table("t", *columns, relation=RELATION)
    for n in range(9):
        shop.commit(insert(table, n, f"a{n}"))
    for n in range(9):
        shop.commit(update(table, n, UNCHANGED))
    full = shop.table("t", *columns, relation=RELATION, identity="f")
    shop.commit(insert(full, 9, "a9"))
    with limited(Limits(run_events=2)):
        assert_same(log, 19)


@pytest.mark.parametrize("fetch_rows", [1, 2, 3, 5, 7])
def test_a_window_of_fetched_values_ends_between_two_rows(
    log: eventlog.Log, shop: MadeSource, fetch_rows: int
) -> None:
    """A window that ended within a row was asked for again and again."""
    table = shop.table("t", column("id", INT, key=True), *map(column, "abc"), relation=RELATION)
    shop.commit(*(insert(table, n, f"a{n}", f"b{n}", f"c{n}") for n in range(12)))
    left = [[UNCHANGED if n >> bit & 1 else "new" for bit in range(3)] for n in range(12)]
    shop.commit(*(update(table, n, *values) for n, values in enumerate(left)))
    with limited(Limits(fetch_rows=fetch_rows)):
        assert_same(log, 24)


def test_values_far_larger_than_was_guessed_are_fetched_by_few(
    log: eventlog.Log, shop: MadeSource
) -> None:
    """Small rows in one payload, whose large values are of long ago: never all of them at once."""
    table = shop.table("t", column("id", INT, key=True), *map(column, "ab"), relation=RELATION)
    sizes = [1 if n < 50 else 10_000 for n in range(100)]
    for n, size in enumerate(sizes):
        shop.commit(insert(table, n, "x" * size, "y" * size))
    shop.commit(*(update(table, n, UNCHANGED, UNCHANGED) for n in range(100)))
    state = state_at(log, log._history("shop").in_force(200)[RELATION], 200)
    limit = 100_000
    with mock.patch.object(row_pass, "FETCH_BYTES", limit):
        parts = list(
            row_pass.RowPass(
                state._source,
                state._segments,
                state._live,
                state._unsent,
                stop=200,
                columns=range(3),
            )
        )
    assert max(part.text_bytes for part in parts) < limit + 1000
    assert sum(map(len, parts)) == 100
    assert_same(log, 200)


EXPORT = """
import sys
import eventlog
from eventlog.cli.export_files import write_pieces
from eventlog.snapshots.state import row_pass, table_state

def sampled(pieces):
    for piece in pieces:
        peaks.append(anonymous())
        yield piece

table_state.KEEP_BYTES = table_state.BATCH_BYTES = row_pass.FETCH_BYTES = 4 << 20
row_pass._FIRST_FETCH = 64
with eventlog.open(sys.argv[1]) as log:
    for at, peaks in ((1, []), ("end", [])):
        table = log.snapshot("shop", at=at).table("big")
        rows = write_pieces(sampled(table.to_batches()), Path(sys.argv[2]))
        assert rows == table.num_rows
        if at == 1:
            begun = anonymous()
    print(rows, len(peaks), max(peaks) - begun)
"""


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".arrow"])
def test_a_table_larger_than_what_may_be_held_is_exported_by_pieces(
    large: Path, tmp_path: Path, suffix: str
) -> None:
    done = measured(EXPORT, str(large), str(tmp_path / f"big{suffix}"))
    rows, pieces, grown = map(int, done.stdout.split())
    assert rows == LARGE_ROWS and pieces > 5
    assert grown < LARGE_ROWS * LARGE_BYTES * 3 // 4  # held whole, it would be twice its size


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with a table of 96 MB; values of updated rows are of long ago."""
    path = tmp_path_factory.mktemp("large") / "log"
    with eventlog.open(path, create=True) as log:
        source = MadeSource(log, "shop")
        table = source.table("big", column("id", INT, key=True), column("text"))
        source.commit(insert(table, 0, Random(0).randbytes(LARGE_BYTES // 2).hex()))
        for first in range(1, LARGE_ROWS, 50):
            numbers = range(first, min(first + 50, LARGE_ROWS))
            source.commit(
                *(insert(table, n, Random(n).randbytes(LARGE_BYTES // 2).hex()) for n in numbers)
            )
        source.commit(*(update(table, n, UNCHANGED) for n in range(0, LARGE_ROWS, 5)))
        source.close()
    return path


# Its parts


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=60), st.sampled_from([1, 3, 64])
)
def test_survivors_are_those_of_a_map_and_of_stacks(
    events: list[tuple[int, bool]], spread: int
) -> None:
    """`spread` 1: all hashes agree in what is sorted by, and only the whole tells keys apart."""
    keys = np.array([key for key, _ in events], np.uint64)
    wanted = keys * np.uint64(2**63 // spread + 1) if spread > 1 else keys
    hashes = Hashes(wanted * np.uint64(pow(int(_SPREAD), -1, 2**64)), keys + np.uint64(1))
    assert (hashes.spread() == wanted).all()
    numbers = np.array([2 * at + put for at, (_, put) in enumerate(events)], np.int64)
    last: dict[int, int] = {}
    stacks: dict[int, list[int]] = {}
    for at, (key, put) in enumerate(events):
        stack = stacks.setdefault(key, [])
        if put:
            last[key] = at
            stack.append(at)
        else:
            last.pop(key, None)
            if stack:
                stack.pop()
    found = grouped(hashes)
    assert sorted(latest(found, numbers).tolist()) == sorted(last.values())
    assert sorted(unmatched(found, numbers).tolist()) == sorted(chain(*stacks.values()))
    assert latest_numbers(hashes, numbers) is None
    looked_up = latest_numbers(Hashes(keys + np.uint64(7), np.full_like(keys, NUMBER)), numbers)
    if events and len(events) * 3 > int(keys.max() - keys.min()):
        assert looked_up is not None and sorted(looked_up.tolist()) == sorted(last.values())
    else:
        assert looked_up is None


DIGITS = st.text("0123456789", min_size=1, max_size=19)
NUMERALS = st.one_of(
    DIGITS,
    DIGITS.map(lambda text: text.lstrip("0") or "0"),
    st.builds(lambda text, at, c: text[:at] + c + text[at:], DIGITS, st.integers(0, 19),
              st.sampled_from("+-/: .e\0\x80\xb0\xff")),
    st.text(max_size=20),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.none(), NUMERALS), max_size=30))
def test_keys_that_are_numbers_are_these_numbers(keys: list[str | None]) -> None:
    stored = [None if key is None else key.encode("latin-1", "replace") for key in keys]
    texts = texts_of(stored)
    found = KeyHasher().hashes(texts.data, [(texts.starts, texts.lengths)], len(stored))
    known: dict[tuple[int, int], bytes | None] = {}
    for text, first, second in zip(
        stored, found.first.tolist(), found.second.tolist(), strict=True
    ):
        is_number = text is not None and re.fullmatch(rb"0|[1-9][0-9]{0,15}", text) is not None
        assert (second == NUMBER) == is_number
        if text is not None and is_number:
            assert first == int(text)
        assert known.setdefault((first, second), text) == text
    assert len(known) == len(set(stored))


@settings(deadline=None)
@given(st.lists(st.lists(st.one_of(st.none(), st.binary(max_size=80)), min_size=2, max_size=2)))
def test_rows_are_told_apart_by_their_hashes(rows: list[list[bytes | None]]) -> None:
    columns = [texts_of([row[place] for row in rows]) for place in range(2)]
    data = np.concatenate([each.data for each in columns])
    places = [(columns[0].starts, columns[0].lengths)]
    places.append((columns[1].starts + len(columns[0].data), columns[1].lengths))
    found = KeyHasher().hashes(data, places, len(rows))
    pairs = zip(found.first.tolist(), found.second.tolist(), strict=True)
    known: dict[tuple[int, int], list[bytes | None]] = {}
    for pair, row in zip(pairs, rows, strict=True):
        assert known.setdefault(pair, row) == row
    assert len(known) == len({tuple(row) for row in rows})


@settings(deadline=None)
@given(st.sets(st.integers(5, 300)), st.integers(0, 310))
def test_a_set_of_offsets_is_a_set(offsets: set[int], start: int) -> None:
    ascending = np.array(sorted(offsets), np.int64)
    found = OffsetSet(5, 301)
    found.add(ascending[::2])
    found.add(ascending[1::2])
    everything = np.arange(5, 301)
    assert everything[found.mask(everything)].tolist() == ascending.tolist()
    assert len(found) == len(offsets)
    later = found.from_start(start)
    assert [o for block in later.blocks() for o in block.tolist()] == [
        o for o in sorted(offsets) if o >= start
    ]
    if any(start <= o < start + 4 for o in offsets):
        assert found.holds(start, start + 4)
    found.clear()
    assert not found.holds(0, 400) and len(found) == 0


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.binary(max_size=20))), st.randoms())
def test_texts_become_binary_arrays_in_any_order(
    values: list[bytes | None], random: Random
) -> None:
    texts = texts_of(values)
    order = list(range(len(values)))
    for places in (order, order[::2], random.sample(order, len(order))):
        found = binary_array(texts.take(np.array(places, np.int64)))
        found.validate(full=True)
        assert found.to_pylist() == [values[place] for place in places]
