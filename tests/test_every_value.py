"""Every type, whole captures: what we decode, written back, is the value that Postgres holds.

Compared by their images, which tell any two values apart whose bytes differ: 1.5 and 1.50, 0
and -0.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import pytest

import cdc
import eventlog
from cdc.errors import CaptureError
from cdc.postgres.copy_codec import CODEC
from cdc.postgres.server import EmbeddedServer
from cdc.postgres.values.builtin_types import BUILTIN, delimiter, element, underlying
from eventlog.changes.change import UNCHANGED, Change, Op
from eventlog.changes.schema import Schema
from tests import every_type
from tests.every_type import Every, quoted
from tests.fix_capture import assert_snapshot_equals_postgres, drop_slot
from tests.fix_postgres import SETTINGS, WHEEL, Database, bindir
from tests.test_values import written

MADE_BY_NOTHING = {
    "gtsvector", "pg_brin_bloom_summary", "pg_brin_minmax_multi_summary", "public.ghstore",
    "public.intbig_gkey", "public.ltree_gist",
}  # fmt: skip
"""Types of which SQL can make no value; xml is one where the server was built without it."""

STREAMED = 1000
"""Added to the ids of the rows that came by the stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    database: Database
    log: eventlog.Log
    every: Every

    def changes(self, table: str) -> list[Change]:
        found = self.log.stream("shop").read(table=f"public.{table}")
        return [change for change in found if change.op in (Op.READ, Op.INSERT)]

    def json(self, table: str) -> Iterator[dict[str, Any]]:
        for batch in self.log.stream("shop").read(table=f"public.{table}").batches():
            yield from (x["row"] for x in batch.as_json() if x["op"] in (Op.READ, Op.INSERT))

    def schema(self, table: str) -> Schema:
        stored = (Schema.from_map(*version) for version in self.log.engine.schemas("shop"))
        (found,) = (schema for schema in stored if schema.name == table)
        return found


@pytest.fixture(scope="module")
def captured(postgres: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Captured]:
    """Every row twice: copied, and streamed under another id; then the stream's values updated."""
    database = Database(postgres)
    # What the comparisons below read has the names of types in full, as the capture's own.
    database.execute(f"alter database {database.name} set search_path = pg_catalog")
    every = every_type.create(database)
    path = tmp_path_factory.mktemp("every") / "log"
    with eventlog.open(path, create=True) as log:
        source = cdc.Source("shop", database.dsn, tuple(f"public.{t}" for t in every.tables))
        source.capture(log, until="current")
        for table in every.tables:
            columns = ", ".join(c.name for c in every.columns if c.table == table)
            database.execute(
                f"insert into public.{table} select id + {STREAMED}, {columns} from public.{table}"
            )
        source.capture(log, until="current")
        drop_slot(database)  # another test's has the same name
        yield Captured(database=database, log=log, every=every)
        assert log.check() == []
    database.drop()


def back(schema: Schema, oid: int, value: Any) -> str:
    """A decoded value as a literal of its type: lists become arrays, by what they hold."""
    oid, _ = underlying(schema, oid)
    inner = element(schema, oid)
    if not isinstance(value, list):
        return str(written(value))
    nested = not element(schema, underlying(schema, inner)[0])
    items = []
    for item in value:
        if nested and isinstance(item, list):
            items.append(back(schema, oid, item))
        else:
            items.append("NULL" if item is None else quoted(back(schema, inner, item)))
    return "{" + delimiter(schema, inner).decode().join(items) + "}"


def misread(
    captured: Captured, table: str, schema: Schema, row: dict[str, Any]
) -> list[tuple[str, Any]]:
    """The columns whose value is not what Postgres holds in that row."""
    types = {column.name: column.type for column in schema.columns}
    columns = [column for column in captured.every.columns if column.table == table]
    tests, parameters = [], []
    for column in columns:
        value = row[column.name]
        if value is None:
            tests.append(f"{column.name} is null")
            continue
        parameters.append(back(schema, types[column.name], value))
        if column.readable:
            tests.append(f"record_image_eq(row({column.name}), row(%s::{column.declared}))")
        else:
            tests.append(f"{column.name}::text = %s")
    (same,) = captured.database.fetch(
        f"select {', '.join(tests)} from public.{table} where id = {row['id']}", parameters
    )
    return [
        (column.declared, row[column.name])
        for column, held in zip(columns, same, strict=True)
        if held is not True
    ]


def test_a_column_of_every_type_of_the_server_was_captured(captured: Captured) -> None:
    expected = MADE_BY_NOTHING | ({"xml"} if captured.database.server.version >= "18" else set())
    assert captured.every.valueless <= expected
    declared = {column.declared for column in captured.every.columns}
    assert {name for name, _ in BUILTIN.values()} <= declared
    assert len(declared) > 400
    for table in captured.every.tables:
        rows = captured.changes(table)
        assert {change.op for change in rows} == {Op.READ, Op.INSERT}
        for column in (c for c in captured.every.columns if c.table == table):
            held = [change.row[column.name] for change in rows if change.row]
            assert len(held) - held.count(None) == 2 * column.count, column


def test_every_value_in_python_written_back_is_the_value(captured: Captured) -> None:
    for table in captured.every.tables:
        schema = captured.schema(table)
        for change in captured.changes(table):
            assert change.row is not None
            assert misread(captured, table, schema, change.row) == [], (table, change.op)


def test_every_value_in_json_written_back_is_the_value(captured: Captured) -> None:
    for table in captured.every.tables:
        schema = captured.schema(table)
        for row in captured.json(table):
            read = json.loads(json.dumps(row, allow_nan=False))
            assert misread(captured, table, schema, read) == [], table


def test_every_text_is_what_postgres_writes(captured: Captured) -> None:
    assert_snapshot_equals_postgres(captured.log, captured.database, *captured.every.tables)


def test_every_value_is_exact_in_arrow_or_named(captured: Captured) -> None:
    for table in captured.every.tables:
        rows = captured.log.snapshot("shop").table(f"public.{table}")
        found = rows.to_arrow(unfit="null")
        found.validate(full=True)
        assert found.num_rows == len(captured.changes(table))


def test_every_type_is_named_as_postgres_names_it(captured: Captured) -> None:
    for table in captured.every.tables:
        names = dict(
            captured.database.fetch(
                "select attname::text, format_type(atttypid, atttypmod) from pg_attribute"
                " where attrelid = %s::regclass and attnum > 0",
                [f"public.{table}"],
            )
        )
        schema = captured.schema(table)
        for column in schema.columns:
            # A name that needs quotes stands without them.
            expected = names[column.name].replace('"', "").replace("\\", "")
            assert CODEC.type_name(schema, column).replace('"', "") == expected


@pytest.mark.parametrize("extension", list(every_type.EXTENSIONS))
def test_types_of_extensions_were_among_them(captured: Captured, extension: str) -> None:
    if extension not in captured.every.extensions:
        pytest.skip(f"the extension {extension} is not installed on this server")
    declared = {column.declared for column in captured.every.columns}
    assert {f"public.{name}" for name in every_type.EXTENSIONS[extension]} <= declared


@contextmanager
def in_encoding(fresh: Database, encoding: str) -> Iterator[Database]:
    """The database made again in that encoding."""
    with psycopg.connect(fresh.server.dsn, autocommit=True) as admin:
        admin.execute(f"drop database {fresh.name}")
        admin.execute(
            f"create database {fresh.name} encoding '{encoding}' template template0"
            " lc_collate 'C' lc_ctype 'C'"
        )
    yield fresh


def shop(database: Database) -> cdc.Source:
    return cdc.Source("shop", database.dsn, ("public.*",))


def rows_of(log: eventlog.Log) -> list[dict[str, Any]]:
    found = (c.row for c in log.stream("shop").read() if c.op in (Op.READ, Op.INSERT, Op.UPDATE))
    return [row for row in found if row is not None]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("LATIN1", "naïve ÿ\xa0"), ("EUC_JP", "日本語 ｶﾅ"), ("WIN1252", "€ “q”")],
)
def test_a_database_in_another_encoding_is_captured_as_utf8(
    database: Database, log: eventlog.Log, encoding: str, text: str
) -> None:
    with in_encoding(database, encoding):
        other = text[0]
        with psycopg.connect(database.dsn, autocommit=True, client_encoding="utf8") as conn:
            conn.execute(f"create type t_{other} as enum ('{other}')")
            conn.execute(
                f'create table "{text}" (id int primary key, "{other}" text default %s,'
                f" e t_{other}, a text[])".replace("%s", f"'{text}'")
            )
            insert = f'insert into "{text}" values (%s, %s, %s, %s)'
            conn.execute(insert, [1, text, other, [text, None]])
            shop(database).capture(log, until="current")
            conn.execute(insert, [2, text, other, [text, None]])
            conn.execute("select pg_logical_emit_message(true, %s, %s)", [text, text])
            shop(database).capture(log, until="current")
        held = {other: text, "e": other, "a": [text, None]}
        assert rows_of(log) == [{"id": 1, **held}, {"id": 2, **held}]
        (said,) = (c.row for c in log.stream("shop").read() if c.op is Op.MESSAGE)
        # What a message says is bytes, which the server sends as they are.
        assert said is not None and said["prefix"] == text
        assert said["content"] == text.encode(encoding.replace("WIN", "cp"))


def test_a_database_without_an_encoding_is_captured_byte_for_byte(
    database: Database, log: eventlog.Log
) -> None:
    with in_encoding(database, "SQL_ASCII"):
        database.execute(
            "create table t (id int primary key, body text, list text[]);"
            "create function raw(hex text) returns text language sql as"
            " $$ select convert_from(decode(hex, 'hex'), 'SQL_ASCII') $$;"
            "insert into t values (1, raw('636166e9ff'), array[raw('e9'), 'x'])"
        )
        shop(database).capture(log, until="current")
        database.execute(
            "insert into t select 2, body, list from t; update t set body = raw('c3a909') || body;"
            "select pg_logical_emit_message(true, raw('70e9'), raw('e9')::bytea)"
        )
        shop(database).capture(log, until="current")
    first, second, *changed = [
        (
            row["id"],
            *(text.encode("utf-8", "surrogateescape") for text in (row["body"], *row["list"])),
        )
        for row in rows_of(log)
    ]
    assert first == (1, b"caf\xe9\xff", b"\xe9", b"x")
    assert second == (2, b"caf\xe9\xff", b"\xe9", b"x")
    assert sorted(changed) == [(n, b"\xc3\xa9\tcaf\xe9\xff", b"\xe9", b"x") for n in (1, 2)]
    (said,) = (c.row for c in log.stream("shop").read() if c.op is Op.MESSAGE)
    assert said == {"prefix": "p\\xe9", "content": b"\xe9", "transactional": True}
    for batch in log.stream("shop").read().batches():
        assert all(json.loads(line) for line in batch.json_lines())


def test_text_that_has_no_utf8_ends_the_capture_and_loses_nothing(
    database: Database, log: eventlog.Log
) -> None:
    with in_encoding(database, "EUC_JP"):
        database.execute("create table t (id int primary key, body text)")
        shop(database).capture(log, until="current")
        database.execute("insert into t values (1, 'good')")
        database.execute("insert into t values (2, convert_from('\\xfdfd'::bytea, 'EUC_JP'))")
        for _ in range(2):
            with pytest.raises(CaptureError, match="no equivalent in encoding") as refused:
                shop(database).capture(log, until="current")
            assert not refused.value.retry
            assert "has no form in UTF-8" in refused.value.hint
            assert rows_of(log) == [{"id": 1, "body": "good"}]


def test_names_that_are_no_utf8_are_refused_with_the_reason(
    database: Database, log: eventlog.Log
) -> None:
    with in_encoding(database, "SQL_ASCII"):
        name = "convert_from('\\x6ee9'::bytea, 'SQL_ASCII')"
        database.execute(
            f"do $$ begin execute 'create table ' || {name} || ' (id int primary key)'; end $$"
        )
        for _ in range(2):
            with pytest.raises(CaptureError, match="invalid byte sequence") as refused:
                shop(database).capture(log, until="current")
            assert not refused.value.retry
            assert "SQL_ASCII" in refused.value.hint
        database.execute(f"do $$ begin execute 'drop table ' || {name}; end $$")
        database.execute("create table t (id int primary key); insert into t values (1)")
        shop(database).capture(log, until="current")
    assert [row["id"] for row in rows_of(log)] == [1]


HOSTILE = {
    "DateStyle": "'German, DMY'",
    "IntervalStyle": "'sql_standard'",
    "TimeZone": "'Asia/Kathmandu'",
    "bytea_output": "'escape'",
    "extra_float_digits": "-15",
    "xmlbinary": "'hex'",
    "xmloption": "'document'",
    "quote_all_identifiers": "on",
    "array_nulls": "off",
    "standard_conforming_strings": "off",
    "transform_null_equals": "on",
    "row_security": "on",
    "search_path": "evil, public",
    "client_encoding": "'LATIN1'",
    "statement_timeout": "'1ms'",
    "lock_timeout": "'1ms'",
    "idle_in_transaction_session_timeout": "'1ms'",
    "idle_session_timeout": "'50ms'",
    "default_transaction_isolation": "'serializable'",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
}

EVIL = """
create schema evil;
create table evil.pg_class (oid int); create table evil.pg_type (oid int);
create table evil.pg_attribute (attnum int); create table evil.pg_publication (pubname text);
create table evil.pg_replication_slots (slot_name text); create view evil.pg_namespace as select 1;
create type evil.text as (a integer); create domain evil.int8 as integer check (false);
create domain evil."int" as integer check (false);
create function evil.format_type(oid, integer) returns text language sql as $$ select 'evil' $$;
create function evil.current_setting(text) returns text language sql as $$ select 'evil' $$;
create function evil.never(oid, oid) returns boolean language sql as $$ select false $$;
create operator evil.= (leftarg = oid, rightarg = oid, procedure = evil.never);
create function evil.never(name, name) returns boolean language sql as $$ select false $$;
create operator evil.= (leftarg = name, rightarg = name, procedure = evil.never);
create function evil.pg_logical_emit_message(boolean, text, text) returns pg_lsn
    language sql as $$ select '0/0'::pg_lsn $$;
"""


def test_hostile_settings_of_roles_and_databases_change_nothing(
    database: Database, log: eventlog.Log
) -> None:
    database.execute(
        "create table t (id int primary key, d date, ts timestamptz, i interval, b bytea, f float8,"
        ' m money, r regclass, x text[]); create table "T" (id int primary key, r regtype)'
    )
    values = (
        "'2026-01-31', '2026-01-31 12:00+02', '-1 mon 2 days 03:04:05', '\\x00ff41',"
        " 0.1 + 0.2::float8, (-12.5)::numeric::money, '\"T\"', array['a', null, 'NULL']"
    )
    database.execute(f"""insert into t select 1, {values}; insert into "T" values (1, '"T"')""")
    database.execute(EVIL)
    before = database.connection
    role = f"hostile_{database.name}"
    database.execute(f"create role {role} superuser login replication")
    hostile = dict(HOSTILE)
    if before.info.server_version >= 170_000:
        hostile["transaction_timeout"] = "'20ms'"
    try:
        for place, (setting, value) in enumerate(hostile.items()):
            target = f"role {role}" if place % 2 else f"database {database.name}"
            database.execute(f"alter {target} set {setting} = {value}")
        source = cdc.Source("shop", f"{database.dsn} user={role}", ("public.*",))
        source.capture(log, until="current")
        database.execute(f"""insert into t select 2, {values}; insert into "T" values (2, '"T"')""")
        source.capture(log, until="current")
    finally:
        database.execute(f"alter database {database.name} reset all")
        database.execute(f"alter database {database.name} set search_path = pg_catalog")
        database.execute(f"reassign owned by {role} to postgres; drop role {role}")
    assert_snapshot_equals_postgres(log, database, "t", '"T"')
    (one, two) = log.snapshot("shop").table("public.t").to_arrow(cast={"i": "text"}).to_pylist()
    assert one == {**two, "id": 1}
    assert (one["i"], one["r"]) == ("P-1M2DT3H4M5S", 'public."T"')


@pytest.fixture
def locales(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Locales that servers which are started now know: de_DE and sv_SE."""
    with TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o755)  # The server may run as another user.
        for name in ("de_DE", "sv_SE"):
            _make_locale(name, place / f"{name}.UTF-8")
        monkeypatch.setenv("LOCPATH", folder)
        yield


@pytest.mark.usefixtures("locales")
def test_money_is_stored_the_same_whatever_the_locale(log: eventlog.Log) -> None:
    """Server and role write it in other ways."""
    settings = {**SETTINGS, "lc_monetary": "de_DE.UTF-8"}
    with (
        EmbeddedServer.start(bindir=bindir(WHEEL), settings=settings) as server,
        psycopg.connect(server.dsn, autocommit=True) as conn,
    ):
        shown = conn.execute("select (-1234.5)::numeric::money::text").fetchone()
        assert shown == ("-1.234,50 €",), "the locale is in force"
        conn.execute("create table t (id int primary key, m money)")
        conn.execute("insert into t values (1, (-1234.5)::numeric::money)")
        conn.execute("create role odd superuser login replication")
        conn.execute("alter role odd set lc_monetary = 'sv_SE.UTF-8'")
        source = cdc.Source("shop", f"{server.dsn} user=odd", ("t",))
        source.capture(log, until="current")
        conn.execute("insert into t values (2, (-1234.5)::numeric::money)")
        source.capture(log, until="current")
    assert [row["m"] for row in rows_of(log)] == ["-$1,234.50"] * 2


def _make_locale(name: str, place: Path) -> None:
    """Make a locale that writes money as `name` does; the rest, which takes long, is POSIX's."""
    if shutil.which("localedef") is None or not Path(f"/usr/share/i18n/locales/{name}").exists():
        pytest.skip("no locales can be made here: apt-get install locales")
    copied = {f"LC_{kind}": "POSIX" for kind in ("CTYPE", "COLLATE", "NUMERIC", "TIME", "MESSAGES")}
    copied["LC_MONETARY"] = name
    source = place.with_suffix(".source")
    parts = (f'{kind}\ncopy "{found}"\nEND {kind}\n' for kind, found in copied.items())
    source.write_text("comment_char %\nescape_char /\n" + "".join(parts))
    command = ["localedef", "-c", "-i", str(source), "-f", "UTF-8", str(place)]
    made = subprocess.run(command, capture_output=True, text=True)
    # It warns, with 1, of what is not there.
    assert made.returncode in (0, 1) and place.exists(), made


def test_the_high_half_of_char_is_a_byte_before_15_and_octal_since(
    database: Database, log: eventlog.Log
) -> None:
    database.execute(
        'create table t (id int primary key, c "char", a "char"[]);'
        'insert into t select n, n::"char", array[n::"char"] from generate_series(-128, 127) n'
    )
    shop(database).capture(log, until="current")
    database.execute("insert into t select id + 1000, c, a from t")
    shop(database).capture(log, until="current")
    rows = rows_of(log)
    assert len(rows) == 512
    octal = database.connection.info.server_version >= 150_000
    for row in rows:
        code = (row["id"] - 1000 if row["id"] > 500 else row["id"]) & 0xFF
        escaped = b"\\%03o" % code if octal else bytes([code])
        expected = escaped if code > 127 else bytes([code]).strip(b"\0")
        assert row["c"].encode("utf-8", "surrogateescape") == expected
        assert [item.encode("utf-8", "surrogateescape") for item in row["a"]] == [expected]
    for batch in log.stream("shop").read().batches():
        assert len(list(batch.json_lines())) == len(batch)


def test_unchanged_values_are_filled_from_the_history_of_their_row(
    database: Database, log: eventlog.Log
) -> None:
    long = "repeat(md5(({})::text), 1000)"
    database.execute(
        "create table t (id int primary key, n int, body text, list text[], doc jsonb);"
        "create table f (id int, n int, body text); alter table f replica identity full;"
        "create table k (id text primary key, n int, body text);"
        "alter table k alter id set storage external, alter body set storage external;"
        f"insert into k select repeat(g::text, 2000), 0, {long.format('g')}"
        " from generate_series(1, 3) g;"
        "alter table t alter body set storage external, alter list set storage external,"
        " alter doc set storage external; alter table f alter body set storage external;"
        f"insert into t select g, 0, {long.format('g')}, array[{long.format('g + 1')}],"
        f" to_jsonb({long.format('g + 2')}) from generate_series(1, 3) g;"
        f"insert into f select g, 0, {long.format('g')} from generate_series(1, 2) g"
    )
    shop(database).capture(log, until="current")
    end = log.stream("shop").end
    database.execute(
        "update t set n = 1; update t set id = id + 10 where id = 2; update f set n = 1;"
        f"update t set body = {long.format(9)} where id = 1; update t set n = 2;"
        f"delete from t where id = 3; insert into t select 3, 5, {long.format(4)};"
        "update k set n = 1; update k set id = repeat('4', 2000) where id like '3%';"
        "update k set n = n + 1; delete from k where id like '1%';"
        "update t set n = n + 1; begin; update t set id = 20 where id = 1;"
        "update t set id = 1 where id = 12; update t set id = 12 where id = 20; commit"
    )
    shop(database).capture(log, until="current")
    raw: list[Change] = list(log.stream("shop").read(end))
    filled: list[Change] = list(log.stream("shop").read(end, fill=True))
    assert sum(UNCHANGED in (change.row or {}).values() for change in raw) > 10
    assert not any(UNCHANGED in (change.row or {}).values() for change in filled)
    assert_snapshot_equals_postgres(log, database, "t", "f", "k")
    latest = {change.key: change.row for change in filled if change.table == "public.t"}
    for key, n, body in database.fetch("select id, n, body from t"):
        row = latest[key]
        assert row is not None and (row["n"], row["body"]) == (n, body)
