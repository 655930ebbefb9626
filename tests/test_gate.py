"""The privacy gate by itself: what it hashes, in which form, and that both ways in agree."""

from __future__ import annotations

import hashlib
import stat
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from cdc.errors import HashKeyFault
from cdc.postgres.copy_codec import CODEC as COPY
from cdc.postgres.pgoutput import CODEC as PGOUTPUT
from cdc.postgres.privacy import gate as gate_module
from cdc.postgres.privacy import hash_key
from cdc.postgres.privacy.gate import Gate
from cdc.postgres.protocol.frames import Run
from cdc.postgres.protocol.wire import WireError
from cdc.postgres.schema.table_spec import ColumnName, TableSpec
from eventlog.changes.change import UNCHANGED, RawChange, Text
from eventlog.changes.schema import Column, Schema
from tests.fix_log import column, delete, insert, update

KEY = b"0123456789abcdef"
PEOPLE, PLAIN = 7, 8


def names(*texts: str) -> list[ColumnName]:
    return [ColumnName.parse(text) for text in texts]


def version(*columns: Column, relation: int = PEOPLE, name: str = "people", **more: Any) -> Schema:
    numbered = [
        c if c.attribute or more.get("inferred") else replace(c, attribute=i)
        for i, c in enumerate(columns, 1)
    ]
    return Schema(
        id=0,
        offset=0,
        relation=relation,
        namespace="public",
        name=name,
        identity=more.pop("identity", "d"),
        columns=tuple(numbered),
        **more,
    )


def people(gate: Gate, **more: Any) -> Schema:
    """id, email (hashed), note."""
    raw = version(column("id", 23, key=True), column("email"), column("note"), **more)
    return gate.stored(raw, None)


def hashed_of(text: bytes) -> bytes:
    return hashlib.blake2b(text, key=KEY, digest_size=16).hexdigest().encode()


def run_of(records: Sequence[bytes]) -> Run:
    return Run(data=b"".join(records), ends=np.cumsum([len(record) for record in records]))


def records_of(run: Run) -> list[bytes]:
    starts = [0, *run.ends.tolist()][:-1]
    return [run.data[a:b] for a, b in zip(starts, run.ends.tolist(), strict=True)]


def through(gate: Gate, schema: Schema, *records: bytes) -> list[RawChange]:
    """Rewrite change records of one table, and decode them."""
    relations = np.full(len(records), schema.relation, np.uint32)
    done = gate.records(run_of(records), relations, {schema.relation: schema})
    slots = range(len(records))
    return list(PGOUTPUT.decode(records_of(done), slots, {schema.relation: schema}))


def copied(gate: Gate, schema: Schema, *lines: bytes) -> list[tuple[Text, ...] | None]:
    done = gate.lines(run_of(lines), schema)
    found = COPY.decode(records_of(done), range(len(lines)), {schema.relation: schema})
    return [change.new for change in found]


def copy_line(*values: bytes | None) -> bytes:
    """A line as Postgres writes it."""
    escapes = {8: b"\\b", 9: b"\\t", 10: b"\\n", 11: b"\\v", 12: b"\\f", 13: b"\\r", 92: b"\\\\"}
    fields = [
        b"\\N" if value is None else b"".join(escapes.get(b, bytes([b])) for b in value)
        for value in values
    ]
    return b"\t".join(fields) + b"\n"


GATE = Gate(names("public.people.email"), KEY)


def test_a_large_line_is_rewritten_as_small_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes as a view, and is looked at in steps."""
    monkeypatch.setattr(gate_module, "_STEP_BYTES", 7)
    schema = people(GATE)
    for value in (None, b"", b"x", b"\t" * 30, b"a" * 100, b"\\N", b"\n"):
        for other in (None, b"", b"y" * 50):
            line = copy_line(b"1", value, other)
            view = Run(data=memoryview(line), ends=np.array([len(line)]))
            assert GATE.lines(view, schema).data == GATE.lines(run_of([line]), schema).data
    for bad in (b"1\t2\n", b"1\t2\t3\t4\n", b"1\t2\t3"):
        view = Run(data=memoryview(bad), ends=np.array([len(bad)]))
        with pytest.raises(WireError, match=r"values, but|is cut"):
            GATE.lines(view, schema)


@given(
    st.one_of(st.none(), st.binary(), st.text().map(str.encode), st.text("\\\t\nN").map(str.encode))
)
def test_stream_and_copy_store_the_same_hash(value: bytes | None) -> None:
    schema = people(GATE)
    (change,) = through(GATE, schema, insert(schema, 1, value, b"kept")[1])
    (row,) = copied(GATE, schema, copy_line(b"1", value, b"kept"))
    assert change.new == row
    assert row == (b"1", None if value is None else hashed_of(value), b"kept")


VALUE = st.one_of(st.none(), st.just(UNCHANGED), st.binary(max_size=300))


@given(st.lists(st.tuples(st.sampled_from("IUKOD"), VALUE, VALUE, VALUE), max_size=12))
def test_every_kind_of_record_keeps_all_but_its_hashed_values(
    changes: list[tuple[str, Any, Any, Any]],
) -> None:
    schema = people(GATE)
    full = replace(schema, identity="f")
    made = {
        "I": lambda a, b, c: insert(schema, a, b, c),
        "U": lambda a, b, c: update(schema, a, b, c),
        "K": lambda a, b, c: update(schema, c, b, a, key=(a, b, None)),
        "O": lambda a, b, c: update(schema, c, a, b, old=(b, c, a)),
        "D": lambda a, b, c: delete(full, a, b, c),
    }
    records = [made[kind](a, b, c)[1] for kind, a, b, c in changes]

    def masked(row: tuple[Text, ...] | None) -> tuple[Text, ...] | None:
        if row is None:
            return None
        return tuple(
            hashed_of(v) if i == 1 and isinstance(v, bytes) else v for i, v in enumerate(row)
        )

    before = list(PGOUTPUT.decode(records, range(len(records)), {PEOPLE: schema}))
    after = through(GATE, schema, *records)
    assert [(c.op, masked(c.old), masked(c.new)) for c in before] == [
        (c.op, c.old, c.new) for c in after
    ]


def test_records_of_other_tables_pass_as_they_are() -> None:
    gate = Gate(names("people.email"), KEY)
    schema = people(gate)
    plain = version(column("id", 23, key=True), column("email"), relation=PLAIN, name="plain")
    assert gate.stored(plain, None) == plain
    assert (gate.covers(PEOPLE), gate.covers(PLAIN)) == (True, False)
    assert gate.relations == {PEOPLE}
    records = [
        insert(plain, 1, "a@b.c")[1],
        insert(schema, 1, "a@b.c", "n")[1],
        b"T" + struct.pack(">IBI", 1, 0, PEOPLE),
        update(plain, 1, "d@e.f")[1],
        delete(schema, 1, None, None)[1],
    ]
    relations = np.array([PLAIN, PEOPLE, PEOPLE, PLAIN, PEOPLE], np.uint32)
    done = records_of(gate.records(run_of(records), relations, {PEOPLE: schema, PLAIN: plain}))
    assert [done[i] for i in (0, 2, 3, 4)] == [records[i] for i in (0, 2, 3, 4)]
    assert done[1] == insert(schema, 1, hashed_of(b"a@b.c"), "n")[1]
    only_plain = run_of(records[:1])
    assert gate.records(only_plain, relations[:1], {PLAIN: plain}) is only_plain


def test_a_record_cut_anywhere_or_too_long_is_refused() -> None:
    gate = Gate(names("people.email"), KEY)
    schema = people(gate)
    whole = update(schema, 1, "a@b.c", UNCHANGED, key=(2, "d@e.f", None))[1]
    for cut in [whole[:end] for end in range(1, len(whole))] + [whole + b"\0"]:
        with pytest.raises(WireError):
            through(gate, schema, cut)
    binary = whole.replace(b"t\0\0\0\x05a@b.c", b"b\0\0\0\x05a@b.c")
    with pytest.raises(WireError, match="unknown kind"):
        through(gate, schema, binary)
    narrow = version(column("id", 23, key=True), column("email"))
    with pytest.raises(WireError, match="not of 3 columns"):
        through(gate, schema, insert(narrow, 1, "a@b.c")[1])


def test_a_copied_line_of_another_width_or_cut_is_refused() -> None:
    gate = Gate(names("people.email"), KEY)
    schema = people(gate)
    for line in (b"1\ta@b.c\n", b"1\ta@b.c\tn", b"1\ta\tb\tc\n", b"\n"):
        with pytest.raises(WireError):
            copied(gate, schema, line)


def test_a_hashed_column_is_text_and_its_fast_default_is_hashed_too() -> None:
    gate = Gate(names("people.born", "people.id"), KEY)
    raw = version(
        column("id", 23, key=True), column("born", 1082, missing="1970-01-01"), column("note")
    )
    stored = gate.stored(raw, None)
    ident, born, note = stored.columns
    assert (ident.type, ident.key, ident.hashed) == (25, True, True)
    assert (born.type, born.missing) == (25, hashed_of(b"1970-01-01").decode())
    assert note == raw.columns[2]
    assert gate.stored(stored, raw) == stored
    assert Schema.from_map(0, stored.to_map()) == stored


def test_equal_values_are_equal_in_every_table_and_another_key_hashes_otherwise() -> None:
    gate = Gate(names("people.email", "public.plain.mail"), KEY)
    first = people(gate)
    other = gate.stored(version(column("mail"), relation=PLAIN, name="plain"), None)
    (mine,) = copied(gate, first, b"1\ta@b.c\tn\n")
    (theirs,) = copied(gate, other, b"a@b.c\n")
    assert mine is not None and theirs is not None
    assert mine[1] == theirs[0]
    assert Gate(names("people.email"), b"f" * 16).digest(b"a@b.c") != theirs[0]


# Which columns


def hashed_columns(schema: Schema) -> list[str]:
    return [c.name for c in schema.columns if c.hashed]


def test_a_renamed_column_stays_hashed_and_so_does_one_dropped_and_added_again() -> None:
    gate = Gate(names("people.email"), KEY)
    first = people(gate)
    renamed = gate.stored(
        version(column("id", 23, key=True), column("mail", attribute=2), column("note")), first
    )
    assert hashed_columns(renamed) == ["mail"]
    again = gate.stored(
        version(
            column("id", 23, key=True), column("note", attribute=3), column("email", attribute=4)
        ),
        renamed,
    )
    assert hashed_columns(again) == ["email"]
    moved = gate.stored(replace(first, name="clients", columns=again.columns), again)
    assert hashed_columns(moved) == ["email"]


def test_a_restarted_gate_knows_what_was_hashed_under_another_name() -> None:
    first = people(Gate(names("people.email"), KEY))
    gate = Gate(names("people.email"), KEY, [first])
    assert gate.covers(PEOPLE)
    renamed = version(column("id", 23), column("mail"), column("note"), name="clients")
    assert hashed_columns(gate.stored(renamed, first)) == ["mail"]


def test_where_it_is_open_whether_a_column_is_the_hashed_one_it_is_hashed() -> None:
    gate = Gate(names("people.email"), KEY)
    first = people(gate)
    unsure = gate.stored(
        version(column("id", 23), column("mail"), column("note"), inferred=True), first
    )
    assert hashed_columns(unsure) == ["mail"]
    still = version(column("id", 23), column("mail"), column("more"), inferred=True)
    assert hashed_columns(gate.stored(still, unsure)) == ["mail"]
    # The catalog shows later that it was another column, which was there beside it.
    sure = version(column("id", 23), column("mail", attribute=5), column("note", attribute=3))
    assert hashed_columns(gate.stored(sure, unsure)) == []


def test_a_column_that_was_never_seen_with_its_number_is_followed_through_a_rename() -> None:
    gate = Gate(names("people.email"), KEY)
    first = gate.stored(version(column("id", 23), column("email"), inferred=True), None)
    assert hashed_columns(first) == ["email"]
    sure = version(column("id", 23), column("mail"))
    assert hashed_columns(gate.stored(sure, first)) == ["mail"]


def test_doubt_lasts_over_versions_and_a_restart_until_every_number_is_known() -> None:
    gate = Gate(names("people.email"), KEY)
    first = gate.stored(version(column("id", 23), column("email"), inferred=True), None)
    unsure = gate.stored(version(column("id", 23), column("mail"), inferred=True), first)
    assert hashed_columns(unsure) == ["mail"]
    gate = Gate(names("people.email"), KEY, [first, unsure])
    sure = gate.stored(version(column("id", 23), column("mail")), unsure)
    assert hashed_columns(sure) == ["mail"]
    assert hashed_columns(gate.stored(version(column("id", 23), column("m")), sure)) == ["m"]


def test_a_pattern_hashes_the_column_of_every_table() -> None:
    gate = Gate(names("public.*.email"), KEY)
    assert hashed_columns(people(gate)) == ["email"]
    other = version(column("email"), relation=PLAIN, name="plain")
    assert hashed_columns(gate.stored(other, None)) == ["email"]
    elsewhere = replace(other, namespace="app", relation=9)
    assert hashed_columns(gate.stored(elsewhere, None)) == []


def test_a_gate_can_be_widened_for_a_table_that_joins() -> None:
    gate = Gate()
    plain = version(column("email"), relation=PLAIN, name="plain")
    assert hashed_columns(gate.stored(plain, None)) == []
    gate.widen(names("plain.email"), KEY)
    assert hashed_columns(gate.stored(plain, None)) == ["email"]
    assert gate.covers(PLAIN)


def test_a_column_outside_the_list_is_hashed_should_it_come() -> None:
    spec = [TableSpec.parse("people(id,note)")]
    gate = Gate(specs=spec)
    first = version(column("id", 23, key=True), column("note", attribute=3))
    assert gate.stored(first, None) == first
    renamed = version(column("id", 23, key=True), column("notes", attribute=3))
    assert hashed_columns(gate.stored(renamed, first)) == []
    wide = version(column("id", 23, key=True), column("email"), column("notes"))
    stored = gate.stored(wide, renamed)
    assert hashed_columns(stored) == ["email"]
    (change,) = through(gate, stored, insert(stored, 1, "a@b.c", "n")[1])
    assert change.new is not None
    once = change.new[1]
    assert isinstance(once, bytes) and len(once) == 32
    other = Gate(specs=spec, stored=[first, stored])
    (change,) = through(other, stored, insert(stored, 1, "a@b.c", "n")[1])
    assert change.new is not None and change.new[1] != once, "the key is thrown away"
    gate.limit([])
    assert hashed_columns(gate.stored(version(column("x"), relation=9), None)) == []


# The key


def test_a_key_is_made_once_beside_the_log_and_for_its_owner_alone(tmp_path: Path) -> None:
    log = tmp_path / "log"
    made = hash_key.take(None, log, check=None, used_before=False)
    place = tmp_path / "log.hash-key"
    assert (made.place, made.made) == (str(place), True)
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert made.value == place.read_bytes().strip()
    assert len(made.value) == 64
    assert made.notice is not None and str(place) in made.notice
    assert made.value.decode() not in made.notice + repr(made)
    again = hash_key.take(None, log, check=made.check, used_before=True)
    assert (again.value, again.made, again.notice) == (made.value, False, None)


@pytest.mark.parametrize(("check", "used_before"), [("0" * 32, False), (None, True)])
def test_a_missing_key_is_never_replaced(
    tmp_path: Path, check: str | None, used_before: bool
) -> None:
    with pytest.raises(HashKeyFault, match="cannot be read") as caught:
        hash_key.take(None, tmp_path / "log", check=check, used_before=used_before)
    assert "--hash-key" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_another_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATE_KEY", "one key of many bytes")
    first = hash_key.take("env:GATE_KEY", tmp_path / "log", check=None, used_before=False)
    monkeypatch.setenv("GATE_KEY", "  one key of many bytes\n")
    same = hash_key.take("env:GATE_KEY", tmp_path / "log", check=first.check, used_before=False)
    assert same.value == first.value
    monkeypatch.setenv("GATE_KEY", "another key of many bytes")
    with pytest.raises(HashKeyFault, match="not the one") as caught:
        hash_key.take("env:GATE_KEY", tmp_path / "log", check=first.check, used_before=False)
    assert "many bytes" not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize("text", ["", "too short", "x" * 65, "x" * 10_000])
def test_a_key_of_the_wrong_length_is_refused(tmp_path: Path, text: str) -> None:
    place = tmp_path / "key"
    place.write_text(text)
    with pytest.raises(HashKeyFault) as caught:
        hash_key.take(str(place), tmp_path / "log", check=None, used_before=False)
    assert "16 to 64 bytes" in caught.value.hint
    assert "xxx" not in str(caught.value) and "short" not in str(caught.value)


def test_a_key_that_is_nowhere_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GATE_KEY", raising=False)
    for where in ("env:GATE_KEY", str(tmp_path / "none")):
        with pytest.raises(HashKeyFault):
            hash_key.take(where, tmp_path / "log", check=None, used_before=False)


def test_a_key_inside_the_log_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "log" / "key"
    place.parent.mkdir()
    place.write_text("a key of enough bytes")
    with pytest.raises(HashKeyFault, match="inside the log"):
        hash_key.take(str(place), tmp_path / "log", check=None, used_before=False)


def test_a_key_that_others_may_read_is_taken_with_a_warning(tmp_path: Path) -> None:
    place = tmp_path / "key"
    place.write_text("a key of enough bytes")
    place.chmod(0o644)
    notice = hash_key.take(str(place), tmp_path / "log", check=None, used_before=False).notice
    assert notice is not None and "chmod 600" in notice
