"""Every finding of `doctor`, judged from facts and found on real servers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import make_conninfo

from cdc import errors
from cdc.commands.doctor import doctor
from cdc.postgres.doctor import Finding, Severity, examine, judge
from cdc.postgres.facts import Facts, SlotFact, TableFact
from cdc.postgres.schema.catalog import PassedOver, Table
from cdc.postgres.schema.table_spec import TableSpec
from cdc.postgres.server import EmbeddedServer
from eventlog.changes.table_name import TableName
from tests.fix_postgres import SETTINGS, WHEEL, Database, RunCli, assert_explained, bindir

TABLE = TableFact(
    table=Table(
        oid=1,
        schema="public",
        name="orders",
        kind="r",
        identity="d",
        has_key=True,
        updatable=True,
        columns=("id",),
        rows_estimate=None,
    ),
    owner="cdc",
    owned=True,
    usage=True,
    select=True,
    row_security=False,
    candidate="orders_pkey",
)

HEALTHY = Facts(
    version=180_006,
    database="shop",
    user="cdc",
    wal_level="logical",
    standby=False,
    may_replicate=True,
    may_create=True,
    replication_fault=None,
    slots_used=1,
    slots_max=10,
    senders_used=1,
    senders_max=10,
    wal_sender_timeout_ms=60_000,
    idle_slot_timeout_ms=0,
    slot_wal_keep_mb=1024,
    inactive_slots=(SlotFact(name="small", wal_status="reserved", retained_bytes=1 << 20),),
    tables=(TABLE,),
    missing=(),
    passed_over=(),
)


def table_fact(*, updatable: bool = True, kind: str = "r", **changes: Any) -> TableFact:
    table = dataclasses.replace(TABLE.table, updatable=updatable, kind=kind)
    return dataclasses.replace(TABLE, table=table, **changes)


def problems(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity is not Severity.OK]


def test_a_healthy_server_has_no_problem() -> None:
    findings = judge(HEALTHY)
    assert problems(findings) == []
    assert {f.subject for f in findings} >= {"version", "wal_level", "replication", "public.orders"}


@pytest.mark.parametrize(
    ("changes", "severity", "subject", "said", "remedy"),
    [
        ({"version": 130_020}, "error", "version", "13 is too old", "upgrade"),
        ({"wal_level": "replica"}, "error", "wal_level", "'replica'", "SET wal_level = 'logical'"),
        ({"standby": True}, "error", "server", "standby", "primary"),
        ({"wal_sender_timeout_ms": 0}, "warning", "wal_sender_timeout", "is 0", "'60s'"),
        ({"wal_sender_timeout_ms": 500}, "warning", "wal_sender_timeout", "500 ms", "'60s'"),
        ({"slots_used": 10}, "error", "slots", "10 of 10", "max_replication_slots = 20"),
        ({"senders_used": 10}, "error", "senders", "10 of 10", "max_wal_senders = 20"),
        ({"slot_wal_keep_mb": -1}, "warning", "max_slot_wal_keep_size", "is -1", "ALTER SYSTEM"),
        (
            {"idle_slot_timeout_ms": 60_000},
            "warning",
            "idle_replication_slot_timeout",
            "60 s",
            "= 0",
        ),
        (
            {
                "inactive_slots": (
                    SlotFact(name="s", wal_status="extended", retained_bytes=3 << 30),
                )
            },
            "warning",
            "slot s",
            "keeps 3.0 GiB",
            "pg_drop_replication_slot('s')",
        ),
        (
            {"inactive_slots": (SlotFact(name="s", wal_status="lost", retained_bytes=0),)},
            "warning",
            "slot s",
            "lost WAL",
            "pg_drop_replication_slot('s')",
        ),
        (
            {
                "may_replicate": False,
                "replication_fault": errors.PermissionMissing("may not", hint="h"),
            },
            "error",
            "replication",
            "'cdc' may not replicate",
            "ALTER ROLE cdc REPLICATION;",
        ),
        (
            {"replication_fault": errors.AuthenticationFailed("pg_hba.conf lets not", hint="hba")},
            "error",
            "replication",
            "pg_hba.conf lets not",
            "hba",
        ),
        (
            {"may_create": False},
            "error",
            "publications",
            "may not make publications in database 'shop'",
            "GRANT CREATE ON DATABASE shop TO cdc;",
        ),
        (
            {"missing": (errors.MissingTable("there is no table public.x", hint="did you"),)},
            "error",
            "tables",
            "there is no table public.x",
            "did you",
        ),
        (
            {"passed_over": (PassedOver(schema="public", name="v", reason="is a view"),)},
            "warning",
            "public.v",
            "it is a view",
            "name other",
        ),
        (
            {"tables": (table_fact(owned=False, owner="App"),)},
            "error",
            "public.orders",
            "belongs to 'App'",
            'GRANT "App" TO cdc;',
        ),
        (
            {"tables": (table_fact(select=False, usage=False),)},
            "error",
            "public.orders",
            "may not be read",
            "GRANT USAGE ON SCHEMA public TO cdc; GRANT SELECT ON public.orders TO cdc;",
        ),
        (
            {"tables": (table_fact(row_security=True),)},
            "error",
            "public.orders",
            "hides rows",
            "ALTER ROLE cdc BYPASSRLS;",
        ),
        (
            {"tables": (table_fact(updatable=False),)},
            "warning",
            "public.orders",
            "only its inserts",
            "ALTER TABLE public.orders REPLICA IDENTITY USING INDEX orders_pkey;",
        ),
        (
            {"tables": (table_fact(updatable=False, candidate=None),)},
            "warning",
            "public.orders",
            "only its inserts",
            "ALTER TABLE public.orders REPLICA IDENTITY FULL;",
        ),
        (
            {"tables": (table_fact(updatable=False, kind="p"),)},
            "warning",
            "public.orders",
            "only its inserts",
            "primary key",
        ),
        (
            {"tables": (table_fact(kind="p"),)},
            "warning",
            "public.orders",
            "detaching one partition is not captured",
            "anew",
        ),
    ],
)
def test_each_fault_is_one_finding_with_its_remedy(
    changes: dict[str, Any], severity: str, subject: str, said: str, remedy: str
) -> None:
    (finding,) = problems(judge(dataclasses.replace(HEALTHY, **changes)))
    assert (finding.severity, finding.subject) == (severity, subject)
    assert said in finding.finding
    assert remedy in finding.remedy


TABLES = """
create table keyed (id int primary key);
create table keyless (note text);
create table unique_one (id int not null, note text);
create unique index "Unique" on unique_one (id) include (note);
create table partial (id int not null);
create unique index on partial (id) where id > 0;
create table maybe (id int unique);
create view peek as select 1 as one;
"""


@pytest.fixture
def plain(database: Database) -> Iterator[str]:
    """The name of a role that may do nothing but connect."""
    name = f"plain_{database.name}"
    database.execute(f"create role {name} login")
    yield name
    database.execute(f"drop owned by {name}")
    database.execute(f"drop role {name}")


def found(dsn: str, *names: str) -> list[Finding]:
    return examine(dsn, [TableName.parse(name) for name in names])


def test_a_superuser_on_a_fresh_server_finds_the_unlimited_slots_alone(database: Database) -> None:
    database.execute(TABLES)
    (finding,) = problems(found(database.dsn, "keyed"))
    assert finding.subject == "max_slot_wal_keep_size"


def test_replica_identities_are_mended_by_the_sql_that_is_printed(database: Database) -> None:
    database.execute(TABLES)
    before = {f.subject: f for f in problems(found(database.dsn, "public.*"))}
    assert before.pop("max_slot_wal_keep_size")
    assert before.pop("public.peek").finding == "is left out: it is a view"
    assert {
        name: f.remedy.partition(";")[0].partition("IDENTITY ")[2] for name, f in before.items()
    } == {
        "public.keyless": "FULL",
        "public.maybe": "FULL",
        "public.partial": "FULL",
        "public.unique_one": 'USING INDEX "Unique"',
    }
    for finding in before.values():
        database.execute(finding.remedy)
    after = {f.subject for f in problems(found(database.dsn, "public.*"))}
    assert after == {"max_slot_wal_keep_size", "public.peek"}


def test_a_role_without_rights_is_mended_by_the_sql_that_is_printed(
    database: Database, plain: str
) -> None:
    database.execute(TABLES)
    database.execute("revoke all on schema public from public")
    owner = f"owner_{database.name}"
    database.execute(f"create role {owner}; alter table keyed owner to {owner}")
    try:
        dsn = make_conninfo(database.dsn, user=plain)
        before = [f for f in found(dsn, "keyed") if f.severity is Severity.ERROR]
        assert [f.subject for f in before] == [
            "replication",
            "publications",
            "public.keyed",
            "public.keyed",
        ]
        for finding in before:
            database.execute(finding.remedy)
        assert [f for f in found(dsn, "keyed") if f.severity is Severity.ERROR] == []
    finally:
        database.execute(f"drop table keyed; drop owned by {owner}; drop role {owner}")


def test_grants_of_columns_are_enough_with_the_places_of_rows(
    database: Database, plain: str
) -> None:
    database.execute(TABLES)
    database.execute(
        "alter table keyed add note text;"
        "create table parts (id int primary key, v text) partition by range (id);"
        "create table part partition of parts for values from (0) to (10);"
    )
    database.execute(f"grant select (id) on keyed to {plain}")
    database.execute(f"grant select on parts to {plain}")
    dsn = make_conninfo(database.dsn, user=plain)

    def unreadable(*names: str) -> list[Finding]:
        findings = examine(dsn, [TableSpec.parse(name) for name in names])
        return [f for f in findings if "so its rows cannot be copied" in f.finding]

    (finding,) = unreadable("public.keyed(id)")
    assert "but for ctid (the places of rows, by which a table is copied" in finding.finding
    assert finding.remedy == f"GRANT SELECT (ctid) ON public.keyed TO {plain};"
    database.execute(finding.remedy)
    assert unreadable("public.keyed(id)") == []
    (rest,) = unreadable("public.keyed")
    database.execute(rest.remedy)
    (leaf,) = unreadable("public.parts")
    assert leaf.remedy == f"GRANT SELECT ON public.part TO {plain};"
    database.execute(leaf.remedy)
    assert unreadable("public.keyed", "public.parts") == []


def test_row_security_is_found_and_mended(database: Database, plain: str) -> None:
    database.execute(TABLES)
    database.execute(
        f"alter role {plain} replication; alter table keyed enable row level security;"
        f"grant select on keyed to {plain}"
    )
    dsn = make_conninfo(database.dsn, user=plain)
    (hidden,) = (f for f in found(dsn, "keyed") if "row security" in f.finding)
    database.execute(hidden.remedy)
    assert not any("row security" in f.finding for f in found(dsn, "keyed"))


def test_missing_tables_are_findings_beside_the_others(database: Database) -> None:
    database.execute(TABLES)
    findings = found(database.dsn, "keyd", "keyed", "nope.*")
    missing = [f for f in findings if f.subject == "tables"]
    assert [f.finding for f in missing] == [
        "there is no table public.keyd",
        "no table matches nope.*",
    ]
    assert "did you mean public.keyed" in missing[0].remedy
    assert any(f.subject == "public.keyed" and f.severity is Severity.OK for f in findings)


def test_a_server_that_is_not_prepared_for_anything() -> None:
    settings = {**SETTINGS, "wal_level": "replica", "idle_replication_slot_timeout": "1h"}
    settings |= {"max_wal_senders": "1", "max_replication_slots": "1"}
    with EmbeddedServer.start(bindir=bindir(WHEEL), settings=settings) as server:
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            admin.execute("select pg_create_physical_replication_slot('left', true)")
        with psycopg.connect(server.dsn + " replication=true", autocommit=True):
            findings = {f.subject: f for f in problems(found(server.dsn))}
    assert {name: f.severity.value for name, f in findings.items()} == {
        "wal_level": "error",
        "slots": "error",
        "senders": "error",
        "replication": "error",
        "max_slot_wal_keep_size": "warning",
        "idle_replication_slot_timeout": "warning",
    }


class TestCommand:
    def test_prints_findings_and_mends(self, database18: Database) -> None:
        database18.execute(TABLES)
        arguments = ["--dsn", database18.dsn, "--table", "keyless"]
        done = CliRunner().invoke(doctor, arguments)
        assert done.exit_code == 0, done
        assert "wal_level" in done.stdout and "is 'logical'" in done.stdout
        assert (
            "\n  public.keyless: ALTER TABLE public.keyless REPLICA IDENTITY FULL;" in done.stdout
        )
        assert "errors: 0, warnings: 2, ok: " in done.stdout
        assert done.stderr == ""

    def test_json_has_a_line_a_finding_and_errors_exit_with_1(self, database18: Database) -> None:
        arguments = ["--dsn", "env:SHOP_DSN", "--table", "nope", "--json"]
        done = CliRunner().invoke(doctor, arguments, env={"SHOP_DSN": database18.dsn})
        assert done.exit_code == 1
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert all(line.keys() == {"severity", "subject", "finding", "remedy"} for line in lines)
        assert [line["subject"] for line in lines if line["severity"] == "error"] == ["tables"]

    def test_a_password_among_the_arguments_draws_a_warning(self, database18: Database) -> None:
        dsn = make_conninfo(database18.dsn, password="hunter2")
        done = CliRunner().invoke(doctor, ["--dsn", dsn])
        assert "Warning: the list of processes shows the password" in done.stderr
        assert "hunter2" not in done.output
        quiet = CliRunner().invoke(doctor, [], env={"EVENTLOG_DSN": dsn})
        assert quiet.exit_code == 0 and quiet.stderr == ""

    def test_without_a_dsn_the_usage_is_wrong(self) -> None:
        assert CliRunner().invoke(doctor, [], env={"EVENTLOG_DSN": ""}).exit_code == 2

    @pytest.mark.parametrize(
        "dsn",
        [
            "host=127.0.0.1 port=1",
            "host=no.such.invalid",
            "service=nosuch",
            "env:NOT_SET_ANYWHERE",
            "mysql://localhost/shop",
        ],
    )
    def test_a_server_out_of_reach_is_one_sentence_and_a_hint(
        self, run_cli: RunCli, dsn: str
    ) -> None:
        assert_explained(run_cli("doctor", "--dsn", dsn))

    def test_a_wrong_table_name_is_one_sentence_and_a_hint(
        self, run_cli: RunCli, database18: Database
    ) -> None:
        assert_explained(run_cli("doctor", "--dsn", database18.dsn, "--table", "a..b"))
