"""`COPY ... TO STDOUT` through a bare libpq loop that forgets the rows, as a process.

::

    python -m benchmarks.libpq_process DSN_VARIABLE TABLE

One JSON line tells what `benchmarks.copy_process` tells.
"""

from __future__ import annotations

import json
import sys
import time

from psycopg import sql

from cdc.postgres.connection import connect
from cdc.postgres.protocol.libpq import CopyReader

SILENCE_S = 1.0
GATHER_S = 0.002


def main(dsn_variable: str, table: str) -> None:
    """Receive a table."""
    conn = connect(f"env:{dsn_variable}")
    started, cpu_started = time.monotonic(), time.process_time()
    copy = sql.SQL("COPY {} TO STDOUT").format(sql.Identifier(*table.split(".")))
    conn.pgconn.send_query(copy.as_bytes(conn))
    reader = CopyReader.of_statement(conn, "receiving a table")
    rows = 0
    while not reader.ended:
        frames = reader.read(timeout_s=SILENCE_S, gather_s=GATHER_S)
        if frames is not None:
            rows += len(frames)
    reader.finish("receiving a table")
    ended, cpu_ended = time.monotonic(), time.process_time()
    told = {"started": started, "ended": ended, "cpu_s": cpu_ended - cpu_started, "rows": rows}
    print(json.dumps(told))
    conn.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
