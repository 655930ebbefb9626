"""A program of ours as a process of its own: the capture that the demo kills, and the model.

It dies with the thread that started it, SIGKILL included (PR_SET_PDEATHSIG), and a terminal's
Ctrl-C does not reach it: whoever started it stops it. What it says goes to a private file.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from eventlog.errors import EnvironmentFault

STOP_TIMEOUT_S = 30.0

# Runs between fork and exec, as a program of its own. Arguments: the parent's pid, program...
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class Child:
    """A running Python module. A context manager that stops it."""

    def __init__(
        self, module: str, *arguments: str, says: Path, env: Mapping[str, str] | None = None
    ) -> None:
        """Start `module` with these arguments; `says` is the file for its stdout and stderr."""
        self._module = module
        self._says = says
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid())]
        program = [sys.executable, "-P", "-m", module, *arguments]
        with open(os.open(says, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as output:
            self._process = subprocess.Popen(
                launcher + program,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def check(self) -> None:
        """Raise EnvironmentFault, in the child's own words, if it ended with a failure."""
        code = self._process.poll()
        if code in (None, 0):
            return
        lines = self._says.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if line.startswith("Error: ")]
        said = (errors or [line for line in lines if line.strip()] or ["it said nothing"])[-1]
        hints = [line.removeprefix("Hint: ") for line in lines if line.startswith("Hint: ")]
        raise EnvironmentFault(
            f"{self._module} ended with exit code {code}: {said.removeprefix('Error: ')}",
            hint=hints[-1] if hints else "run the demo again; report it if that does not help",
        )

    def wait(self, timeout_s: float) -> None:
        """Wait for its end. Raises EnvironmentFault if that is a failure, or does not come."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise EnvironmentFault(
                f"{self._module} did not end within {timeout_s:g} s",
                hint="run the demo again on a machine with less load",
            ) from error
        self.check()

    def kill(self) -> None:
        """End it by SIGKILL: it has no chance to store or to say anything."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ask it to end by SIGTERM, and insist after a while."""
        if self.running:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
