"""What a copied chunk may bring into the stream, by the transactions that its snapshot sees."""

from __future__ import annotations

import numpy as np
import pytest

from cdc.postgres.copy import window as window_module
from cdc.postgres.copy.window import Window
from cdc.postgres.protocol.visibility import Visibility
from eventlog.changes.change import ABSENT, UNCHANGED, Op, RawChange, Text


def inserted(*new: Text) -> RawChange:
    return RawChange(0, Op.INSERT, 1, None, new, None)


def updated(*new: Text, old: tuple[Text, ...] | None = None) -> RawChange:
    return RawChange(0, Op.UPDATE, 1, old, new, None)


def deleted(*old: Text) -> RawChange:
    return RawChange(0, Op.DELETE, 1, old, None, None)


TRUNCATED = RawChange(0, Op.TRUNCATE, 1, None, None, None)


@pytest.mark.parametrize(
    ("text", "seen", "unseen"),
    [
        ("10:20:", [9, 10, 19], [20, 21]),
        ("10:20:10,15", [9, 11, 19], [10, 15, 20]),
        # Beyond the first 2^32 transactions, ids wrap around in the stream.
        (f"{2**32 - 2}:{2**32 + 5}:{2**32 + 1}", [2**32 - 3, 2**32 - 1, 0, 4], [1, 5, 6]),
        (f"{2**33 + 3}:{2**33 + 3}:", [2**32 - 10, 2], [3, 100]),
    ],
)
def test_a_snapshot_sees_what_ended_before_it(
    text: str, seen: list[int], unseen: list[int]
) -> None:
    snapshot = Visibility.parse(text)
    assert [xid for xid in seen if not snapshot.sees(xid)] == []
    assert [xid for xid in unseen if snapshot.sees(xid)] == []


def test_a_row_that_an_unseen_transaction_changed_is_outdated() -> None:
    window = Window((0,))
    window.see([updated(b"1", b"a"), inserted(b"2", b"b")], 90)
    window.see([updated(b"3", b"c", old=(b"4", ABSENT)), deleted(b"5", ABSENT)], 91)
    snapshot = Visibility.parse("90:92:91")
    assert window.outdated(snapshot) == {(b"3",), (b"4",), (b"5",)}
    window.forget(snapshot)
    assert window.outdated(Visibility.parse("80:80:")) == {(b"3",), (b"4",), (b"5",)}
    window.forget(Visibility.parse("92:92:"))
    assert window.outdated(Visibility.parse("80:80:")) == set()


def test_a_truncate_outdates_all_rows_that_do_not_see_it() -> None:
    window = Window((0,))
    window.see([TRUNCATED], 7)
    assert window.outdated(Visibility.parse("7:8:7")) is None
    assert window.outdated(Visibility.parse("8:8:")) == set()
    window.forget(Visibility.parse("8:8:"))
    assert window.outdated(Visibility.parse("7:7:")) == set()


def test_rows_whose_update_left_a_value_out_are_remembered_until_it_comes() -> None:
    window = Window((0,))
    window.see([updated(b"1", UNCHANGED), updated(b"2", UNCHANGED), inserted(b"3", b"x")], 5)
    assert window.unfilled == {(b"1",), (b"2",)}
    window.see([updated(b"9", UNCHANGED, old=(b"1", ABSENT)), deleted(b"2", ABSENT)], 6)
    assert window.unfilled == {(b"9",)}
    window.see([updated(b"9", b"whole")], 7)
    assert window.unfilled == set()


def test_once_all_rows_are_placed_an_update_of_a_whole_row_lacks_nothing() -> None:
    window = Window((0,))
    window.see([updated(b"1", UNCHANGED)], 5)
    window.whole = True
    # The log has row 2, and what its update left out; of row 1 it has not.
    moved = updated(b"8", UNCHANGED, old=(b"1", ABSENT))
    window.see([updated(b"2", UNCHANGED), updated(b"9", UNCHANGED, old=(b"2", ABSENT)), moved], 6)
    assert window.unfilled == {(b"8",)}
    window.see([updated(b"8", UNCHANGED)], 7)
    assert window.unfilled == {(b"8",)}
    window.see([updated(b"8", b"whole"), updated(b"8", UNCHANGED)], 8)
    assert window.unfilled == set()


def test_a_key_that_is_stored_out_of_line_is_taken_from_the_old_row() -> None:
    window = Window((0,))
    window.see([updated(UNCHANGED, b"x", old=(b"long", ABSENT))], 5)
    assert window.outdated(Visibility.parse("5:5:")) == {(b"long",)}
    assert window.unfilled == {(b"long",)}


def test_more_keys_than_are_kept_are_told_by_their_transactions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(window_module, "KEYS_MAX", 10)
    window = Window((0,))
    window.see([inserted(b"%d" % i, b"x") for i in range(11)], 5)
    blind, seeing = Visibility.parse("5:6:5"), Visibility.parse("6:6:")
    assert window.too_crowded(blind) and not window.too_crowded(seeing)
    assert window.outdated(seeing) == set()
    window.see([updated(b"%d" % i, UNCHANGED) for i in range(11)], 5)
    assert window.overflowed and len(window.unfilled) == 10
    window.forget(seeing)
    assert not window.too_crowded(blind)


def test_more_transactions_than_are_kept_are_told_by_the_newest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(window_module, "KEYS_MAX", 10)
    window = Window((0,))
    for xid in range(100, 160):
        window.see([inserted(b"%d" % xid, b"x")], xid)
    assert window.too_crowded(Visibility.parse("120:200:120"))
    assert window.too_crowded(Visibility.parse("150:150:"))
    seeing = Visibility.parse("200:200:")
    assert not window.too_crowded(seeing)
    window.forget(seeing)
    assert not window.too_crowded(Visibility.parse("50:50:"))


def test_random_histories_leave_the_newest_version_of_every_key() -> None:
    seed = int(np.random.default_rng().integers(1 << 32))
    print(f"seed {seed}")
    choose = np.random.default_rng(seed)
    for _ in range(200):
        # Transactions commit in one order and become visible in another, but for those that
        # changed one key: the later one waited for the earlier.
        commits = choose.permutation(np.arange(100, 110)).tolist()
        visible: set[int] = set()
        window = Window((0,))
        table: dict[bytes, bytes] = {}
        copied: dict[bytes, bytes] = {}
        hidden: set[bytes] = set()
        for place, xid in enumerate(commits):
            key, value = b"%d" % choose.integers(0, 4), b"%d" % place
            window.see([updated(key, value)], xid)
            table[key] = value
            if key in hidden or choose.random() < 0.3:
                hidden.add(key)
            else:
                visible.add(xid)
                copied[key] = value
        running = ",".join(str(xid) for xid in range(100, 110) if xid not in visible)
        outdated = window.outdated(Visibility.parse(f"100:110:{running}"))
        assert outdated == {(key,) for key in hidden}
        assert all(table[key] == value for key, value in copied.items() if key not in hidden)


def test_changes_from_before_the_copy_began_must_be_seen_by_its_chunks() -> None:
    window = Window((0,))
    window.see([updated(b"1", UNCHANGED), inserted(b"2", b"b"), TRUNCATED], 91)
    window.see([inserted(b"3", b"c")], 90)
    window.forget(Visibility.parse("91:92:91"))
    window.begin()
    assert window.unfilled == set()
    unaware, aware = Visibility.parse("91:93:91"), Visibility.parse("93:93:")
    assert window.too_crowded(unaware), "the log has neither what came before nor what came of it"
    assert not window.too_crowded(aware)
    assert window.outdated(aware) == set()
