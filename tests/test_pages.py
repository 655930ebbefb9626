"""The walker over data files: equal to LMDB where they are sound, and never stopped by damage."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventlog.engine.store import structure_faults
from eventlog.engine.upkeep.pages import (
    BRANCH,
    LEAF,
    BadPage,
    DataFile,
    Tree,
    open_data,
    page_list,
    tree_record,
)
from eventlog.engine.upkeep.walker import Walker
from eventlog.errors import LogUnreadable, NotALog

PAGE = 4096
Items = dict[str, list[tuple[bytes, bytes]]]


def environment(directory: Path) -> lmdb.Environment:
    return lmdb.open(str(directory), map_size=1 << 28, max_dbs=40, lib_version=0, sync=False)


def by_cursor(directory: Path) -> Items:
    with environment(directory) as env:
        with env.begin() as txn:
            names = [bytes(name).decode() for name, _ in txn.cursor()]
        databases = {name: env.open_db(name.encode(), create=False) for name in names}
        with env.begin() as txn:
            return {name: list(txn.cursor(db=db)) for name, db in databases.items()}


def by_walker(directory: Path) -> tuple[Items, Walker]:
    with open_data(directory / "data.mdb") as file:
        walker = Walker(file)
        return walked(walker), walker


def walked(walker: Walker) -> Items:
    return {
        name: [(stored.key, walker.value(stored)) for stored in walker.items(name)]
        for name in walker.databases
    }


def everything(found: Items) -> set[tuple[str, bytes, bytes]]:
    return {(name, key, value) for name, items in found.items() for key, value in items}


# Sound files

WRITES = st.tuples(
    st.integers(0, 11),
    st.binary(min_size=1, max_size=300),
    st.sampled_from([0, 9, 900, 2500, 40_000]),
)
COMMITS = st.lists(st.tuples(st.lists(WRITES, max_size=60), st.integers(0, 99)), max_size=6)


@settings(max_examples=60, deadline=None)
@given(commits=COMMITS, seed=st.integers(0, 2**32))
def test_the_walker_finds_what_lmdb_finds(
    commits: list[tuple[list[tuple[int, bytes, int]], int]],
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("env")
    chance = random.Random(seed)
    with environment(directory) as env:
        databases = [env.open_db(b"database %d" % number) for number in range(12)]
        for writes, percent_deleted in commits:
            with env.begin(write=True) as txn:
                for number, key, size in writes:
                    txn.put(key, chance.randbytes(size), db=databases[number])
                for db in databases:
                    for key in list(txn.cursor(db=db).iternext(values=False)):
                        if chance.randrange(100) < percent_deleted:
                            txn.delete(key, db=db)
    found, walker = by_walker(directory)
    assert found == by_cursor(directory)
    assert walker.faults == [] and walker.free_known
    assert list(walker.strays()) == []


def test_a_deep_tree_is_walked_in_the_order_of_its_keys(tmp_path: Path) -> None:
    keys = [struct.pack(">I", number) * 100 for number in range(3_000)]
    with environment(tmp_path) as env:
        db = env.open_db(b"deep")
        with env.begin(write=True) as txn:
            for key in random.Random(7).sample(keys, len(keys)):
                txn.put(key, key[:4], db=db)
            assert txn.stat(db=db)["depth"] >= 4
    found, walker = by_walker(tmp_path)
    assert found == {"deep": [(key, key[:4]) for key in keys]}
    assert walker.faults == []


def test_keys_of_the_main_database_itself_are_told_apart(tmp_path: Path) -> None:
    with environment(tmp_path) as env:
        env.open_db(b"named")
        with env.begin(write=True) as txn:
            txn.put(b"plain", b"value")
    with open_data(tmp_path / "data.mdb") as file:
        walker = Walker(file)
        assert walker.databases == ["named"]
        assert [(item.key, walker.value(item)) for item in walker.plain()] == [(b"plain", b"value")]


def test_an_order_that_no_log_uses_is_told_and_left_alone(tmp_path: Path) -> None:
    with environment(tmp_path) as env:
        env.open_db(b"many", dupsort=True)
        env.open_db(b"one")
    with open_data(tmp_path / "data.mdb") as file:
        walker = Walker(file)
        assert walker.databases == ["one"]
        assert "b'many': its order" in str(*walker.faults)


# Damaged files


class Placed(NamedTuple):
    """An item, and the pages that lead to it, its own ones included."""

    item: tuple[str, bytes, bytes]
    pages: frozenset[int]


class Sample(NamedTuple):
    data: bytes
    items: list[Placed]
    before: Items
    """What the file held before its last commit."""


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Three databases with branches, leaves and values in pages of their own, after deletions."""
    directory = tmp_path_factory.mktemp("sample")
    chance = random.Random(4)
    before: Items = {}
    for last in (False, True):
        with environment(directory) as env:
            databases = [env.open_db(name) for name in (b"one", b"other", b"third")]
            with env.begin(write=True) as txn:
                for db in databases[:2] if last else databases:
                    for _ in range(40):
                        size = chance.choice([10, 200, 900, 6_000])
                        txn.put(chance.randbytes(40), chance.randbytes(size), db=db)
                if last:
                    for key in list(txn.cursor(db=databases[0]).iternext(values=False))[::3]:
                        txn.delete(key, db=databases[0])
        before = before or by_walker(directory)[0]
    with open_data(directory / "data.mdb") as file:
        items = list(placed_items(file))
    assert {item.item for item in items} == everything(by_cursor(directory))
    assert any(len(item.pages) >= 5 for item in items)
    return Sample((directory / "data.mdb").read_bytes(), items, before)


def placed_items(file: DataFile) -> Iterator[Placed]:
    def leaves(tree: Tree, path: frozenset[int]) -> Iterator[tuple[int, bytes, frozenset[int]]]:
        pending = [] if tree.root is None else [(tree.root, path)]
        while pending:
            number, above = pending.pop()
            kind, data = file.page(number, (BRANCH, LEAF))
            if kind == LEAF:
                yield number, data, above | {number}
            else:
                pending += [(child, above | {number}) for _, child in file.children(data)[0]]

    for number, data, path in leaves(file.metas[0].main, frozenset()):
        for root in file.nodes(data)[0]:
            tree = tree_record(file.bytes_at(number * PAGE + root.at, root.size))
            for inner, content, pages in leaves(tree, path):
                for node in file.nodes(content)[0]:
                    at, own = inner * PAGE + node.at, frozenset[int]()
                    if node.overflow is not None:
                        at, count = file.overflow(node.overflow, node.size)
                        own = frozenset(range(node.overflow, node.overflow + count))
                    value = file.bytes_at(at, node.size)
                    yield Placed((root.key.decode(), node.key, value), pages | own)


def damaged(tmp_path: Path, data: bytes) -> tuple[set[tuple[str, bytes, bytes]], Walker]:
    (tmp_path / "data.mdb").write_bytes(data)
    found, walker = by_walker(tmp_path)
    return everything(found), walker


@pytest.mark.parametrize("how", ["zeros", "another page", "the next page", "random bytes"])
def test_one_damaged_page_takes_nothing_that_does_not_hang_from_it(
    tmp_path: Path, sample: Sample, how: str
) -> None:
    chance = random.Random(11)
    pages = len(sample.data) // PAGE
    leading = {number for item in sample.items for number in item.pages}
    for number in range(2, pages):
        other = (number + 1) % pages if how == "the next page" else chance.randrange(pages)
        if other == number:
            other = 2 + (number - 1) % (pages - 2)
        new = {
            "zeros": bytes(PAGE),
            "random bytes": chance.randbytes(PAGE),
        }.get(how, sample.data[other * PAGE : (other + 1) * PAGE])
        at = number * PAGE
        found, walker = damaged(tmp_path, sample.data[:at] + new + sample.data[at + PAGE :])
        assert {item.item for item in sample.items if number not in item.pages} <= found
        gone = {item.item for item in sample.items if number in item.pages}
        # A value's later pages carry no mark: only its own checksum tells that it is another one.
        assert number not in leading or walker.faults or found - {i.item for i in sample.items}
        assert not gone & found or new == sample.data[at : at + PAGE]


def test_one_flipped_bit_takes_nothing_that_does_not_hang_from_its_page(
    tmp_path: Path, sample: Sample
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(600):
        at = chance.randrange(2 * PAGE, len(sample.data))
        if chance.random() < 0.7:  # Headers, places and nodes rather than values.
            at = at // PAGE * PAGE + chance.randrange(120)
        data = bytearray(sample.data)
        data[at] ^= 1 << chance.randrange(8)
        found, _ = damaged(tmp_path, bytes(data))
        assert {item.item for item in sample.items if at // PAGE not in item.pages} <= found


def test_a_file_of_any_length_is_survived(tmp_path: Path, sample: Sample) -> None:
    for size in range(2 * PAGE, len(sample.data), 1_777):
        found, _ = damaged(tmp_path, sample.data[:size])
        whole = size // PAGE
        assert {item.item for item in sample.items if max(item.pages) < whole} <= found


@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.parametrize("how", ["zeros", "random bytes", "a root beyond the end"])
def test_of_two_metas_the_other_is_taken_where_one_is_damaged(
    tmp_path: Path, sample: Sample, slot: int, how: str
) -> None:
    data = bytearray(sample.data)
    at = slot * PAGE
    (transaction,) = struct.unpack_from("=Q", data, at + 16 + 128)
    if how == "a root beyond the end":
        struct.pack_into("=Q", data, at + 16 + 24 + 48 + 40, 1 << 40)
    else:
        data[at : at + PAGE] = bytes(PAGE) if how == "zeros" else os.urandom(PAGE)
    found, walker = damaged(tmp_path, bytes(data))
    newest = transaction == max(
        struct.unpack_from("=Q", sample.data, s * PAGE + 16 + 128)[0] for s in (0, 1)
    )
    now = {item.item for item in sample.items}
    assert found == (everything(sample.before) if newest else now)
    assert [(fault.page, fault.database) for fault in walker.faults] == [(slot, "(meta)")]


def test_without_any_meta_it_is_no_log(tmp_path: Path, sample: Sample) -> None:
    for data in (bytes(2 * PAGE) + sample.data[2 * PAGE :], b"", b"SQLite format 3\0" * 999):
        (tmp_path / "data.mdb").write_bytes(data)
        with pytest.raises(NotALog, match="both meta pages"), open_data(tmp_path / "data.mdb"):
            pass
    with pytest.raises(LogUnreadable), open_data(tmp_path / "gone.mdb"):
        pass


def test_a_tree_that_comes_back_to_itself_ends(tmp_path: Path, sample: Sample) -> None:
    turned = 0
    for number in range(2, len(sample.data) // PAGE):
        _, _, flags, lower, _ = struct.unpack_from("=QHHHH", sample.data, number * PAGE)
        if flags != BRANCH or struct.unpack_from("=Q", sample.data, number * PAGE)[0] != number:
            continue
        data = bytearray(sample.data)
        for place in range(16, lower, 2):
            (node,) = struct.unpack_from("=H", data, number * PAGE + place)
            struct.pack_into("=HHH", data, number * PAGE + node, number, 0, 0)
        found, walker = damaged(tmp_path, bytes(data))
        assert {item.item for item in sample.items if number not in item.pages} <= found
        if any(number in item.pages for item in sample.items):
            turned += 1
            assert "second time" in " ".join(map(str, walker.faults))
    assert turned >= 2


def test_an_overflow_page_that_claims_too_many_is_not_followed(
    tmp_path: Path, sample: Sample
) -> None:
    first = next(
        min(number for number in item.pages if number * PAGE in heads(sample.data))
        for item in sample.items
        if len(item.item[2]) == 6_000
    )
    for count in (0, 1, 2**31, 2**32 - 1):
        data = bytearray(sample.data)
        struct.pack_into("=I", data, first * PAGE + 12, count)
        found, walker = damaged(tmp_path, bytes(data))
        gone = {item.item for item in sample.items if first in item.pages}
        assert found == {item.item for item in sample.items} - gone and len(gone) == 1
        assert f"overflow page {first} has {count} pages" in str(*walker.faults)


def heads(data: bytes) -> set[int]:
    return {
        at
        for at in range(0, len(data), PAGE)
        if struct.unpack_from("=QHH", data, at)[::2] == (at // PAGE, 4)
    }


def test_leaves_behind_a_damaged_branch_are_found_as_strays(tmp_path: Path, sample: Sample) -> None:
    leaves = 0
    inner = {number for item in sample.items for number in item.pages}
    for number in sorted(inner):
        data = bytearray(sample.data)
        kind = struct.unpack_from("=QHH", data, number * PAGE)[2]
        if kind not in (BRANCH, LEAF):
            continue
        data[number * PAGE : (number + 1) * PAGE] = bytes(PAGE)
        (tmp_path / "data.mdb").write_bytes(data)
        with open_data(tmp_path / "data.mdb") as file:
            walker = Walker(file)
            found = {(key, value) for _, key, value in everything(walked(walker))}
            assert walker.free_known
            for page, is_run in list(walker.strays()):
                stray = [] if is_run else walker.leaf(page)
                found |= {(stored.key, walker.value(stored)) for stored in stray}
                leaves += not is_run
        on_it = {item.item[1:] for item in sample.items if number in item.pages}
        assert found >= {item.item[1:] for item in sample.items} - on_it
        if kind == BRANCH:
            assert found >= on_it, "what hung from a branch is on pages of its own"
    assert leaves > 10


def test_former_versions_are_no_strays(tmp_path: Path, sample: Sample) -> None:
    (tmp_path / "data.mdb").write_bytes(sample.data)
    with open_data(tmp_path / "data.mdb") as file:
        walker = Walker(file)
        walked(walker)
        assert list(walker.strays()) == []
        former = {number for number, _ in walker.strays(free_too=True)}
    assert former and not former & {number for item in sample.items for number in item.pages}


def test_without_the_list_of_free_pages_nothing_is_certain_of_a_stray(
    tmp_path: Path, sample: Sample
) -> None:
    newest = newest_meta(sample.data)
    root = struct.unpack_from("=Q", sample.data, newest + 16 + 24 + 40)[0]
    data = bytearray(sample.data)
    data[root * PAGE : (root + 1) * PAGE] = bytes(PAGE)
    found, walker = damaged(tmp_path, bytes(data))
    assert not walker.free_known
    assert found == {item.item for item in sample.items}


def newest_meta(data: bytes) -> int:
    return max((0, PAGE), key=lambda at: int(struct.unpack_from("=Q", data, at + 16 + 128)[0]))


def test_what_lmdb_says_of_damaged_pages_is_said_without_opening_them(
    tmp_path: Path, sample: Sample
) -> None:
    (tmp_path / "data.mdb").write_bytes(sample.data)
    assert structure_faults(tmp_path / "data.mdb") == []
    for data in (b"nothing", sample.data[: 2 * PAGE], bytes(PAGE) + sample.data[PAGE:]):
        (tmp_path / "data.mdb").write_bytes(data)
        assert structure_faults(tmp_path / "data.mdb")


@pytest.mark.parametrize(
    "stored",
    [b"", b"1234567", struct.pack("=2Q", 2, 9), struct.pack("=3Q", 2, 8, 9), bytes(12)],
)
def test_a_list_of_free_pages_that_contradicts_itself_is_refused(stored: bytes) -> None:
    with pytest.raises(BadPage):
        page_list(stored)


def test_a_list_of_free_pages_is_read() -> None:
    assert page_list(struct.pack("=3Q", 2, 9, 8)) == [9, 8]


@pytest.mark.parametrize(
    "stored", [bytes(47), bytes(49), struct.pack("=IHHQQQQQ", 0, 0, 33, *[0] * 5)]
)
def test_what_is_no_tree_is_refused(stored: bytes) -> None:
    with pytest.raises(BadPage):
        tree_record(stored)
