"""Redis Streams: `appendonly yes`, `appendfsync always`, no snapshots.

A single event is one XADD. The events of a larger call go through one script of as many XADD: of
the ways that redis-py has it is the fastest by far (three times MULTI with EXEC in a pipeline,
whose replies have to be read one by one), and all or nothing, too. Redis writes and flushes what it
did before it answers, so that a call is durable when its answer is here.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.appender import Absent, Appender
from benchmarks.load import Load
from benchmarks.peers.server import LOOPBACK, find_program, free_port, running

KEY = "events"
FIELD = "v"
ADD_MANY = """
for place = 1, #ARGV do redis.call('XADD', KEYS[1], '*', 'v', ARGV[place]) end
return #ARGV
"""
SETTINGS = {
    "bind": LOOPBACK,
    "appendonly": "yes",
    "appendfsync": "always",
    "auto-aof-rewrite-percentage": "0",
    "save": "",
}


def of_records(load: Load, directory: Path, end: ExitStack) -> Appender:
    """Records encoded before, one field each. Raises Absent."""
    program = find_program("redis-server")
    if program is None:
        raise Absent("redis-server is not installed: apt-get install redis-server")
    try:
        import redis
    except ImportError:
        raise Absent("the client of Redis is not installed: pip install redis") from None
    port = free_port()
    client: Any = redis.Redis(host=LOOPBACK, port=port)
    end.callback(client.close)

    def answers() -> bool:
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False

    words = [word for name, value in SETTINGS.items() for word in (f"--{name}", value)]
    command = [program, "--port", str(port), "--dir", str(directory), *words]
    end.enter_context(running(command, directory, answers=answers))
    assert client.config_get("appendfsync") == {"appendfsync": "always"}
    add_many = client.register_script(ADD_MANY)

    def append_all() -> None:
        for call in load.records:
            if len(call) == 1:
                client.xadd(KEY, {FIELD: call[0]})
            else:
                add_many(keys=[KEY], args=call)

    version = client.info("server")["redis_version"]
    return Appender(append_all=append_all, stored=lambda: client.xlen(KEY), version=version)
