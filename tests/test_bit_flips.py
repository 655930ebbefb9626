"""One bit of the data file flips: it is harmless, or noticed, and never another value.

Every image is opened by another process, which may die: LMDB asserts. What a log may answer then is
the truth or an error. Only where the bit is one of LMDB's meta pages, which carry no checksum, may
it be the whole state before the last commit.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

import eventlog
from tests import workload
from tests.forgetful_store import METAS, PAGE, ForgetfulStore
from tests.onlooker import Onlooker

FLIPS = 500
SIZE_MAX = 64 << 10
SMALL = {
    "SINGLES": 16,
    "BULKS": 1,
    "BULK_EVENTS": 1,
    "LARGES": 1,
    "LARGE_EVENTS": 1,
    "LARGE_BYTES": 2_100,
    "PAIRS": 1,
    "IDLE": 1,
    "IDS": 4,
    "PACKS": 1,
    "PACK_EVENTS": 32,
    "AGES": 3,
    "AGE_EVENTS": 1,
    "AGE_DROPPED": 1,
    "CHANGES": 2,
    "STAGED_EVERY": 2,
    "SCHEMA_EVERY": 2,
}
"""The workload's numbers for a log with every kind of row in 64 KiB."""

PAGE_KINDS = {1: "branch", 2: "leaf", 4: "overflow", 8: "meta"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """A log after its last commit, and before it."""

    before: bytes
    after: bytes


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    place = tmp_path_factory.mktemp("small")
    small = place / "small"
    small.mkdir()
    with mock.patch.multiple(workload, **SMALL), eventlog.open(place / "log", create=True) as log:
        workload.run(log)
        writer = log.engine.writer("shop")
        writer.owner.stage([workload.changes(9, 1, 0)])
        log.engine.store._env.copy(str(small), compact=True)
        writer.close()
    with eventlog.open(small) as log:
        double = ForgetfulStore(small / "data.mdb", lambda step, number: True)
        with double.watching():
            log.stream("clicks").append({"number": 99})
    (commit,) = double.commits
    print(f"{len(commit.after)} bytes")
    assert len(commit.after) <= SIZE_MAX
    return Images(before=commit.before, after=commit.after)


def place_of(image: bytes, at: int, bit: int) -> str:
    """Where a bit lies, for whoever has to mend it."""
    page = at // PAGE
    flags = int.from_bytes(image[page * PAGE + 10 : page * PAGE + 12], "little") & 0xF
    kind = PAGE_KINDS.get(flags, f"unknown ({flags})")
    if page < METAS:
        kind = "meta"
    return f"byte {at}, bit {bit}: {at % PAGE} of page {page} ({kind})"


def look_at(images: Images, flips: list[tuple[int, int]], directory: Path) -> str:
    """Flip each bit alone; returns what must not be, a line each."""
    wrong: list[str] = []
    outcomes: Counter[str] = Counter()
    with Onlooker(directory, names=workload.NAMES) as onlooker:
        for name, image in (("A", images.after), ("B", images.before)):
            seen = onlooker.remember(name, image)
            assert seen.errors == () and seen.violations == ()
            assert name == "A" or seen.differs["A"], (
                "the last commit can be told from the one before"
            )
        for at, bit in flips:
            flipped = bytearray(images.after)
            flipped[at] ^= 1 << bit
            seen = onlooker.look(bytes(flipped))
            where = place_of(images.after, at, bit)
            if seen.died:
                outcomes["died"] += 1
            elif "A" in seen.equal:
                outcomes["harmless"] += 1
            elif at < METAS * PAGE and "B" in seen.equal:
                outcomes["rolled back"] += 1
            elif seen.differs["A"]:
                outcomes["wrong"] += 1
                wrong += [f"{where}: {what}" for what in seen.differs["A"]]
            else:
                outcomes["noticed"] += 1
                told = [error for error in seen.errors if error.startswith(("check", "open"))]
                if not seen.violations and not told:
                    wrong.append(f"{where}: the check is silent about {seen.errors}")
    print(dict(outcomes))
    assert outcomes["harmless"] and outcomes["noticed"]
    return "\n".join(wrong)


def test_a_flipped_bit_is_harmless_or_noticed(images: Images, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    flips = [(chance.randrange(len(images.after)), chance.randrange(8)) for _ in range(FLIPS)]
    assert look_at(images, flips, tmp_path / "seen") == ""


@pytest.mark.soak
@pytest.mark.timeout(3 * 3600)
def test_a_flipped_bit_of_any_byte_is_harmless_or_noticed(images: Images, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    flips = [(at, chance.randrange(8)) for at in range(len(images.after))]
    assert look_at(images, flips, tmp_path / "seen") == ""
