"""Capture for ever in a process of its own, to be killed: LOG DSN SOURCE SLOT PUBLICATION."""

from __future__ import annotations

import sys
from pathlib import Path

import cdc
import eventlog
from cdc.options import Event


def told(event: Event) -> None:
    if event.kind in ("streaming", "retry"):
        print(event.kind, flush=True)


if __name__ == "__main__":
    log_dir, dsn, source, slot, publication = sys.argv[1:]
    with eventlog.open(Path(log_dir), create=True) as log:
        cdc.Source(source, dsn).capture(
            log, report=told, copy=False, slot=slot, publication=publication, stage_bytes=50_000
        )
