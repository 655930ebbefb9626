"""The house rules that no linter checks."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ["cdc", "eventlog", "inference"]
LINES_MAX = 400
COLUMNS_MAX = 100
NAMELESS = {"common", "helper", "helpers", "manager", "managers", "misc", "types", "util", "utils"}
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")


def modules(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found
    return found


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def lines(*folders: str) -> Iterator[tuple[str, str]]:
    """Yield every line after the name of its place; this file is left out."""
    for path in modules(*folders):
        if path != Path(__file__):
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                yield f"{shown(path)}:{number}", line


def test_no_module_is_longer_than_one_idea() -> None:
    lengths = {shown(p): len(p.read_text("utf-8").splitlines()) for p in modules(*PACKAGES)}
    assert {name: length for name, length in lengths.items() if length > LINES_MAX} == {}


def test_no_line_is_wider_than_a_page() -> None:
    wide = [place for place, line in lines(*PACKAGES, "tests") if len(line) > COLUMNS_MAX]
    assert wide == []


def test_every_module_is_named_after_its_idea() -> None:
    assert [shown(p) for p in modules(*PACKAGES, "tests") if p.stem in NAMELESS] == []
    folders = {folder for p in modules(*PACKAGES) for folder in p.relative_to(ROOT).parts[:-1]}
    assert folders & NAMELESS == set()


def test_nothing_is_left_unfinished() -> None:
    left = [place for place, line in lines(*PACKAGES, "tests") if UNFINISHED.search(line)]
    assert left == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_says_what_it_is(package: str) -> None:
    silent = [
        shown(path)
        for path in modules(package)
        if not ast.get_docstring(ast.parse(path.read_bytes()))
    ]
    assert silent == []


def test_every_package_ships_its_types() -> None:
    assert [name for name in PACKAGES if not (ROOT / name / "py.typed").is_file()] == []
