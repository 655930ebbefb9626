"""A year of a shop as its capture would have stored it, made without a server.

Every transaction brings one order, often with a change of a customer, a product or an older order.
Commit times differ and ascend.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from contextlib import closing

import numpy as np

import eventlog
from eventlog.changes.schema import Column, Schema
from eventlog.engine import Append, Plan, SourceUpdate, Transactions, batch_of
from eventlog.engine.batch import BATCH_BYTES

STREAM = "shop"
SEED = 6
PGOUTPUT = 3
START_US = 1_767_225_600_000_000
YEAR_US = 365 * 86_400_000_000
INT, BIGINT, TEXT, NUMERIC, TIMESTAMPTZ = 23, 20, 25, 1700, 1184

ORDERS_A_CUSTOMER, ORDERS_A_PRODUCT = 20, 100
CHANGE_SHARE, DELIVERED_SHARE, DELETED_SHARE = 0.2, 0.2, 0.01


def _schema(schema_id: int, name: str, *columns: tuple[str, int]) -> Schema:
    return Schema(
        id=schema_id,
        offset=0,
        relation=16_400 + schema_id,
        namespace="public",
        name=name,
        identity="d",
        columns=tuple(Column(name=n, type=t, typmod=-1, key=n == "id") for n, t in columns),
    )


CUSTOMERS = _schema(0, "customers", ("id", INT), ("tier", TEXT), ("country", TEXT))
PRODUCTS = _schema(1, "products", ("id", INT), ("price", NUMERIC))
ORDERS = _schema(
    2,
    "orders",
    ("id", BIGINT),
    ("customer_id", INT),
    ("product_id", INT),
    ("amount", NUMERIC),
    ("delivered_at", TIMESTAMPTZ),
)


def write(log: eventlog.Log, orders: int) -> None:
    """Write the stream; the same for the same number of orders."""
    log.engine.create_stream(STREAM, "captured")
    with closing(log.engine.writer(STREAM)) as writer:
        schemas = [(s.id, s.to_map()) for s in (CUSTOMERS, PRODUCTS, ORDERS)]
        relations = tuple((s.relation, s.id) for s in (CUSTOMERS, PRODUCTS, ORDERS))
        for records, firsts in _batches(orders):
            first = np.array([slot for slot, _ in firsts], np.uint32)
            number = np.array([number for _, number in firsts], np.int64)
            transactions = Transactions(
                first=first,
                time=START_US + number * (YEAR_US // orders),
                tx=(number + 700).astype(np.uint64),
                position=((number + 1) << 8).astype(np.uint64),
            )
            batch = batch_of(PGOUTPUT, records, transactions, relations=relations)
            source = SourceUpdate(
                stream=STREAM,
                writer_epoch=writer.epoch,
                state={"codec": PGOUTPUT, "position": (int(number[-1]) + 1) << 8},
                schemas=schemas,
            )
            schemas = []
            appends = [Append(stream=STREAM, batches=[batch])]
            log.engine.commit(Plan(appends=appends, sources=[source]))


def _batches(orders: int) -> Iterator[tuple[list[bytes], list[tuple[int, int]]]]:
    """Records of a batch, and of its transactions the first slot and the number."""
    records: list[bytes] = []
    firsts: list[tuple[int, int]] = []
    size = 0
    for number, transaction in enumerate(_transactions(orders)):
        cost = sum(len(record) + 4 for record in transaction)
        if size + cost > BATCH_BYTES:
            yield records, firsts
            records, firsts, size = [], [], 0
        firsts.append((len(records), number))
        records += transaction
        size += cost
    yield records, firsts


def _transactions(orders: int) -> Iterator[list[bytes]]:
    draw = random.Random(SEED)
    customers, products = orders // ORDERS_A_CUSTOMER + 1, orders // ORDERS_A_PRODUCT + 1
    known: set[tuple[int, int]] = set()
    gone: set[int] = set()
    rows: list[tuple[int, int]] = []
    for order in range(orders):
        found = []
        customer, product = draw.randrange(customers), draw.randrange(products)
        rows.append((customer, product))
        for schema, key in ((CUSTOMERS, customer), (PRODUCTS, product)):
            if (schema.id, key) not in known or draw.random() < CHANGE_SHARE:
                tag = b"U" if (schema.id, key) in known else b"I"
                known.add((schema.id, key))
                found.append(_change(tag, schema, *_values(schema, key, draw)))
        found.append(
            _change(b"I", ORDERS, order, customer, product, f"{draw.random() * 100:.2f}", None)
        )
        chance, other = draw.random(), draw.randrange(order + 1)
        if other < order and other not in gone:
            if chance < DELETED_SHARE:
                gone.add(other)
                found.append(_change(b"D", ORDERS, other, None, None, None, None))
            elif chance < DELETED_SHARE + DELIVERED_SHARE:
                when = f"2026-{draw.randint(1, 12):02}-{draw.randint(1, 28):02} 12:00:00+00"
                found.append(_change(b"U", ORDERS, other, *rows[other], "9.99", when))
        yield found


def _values(schema: Schema, key: int, draw: random.Random) -> tuple[object, ...]:
    if schema is CUSTOMERS:
        return key, draw.choice(("basic", "silver", "gold")), draw.choice(("AT", "DE", "FR"))
    return key, f"{draw.random() * 50:.2f}"


def _change(tag: bytes, schema: Schema, *values: object) -> bytes:
    row = b"K" if tag == b"D" else b"N"
    parts = [tag, struct.pack(">I", schema.relation), row, struct.pack(">H", len(values))]
    for value in values:
        if value is None:
            parts.append(b"n")
        else:
            text = str(value).encode()
            parts.append(b"t" + struct.pack(">I", len(text)) + text)
    return b"".join(parts)
