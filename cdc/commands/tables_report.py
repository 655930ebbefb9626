"""What `eventlog tables` tells about its requests, and how it waits for them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import click

from cdc.answers import Answer, answer, copies
from cdc.captured import percent
from cdc.driver import SourceDriver
from cdc.requests import Fact, Request, Told, facts
from eventlog.changes.quantities import counted
from eventlog.cli.printing import one_line, write_json, write_lines
from eventlog.cli.progress import StatusLine

if TYPE_CHECKING:
    from eventlog.log import Log

LOOK_S = 0.5
"""How often it is looked whether the capture still runs."""

TOLD_S = 2.0
"""How long to wait for the last facts of what is done: a capture that was killed tells none."""

_DONE = {
    "joined": "is captured",
    "copying": "is being copied",
    "copied": "is copied",
    "left": "is captured no more",
    "dropped": "is gone at the source",
    "refused": "was refused",
}


class Answers(Protocol):
    """Tells people or programs."""

    def stored(self, requests: Sequence[Request], writer: str | None, *, waits: bool) -> None:
        """The requests are in the log; `writer` is the process that will carry them out."""
        ...

    def moved(self, answers: Sequence[Answer], state: Mapping[str, Any]) -> None:
        """Something may have changed."""
        ...

    def ended(self, answers: Sequence[Answer]) -> None:
        """Nothing more is waited for; what has not ended waits for another capture."""
        ...


def wait_for(log: Log, source: str, requests: Sequence[Request], report: Answers) -> bool:
    """Wait until the requests are carried out, or no capture runs any more.

    Returns False where one of them failed.
    """
    start = min(request.offset for request in requests)
    told: list[Told] = []
    seen, ended_at = -1, 0.0
    while True:
        running = log.engine.living_writer(source) is not None
        seen = log.engine.wait(seen, timeout_s=LOOK_S)
        # First the state: what it says to be handled has its facts in the stream by then.
        state = log.source(source) or {}
        told += facts(log, source, told[-1].offset + 1 if told else start)
        answers = [answer(request, told, state) for request in requests]
        report.moved(answers, state)
        ended = all(found.ended for found in answers)
        ended_at = (ended_at or time.monotonic()) if ended else 0.0
        enough = ended and time.monotonic() - ended_at > TOLD_S
        if enough or all(found.told for found in answers) or not running:
            report.ended(answers)
            return all(found.failed is None for found in answers)


class TextAnswers:
    """Tells people: a line for each thing that happened, and one that moves with the copies."""

    def __init__(self, source: str, driver: SourceDriver) -> None:
        self._source = source
        self._driver = driver
        self._line = StatusLine()
        self._told: set[tuple[int, Fact]] = set()

    def stored(self, requests: Sequence[Request], writer: str | None, *, waits: bool) -> None:
        for request in requests:
            write_lines([one_line(f"asked: {request.verb} {request.table}")])
        if writer is None:
            rest = f"no capture of {self._source} runs in this log; the next one does it"
        elif waits:
            rest = f"process {writer} does it now; it goes on without this command, too"
        else:
            rest = f"process {writer} does it now"
        write_lines([rest], flush=True)

    def moved(self, answers: Sequence[Answer], state: Mapping[str, Any]) -> None:
        for found in answers:
            for fact in found.facts:
                self._tell(found.request, fact)
        at_work = copies(state)
        moving = [
            self._moving(fact, at_work[fact.relation])
            for found in answers
            for fact in found.facts
            if fact.relation is not None and fact.relation in found.copying
        ]
        if moving:
            self._line.show(one_line("; ".join(moving)))

    def ended(self, answers: Sequence[Answer]) -> None:
        self._line.clear()
        for found in answers:
            if not found.ended:
                text = f"the capture ended; the next one does it: {found.request.verb}"
                write_lines([one_line(f"{text} {found.request.table}")], flush=True)
            elif found.failed is not None:
                hint = found.hint or f"`eventlog tables list {self._source}` shows the tables"
                click.echo(f"Error: {one_line(found.failed)}", err=True)
                click.echo(f"Hint: {one_line(hint)}", err=True)
            elif not found.facts:
                text = f"{found.request.verb} {found.request.table}: nothing was to be done"
                write_lines([one_line(text)], flush=True)

    def _tell(self, request: Request, fact: Fact) -> None:
        if (request.offset, fact) in self._told:
            return
        self._told.add((request.offset, fact))
        if fact.fact == "refused":
            return  # The error at the end says so.
        rows = f": {counted(fact.rows, 'row')}" if fact.rows is not None else ""
        why = f" ({fact.why})" if fact.why else ""
        self._line.clear()
        write_lines([one_line(f"{fact.table} {_DONE[fact.fact]}{rows}{why}")], flush=True)

    def _moving(self, fact: Fact, cursor: Mapping[str, Any]) -> str:
        share = self._driver.copied_share(cursor)
        part = "" if share is None else f", {percent(share)}"
        return f"copying {fact.table}: {counted(cursor.get('rows', 0), 'row')}{part}"


class JsonAnswers:
    """Tells programs: an object for each request that is stored, and one when it ended."""

    def __init__(self, source: str) -> None:
        self._source = source

    def stored(self, requests: Sequence[Request], writer: str | None, *, waits: bool) -> None:
        for request in requests:
            asked = {"kind": "asked", "source": self._source, "writer": writer}
            write_json({**asked, **dataclasses.asdict(request)})

    def moved(self, answers: Sequence[Answer], state: Mapping[str, Any]) -> None:
        pass

    def ended(self, answers: Sequence[Answer]) -> None:
        for found in answers:
            kind = "failed" if found.failed else "done" if found.ended else "waiting"
            write_json(
                {
                    "kind": kind,
                    "source": self._source,
                    **dataclasses.asdict(found.request),
                    "why": found.failed,
                    "hint": found.hint or None,
                    "facts": [dataclasses.asdict(fact) for fact in found.facts],
                }
            )
