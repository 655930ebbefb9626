"""The capture's own transport with nothing behind it, as a process: the limit of a capture.

::

    python -m benchmarks.drain_process DSN_VARIABLE SLOT PUBLICATION ROWS [libpq]

It counts the inserts that come and forgets them. With `libpq` they come through libpq, as they do
over an encrypted connection. One JSON line tells what `benchmarks.capture_process` tells.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from cdc.postgres.assembler import XLOG_HEAD
from cdc.postgres.connection import connect_replication
from cdc.postgres.protocol.frames import Frames
from cdc.postgres.protocol.libpq import LibpqStream
from cdc.postgres.protocol.lsn import Lsn
from cdc.postgres.protocol.replication import start_command, start_replication
from cdc.postgres.protocol.transport import Transport, Wake
from cdc.postgres.streaming import GATHER_S, IDLE_READ_S


def main(dsn_variable: str, slot: str, publication: str, rows: str, way: str = "") -> None:
    """Receive so many inserts from the slot."""
    wake = Wake()
    conn = connect_replication(f"env:{dsn_variable}")
    stream: Transport
    if way == "libpq":
        conn.pgconn.send_query(start_command(conn, slot, Lsn(0), [publication]))
        stream = LibpqStream(conn, slot, wake)
    else:
        stream = start_replication(conn, slot, Lsn(0), [publication], wake)
    started, cpu_started = time.monotonic(), time.process_time()
    records = 0
    while records < int(rows):
        frames = stream.read(timeout_s=IDLE_READ_S, gather_s=GATHER_S)
        if frames is not None:
            records += _inserts(frames)
    told = {
        "started": started,
        "ended": time.monotonic(),
        "cpu_started": cpu_started,
        "cpu_ended": time.process_time(),
        "connections": 1,
        "records": records,
    }
    print(json.dumps(told))
    conn.close()
    wake.close()


def _inserts(frames: Frames) -> int:
    data = np.frombuffer(frames.data, np.uint8)
    message = data[frames.starts] == ord("w")
    tags = data[np.minimum(frames.starts + XLOG_HEAD, len(data) - 1)]
    return int((message & (tags == ord("I"))).sum())


if __name__ == "__main__":
    main(*sys.argv[1:])
