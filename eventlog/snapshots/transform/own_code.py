"""Which modules belong to a transform's own code, and which are libraries.

Own is what has the same top-level package, and what lies beside that package's folder, or beside
the script or notebook: `features.py` and the `rates.py` that it imports. What is installed, what
Python brings, and this project's packages are libraries.
"""

from __future__ import annotations

import importlib.util
import sys
from contextlib import suppress
from pathlib import Path

_OURS = frozenset({"eventlog", "cdc", "inference"})
_INSTALLED = frozenset({"site-packages", "dist-packages"})


class OwnCode:
    """The code around one module; for none, all that is no library.

    Thread safety: may be shared among threads.
    """

    def __init__(self, module: str | None) -> None:
        self._anywhere = module is None
        self._package = _top(module or "")
        home = _folder(self._package)
        self._home = Path.cwd() if home is None and self._package == "__main__" else home

    def holds(self, module: str | None) -> bool:
        """Whether a module is own code, by its name."""
        top = _top(module or "")
        if top == self._package:
            return True
        if top in _OURS or top in sys.stdlib_module_names:
            return False
        folder = _folder(top)
        if self._anywhere and top == "__main__":
            return True
        near = self._anywhere or folder == self._home
        return near and folder is not None and not _is_installed(folder)

    def may_hold(self, module: str) -> bool:
        """The same of a module that need not be imported yet."""
        top = _top(module)
        if top in sys.modules or top == self._package:
            return self.holds(top)
        if top in _OURS or top in sys.stdlib_module_names:
            return False
        with suppress(ImportError, ValueError):
            found = importlib.util.find_spec(top)
            return found is not None and not _is_installed(Path(found.origin or "/site-packages"))
        return False


def _top(module: str) -> str:
    return module.partition(".")[0]


def _folder(package: str) -> Path | None:
    """The folder that a top-level module or package lies in; None where it has no file."""
    module = sys.modules.get(package)
    file = getattr(module, "__file__", None)
    if file is None:  # A folder without __init__.py, or nothing on the disk.
        folders = list(getattr(module, "__path__", ()))
        return Path(folders[0]).absolute().parent if folders else None
    path = Path(file).absolute()
    return path.parents[1] if path.stem == "__init__" else path.parent


def _is_installed(folder: Path) -> bool:
    return not _INSTALLED.isdisjoint(folder.parts)
