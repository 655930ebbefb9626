"""What is said of a transform whose own code raised, and where in that code."""

from __future__ import annotations

import inspect
import traceback
from pathlib import Path
from typing import Any

from eventlog.errors import TransformRefused


def failed(identity: str, maker: Any, error: Exception) -> TransformRefused:
    """The error to raise from `error`: what happened, with the user's file and line as the hint."""
    text = str(error).strip()
    what = type(error).__name__ + (f": {text.splitlines()[0]}" if text else "")
    return TransformRefused(f"transform {identity} fails: {what}", hint=_place(maker, error))


def _place(maker: Any, error: Exception) -> str:
    """The deepest line in the function's own file; an estimator's lines are no user's."""
    if not inspect.isfunction(maker):
        return f"try the {type(maker).__name__} on some rows: Snapshot.table(...).to_pandas()"
    frames = traceback.extract_tb(error.__traceback__)
    frame = ([f for f in frames if f.filename == maker.__code__.co_filename] or frames)[-1]
    return f"look at {Path(frame.filename).name}, line {frame.lineno}, in {frame.name}"
