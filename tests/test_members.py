"""Publications hold the tables that were meant, whatever names pass to other tables meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from cdc import errors
from cdc.postgres.connection import Connection, connect
from cdc.postgres.publishing import members, publication
from cdc.postgres.schema import catalog
from cdc.postgres.schema.catalog import Table
from tests.fix_capture import until
from tests.fix_postgres import Database

TABLES = """
create table a (id int primary key, note text);
create table b (id int primary key, note text);
create table c (id int primary key, note text);
"""
SWAP = "begin; alter table a rename to x; alter table b rename to a; alter table x rename to b; end"
MOVED_AWAY = "alter table a rename to elsewhere"
NAMESAKE = MOVED_AWAY + "; create table a (id int primary key, note text)"
WITHOUT_COLUMN = MOVED_AWAY + "; create table a (id int primary key)"
A_VIEW = MOVED_AWAY + "; create view a as select 1 as one"
PASSING = [SWAP, MOVED_AWAY, NAMESAKE, WITHOUT_COLUMN, A_VIEW]
"""What somebody else may do between a look at the catalog and a statement."""

NAMES = ("eventlog_shop", "eventlog__inserts_shop")


@pytest.fixture
def conn(database: Database) -> Iterator[Connection]:
    database.execute(TABLES)
    with closing(connect(database.dsn)) as conn:
        yield conn


Meanwhile = Callable[..., list[str]]


@pytest.fixture
def meanwhile(database: Database, monkeypatch: pytest.MonkeyPatch) -> Meanwhile:
    """Does something elsewhere just before the next statements about publications.

    Returns a list that comes to hold the statements.
    """

    def plan(*done: str) -> list[str]:
        coming, seen, run = iter(done), [], members.run

        def late(conn: Connection, statement: Any, name: str) -> None:
            if (what := next(coming, None)) is not None:
                database.execute(what)
            seen.append(statement.as_string(conn))
            run(conn, statement, name)

        monkeypatch.setattr(members, "run", late)
        monkeypatch.setattr(publication, "run", late)
        return seen

    return plan


def tables(conn: Connection, *names: str) -> list[Table]:
    return catalog.resolve_tables(conn, list(map(catalog.TableSpec.parse, names)))


def sent(conn: Connection, name: str = NAMES[0]) -> set[int]:
    return set(members.members(conn, name))


@pytest.mark.parametrize("done", PASSING)
def test_a_publication_is_made_for_the_tables_that_were_meant(
    conn: Connection, meanwhile: Meanwhile, done: str
) -> None:
    [a, c] = tables(conn, "a", "c")
    said = meanwhile(done)
    publication.ensure_both(conn, "shop", [a, c])
    assert sent(conn) == {a.oid, c.oid}
    assert len(said) > 2, "the first attempt went astray"


@pytest.mark.parametrize("done", PASSING)
@pytest.mark.parametrize("spec", ["a", "a(id,note)"])
def test_the_table_that_was_meant_is_added(
    conn: Connection, meanwhile: Meanwhile, done: str, spec: str
) -> None:
    if "(" in spec and conn.info.server_version < 150_000:
        pytest.skip("no column lists before 15")
    publication.ensure_both(conn, "shop", tables(conn, "c"))
    [a, c] = tables(conn, spec, "c")
    meanwhile(done)
    assert publication.add(conn, NAMES, [a]) == [a]
    assert sent(conn) == {a.oid, c.oid}


@pytest.mark.parametrize("done", PASSING)
@pytest.mark.parametrize("both", [False, True])
def test_the_table_that_was_meant_is_taken_out(
    conn: Connection, meanwhile: Meanwhile, done: str, both: bool
) -> None:
    """`both`: the other one that the name means by then is a member, too."""
    others = tables(conn, "b", "c") if both else tables(conn, "c")
    [a] = tables(conn, "a")
    publication.ensure_both(conn, "shop", [a, *others])
    meanwhile(done)
    publication.remove(conn, NAMES, [a.oid])
    assert sent(conn) == {table.oid for table in others}


def test_the_table_that_was_meant_moves_when_its_identity_goes(
    database: Database, conn: Connection, meanwhile: Meanwhile
) -> None:
    publication.ensure_both(conn, "shop", tables(conn, "a", "b", "c"))
    [a, b, c] = tables(conn, "a", "b", "c")
    database.execute("alter table a replica identity nothing")
    [bare] = tables(conn, "a")
    assert not bare.updatable
    meanwhile(SWAP)
    publication.add(conn, NAMES, [bare])
    assert sent(conn) == {b.oid, c.oid}
    assert sent(conn, NAMES[1]) == {a.oid}


def test_a_table_that_was_made_anew_under_its_name_is_not_sent(
    conn: Connection, meanwhile: Meanwhile
) -> None:
    publication.ensure_both(conn, "shop", tables(conn, "c"))
    [a, c] = tables(conn, "a", "c")
    meanwhile("drop table a; create table a (id int primary key, secret text)")
    with pytest.raises(errors.MissingTable, match=r"public\.a was dropped meanwhile") as caught:
        publication.add(conn, NAMES, [a])
    assert caught.value.hint
    assert sent(conn) == {c.oid}


def test_names_that_pass_on_for_ever_change_nothing(conn: Connection, meanwhile: Meanwhile) -> None:
    publication.ensure_both(conn, "shop", tables(conn, "c"))
    [a, c] = tables(conn, "a", "c")
    meanwhile(*[SWAP] * (2 * members.ATTEMPTS))
    with pytest.raises(errors.ServerError, match="renamed again and again") as caught:
        publication.add(conn, NAMES, [a])
    assert caught.value.hint
    assert sent(conn) == {c.oid}


def test_who_locks_the_tables_in_another_order_goes_on(
    database: Database, conn: Connection
) -> None:
    publication.ensure_both(conn, "shop", tables(conn, "c"))
    [a, b] = tables(conn, "a", "b")
    conn.execute("set deadlock_timeout = '50ms'")
    waits = f"select count(*) from pg_locks where pid = {conn.info.backend_pid} and not granted"
    with (
        ThreadPoolExecutor(1) as pool,
        closing(connect(database.dsn)) as other,
        other.transaction(),
    ):
        other.execute("lock table public.b in access exclusive mode")
        adding = pool.submit(publication.add, conn, NAMES, [a, b])
        until(lambda: database.value(waits), "the wait for b")
        other.execute("lock table public.a in access exclusive mode")
        with pytest.raises(errors.TableLocked, match="deadlock") as caught:
            adding.result()
    assert caught.value.retry and caught.value.hint
    assert publication.add(conn, NAMES, [a, b]) == [a, b]


def test_a_publication_that_is_gone_is_told_as_such(database: Database, conn: Connection) -> None:
    publication.ensure_both(conn, "shop", [])
    database.execute("drop publication eventlog_shop")
    with pytest.raises(errors.ServerError, match='"eventlog_shop" does not exist'):
        publication.add(conn, NAMES, tables(conn, "a"))
