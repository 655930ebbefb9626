"""Positions in the write-ahead log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.postgres.protocol.lsn import Lsn
from eventlog.errors import UsageError
from tests.fix_postgres import Database


def test_prints_as_postgres_does() -> None:
    assert str(Lsn(0x16_B374D848)) == "16/B374D848"
    assert f"{Lsn(0)}" == "0/0"
    assert repr(Lsn(0x1_0000000A)) == "Lsn('1/A')"


def test_reads_lower_case_and_the_padded_form() -> None:
    assert Lsn.parse("16/b374d848") == Lsn(0x16_B374D848)
    assert Lsn.parse("0/0000000A") == Lsn(10)


@given(st.integers(0, 2**64 - 1))
def test_what_is_printed_is_read_back(position: int) -> None:
    read = Lsn.parse(str(Lsn(position)))
    assert read == position
    assert isinstance(read, Lsn)


@pytest.mark.parametrize(
    "text",
    ["", "0", "/", "0/", "/0", "0/0/0", " 0/0", "0/0\n", "-1/0", "123456789/0", "٣/0"],
)
def test_anything_else_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError, match="not a position") as caught:
        Lsn.parse(text)
    assert "16/B374D848" in caught.value.hint


def test_orders_as_positions() -> None:
    assert Lsn.parse("1/0") > Lsn.parse("0/FFFFFFFF")
    assert Lsn.parse("1/0") - Lsn.parse("0/FFFFFFFF") == 1


def test_agrees_with_the_server(database: Database) -> None:
    for position in (0, 1, 0xFFFFFFFF, 2**32, 2**64 - 1):
        text = database.value("select (%s::numeric + '0/0'::pg_lsn)::text", [position])
        assert Lsn.parse(text) == position
        # 19 pads the second half with zeroes, so compare what they mean
        assert database.value("select %s::pg_lsn - '0/0'", [str(Lsn(position))]) == position
