"""Objects out of a user's own Python files, as `FILE.py:NAME`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from eventlog.errors import UsageError


def load_object(text: str) -> Any:
    """Run the file and return what it calls NAME. Raises UsageError."""
    file, colon, name = text.rpartition(":")
    path = Path(file)
    if not colon or not name or path.suffix != ".py":
        raise UsageError(
            f"{text!r} names nothing in a Python file",
            hint="write FILE.py:NAME, as in features.py:delay_features",
        )
    if not path.is_file():
        raise UsageError(f"there is no file {path}", hint="name it by its path from here")
    module_name = path.stem
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(module_name)
    sys.modules[module_name] = module
    sys.path.insert(0, str(path.resolve().parent))  # For what it imports beside it.
    try:
        spec.loader.exec_module(module)
        return getattr(module, name)
    except AttributeError as error:
        if hasattr(module, name):
            raise
        raise UsageError(f"{path} has no {name!r}: {error}", hint="name what it defines") from error
    except (Exception, SystemExit) as error:  # A script that exits with 0 has proven nothing.
        raise UsageError(
            f"{path} cannot be run: {type(error).__name__}: {error}", hint="run it by itself first"
        ) from error
    finally:
        sys.path.pop(0)
        if before is not None:
            sys.modules[module_name] = before
