"""The machine's fingerprint: what a figure depends on, without names of hosts, users or paths."""

from __future__ import annotations

import os
import platform
import statistics
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = (
    "eventlog-cdc",
    "lmdb",
    "msgpack",
    "nats-py",
    "numpy",
    "psycopg",
    "redis",
    "xxhash",
    "zstandard",
)
_FLUSHES = 50


def fingerprint(directory: Path) -> dict[str, Any]:
    """Describe the machine, and the disk that holds `directory`."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "filesystem": filesystem(directory),
        "flush_ms": round(flush_ms(directory), 3),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def flush_ms(directory: Path) -> float:
    """The median time of a 4 KiB write and fdatasync in a file that has its blocks."""
    path = directory / "flush"
    block = b"\0" * 4096
    times = []
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.pwrite(file, block * _FLUSHES, 0)
        os.fsync(file)
        for number in range(_FLUSHES):
            start = time.perf_counter()
            os.pwrite(file, block, number * 4096)
            os.fdatasync(file)
            times.append(time.perf_counter() - start)
    finally:
        os.close(file)
        path.unlink()
    return statistics.median(times) * 1000


def filesystem(directory: Path) -> str:
    """The type of the file system that holds a directory."""
    resolved = directory.resolve()
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text("utf-8").splitlines():
        _, mount, found, *_ = line.split(" ")
        if resolved.is_relative_to(mount) and len(mount) >= len(best):
            best, kind = mount, found
    return kind


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
