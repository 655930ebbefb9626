"""Random histories, and what was seen in them: the oracle of `tests/test_seen.py`.

`History` writes a captured stream through `MadeSource`, as a source that does random things would.
`World` is told the same records one by one, and answers by plain search through rows held as Python
objects: nothing is coded, sorted or linked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from eventlog import UNCHANGED, Op
from eventlog.changes.change import ABSENT
from tests.fix_log import (
    HOUR_US,
)

Texts = tuple[Any, ...]
HOURS = 6
"""The span of the windowed count."""

ROW_OPS = (Op.READ, Op.INSERT, Op.UPDATE, Op.DELETE)


@dataclass(eq=False)
class Live:
    """One row: the same object as long as it is the same row."""

    values: Texts
    born_us: int
    version: int
    versions: list[tuple[int, Texts]] = field(default_factory=list)


class TableWorld:
    """The rows of one table, known by their key or, without one, by all their values."""

    def __init__(self, key: tuple[int, ...] | None) -> None:
        self.key = key
        self.rows: list[Live] = []
        self.followed: list[Live] = []
        self.inserted: list[tuple[Texts, int]] = []

    def find(self, rows: list[Live], like: Texts) -> Live | None:
        """The latest row that is the same one."""
        places = range(len(like)) if self.key is None else self.key
        found = [row for row in rows if all(row.values[at] == like[at] for at in places)]
        return max(found, key=lambda row: row.version, default=None)

    def rekey(self, key: tuple[int, ...]) -> None:
        """Another key tells rows apart from now on; of equal ones the latest stays."""
        self.key = key
        rows, self.rows = sorted(self.rows, key=lambda row: row.version), []
        for row in rows:
            self._drop(self.rows, self.find(self.rows, row.values))
            self.rows.append(row)

    def apply(self, offset: int, now_us: int, op: Op, old: Texts | None, new: Texts | None) -> None:
        """Take in one record."""
        if op in (Op.TRUNCATE, Op.COPY_BEGIN):
            self.rows, self.inserted = [], []
            if op is Op.TRUNCATE:
                self.followed = []
        if op not in ROW_OPS:
            return
        named = old if old is not None else new
        assert named is not None
        before = self.find(self.rows, named) if op in (Op.UPDATE, Op.DELETE) else None
        follows = None if op is Op.INSERT else self.find(self.followed, named)
        self._drop(self.rows, before)
        self._drop(self.followed, follows)
        if new is None:
            return
        new = filled(new, before, old)
        if op is not Op.UPDATE:
            self.inserted.append((new, now_us))
        if self.key is not None:
            self._drop(self.rows, self.find(self.rows, new))
            self._drop(self.followed, self.find(self.followed, new))
        row = before or Live(new, now_us, offset)
        follower = row if self.key is None else follows or Live(new, now_us, offset)
        row.values, row.version = new, offset
        follower.values, follower.version = new, offset
        follower.versions.append((offset, new))
        self.rows.append(row)
        self.followed.append(follower)

    @staticmethod
    def _drop(rows: list[Live], row: Live | None) -> None:
        if row is not None:
            rows.remove(row)


def filled(new: Texts, before: Live | None, old: Texts | None) -> Texts:
    """A new row with what it left unchanged."""
    source = old if before is None else before.values
    if source is None:
        return new
    return tuple(
        source[at] if value is UNCHANGED and source[at] is not ABSENT else value
        for at, value in enumerate(new)
    )


def shown(value: Any) -> Any:
    """What a value is in the answer: text, or None for every nothing."""
    return None if value is None or value is UNCHANGED or value is ABSENT else str(value)


ORDERS = ("region", "number", "customer", "amount", "body", "done")
CUSTOMERS = ("id", "tier", "body", "vip")
ACCOUNTS = ("id", "code", "owner")


@dataclass(eq=False)
class Instance:
    """What was seen at one change of `orders`, under the names of the answer."""

    offset: int
    op: Op
    seen: dict[str, Any]
    row: Live | None = None


class World:
    """All tables; `instances` holds what was seen with each change of `orders`."""

    def __init__(self) -> None:
        self.tables = {
            "customers": TableWorld((0,)),
            "orders": TableWorld((0, 1)),
            "accounts": TableWorld((0,)),
            "visits": TableWorld(None),
            "hits": TableWorld(None),
        }
        self.now_us = -(2**63)
        self.instances: list[Instance] = []

    def tell(
        self,
        offset: int,
        time_us: int,
        table: str,
        op: Op,
        old: Texts | None,
        new: Texts | None,
    ) -> None:
        """The record at `offset`, after all those before it."""
        self.now_us = max(self.now_us, time_us)
        world = self.tables[table]
        seen = None
        if table == "orders" and op in ROW_OPS:
            seen = Instance(offset, op, self._seen(op, old, new))
            self.instances.append(seen)
        world.apply(offset, self.now_us, op, old, new)
        if seen is not None and new is not None:
            seen.row = world.followed[-1]

    def expected(self) -> list[dict[str, Any]]:
        """The rows of the answer, labels found among what came later."""
        rows = []
        for instance in self.instances:
            later = [] if instance.row is None else instance.row.versions
            labels = {}
            for name, place, wanted in (("label", 5, None), ("paid", 3, "9")):
                found = [
                    (offset, values[place])
                    for offset, values in later
                    if offset > instance.offset
                    and (values[place] is not None if wanted is None else values[place] == wanted)
                ]
                offset, value = found[0] if found else (None, None)
                labels |= {name: shown(value), f"_{name}_offset": offset}
            rows.append(
                {"_offset": instance.offset, "_op": str(instance.op)} | instance.seen | labels
            )
        return rows

    def _seen(self, op: Op, old: Texts | None, new: Texts | None) -> dict[str, Any]:
        orders = self.tables["orders"]
        named = old if old is not None else new
        assert named is not None
        before = orders.find(orders.rows, named) if op in (Op.UPDATE, Op.DELETE) else None
        gone = before.values if before else old or (None,) * len(ORDERS)
        row = gone if new is None else filled(new, before, old)
        customer, region = row[2], row[0]
        seen = {name: shown(value) for name, value in zip(ORDERS, row, strict=True)}
        seen |= {f"old.{name}": shown(v) for name, v in zip(ORDERS, gone, strict=True)}
        looked = self._look("customers", (0,), (customer,))
        seen |= {f"customers.{n}": v for n, v in zip(CUSTOMERS[1:], looked[1:4], strict=True)}
        seen |= {"accounts.id": self._look("accounts", (1,), (customer,))[0]}
        seen |= {"accounts.owner": self._look("accounts", (1,), (customer,))[2]}
        seen |= {"last.number": self._look("orders", (2,), (customer,))[1]}
        seen |= {"same.amount": self._look("orders", (0, 1), (region, row[1]))[3]}
        seen |= {"visit.page": self._look("visits", (0,), (customer,))[1]}
        seen["orders_6h"] = self._count("orders", (2,), (customer,), hours=HOURS)
        seen["orders"] = self._count("orders", (2, 0), (customer, region))
        seen["customers_6h"] = self._count("customers", (1,), (row[3],), hours=HOURS)
        seen["visits"] = self._count("visits", (0,), (customer,))
        hits = [values for values, _ in self.tables["hits"].inserted if known(customer)]
        seen["hits"] = sum(values[0] == customer for values in hits)
        return seen

    def _like(self, table: str, places: Texts, values: Texts) -> Iterator[Live]:
        if all(map(known, values)):
            for row in self.tables[table].rows:
                if all(row.values[at] == v for at, v in zip(places, values, strict=True)):
                    yield row

    def _look(self, table: str, places: Texts, values: Texts) -> Texts:
        rows = self._like(table, places, values)
        found = max(rows, key=lambda row: row.version, default=None)
        return (None,) * 6 if found is None else tuple(map(shown, found.values))

    def _count(self, table: str, places: Texts, values: Texts, *, hours: int = 0) -> int:
        after = self.now_us - hours * HOUR_US if hours else -(2**64)
        return sum(row.born_us > after for row in self._like(table, places, values))


def known(value: Any) -> bool:
    return value is not None and value is not UNCHANGED and value is not ABSENT
