"""What a terminal shows of copies; what else is printed stands above, whole."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from cdc.commands.capture_report import TextReport
from cdc.commands.copy_bar import CopyBars
from cdc.options import Event


class Terminal:
    """A terminal's screen as text, and a clock."""

    def __init__(self) -> None:
        self.file = io.StringIO()
        self.now = 0.0
        console = Console(file=self.file, force_terminal=True, width=100, color_system=None)
        self.bars = CopyBars(console, clock=lambda: self.now)

    def last(self) -> str:
        """The last line drawn that holds anything."""
        text = re.sub(r"\x1b\[[0-9?]*[a-zA-Z]", "\n", self.file.getvalue())
        return [line for line in re.split(r"[\r\n]+", text) if line.strip()][-1]


def copying(table: str, rows: int, size: int, total: int | None, rows_total: int | None) -> Event:
    return Event(
        kind="copying",
        text=f"copying {table}: {rows} rows",
        table=table,
        rows=rows,
        bytes=size,
        rows_estimate=rows_total,
        bytes_estimate=total,
    )


def test_a_bar_has_rows_megabytes_a_second_and_the_time_left() -> None:
    terminal = Terminal()
    for step in range(1, 5):
        terminal.now += 1.0
        terminal.bars.show(
            copying("public.[b]orders", 1_000 * step, step * 2_000_000, 20_000_000, None)
        )
    shown = terminal.last()
    assert shown.startswith("public.[b]orders ━")
    for expected in ("4,000 rows", "2.0 MB/s", "0:00:06"):
        assert expected in shown
    terminal.bars.clear("public.[b]orders")
    assert not terminal.bars.shown


def test_rows_tell_how_much_is_left_where_bytes_do_not() -> None:
    terminal = Terminal()
    for step in range(1, 4):
        terminal.now += 1.0
        terminal.bars.show(copying("t", 10 * step, 1_000_000 * step, None, 100))
    assert "0:00:07" in terminal.last()


def test_a_table_of_which_nothing_is_known_shows_its_rows() -> None:
    terminal = Terminal()
    terminal.bars.show(copying("t", 10, 1_000, None, None))
    assert "10 rows" in terminal.last()


def test_several_tables_have_a_bar_each() -> None:
    terminal = Terminal()
    terminal.bars.show(copying("a", 1, 10, 100, None))
    terminal.bars.show(copying("b", 2, 10, 100, None))
    terminal.bars.clear("a")
    assert terminal.bars.shown
    terminal.bars.show(copying("b", 3, 20, 100, None))
    terminal.bars.clear("b")
    assert not terminal.bars.shown


def test_a_bar_comes_back_after_something_else_was_printed() -> None:
    terminal = Terminal()
    terminal.bars.show(copying("t", 1, 10, 100, None))
    terminal.bars.clear()
    terminal.bars.show(copying("t", 77, 20, 100, None))
    assert "77 rows" in terminal.last()


def test_what_is_no_terminal_gets_plain_lines_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with TextReport() as report:
        report(copying("t", 1, 10, 100, None))
        report(Event(kind="copied", text="copied t: 2 rows", table="t", rows=2))
    assert capsys.readouterr() == ("copied t: 2 rows\n", "")
