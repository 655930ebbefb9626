"""The documentation, held to what is there: commands, options, code, names, links."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
from click.testing import CliRunner

import cdc.errors
import eventlog
import eventlog.errors
from eventlog.cli import cli
from eventlog.engine import Engine, check
from tests.fix_log import FLOAT, INT, TIMESTAMPTZ, MadeSource, column, insert, update

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "docs/format.md",
    "benchmarks/results/README.md",
]
PACKAGES = ["cdc", "eventlog", "inference"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TICKED = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CUT = datetime(2026, 1, 31, tzinfo=UTC)
ORDERS = 300


class Block(NamedTuple):
    page: str
    language: str
    text: str


def page(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def blocks(*languages: str) -> list[Block]:
    return [
        Block(name, language, text)
        for name in PAGES
        for language, text in FENCE.findall(page(name))
        if language in languages
    ]


def prose(name: str) -> str:
    return FENCE.sub("", page(name))


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a shell block, without comments and redirections."""
    for line in text.splitlines():
        words: list[str] = []
        for word in shlex.split(line, comments=True):
            if word in ("<", ">", "|"):
                break
            if word == "&&":
                yield words
                words = []
            else:
                words.append(word)
        if words:
            yield words


SHELL = [words for block in blocks("sh") for words in commands(block.text)]
EVENTLOG = [words[1:] for words in SHELL if words[0] == "eventlog"]
TARGETS = re.findall(r"^([a-z]+):", page("Makefile"), re.MULTILINE)


# Commands


def parsed(words: list[str]) -> click.Context:
    """Parse a command line as the command itself would. Raises click.UsageError."""
    command: click.Command = cli
    context = click.Context(command, info_name="eventlog")
    rest = list(words)
    while isinstance(command, click.Group):
        name = rest.pop(0)
        found = command.get_command(context, name)
        if found is None:
            raise click.UsageError(f"no command {name!r}")
        command = found
    return command.make_context(command.name, rest)


def test_the_blocks_are_found() -> None:
    assert len(EVENTLOG) > 10
    assert len(blocks("python")) > 4
    assert blocks("bash", "shell", "console", "py") == []


@pytest.mark.parametrize("words", EVENTLOG, ids=" ".join)
def test_every_command_is_one_with_these_options(words: list[str]) -> None:
    parsed(words)


@pytest.mark.parametrize("wrong", [["frobnicate"], ["streams", "--frobnicate"], ["read"]])
def test_a_command_that_is_not_there_would_be_noticed(wrong: list[str]) -> None:
    with pytest.raises(click.UsageError):
        parsed(wrong)


def test_other_programs_are_those_that_a_clone_has() -> None:
    benchmarks = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    for words in SHELL:
        match words:
            case ["make", target, *rest]:
                assert target in TARGETS
                assert rest == []
            case ["python", "-m", "benchmarks", *rest]:
                assert all(word in benchmarks for word in rest), words
            case _:
                assert words[0] in {"eventlog", "git", "cd", "."} or words == [
                    "pip",
                    "install",
                    ".",
                ]


def test_commands_within_the_text_exist() -> None:
    for name in PAGES:
        for ticked in TICKED.findall(prose(name)):
            match shlex.split(ticked) if "'" not in ticked else []:
                case ["make", target, *_]:
                    assert target in TARGETS, ticked
                case ["eventlog", first, *rest] if first[0] != "-":
                    group = cli.get_command(click.Context(cli), first)
                    assert group is not None, ticked
                    if rest and isinstance(group, click.Group):
                        assert rest[0] in group.commands, ticked
                case ["python", "-m", module, *_]:
                    assert (ROOT / Path(*module.split("."))).with_suffix(".py").is_file() or (
                        ROOT / Path(*module.split(".")) / "__main__.py"
                    ).is_file(), ticked


def every_option(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from every_option(inner)


def test_options_within_the_text_exist() -> None:
    known = {"--json", *every_option(cli)}
    named = {
        word
        for name in PAGES
        for ticked in TICKED.findall(prose(name))
        for word in ticked.split()
        if word.startswith("--")
    }
    assert {"--no-copy", "--until"} <= named
    assert named - known == set()


# Code


def made_shop(log: eventlog.Log) -> None:
    """Orders as the README has them: half of them shipped and delivered before its cut."""
    source = MadeSource(log, "shop")
    schema = source.table(
        "orders",
        column("id", INT, key=True),
        column("amount", FLOAT),
        column("country"),
        column("promised_at", TIMESTAMPTZ),
        column("shipped_at", TIMESTAMPTZ),
        column("delivered_at", TIMESTAMPTZ),
    )
    for number in range(ORDERS):
        ordered = CUT + timedelta(hours=number - ORDERS // 2)
        shipped, promised = ordered + timedelta(hours=1), ordered + timedelta(hours=5)
        delivered = ordered + timedelta(hours=3 + number % 5)
        row: list[Any] = [number, float(number % 90), "AT" if number % 2 else "CH", str(promised)]
        steps = [
            insert(schema, *row, None, None),
            update(schema, *row, str(shipped), None),
            update(schema, *row, str(shipped), str(delivered)),
        ]
        for at, step in zip((ordered, shipped, delivered), steps, strict=True):
            source.commit(step, time_us=int(at.timestamp()) * 1_000_000)
    source.close()


@pytest.fixture
def readers_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the README's reader stands, after `eventlog capture`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EVENTLOG_DIR", raising=False)
    with eventlog.open("eventlog-data", create=True) as log:
        made_shop(log)
    yield tmp_path
    with Engine.open(tmp_path / "eventlog-data") as engine:
        assert check(engine) == []


@pytest.mark.parametrize("block", blocks("python"), ids=lambda b: b.text.splitlines()[0])
def test_python_compiles(block: Block) -> None:
    compile(block.text, block.page, "exec")


def test_the_readmes_python_runs_from_top_to_bottom(
    readers_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {}
    ran = []
    for block in blocks("python"):
        # A capture needs the reader's own Postgres.
        if block.page == "README.md" and "cdc.Source(" not in block.text:
            cell = readers_directory / f"cell{len(ran)}.py"  # a transform is known by its source
            cell.write_text(block.text)
            exec(compile(block.text, str(cell), "exec"), names)
            ran.append(block)
    assert len(ran) >= 5
    capsys.readouterr()
    assert names["orders"].num_rows > 100, "the snapshot"
    worked = names["worked"]
    assert worked.predictions > 100 and worked.labels > 100 and worked.metrics > 10
    with eventlog.open("eventlog-data") as log:
        ends = {info.name: info.end for info in log.streams()}
    assert ends["clicks"] == 3
    assert ends["mails"] == ORDERS
    assert ends["late-predictions"] == worked.predictions


RUN = {"read", "snapshot", "check", "sql", "history"}


def test_the_readmes_reading_commands_run(readers_directory: Path) -> None:
    ran = set()
    for words in EVENTLOG:
        if words[0] in RUN and "--log" not in words:
            done = CliRunner().invoke(cli, words)
            assert done.exit_code == 0, (words, done.output, done.exception)
            assert done.stdout, words
            ran.add(words[0])
    assert ran == RUN
    assert (readers_directory / "orders.parquet").is_file()


# Names


def our_classes() -> set[str]:
    return {
        node.name
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.ClassDef)
    }


@pytest.mark.parametrize("name", PAGES)
def test_every_class_and_error_that_is_named_exists(name: str) -> None:
    named = {t for t in TICKED.findall(prose(name)) if re.fullmatch(r"(?:[A-Z][a-z]+){2,}", t)}
    assert named - our_classes() == set()


def test_the_errors_of_the_readme_are_public_ones() -> None:
    errors = {"ConsumerFenced", "ValueDoesNotFit"}
    assert {e for e in errors if f"`{e}`" in prose("README.md")} == errors
    assert all(issubclass(getattr(eventlog.errors, e), Exception) for e in errors)
    refusals = re.findall(r"`((?:Position|Other|Timeline)\w+)`", prose("ARCHITECTURE.md"))
    assert len(refusals) == 4
    assert all(issubclass(getattr(cdc.errors, e), cdc.errors.PositionConflict) for e in refusals)


@pytest.mark.parametrize("name", PAGES)
def test_every_file_that_is_named_exists(name: str) -> None:
    wanted = {
        ticked
        for ticked in TICKED.findall(prose(name))
        if re.fullmatch(r"[\w./-]+\.(?:py|md|toml|txt)", ticked) and "/" in ticked
    }
    missing = {
        path
        for path in wanted
        if not (ROOT / path).is_file() and not (ROOT / "eventlog/engine" / path).is_file()
    }
    assert missing == set()


def test_every_test_that_proves_something_exists() -> None:
    there = {
        node.name
        for path in (ROOT / "tests").glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.FunctionDef)
    }
    named = set(re.findall(r"`(test_\w+)`", prose("ARCHITECTURE.md")))
    assert len(named) > 5
    assert named - there == set()


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_to_a_file(name: str) -> None:
    for target in LINK.findall(prose(name)):
        assert not re.match(r"\w+:", target), "pages link to files of the repository alone"
        assert (ROOT / name).parent.joinpath(target.partition("#")[0]).exists(), target


# Words


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_said_of_the_machine_it_was_written_on(name: str) -> None:
    text = page(name)
    assert re.findall(r"(?<![\w.~)/])/(?:[a-z]+/)+\w+", text) == [], "a path of one machine"
    assert re.findall(r"https?://\S+", text) == [], "pages name no hosts"
