"""What commands print: lines of JSON for programs, aligned columns for people.

Columns are as wide as what was written so far needs, so that endless output takes bounded memory.
On a terminal a line ends with the screen (`…` marks what was cut); elsewhere nothing is cut.
"""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import click

BLOCK_ROWS = 200
"""Rows that are measured together before they are written."""

GAP = "  "


def write_lines(lines: Iterable[str], *, flush: bool = False) -> None:
    """Write lines as they come to stdout, buffered unless `flush`."""
    write = sys.stdout.write
    for line in lines:
        write(line + "\n")
    if flush:
        sys.stdout.flush()


def write_json(record: Mapping[str, Any]) -> None:
    """Write one object as a line of JSON, at once."""
    write_lines([json.dumps(record, ensure_ascii=False, allow_nan=False)], flush=True)


class Columns:
    """Writes rows under headings; numbers to the right, everything else to the left.

    `bare` writes numbers without commas.
    """

    def __init__(self, *headings: str, bare: bool = False) -> None:
        self._headings = headings
        self._bare = bare
        self._widths = [_width(heading) for heading in headings]
        self._begun = False
        self._terminal = sys.stdout.isatty()
        self._limit = shutil.get_terminal_size().columns if self._terminal else 0

    def write(self, rows: Iterable[Sequence[Any]], *, flush: bool = False) -> None:
        """Write rows, in blocks of BLOCK_ROWS; None is shown as a dash."""
        rows = iter(rows)
        while block := list(islice(rows, BLOCK_ROWS)):
            self._write_block(block)
        if not self._begun:
            self._write_block([])
        if flush:
            sys.stdout.flush()

    def _write_block(self, block: Sequence[Sequence[Any]]) -> None:
        texts = [[_text(value, bare=self._bare) for value in row] for row in block]
        for row in texts:
            self._widths = list(map(max, self._widths, map(_width, row)))
        if not self._begun:
            self._begun = True
            right = [bool(block) and _is_number(value) for value in (block or [()])[0]]
            right += [False] * (len(self._headings) - len(right))
            heading = self._line(self._headings, right)
            write_lines([click.style(heading, bold=True) if self._terminal else heading])
        for row, values in zip(texts, block, strict=True):
            write_lines([self._line(row, [_is_number(value) for value in values])])

    def _line(self, texts: Sequence[str], right: Sequence[bool]) -> str:
        cells = []
        for text, width, to_right in zip(texts, self._widths, right, strict=True):
            blank = " " * (width - _width(text))
            cells.append(blank + text if to_right else text + blank)
        line = GAP.join(cells).rstrip()
        return _cut(line, self._limit) if self._limit and _width(line) > self._limit else line


def one_line(text: str) -> str:
    """Text without line ends and without what could steer a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _text(value: Any, *, bare: bool) -> str:
    if value is None:
        return "-"
    if _is_number(value):
        return str(value) if bare else f"{value:,}"
    return one_line(str(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _escaped(character: str) -> str:
    return " " if character in "\r\n" else character.encode("unicode_escape").decode()


def _width(text: str) -> int:
    """Columns on a screen: wide characters take two."""
    if text.isascii():
        return len(text)
    return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _cut(line: str, limit: int) -> str:
    taken = 0
    for place, character in enumerate(line):
        taken += _width(character)
        if taken > limit - 1:
            return line[:place] + "…"
    return line
