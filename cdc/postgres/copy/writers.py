"""Waiting for the transactions that write at the moment: to a table, or at all.

A transaction that wrote to a table before the table was published may not be sent whole, and one
whose commit the stream has told already may still be running for a snapshot. Both hold a lock on
the table until every later snapshot sees them, so a copy begins when these locks are gone. A slot
waits for every transaction of the server that writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cdc.postgres.connection import Connection
from cdc.postgres.faults import translated

_WRITERS = """
with recursive tree as (
    select oid from pg_class where oid = any(%(oids)s)
    union
    select inhrelid from tree join pg_inherits on inhparent = tree.oid
)
select l.virtualtransaction, l.pid,
       (select gid from pg_prepared_xacts p
         where l.pid is null and '-1/' || p.transaction::text = l.virtualtransaction),
       extract(epoch from now() - a.xact_start)::float8
  from pg_locks l left join pg_stat_activity a on a.pid = l.pid
 where l.locktype = 'relation' and l.granted and l.relation in (select oid from tree)
   and l.database = (select oid from pg_database where datname = current_database())
   and l.mode in ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
                  'AccessExclusiveLock')
   and l.pid is distinct from pg_backend_pid()
"""


# A transaction that writes has a lock on its own number.
_RUNNING = """
select l.virtualtransaction, l.pid,
       (select gid from pg_prepared_xacts p where p.transaction = l.transactionid),
       extract(epoch from now() - a.xact_start)::float8
  from pg_locks l left join pg_stat_activity a on a.pid = l.pid
 where l.locktype = 'transactionid' and l.mode = 'ExclusiveLock' and l.granted
   and l.pid is distinct from pg_backend_pid()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class WritersOf:
    """The transactions that wrote to a table at one moment, each with what it is, in words."""

    waiting: dict[str, str]

    @classmethod
    def now(cls, conn: Connection, oids: Sequence[int]) -> WritersOf:
        """Those that hold locks for writing to these tables, or to parts of them."""
        with translated("looking for transactions that write to a table"):
            rows = conn.execute(_WRITERS, {"oids": list(oids)}).fetchall()
        return cls(waiting={row[0]: _words(*row[1:]) for row in rows})

    def left(self, conn: Connection, oids: Sequence[int]) -> list[str]:
        """Which of them have not ended, in words."""
        if not self.waiting:
            return []
        still = type(self).now(conn, oids).waiting
        return [words for name, words in self.waiting.items() if name in still]


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """The transactions of the server that wrote at one moment, each with what it is, in words."""

    waiting: dict[str, str]

    @classmethod
    def now(cls, conn: Connection) -> Writing:
        """Those that have written something by now, in any database."""
        with translated("looking for transactions that write"):
            rows = conn.execute(_RUNNING).fetchall()
        return cls(waiting={row[0]: _words(*row[1:]) for row in rows})

    def left(self, conn: Connection) -> list[str]:
        """Which of them have not ended, in words."""
        if not self.waiting:
            return []
        still = type(self).now(conn).waiting
        return [words for name, words in self.waiting.items() if name in still]


def _words(pid: int | None, gid: str | None, age_s: float | None) -> str:
    if pid is None:
        return f"the prepared transaction {gid!r}" if gid else "a prepared transaction"
    age = "" if age_s is None else f", which has run for {age_s:.0f} s"
    return f"the transaction of pid {pid}{age}"
