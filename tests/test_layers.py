"""The arrows of the architecture, proven on every import of every module.

::

    cdc ──▶ eventlog ◀── inference                    never cdc ↔ inference
    eventlog:   cli ▶ façade ▶ snapshots ▶ history ▶ codecs ▶ changes ▶ engine ▶ errors
    cdc:        commands ──▶ demo ──▶ postgres, and what every source shares

An arrow may skip a layer, and never points up. Imports made late, inside functions, and those
for type checkers count too.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"eventlog", "cdc", "inference"}
HEAVY = {"pyarrow", "duckdb", "sklearn", "pandas"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path): path
    for package in sorted(PACKAGES)
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imported(module: str) -> Iterator[str]:
    """Yield the full name of all that a module imports, wherever in it the import stands."""
    path = SOURCES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, *base.split(".")] if base else parents)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in SOURCES else base


EDGES = sorted({(module, target) for module in SOURCES for target in imported(module)})


def within(module: str, *homes: str) -> bool:
    return any(module == home or module.startswith(home + ".") for home in homes)


def eventlog_layer(module: str) -> str:
    parts = module.split(".")
    if parts[1:2] == ["errors"]:
        return "errors"
    if parts[1:2] == ["__main__"]:
        return "cli"
    below = len(parts) > 2 or SOURCES.get(module, Path()).name == "__init__.py"
    return parts[1] if below and len(parts) > 1 else "façade"


def cdc_layer(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[1:2] and parts[1] in ("commands", "demo") else "capture"


EVENTLOG_LADDER = ["errors", "engine", "changes", "codecs", "history", "snapshots", "façade", "cli"]
CDC_LADDER = ["capture", "demo", "commands"]


def test_the_tree_is_read_whole() -> None:
    assert {module.partition(".")[0] for module in SOURCES} == PACKAGES
    assert ("eventlog.changes.codec", "eventlog.changes.schema") in EDGES
    assert ("cdc.demo.replay", "psycopg") in EDGES


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("eventlog", {"eventlog"}),
        ("cdc", {"cdc", "eventlog"}),
        ("inference", {"inference", "eventlog"}),
    ],
)
def test_packages_point_at_the_log_and_never_at_each_other(package: str, allowed: set[str]) -> None:
    of_ours = PACKAGES | {"tests", "benchmarks"}
    wrong = [
        (module, target)
        for module, target in EDGES
        if within(module, package) and target.partition(".")[0] in of_ours - allowed
    ]
    assert wrong == []


def test_inside_the_log_no_arrow_points_up() -> None:
    layers = {eventlog_layer(module) for module in SOURCES if within(module, "eventlog")}
    assert layers <= set(EVENTLOG_LADDER), "a new folder needs its place in the ladder"
    rank = EVENTLOG_LADDER.index
    wrong = [
        (module, target)
        for module, target in EDGES
        if within(module, "eventlog") and within(target, "eventlog")
        if rank(eventlog_layer(target)) > rank(eventlog_layer(module))
    ]
    assert wrong == []


def test_inside_the_capture_no_arrow_points_up() -> None:
    rank = CDC_LADDER.index
    wrong = [
        (module, target)
        for module, target in EDGES
        if within(module, "cdc") and within(target, "cdc")
        if rank(cdc_layer(target)) > rank(cdc_layer(module))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("foreign", "homes"),
    [
        ("lmdb", ["eventlog.engine.store"]),
        ("psycopg", ["cdc.postgres", "cdc.demo"]),
        ("psycopg_binary", []),
        ("sklearn", ["inference"]),
        ("click", ["eventlog.cli", "cdc.commands", "inference.commands"]),
    ],
)
def test_each_foreign_world_is_imported_in_its_own_place(foreign: str, homes: list[str]) -> None:
    wrong = [
        module for module, target in EDGES if within(target, foreign) and not within(module, *homes)
    ]
    assert wrong == []


def test_the_decoder_sees_no_socket_and_no_clock() -> None:
    sans_io = {
        "cdc.postgres.protocol.lsn",
        "cdc.postgres.protocol.messages",
        "cdc.postgres.protocol.wire",
    }
    assert sans_io <= SOURCES.keys()
    effects = ["psycopg", "socket", "select", "selectors", "time", "asyncio", "threading", "os"]
    wrong = [
        (module, target)
        for module, target in EDGES
        if module in sans_io and within(target, *effects)
    ]
    assert wrong == []


def loaded(program: str, *arguments: str) -> set[str]:
    """Run a program in a fresh interpreter; return the top-level modules loaded at its end."""
    report = "\nimport json, sys\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program + report, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_the_capture_daemon_loads_no_heavy_library() -> None:
    late = ("arrow", "columnar")  # what decodes to Arrow is loaded by readers alone
    capture = [
        module
        for module in SOURCES
        if within(module, "cdc")
        and not within(module, "cdc.demo", "cdc.commands.demo")
        and not any(word in module for word in late)
    ]
    program = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    names = loaded(program, "eventlog", "eventlog.engine", *capture)
    assert {"cdc", "eventlog", "psycopg"} <= names
    assert names & HEAVY == set()


def test_help_loads_no_heavy_library_and_no_driver() -> None:
    program = """
import sys
from eventlog.cli import main
sys.argv = ["eventlog", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
    names = loaded(program)
    assert "click" in names
    assert names & (HEAVY | {"psycopg"}) == set()
