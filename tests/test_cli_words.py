"""Numbers of things are told in words that agree with them, in every command."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import eventlog
from eventlog.changes.quantities import counted
from eventlog.cli import cli
from tests.fix_log import INT, MadeSource, column, insert
from tests.fix_postgres import RunCli

ROOT = Path(eventlog.__file__).parents[1]
PLURAL = re.compile(
    r"^ (rows?|events?|records?|bytes?|changes?|files?|entries|tables?|offsets?|checkpoints?"
    r"|values?|transactions?|streams?|batch(es)?)\b"
)


def test_one_and_many() -> None:
    words = {
        "row": "rows",
        "entry": "entries",
        "key": "keys",
        "batch": "batches",
        "byte": "bytes",
        "index": "indexes",
    }
    for one, many in words.items():
        assert counted(1, one) == f"1 {one}"
        assert [counted(n, one) for n in (0, 2, 12_345)] == [f"0 {many}", f"2 {many}",
                                                            f"12,345 {many}"]  # fmt: skip


def test_no_command_writes_a_number_and_its_noun_by_itself() -> None:
    files = [*ROOT.glob("eventlog/cli/*.py"), *ROOT.glob("cdc/commands/*.py")]
    assert len(files) > 30
    found = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                found += [
                    f"{file.name}: {ast.unparse(node)}"
                    for value, after in zip(node.values, node.values[1:], strict=False)
                    if isinstance(value, ast.FormattedValue)
                    and isinstance(after, ast.Constant)
                    and PLURAL.match(str(after.value))
                    and "counted(" not in ast.unparse(value)
                ]
    assert found == [], "eventlog.changes.quantities.counted knows one from many"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["index", "shop"], "1 entry in 1 file of "),
        (["index", "shop", "--drop"], "removed 1 file\n"),
        (["checkpoint", "shop"], "there is 1 checkpoint of 'shop', "),
        (["retain", "clicks", "--below", "end", "--dry-run"], "would drop 1 offset, "),
        (["sql", "select 1 as a", "--out", "{tmp}/a.csv"], "1 row in "),
        (["snapshot", "export", "clicks", "--out", "{tmp}/b.csv"], ": 1 row in "),
        (["snapshot", "create", "--at", "shop=end", "--out", "{tmp}/m.json"], "  "),
        (["snapshot", "verify", "{tmp}/m.json"], "equal: 1 row proven\n"),
        (["snapshot", "bundle", "{tmp}/m.json", "--out", "{tmp}/b"], ": 1 table, 1 row, "),
        (["backup", "{tmp}/copy"], " holds 2 records, "),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_one_thing_is_told_as_one(
    log: eventlog.Log, shop: MadeSource, tmp_path: Path, args: list[str], told: str
) -> None:
    table = shop.table("t", column("id", INT, key=True))
    shop.commit(insert(table, 1))
    log.stream("clicks", create=True).append("one", key=1)
    log.snapshot("shop").save(tmp_path / "m.json")
    if "--drop" in args:
        log.stream("shop").key_index().update(1)
    words = [word.format(tmp=tmp_path) for word in args]
    done = CliRunner().invoke(cli, words, env={"EVENTLOG_DIR": str(log.path)})
    assert done.exit_code == 0, (done.output, done.exception)
    assert told in done.stdout
    assert not re.search(r"\b1 \w+s\b", done.stdout), done.stdout


def test_one_event_is_stored(log: eventlog.Log, run_cli: RunCli) -> None:
    args = ("append", "clicks", "--create", "--id", "id", "--log", str(log.path))
    for told in (
        "stored 1 event in 'clicks', the last at offset 0, 0 were there already\n",
        "stored 0 events in 'clicks', the last at offset 0, 1 was there already\n",
    ):
        done = run_cli(*args, input='{"id": "a"}\n')
        assert (done.returncode, done.stdout) == (0, told), done.stderr
