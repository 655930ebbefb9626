"""The log that a capture goes into: opened, or made, and removed again where nothing came of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cdc import driver
from cdc.driver import Running
from eventlog.cli.options import open_log
from eventlog.engine.withdrawing import remove_empty_log
from eventlog.errors import NotALog
from eventlog.log import Log


@dataclass(slots=True)
class Opened:
    """An open log, and the capture that runs into it once there is one."""

    log: Log
    running: Running | None = None


@contextmanager
def opened_or_made(log_dir: Path, dsn: str, tables: Sequence[str]) -> Iterator[Opened]:
    """The log, which is made where there is none, once the source answers and has the tables.

    So a wrong address, or a mistyped name, leaves no empty log behind; nor does a capture that ends
    before anything is stored: then the log, its folders and what the capture made beside it are
    removed, unless another process uses the log by then.
    """
    folders = [folder for folder in (log_dir, *log_dir.parents) if not folder.exists()]
    made = False
    try:
        log = open_log(log_dir)
    except NotALog:
        driver.driver_of(dsn).tables(dsn, tables)
        made = True
        try:
            log = open_log(log_dir, create=True)
        except BaseException:
            _remove(log_dir, folders)
            raise
    opened = Opened(log)
    try:
        yield opened
    finally:
        kept = not made or bool(log.engine.stream_names())
        log.close()
        if not kept:
            _remove(log_dir, folders, () if opened.running is None else opened.running.made_beside)


def _remove(log_dir: Path, folders: Sequence[Path], beside: Sequence[Path] = ()) -> None:
    # Where not even the directory came to be, folders above it may have.
    if log_dir.exists() and not remove_empty_log(log_dir.resolve(), beside=beside):
        return
    with suppress(OSError):  # Somebody else put something there meanwhile.
        for folder in folders:
            folder.rmdir()
