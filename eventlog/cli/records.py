"""Records as rows for people: what `read` and `tail` print without `--json`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eventlog.engine import StreamKind

_EVENTS = ("offset", "time", "key", "value")
_CHANGES = ("offset", "time", "op", "table", "key", "row")


def headings(kind: StreamKind) -> tuple[str, ...]:
    """The columns for a kind of stream."""
    return _EVENTS if kind == "events" else _CHANGES


def rows(kind: StreamKind, records: Iterable[Mapping[str, Any]]) -> Iterator[list[Any]]:
    """The rows of records as `read --json` has them. A delete shows its old row."""
    for record in records:
        # As text, without the commas that other numbers have: it is to be copied.
        offset = str(record["offset"])
        if kind == "events":
            yield [offset, record["time"], record["key"], _value(record["value"])]
            continue
        row = record["row"] if record["row"] is not None else record["old"]
        unchanged = dict.fromkeys(record.get("unchanged", ()), "(unchanged)")
        yield [
            offset,
            record["time"],
            record["op"],
            record["table"],
            _pairs(record["key"]),
            _pairs(row, **unchanged),
        ]


def _pairs(values: Mapping[str, Any] | None, **more: str) -> str | None:
    if values is None:
        return None
    shown = {name: _value(value) for name, value in values.items()} | more
    return " ".join(f"{name}={value}" for name, value in shown.items())


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
