"""Transforms for tests: row-wise ones, and some that are not."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

import eventlog

TAX = 0.19
NAMES = {"a": 1, "b": 2}


def gross(amounts: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.multiply(pc.cast(amounts, pa.float64(), safe=False), 1 + TAX)


@eventlog.transform("taxed", version=1)
def taxed(rows: pa.Table) -> pa.Table:
    """Amounts with tax, notes in capitals."""
    return pa.table(
        {
            "id": rows["id"],
            "gross": gross(rows["amount"]),
            "amount": rows["amount"],
            "note": pc.utf8_upper(rows["note"]),
        }
    )


@eventlog.transform("centred", version=1)
def centred(rows: pa.Table) -> pa.Table:
    """Not row-wise: the mean is that of the batch."""
    amounts = pc.cast(rows["amount"], pa.float64(), safe=False)
    return pa.table({"id": rows["id"], "centred": pc.subtract(amounts, pc.mean(amounts))})


@eventlog.transform("filtered", version=1)
def filtered(rows: pa.Table) -> pa.Table:
    """Not row-wise: it leaves rows out."""
    return rows.filter(pc.greater(rows["id"], 1))
