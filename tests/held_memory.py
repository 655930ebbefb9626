"""Runs scripts in processes of their own that tell how much anonymous memory they hold."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

_ANONYMOUS = """
from pathlib import Path

def anonymous():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
"""


def measured(script: str, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a script that may call `anonymous()`, which tells bytes; asserts that it ends well."""
    # What is freed goes back at once, so that only what is held counts.
    freeing = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _ANONYMOUS + script, *args],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **freeing, "MALLOC_TRIM_THRESHOLD_": "0"},
    )
    assert done.returncode == 0, done.stderr
    return done
