"""`eventlog append`: store events from stdin, one JSON value a line."""

from __future__ import annotations

import json
import math
import os
import select
import sys
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import click

from eventlog.changes.quantities import counted
from eventlog.cli.options import json_option, log_option, open_log
from eventlog.cli.printing import write_json
from eventlog.codecs.events import UnsuitableValue
from eventlog.errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    from eventlog.stream import Stream

BATCH_BYTES = 2 << 20
"""Input that is stored by one commit, where it comes faster than commits."""

LINE_BYTES_MAX = 16 << 20
"""The longest line: it is held in memory whole."""

READ_BYTES = 1 << 16


ONE_A_LINE = "write one value a line (of an array, `jq -c '.[]'` makes that)"


class _Event(NamedTuple):
    value: Any
    key: str | int | None
    id: str | int | None


class Line(NamedTuple):
    """A line of the input by its number, from 1."""

    number: int
    text: bytes


@click.command(epilog="Example: eventlog append clicks --create --key user < clicks.ndjson")
@click.argument("stream")
@click.option("--create", is_flag=True, help="Make the log and the stream where there is none.")
@click.option("--key", metavar="FIELD", help="The field of each event that is its key.")
@click.option(
    "--id",
    "id_field",
    metavar="FIELD",
    help="The field that is each event's id: one that is stored already is left out, so that the "
    "same input can be sent again. The stream knows its last 1,000,000 ids.",
)
@log_option
@json_option
def append(
    stream: str,
    create: bool,
    key: str | None,
    id_field: str | None,
    log_dir: Path,
    as_json: bool,
) -> None:
    """Append the events on stdin to STREAM: one JSON value a line, blank lines left out.

    What was read is stored whenever the input pauses, and every 2 MiB. A bad line ends the command;
    the events before it are stored. A number beyond what a float holds is a bad line, as NaN is.
    """
    from eventlog.names import checked_name

    checked_name(stream, kind="stream")
    if sys.stdin is None:
        raise UsageError("stdin is closed", hint="give it a file or a pipe of events")
    with open_log(log_dir, create=create) as log:
        storing = Storing(log.stream(stream, create=create), key, id_field)
        for lines in _batches(sys.stdin.fileno()):
            storing.store(lines)
    if as_json:
        found = {"stream": stream, "stored": storing.stored, "last_offset": storing.last}
        write_json(found if id_field is None else {**found, "known": storing.known})
    else:
        where = "" if storing.last is None else f", the last at offset {storing.last}"
        were = "was" if storing.known == 1 else "were"
        known = "" if id_field is None else f", {storing.known:,} {were} there already"
        stored = counted(storing.stored, "event")
        click.echo(f"stored {stored} in {stream!r}{where}{known}")


class Storing:
    """Appends lines; `stored` counts the events so far, `last` is the offset of the last one.

    `known` counts those that were left out because their ids were stored before.
    """

    def __init__(self, stream: Stream, key: str | None, id_field: str | None) -> None:
        self.stored = self.known = 0
        self.last: int | None = None
        self._stream = stream
        self._key = key
        self._id = id_field

    def store(self, lines: Sequence[Line]) -> None:
        """Append lines by one commit. Raises for a bad one, after those before it are stored."""
        events: list[_Event] = []
        fault: UsageError | None = None
        for line in lines:
            try:
                value = _value(line.text)
                if value is None and self._key is None:
                    raise UsageError("it is null", hint="an event is any other JSON value")
                key = None if self._key is None else _field(value, self._key, "key")
                event_id = None if self._id is None else _field(value, self._id, "id")
                events.append(_Event(value, key, event_id))
            except UsageError as error:
                fault = error
                break
        try:
            self._append(events)
        except UnsuitableValue as error:
            # Nothing of this commit was stored.
            fault = error
            del events[error.place or 0 :]
            self._append(events)
        if fault is not None:
            raise UsageError(
                f"line {lines[len(events)].number} cannot be stored: {fault}; {self._so_far()}",
                hint=f"{fault.hint or 'mend it'}; then send the input again from that line on",
            ) from fault

    def _append(self, events: Sequence[_Event]) -> None:
        values = [event.value for event in events]
        keys = None if self._key is None else [event.key for event in events]
        try:
            ids = None if self._id is None else [event.id for event in events]
            offsets, fresh = self._stream._append_many(values, keys=keys, ids=ids)
        except EnvironmentFault as error:
            raise type(error)(f"{error}; {self._so_far()}", hint=error.hint) from error
        self.stored += fresh
        self.known += len(offsets) - fresh
        if offsets:
            self.last = offsets[-1]

    def _so_far(self) -> str:
        return f"events stored before it: {self.stored}"


def _batches(descriptor: int) -> Iterator[list[Line]]:
    """Lines that are not blank, as many as came before the input paused.

    Raises UsageError for a line that is longer than LINE_BYTES_MAX.
    """
    number = size = 0
    rest = b""
    lines: list[Line] = []
    while True:
        data = os.read(descriptor, READ_BYTES)
        *whole, rest = (rest + data).split(b"\n") if b"\n" in data else (rest + data,)
        if not data and rest:
            whole, rest = [rest], b""
        for text in whole:
            number += 1
            if number == 1:  # Some programs begin a file with this mark.
                text = text.removeprefix(BOM_UTF8)
            if text.strip():
                lines.append(Line(number, text))
        size += len(data)
        too_long = len(rest) > LINE_BYTES_MAX
        if lines and (not data or too_long or size >= BATCH_BYTES or not _more(descriptor)):
            yield lines
            lines, size = [], 0
        if too_long:
            raise UsageError(
                f"line {number + 1} is longer than {LINE_BYTES_MAX >> 20} MiB; the lines before it "
                "are stored",
                hint="write one JSON value a line",
            )
        if not data:
            return


def _more(descriptor: int) -> bool:
    """Whether a read would return at once."""
    return bool(select.select([descriptor], [], [], 0)[0])


def _value(text: bytes) -> Any:
    try:
        return json.loads(text.decode(), parse_constant=_no_json, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"it is not JSON ({error.msg} at column {error.colno})", hint=ONE_A_LINE
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError("it is not UTF-8", hint="convert the input to UTF-8") from error
    except (RecursionError, ValueError) as error:
        raise UsageError(f"it is not JSON ({error})", hint=ONE_A_LINE) from error


def _no_json(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise UsageError(
            f"{digits} is beyond what a number of an event holds", hint="write it as text"
        )
    return number


def _field(value: Any, field: str, what: str) -> str | int:
    found = value.get(field) if isinstance(value, dict) else None
    number = isinstance(found, int) and not isinstance(found, bool)
    if number or (isinstance(found, str) and (found or what == "key")):
        return found  # type: ignore[return-value]
    wanted = "text" if what == "key" else "non-empty text"
    raise UsageError(
        f"it has no {what} in the field {field!r}",
        hint=f"every event is an object whose {field!r} is {wanted} or an integer",
    )
