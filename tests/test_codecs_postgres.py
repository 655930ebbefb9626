"""The two Postgres codecs: what servers send, what is damaged, and what they promise the log."""

from __future__ import annotations

import struct
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.postgres.copy_codec import CODEC as COPY
from cdc.postgres.pgoutput import CODEC as PGOUTPUT
from cdc.postgres.protocol import messages as m
from cdc.postgres.protocol import wire
from eventlog.changes.change import ABSENT, UNCHANGED, Op, RawChange, Text
from eventlog.changes.codec import ChangeCodec, codec
from eventlog.changes.schema import Column, Schema
from eventlog.errors import DamagedLog
from tests import nasty_values
from tests.fix_postgres import Database
from tests.test_wire import encode

RELATION = 16_384
OTHER = 16_390

slot_numbers = count(1)


def schema(*columns: str, key: str = "id", relation: int = RELATION) -> Schema:
    return Schema(
        id=0,
        offset=0,
        relation=relation,
        namespace="public",
        name="orders",
        identity="d",
        columns=tuple(Column(name=c, type=25, typmod=-1, key=c == key) for c in columns),
    )


SCHEMAS = {RELATION: schema("id", "note")}


def decoded(*records: bytes, schemas: dict[int, Schema] | None = None) -> list[RawChange]:
    return list(PGOUTPUT.decode(records, range(len(records)), schemas or SCHEMAS))


def test_both_are_installed_under_their_numbers() -> None:
    assert codec(3) is PGOUTPUT
    assert codec(4) is COPY
    assert (PGOUTPUT.name, COPY.name) == ("pgoutput", "copy")


@pytest.mark.parametrize("reader", [PGOUTPUT, COPY])
def test_words_are_written_as_postgres_writes_them(reader: ChangeCodec) -> None:
    assert reader.transaction_text(771) == "771"
    assert reader.transaction_text(0) is None
    assert reader.position_text(0x16_B374D848) == "16/B374D848"
    assert reader.position_text(0) is None


def test_changes_of_every_kind() -> None:
    new: tuple[Text, ...] = (b"1", None)
    records = [
        encode(m.Insert(RELATION, new)),
        encode(m.Update(RELATION, None, False, (b"1", UNCHANGED))),
        encode(m.Update(RELATION, (b"1", None), True, (b"2", b""))),
        encode(m.Update(RELATION, (b"1", None), False, (b"2", b""))),
        encode(m.Delete(RELATION, (b"2", None), True)),
        encode(m.Delete(RELATION, (b"2", None), False)),
        encode(m.Truncate((RELATION,), 3)),
        encode(m.LogicalMessage(True, wire.Lsn(9), "mine", b"\0\xff")),
    ]
    fields = {"prefix": "mine", "content": b"\0\xff", "transactional": True}
    assert decoded(*records) == [
        RawChange(0, Op.INSERT, RELATION, None, new, None),
        RawChange(1, Op.UPDATE, RELATION, None, (b"1", UNCHANGED), None),
        RawChange(2, Op.UPDATE, RELATION, (b"1", ABSENT), (b"2", b""), None),
        RawChange(3, Op.UPDATE, RELATION, (b"1", None), (b"2", b""), None),
        RawChange(4, Op.DELETE, RELATION, (b"2", ABSENT), None, None),
        RawChange(5, Op.DELETE, RELATION, (b"2", None), None, None),
        RawChange(6, Op.TRUNCATE, RELATION, None, None, None),
        RawChange(7, Op.MESSAGE, None, None, None, fields),
    ]


def test_slots_are_the_places_given() -> None:
    record = encode(m.Insert(RELATION, (b"1", None)))
    changes = PGOUTPUT.decode([record, record], [4, 9], SCHEMAS)
    assert [change.slot for change in changes] == [4, 9]
    lines = COPY.decode([b"1\t2\n", b"3\t4\n"], [2, 3], SCHEMAS)
    assert [change.slot for change in lines] == [2, 3]


def test_each_relation_has_its_own_columns() -> None:
    schemas = {RELATION: schema("id", "note"), OTHER: schema("id", relation=OTHER)}
    records = [encode(m.Insert(OTHER, (b"1",))), encode(m.Insert(RELATION, (b"1", b"2")))]
    assert [c.relation for c in decoded(*records, schemas=schemas)] == [OTHER, RELATION]


values = st.one_of(st.none(), st.just(UNCHANGED), st.binary())
rows = st.tuples(values, values)


@given(rows, rows, st.sampled_from("KO-"))
def test_the_codec_reads_what_the_wire_reads(
    old: tuple[Text, ...], new: tuple[Text, ...], kind: str
) -> None:
    before = None if kind == "-" else old
    (update,) = decoded(encode(m.Update(RELATION, before, kind == "K", new)))
    (insert,) = decoded(encode(m.Insert(RELATION, new)))
    (delete,) = decoded(encode(m.Delete(RELATION, old, kind == "K")))
    seen = (old[0], ABSENT) if kind == "K" else old
    assert update == RawChange(0, Op.UPDATE, RELATION, seen if before else None, new, None)
    assert insert == RawChange(0, Op.INSERT, RELATION, None, new, None)
    assert delete == RawChange(0, Op.DELETE, RELATION, seen, None, None)


@pytest.mark.parametrize(
    "message",
    [
        m.Insert(RELATION, (b"1", None)),
        m.Insert(RELATION, (b"1", b"x")),
        m.Update(RELATION, None, False, (b"1", UNCHANGED)),
        m.Update(RELATION, (b"1", None), True, (b"2", b"text")),
        m.Update(RELATION, (b"1", b"x"), False, (b"2", None)),
        m.Delete(RELATION, (b"1", None), True),
        m.Delete(RELATION, (b"1", b"x"), False),
        m.Truncate((RELATION,), 0),
        m.LogicalMessage(False, wire.Lsn(1), "p", b"content"),
    ],
)
def test_a_record_cut_at_any_byte_or_too_long_is_damage(message: m.Message) -> None:
    whole = encode(message)
    for length in range(len(whole)):
        with pytest.raises(DamagedLog, match="record 0"):
            decoded(whole[:length])
    for more in (b"\0", b"n", b"N"):
        with pytest.raises(DamagedLog, match="record 0"):
            decoded(whole + more)


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (b"", "no message of a change"),
        (encode(m.Begin(wire.Lsn(1), 0, 7)), "no message of a change"),
        (encode(m.Truncate((RELATION, OTHER), 0)), "no message of a change"),
        (encode(m.Truncate((), 0)), "no message of a change"),
        (encode(m.Insert(RELATION, (b"1",))), "record 0 has a row of 1 values, .* 2 columns"),
        (encode(m.Insert(RELATION, (b"1",) * 3)), "a row of 3 values"),
        (encode(m.Delete(RELATION, (b"1",) * 300, True)), "a row of 300 values"),
        (encode(m.Insert(OTHER, (b"1", b"2"))), f"relation {OTHER}, .* no schema"),
        (b"I" + struct.pack(">I", RELATION) + b"K\0\2nn", "no message of a change"),
        (b"D" + struct.pack(">I", RELATION) + b"N\0\2nn", "no message of a change"),
        (b"U" + struct.pack(">I", RELATION) + b"X\0\2nnN\0\2nn", "no message of a change"),
        (b"I" + struct.pack(">I", RELATION) + b"N\0\2nb", "no message of a change"),
        (b"I" + struct.pack(">I", RELATION) + b"N\0\2nt\xff\xff\xff\xff", "no message of a change"),
    ],
)
def test_what_does_not_match_its_schema_is_damage(record: bytes, problem: str) -> None:
    with pytest.raises(DamagedLog, match=problem):
        decoded(record)


@given(st.binary(), st.sampled_from(b"IUDTM"))
def test_no_stored_bytes_raise_anything_but_damage(noise: bytes, tag: int) -> None:
    head = bytes([tag]) + struct.pack(">I", RELATION)
    for record in (noise, bytes([tag]) + noise, head + noise):
        try:
            decoded(record)
        except DamagedLog:
            continue


def test_copied_lines_are_rows() -> None:
    lines = [b"1\tplain\n", b"2\t\\N\n", b"3\t\n", b"\\N\t\\\\N\n"]
    changes = list(COPY.decode(lines, range(4), SCHEMAS))
    assert [change.new for change in changes] == [
        (b"1", b"plain"),
        (b"2", None),
        (b"3", b""),
        (None, b"\\N"),
    ]
    assert {(c.op, c.relation, c.old, c.fields) for c in changes} == {
        (Op.READ, RELATION, None, None)
    }


def test_escapes_of_copied_lines_are_undone() -> None:
    (change,) = COPY.decode([b"a\\tb\\nc\\\\n\t\\b\\f\\r\\v.\n"], [0], SCHEMAS)
    assert change.new == (b"a\tb\nc\\n", b"\b\f\r\v.")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"1\t2", "is cut"),
        (b"", "is cut"),
        (b"1\n", "has 1 values, but public.orders has 2 columns"),
        (b"1\t2\t3\n", "has 3 values"),
        (b"\n", "has 1 values"),
    ],
)
def test_a_line_that_is_no_row_of_the_table_is_damage(line: bytes, problem: str) -> None:
    with pytest.raises(DamagedLog, match=f"record 5 .*{problem}"):
        list(COPY.decode([line], [5], SCHEMAS))


def test_copied_rows_without_columns() -> None:
    bare = {RELATION: schema()}
    (change,) = COPY.decode([b"\n"], [0], bare)
    assert change.new == ()
    with pytest.raises(DamagedLog, match="has 1 values"):
        list(COPY.decode([b"1\n"], [0], bare))


@pytest.mark.parametrize("schemas", [{}, {RELATION: schema("id"), OTHER: schema("id")}])
def test_a_batch_of_copied_rows_is_of_one_relation(schemas: dict[int, Schema]) -> None:
    with pytest.raises(DamagedLog, match=f"names {len(schemas)} relations"):
        list(COPY.decode([b"1\n"], [0], schemas))


class Slot:
    """The raw messages of a slot, by way of SQL."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.name = f"codecs_{next(slot_numbers)}_{database.name}"
        for setting, value in nasty_values.PINNED.items():
            database.execute("select set_config(%s, %s, false)", [setting, value])
        database.execute("create publication p for all tables")
        database.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [self.name])

    def messages(self) -> list[bytes]:
        rows = self.database.fetch(
            "select data from pg_logical_slot_get_binary_changes(%s, null, null,"
            " 'proto_version', '1', 'publication_names', 'p', 'messages', 'true')",
            [self.name],
        )
        return [bytes(data) for (data,) in rows]


@pytest.fixture
def slot(database: Database) -> Slot:
    return Slot(database)


def schemas_of(messages: list[bytes]) -> dict[int, Schema]:
    """Schemas as the Relation messages tell them."""
    found: dict[int, Schema] = {}
    for message in map(wire.parse, messages):
        if isinstance(message, m.Relation):
            found[message.relation] = Schema(
                id=0,
                offset=0,
                relation=message.relation,
                namespace=message.namespace,
                name=message.name,
                identity=message.identity,
                columns=tuple(
                    Column(name=c.name, type=c.type, typmod=c.typmod, key=c.key)
                    for c in message.columns
                ),
            )
    return found


def changes_of(messages: list[bytes]) -> list[RawChange]:
    kept = [part for message in messages for part in parts(message)]
    return list(PGOUTPUT.decode(kept, range(len(kept)), schemas_of(messages)))


def parts(message: bytes) -> list[bytes]:
    if message[:1] == b"T":
        return wire.split_truncate(message)
    return [message] if message[:1] in (b"I", b"U", b"D", b"M") else []


def test_everything_a_server_sends_is_read(database: Database, slot: Slot) -> None:
    database.execute(
        "create type public.mood as enum ('ok');"
        "create table public.a (id int primary key, note text, m public.mood);"
        "alter table public.a alter note set storage external;"
        "create table public.b (x text, y numeric);"
        "alter table public.b replica identity full;"
    )
    big = "z" * 5_000
    database.execute("insert into public.a values (1, %s, 'ok')", [big])
    database.execute("update public.a set m = null where id = 1")
    database.execute("update public.a set id = 2 where id = 1")
    database.execute("delete from public.a where id = 2")
    database.execute("insert into public.b values (null, 1.50)")
    database.execute("update public.b set x = ''")
    database.execute("delete from public.b")
    database.execute("truncate public.a, public.b cascade")
    database.execute("select pg_logical_emit_message(false, 'loose', 'text')")
    # a message outside of transactions waits for the next one's flush
    database.execute("select pg_logical_emit_message(true, 'mine', '\\x00ff'::bytea)")
    messages = slot.messages()
    relation_a = database.value("select 'public.a'::regclass::oid::bigint")
    relation_b = database.value("select 'public.b'::regclass::oid::bigint")
    *changes, loose, mine = [change._replace(slot=0) for change in changes_of(messages)]
    note = big.encode()
    assert changes == [
        RawChange(0, Op.INSERT, relation_a, None, (b"1", note, b"ok"), None),
        RawChange(0, Op.UPDATE, relation_a, None, (b"1", UNCHANGED, None), None),
        RawChange(0, Op.UPDATE, relation_a, (b"1", ABSENT, ABSENT), (b"2", UNCHANGED, None), None),
        RawChange(0, Op.DELETE, relation_a, (b"2", ABSENT, ABSENT), None, None),
        RawChange(0, Op.INSERT, relation_b, None, (None, b"1.50"), None),
        RawChange(0, Op.UPDATE, relation_b, (None, b"1.50"), (b"", b"1.50"), None),
        RawChange(0, Op.DELETE, relation_b, (b"", b"1.50"), None, None),
        RawChange(0, Op.TRUNCATE, relation_a, None, None, None),
        RawChange(0, Op.TRUNCATE, relation_b, None, None, None),
    ]
    assert mine.fields == {"prefix": "mine", "content": b"\x00\xff", "transactional": True}
    assert loose.fields == {"prefix": "loose", "content": b"text", "transactional": False}
    read = list(map(wire.parse, messages))
    mood = database.value("select 'public.mood'::regtype::oid::bigint")
    assert m.TypeMessage(mood, "public", "mood") in read
    assert [encode(message) for message in read] == messages
    commits = [message for message in read if isinstance(message, m.Commit)]
    assert all(commit.commit_lsn < commit.end_lsn for commit in commits)
    now = database.value("select extract(epoch from clock_timestamp()) * 1000000")
    assert all(abs(int(now) - commit.commit_time_us) < 3_600_000_000 for commit in commits)


def test_copied_and_replicated_texts_of_every_type_are_the_same(
    database: Database, slot: Slot
) -> None:
    nasty_values.create(database)
    schema = nasty_values.schema_of(database, "nasty")
    inserted = changes_of(slot.messages())
    lines = nasty_values.copied(database, "nasty")
    copied = list(COPY.decode(lines, range(len(lines)), {schema.relation: schema}))
    assert len(copied) == len(inserted) > 10
    for read, insert in zip(copied, inserted, strict=True):
        assert (read.op, insert.op) == (Op.READ, Op.INSERT)
        assert read.new == insert.new
