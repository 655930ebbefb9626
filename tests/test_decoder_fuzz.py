"""The decoders under damage: what a server sent, cut, lengthened and mangled.

Only two errors may come: WireError while a stream is taken in, DamagedLog when a log is read.
Whatever is accepted was taken in whole, and two readers of the same bytes agree. The messages are
those that real servers send for a random workload.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import pytest

from cdc.postgres.copy_codec import CODEC as COPY
from cdc.postgres.pgoutput import CODEC as PGOUTPUT
from cdc.postgres.protocol import messages as m
from cdc.postgres.protocol import wire
from cdc.postgres.protocol.frames import Frames
from cdc.postgres.protocol.lsn import Lsn
from eventlog.changes.change import ABSENT, UNCHANGED, Op, RawChange, Text
from eventlog.changes.schema import Column, Schema
from eventlog.engine import Batch
from eventlog.engine.payload import decode
from eventlog.errors import DamagedLog
from tests.fix_capture import keepalive, message_record, xlog
from tests.fix_postgres import Database
from tests.source_client import Kind
from tests.source_tables import TABLES, fill, source_tables
from tests.source_workload import Workload
from tests.test_assembler import new
from tests.test_wire import CASES, encode

RELATION = 16_384


def schema(*names: str, relation: int = RELATION, identity: str = "d") -> Schema:
    """A table whose first column is its key."""
    return Schema(
        id=0,
        offset=0,
        relation=relation,
        namespace="public",
        name="t",
        identity=identity,
        columns=tuple(
            Column(name=name, type=25, typmod=-1, key=not at) for at, name in enumerate(names)
        ),
    )


SCHEMAS = {
    count: {RELATION: schema(*(f"c{number}" for number in range(count)))} for count in (0, 1, 3)
}


def decoded(codec: Any, record: bytes, schemas: dict[int, Schema]) -> RawChange | None:
    """The change of one record, None where it is refused as damaged."""
    try:
        (change,) = codec.decode([record], [0], schemas)
    except DamagedLog:
        return None
    assert isinstance(change, RawChange)
    return change


# Every record whole, cut at every byte, and with a byte too many

NULL, TEXT, LONG, EMPTY = None, b"text", b"\0\xff" * 300, b""
ROWS: dict[int, list[tuple[Text, ...]]] = {
    0: [()],
    1: [(TEXT,), (EMPTY,), (LONG,)],
    3: [
        (TEXT, NULL, LONG),
        (EMPTY, EMPTY, EMPTY),
        (TEXT, UNCHANGED, NULL),
        (LONG, UNCHANGED, UNCHANGED),
    ],
}
RECORDS: list[tuple[int, m.Message]] = [
    *((width, m.Insert(RELATION, row)) for width, rows in ROWS.items() for row in rows),
    *((w, m.Update(RELATION, None, False, row)) for w, rows in ROWS.items() for row in rows),
    *(
        (width, m.Update(RELATION, (b"key", *[None] * (width - 1)), True, row))
        for width, rows in ROWS.items()
        for row in rows
        if width
    ),
    *(
        (width, m.Update(RELATION, old, False, row))
        for width, rows in ROWS.items()
        for old in rows[:2]
        for row in rows
    ),
    *((w, m.Delete(RELATION, (b"key", *[None] * (w - 1)), True)) for w in ROWS if w),
    *((w, m.Delete(RELATION, row, False)) for w, rows in ROWS.items() for row in rows),
    *((0, m.Truncate((RELATION,), options)) for options in range(4)),
    (0, m.LogicalMessage(True, Lsn(1), "", b"")),
    (0, m.LogicalMessage(False, Lsn(2**64 - 1), "vörsilbe", b"content\0\xff")),
]
MORE = [b"\0", b"n", b"u", b"t", b"N", b"\n", b"\xff"]


@pytest.mark.parametrize(("width", "message"), RECORDS)
def test_a_record_is_read_whole_and_refused_cut_or_too_long(width: int, message: m.Message) -> None:
    whole, schemas = encode(message), SCHEMAS[width]
    assert decoded(PGOUTPUT, whole, schemas) == as_change(message, schemas)
    for length in range(len(whole)):
        assert decoded(PGOUTPUT, whole[:length], schemas) is None, length
    for more in MORE:
        assert decoded(PGOUTPUT, whole + more, schemas) is None, more


@pytest.mark.parametrize("width", ROWS)
@pytest.mark.parametrize("other", [0, 1, 2, 3, 4, 256, 65_535])
def test_a_row_of_another_width_than_its_table_is_refused(width: int, other: int) -> None:
    for head in (b"I%bN", b"U%bN", b"D%bO", b"D%bK"):
        record = head % struct.pack(">I", RELATION) + struct.pack(">H", other) + b"n" * other
        accepted = decoded(PGOUTPUT, record, SCHEMAS[width]) is not None
        assert accepted == (width == other), (head, width, other)


def line(*values: bytes | None) -> bytes:
    """A row as COPY writes it."""
    return b"\t".join(map(field, values)) + b"\n"


def field(value: bytes | None) -> bytes:
    if value is None:
        return b"\\N"
    for raw, letter in (
        (b"\\", b"\\"), (b"\b", b"b"), (b"\f", b"f"), (b"\n", b"n"), (b"\r", b"r"), (b"\t", b"t"),
        (b"\v", b"v"),
    ):  # fmt: skip
        value = value.replace(raw, b"\\" + letter)
    return value


LINES: list[tuple[bytes | None, ...]] = [
    (),
    (b"",),
    (None,),
    (b"\\N",),
    (b"\\.",),
    (b"plain", None, b""),
    (b"\b\f\n\r\t\v\\", b"a\\tb", b"\\\\\n\\"),
    ("é漢\x01".encode(), b"\\n", b"N"),
]


@pytest.mark.parametrize("values", LINES)
def test_a_copied_line_is_read_whole_and_refused_cut(values: tuple[bytes | None, ...]) -> None:
    whole, schemas = line(*values), SCHEMAS[len(values)]
    change = decoded(COPY, whole, schemas)
    assert change is not None and (change.op, change.new) == (Op.READ, values)
    for length in range(len(whole)):
        assert decoded(COPY, whole[:length], schemas) is None, whole[:length]


@pytest.mark.parametrize("values", LINES)
@pytest.mark.parametrize("more", [b"\0", b"x", b"\t", b"\n", b"\\", b"\\N", b"\n\n"])
def test_a_copied_line_with_bytes_too_many_is_refused(
    values: tuple[bytes | None, ...], more: bytes
) -> None:
    assert decoded(COPY, line(*values) + more, SCHEMAS[len(values)]) is None


@pytest.mark.parametrize(
    "damaged", [b"a\\", b"a\\q", b"\\Nx", b"x\\N", b"\\\\\\", b"\\x41", b"\\101", b"a\nb", b"\\\n"]
)
def test_a_field_that_copy_never_writes_is_refused(damaged: bytes) -> None:
    assert decoded(COPY, damaged + b"\n", SCHEMAS[1]) is None


# What real servers send


class Recorded(NamedTuple):
    """Messages of a slot with their positions, as protocol 1 and as 2 has them, and copied rows."""

    plain: list[tuple[int, bytes]]
    streamed: list[bytes]
    lines: list[tuple[int, bytes]]


@pytest.fixture
def recorded(database: Database) -> Recorded:
    """What a random workload makes a server send."""
    database.execute(TABLES)
    database.execute("alter table heap replica identity full; create publication p for all tables")
    name = f"fuzz_{database.name}"
    database.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [name])
    fill(database.connection, seed=1)
    kinds = Kind.DML | Kind.COLUMNS | Kind.RENAMES
    with Workload(database.dsn, seed=1, kinds=kinds) as workload:
        workload.run(300)
    peek = (
        "select lsn - '0/0', data from pg_logical_slot_peek_binary_changes(%s, null, null,"
        " 'publication_names', 'p', 'messages', 'true', 'proto_version', %s{})"
    )
    plain = [(int(at), bytes(data)) for at, data in database.fetch(peek.format(""), [name, "1"])]
    blocks = database.fetch(peek.format(", 'streaming', 'true'"), [name, "2"])
    lines: list[tuple[int, bytes]] = []
    for table in source_tables(database.connection):
        width = len(table.stored)
        sql = f"copy (select * from {table.scope}) to stdout"
        if width == len(table.columns):
            with database.connection.cursor().copy(sql) as copy:
                lines += [(width, bytes(row)) for row in copy]
    assert len(plain) > 500 and len(lines) > 100
    return Recorded(plain, [bytes(data) for _, data in blocks], lines)


INTERESTING = [b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0\0\0", b"\xff" * 4, b"\xff" * 8, b"\n"]


def mangled(draw: random.Random, whole: bytes) -> bytes:
    """Bytes flipped, put in, taken out, doubled, or overwritten with what breaks readers."""
    data = bytearray(whole)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        # The front, where tags, counts and lengths stand, is as likely as all the rest.
        low = draw.randrange(min(len(data), 40) + 1 if draw.random() < 0.5 else len(data) + 1)
        length = draw.choice((1, 1, 2, 4, 30))
        match draw.randrange(5):
            case 0 if low < len(data):
                data[low] ^= 1 << draw.randrange(8)
            case 1:
                data[low:low] = draw.randbytes(length)
            case 2:
                del data[low : low + length]
            case 3:
                data[low:low] = data[low : low + length]
            case _:
                put = draw.choice((*INTERESTING, draw.choice(b"BCORYIUDTMKNnut").to_bytes()))
                data[low : low + len(put)] = put
    return bytes(data)


def parsed(payload: bytes) -> m.Message | None:
    try:
        return wire.parse(payload)
    except wire.WireError:
        return None


def as_change(message: m.Message | None, schemas: dict[int, Schema]) -> RawChange | None:
    """What the codec must make of a record that the wire reads so; None where it must refuse."""
    if isinstance(message, m.LogicalMessage):
        fields = {
            "prefix": message.prefix,
            "content": message.content,
            "transactional": message.transactional,
        }
        return RawChange(0, Op.MESSAGE, None, None, None, fields)
    if isinstance(message, m.Truncate):
        if len(message.relations) != 1:
            return None
        return RawChange(0, Op.TRUNCATE, message.relations[0], None, None, None)
    if not isinstance(message, m.Insert | m.Update | m.Delete):
        return None
    described = schemas.get(message.relation)
    old = None if isinstance(message, m.Insert) else message.old
    new_row = None if isinstance(message, m.Delete) else message.new
    if described is None or any(
        row is not None and len(row) != len(described.columns) for row in (old, new_row)
    ):
        return None
    if not isinstance(message, m.Insert) and old is not None and message.old_is_key:
        pairs = zip(old, described.columns, strict=True)
        old = tuple(value if column.key else ABSENT for value, column in pairs)
    op = {m.Insert: Op.INSERT, m.Update: Op.UPDATE, m.Delete: Op.DELETE}[type(message)]
    return RawChange(0, op, message.relation, old, new_row, None)


def check_wire(payload: bytes) -> bool:
    """Read a payload: refused, or taken in to its last byte."""
    message = parsed(payload)
    if message is None:
        return False
    assert isinstance(message, m.StreamAbort) or parsed(payload + b"\0") is None, payload
    return True


def check_codec(payload: bytes, schemas: dict[int, Schema]) -> bool:
    """Read a record by the codec, which must say what the wire says."""
    found = decoded(PGOUTPUT, payload, schemas)
    assert found == as_change(parsed(payload), schemas), payload
    return found is not None


def check_copied(width: int, record: bytes) -> bool:
    """Read a line of COPY: refused, or the very row that is written so."""
    found = decoded(COPY, record, _wide(width))
    if found is None:
        return False
    assert found.new is not None
    values = [value for value in found.new if value is None or isinstance(value, bytes)]
    # Control characters that stand for themselves are read, though no server writes them so.
    for raw, letter in ((b"\b", b"b"), (b"\f", b"f"), (b"\r", b"r"), (b"\v", b"v")):
        record = record.replace(raw, b"\\" + letter)
    assert line(*values) == record
    return True


@lru_cache
def _wide(width: int) -> dict[int, Schema]:
    return {RELATION: schema(*(f"c{number}" for number in range(width)))}


def schemas_before(messages: Iterable[tuple[int, bytes]]) -> list[dict[int, Schema]]:
    """Before each message, what Relation messages have told."""
    known: dict[int, Schema] = {}
    found = []
    for _, payload in messages:
        found.append(known)
        if payload[:1] == b"R":
            told = wire.parse(payload)
            assert isinstance(told, m.Relation)
            columns = tuple(
                Column(name=c.name, type=c.type, typmod=c.typmod, key=c.key) for c in told.columns
            )
            fresh = schema(relation=told.relation, identity=told.identity)
            fields = {**vars(fresh), "columns": columns, "name": told.name}
            known = {**known, told.relation: Schema(**fields)}
    return found


def frames_of(messages: Iterable[tuple[int, bytes]]) -> list[bytes]:
    frames = [xlog(payload, at) for at, payload in messages]
    return [*frames, keepalive(2**62, reply=True)]


def fed(frames: list[bytes], cuts: list[int]) -> tuple[list[Batch], bool]:
    """What comes out of an assembler, and whether it took everything in."""
    assembler = new()
    try:
        for low, high in zip([0, *cuts], [*cuts, len(frames)], strict=True):
            assembler.feed(Frames.of(frames[low:high]))
    except wire.WireError:
        return list(assembler.take_complete().batches), False
    return list(assembler.take_complete().batches), True


def check_stored(batches: list[Batch], schemas: dict[int, Schema]) -> None:
    """Read what would be stored: rows are not looked into before (I6)."""
    for batch in batches:
        payload = decode(b"".join(batch.body.parts()), where="a test")
        records = payload.records(range(batch.body.count))
        assert batch.transactions.first.tolist() == sorted(set(batch.transactions.first.tolist()))
        assert len(records) == batch.body.count
        for record in records:
            assert record[:1] in (b"I", b"U", b"D", b"T", b"M")
            decoded(PGOUTPUT, record, schemas)


def rounds(seed: int, repeats: int, check: Callable[[random.Random], bool]) -> int:
    """Repeat a check; returns how often bytes were accepted."""
    print(f"decoder fuzz: seed {seed}, {repeats} rounds")
    draw = random.Random(seed)
    return sum(check(draw) for _ in range(repeats))


def fuzz(recorded: Recorded, seed: int, repeats: int) -> None:
    """Mangle what was recorded, and read it by each decoder."""
    plain, schemas = recorded.plain, schemas_before(recorded.plain)
    assert all(check_wire(payload) for _, payload in plain)
    hand_made = [encode(message) for message in CASES]

    def any_message(draw: random.Random) -> bool:
        chosen = draw.choice((recorded.streamed, hand_made, [payload for _, payload in plain[:99]]))
        payload = mangled(draw, draw.choice(chosen))
        accepted = check_wire(payload)
        for read in (wire.take_xid, wire.parse_frame, wire.split_truncate):
            with_error(read, payload)
        return accepted

    def any_record(draw: random.Random) -> bool:
        at = draw.randrange(len(plain))
        return check_codec(mangled(draw, plain[at][1]), schemas[at])

    def any_line(draw: random.Random) -> bool:
        width, record = draw.choice(recorded.lines)
        return check_copied(width, mangled(draw, record))

    def any_stream(draw: random.Random) -> bool:
        low = draw.randrange(len(plain))
        part = list(plain[low : low + draw.choice((5, 30, 200))])
        begins = [at for at, (_, payload) in enumerate(part) if payload[:1] == b"B"]
        frames = frames_of(part[begins[0] if begins else 0 :])
        for _ in range(draw.choice((0, 1, 1, 2))):
            at = draw.randrange(len(frames))
            match draw.randrange(4):
                case 0:
                    del frames[at]
                case 1:
                    frames.insert(at, frames[draw.randrange(len(frames))] if frames else b"")
                case _:
                    frames[at] = mangled(draw, frames[at])
            if not frames:
                return False
        cuts = sorted(draw.sample(range(len(frames)), min(len(frames), draw.randrange(4))))
        batches, whole = fed(frames, cuts)
        again, _ = fed(frames, [])
        if whole:
            assert sum(b.body.count for b in again) == sum(b.body.count for b in batches)
        check_stored(batches, schemas[min(low + len(part), len(schemas) - 1)])
        return whole

    for check, times in (
        (any_message, repeats),
        (any_record, repeats),
        (any_line, repeats),
        (any_stream, repeats // 10),
    ):
        accepted = rounds(seed, times, check)
        assert 0 < accepted < times, check.__name__


def with_error(read: Callable[[bytes], object], payload: bytes) -> None:
    try:
        read(payload)
    except wire.WireError:
        return


def test_what_servers_send_is_read_by_both_readers_alike(recorded: Recorded) -> None:
    for (_, payload), schemas in zip(recorded.plain, schemas_before(recorded.plain), strict=True):
        if payload[:1] in (b"I", b"U", b"D", b"M"):
            assert check_codec(payload, schemas)
    assert all(check_copied(width, record) for width, record in recorded.lines)
    tags = {payload[:1] for _, payload in recorded.plain}
    assert tags >= {b"B", b"C", b"R", b"I", b"U", b"D", b"T", b"M"}
    assert {payload[:1] for payload in recorded.streamed} >= {b"S", b"E", b"c"}
    batches, whole = fed(frames_of(recorded.plain), [])
    assert whole and sum(batch.body.count for batch in batches) > 300


def test_mangled_messages_are_refused_or_read_whole(recorded: Recorded) -> None:
    fuzz(recorded, seed=1, repeats=3_000)


@pytest.mark.parametrize("at", [0, 2**63 - 1, 2**63, 2**64 - 1])
def test_positions_and_times_at_the_limits_raise_nothing_else(at: int) -> None:
    for payload in (
        b"B" + struct.pack(">QQI", at, at, 7),
        b"C" + struct.pack(">BQQQ", 0, at, at, at),
        message_record("app", b"x", at, transactional=False),
        message_record("app", b"x", at, transactional=True),
        b"O" + struct.pack(">Q", at) + b"\0",
    ):
        for frame in (
            xlog(payload, at),
            b"w" + struct.pack(">QQQ", at, at, at) + payload,
            b"k" + struct.pack(">QQB", at, at, 1),
        ):
            first = xlog(b"B" + struct.pack(">QQI", 1, at, 7))
            last = xlog(b"C" + struct.pack(">BQQQ", 0, 1, 2, at))
            fed([frame], [])
            fed([first, frame, last], [])
            fed([first, last, frame, frame], [])


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_mangled_messages_of_many_seeds(recorded: Recorded) -> None:
    first = random.randrange(1_000_000)
    for seed in range(first, first + 50):
        fuzz(recorded, seed=seed, repeats=30_000)
