"""What a training row holds beside its own columns: look-ups, counts and labels, as definitions.

Frozen values that say what is wanted, and are checked when they are made; names of tables and
columns once the log is there. Nothing here reads a log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

from eventlog.changes.quantities import duration_us
from eventlog.changes.table_name import TableName
from eventlog.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

Condition: TypeAlias = "str | Callable[[pa.Table], Any]"
"""An expression in SQL, or a function of an Arrow table that gives a boolean for each row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """Columns of the row of another table that an instance refers to; see `lookup`.

    `on` None is the other table's key.
    """

    table: TableName
    by: tuple[str, ...]
    on: tuple[str, ...] | None
    columns: tuple[str, ...]
    name: str

    @property
    def names(self) -> list[str]:
        """What its columns are called in the result."""
        return [f"{self.name}.{column}" for column in self.columns]


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How many rows of a table an instance shares its values with; see `count`.

    `over_us` None counts however old they are.
    """

    table: TableName
    by: tuple[str, ...]
    on: tuple[str, ...]
    over_us: int | None
    as_inserts: bool
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Later:
    """A value of a later version of the same row; see `later`."""

    column: str
    when: Condition | None
    name: str

    @property
    def names(self) -> list[str]:
        """What its columns are called in the result: the value, and where it became known."""
        return [self.name, f"_{self.name}_offset"]


def lookup(
    table: str,
    *,
    by: str | Sequence[str],
    columns: str | Sequence[str],
    on: str | Sequence[str] | None = None,
    name: str | None = None,
) -> Lookup:
    """Columns of the row of `table` whose key equals the instance's columns `by`.

    The row as it was known then: by the records strictly below the instance's offset, those of its
    own transaction included. Where there was no such row (not yet, not any more, not copied yet),
    the columns are null. `on` names other columns than the key; of several rows that match, the
    one whose latest version has the greatest offset is taken. Columns are called `name.column`;
    `name` is the table's unless given. Compared is the source's text, and NULL matches nothing.
    Raises UsageError.
    """
    found = _one_table(table)
    given = _columns(columns, "columns=")
    matched = _columns(by, "by=")
    return Lookup(
        table=found,
        by=matched,
        on=None if on is None else _as_many(matched, _columns(on, "on=")),
        columns=given,
        name=_name(name, found.name),
    )


def count(
    table: str,
    *,
    by: str | Sequence[str],
    over: str | timedelta | None = None,
    on: str | Sequence[str] | None = None,
    name: str | None = None,
    as_inserts: bool = False,
) -> Count:
    """The number of rows of `table` whose columns `on` equal the instance's columns `by`.

    Counted are rows that stood, as known then (see `lookup`): deletes take away, an update that
    changes `on` moves the row, a truncate empties. Of these, the rows inserted within the last
    `over` (`"90d"`): event times in (t - over, t], where t is the instance's. A record's event time
    is the greatest commit time up to it, so that the past never changes; a copied row's that of its
    copy; a row's that of the first record that brought it. The instance itself is not counted.

    `on` is `by` unless given; `name` is the table's and the span. `as_inserts` counts every insert,
    which is all that can be said of a table whose updates and deletes the source does not send.
    Raises UsageError.
    """
    found = _one_table(table)
    matched = _columns(by, "by=")
    over_us = None if over is None else duration_us(over)
    if over_us == 0:
        raise UsageError("over= is no time at all", hint="give a span such as 90d")
    span = ""
    if over_us is not None:
        span = f"_{over.replace(' ', '')}" if isinstance(over, str) else f"_{over_us // 10**6}s"
    return Count(
        table=found,
        by=matched,
        on=matched if on is None else _as_many(matched, _columns(on, "on=")),
        over_us=over_us,
        as_inserts=as_inserts,
        name=_name(name, f"{found.name}{span}"),
    )


def later(column: str, *, when: Condition | None = None, name: str = "label") -> Later:
    """The value of `column` in the first later version of the instance's row that has one.

    That is the first whose value is not NULL, or for which `when` holds: a condition on the later
    version, as `where=` of `Snapshot.seen` is one on the instance. The row is followed through key
    changes and, by its key, through a copy that is taken again, until it is deleted or its table
    truncated, and up to the snapshot's cut. The result has `name`, and
    `_name_offset` with the offset at which the value became known; both are null where it is open.
    Raises UsageError.
    """
    (checked,) = _columns(column, "later()")
    return Later(column=checked, when=when, name=_name(name, "label"))


def _one_table(text: str) -> TableName:
    found = TableName.parse(text)
    if found.is_pattern:
        raise UsageError(f"{text!r} is not one table", hint="name one table")
    return found


def _columns(given: str | Sequence[str], where: str) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(given)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise UsageError(f"{where} names no column", hint="give a column's name, or several")
    if len(set(names)) < len(names):
        raise UsageError(f"{where} names a column twice", hint="name each once")
    return names


def _as_many(by: tuple[str, ...], on: tuple[str, ...]) -> tuple[str, ...]:
    if len(by) != len(on):
        raise UsageError(
            f"by= names {len(by)} columns and on= {len(on)}",
            hint="they are compared one by one, in their order",
        )
    return on


def _name(given: str | None, default: str) -> str:
    name = default if given is None else given
    if not isinstance(name, str) or not name or name.startswith("_"):
        raise UsageError(
            f"{name!r} cannot be the name of a column here",
            hint="give another with name=; a leading _ is the log's own",
        )
    return name
