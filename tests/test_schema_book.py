"""Schema versions: which columns a Relation message means, and when that cannot be known."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from cdc.postgres.protocol.messages import Relation, RelationColumn
from cdc.postgres.schema.relation import CatalogColumn, CatalogRelation
from cdc.postgres.schema.schema_book import SchemaBook, schema_of
from eventlog.changes.schema import Schema, SourceType

T = 16_400
INT, BIGINT, TEXT, VARCHAR = 23, 20, 25, 1043
NEVER: Callable[[int, int], bool] = lambda xmin, position: False  # noqa: E731
WHICH = "columns were dropped and added, and which is which cannot be told"


@dataclass
class Live:
    """A column of the model."""

    name: str
    type: int
    xid: int
    missing: str | None = None
    default: bool = False
    generated: str = ""


@dataclass
class Table:
    """A table as a server would have it; each change is a transaction of its own.

    Both the catalog and the messages are taken from it, at different times.
    """

    columns: dict[int, Live] = field(default_factory=dict)
    dropped: dict[int, int] = field(default_factory=dict)
    newest: int = 0
    xid: int = 100
    file: int = 1
    name: str = "t"
    generated_sent: bool | None = False
    published: frozenset[int] | None = None

    def add(self, name: str, type_: int = INT, **more: object) -> Table:
        self.xid += 1
        self.newest += 1
        self.columns[self.newest] = Live(name, type_, self.xid, **more)  # type: ignore[arg-type]
        return self

    def drop(self, name: str) -> Table:
        self.xid += 1
        number = self.number(name)
        del self.columns[number]
        self.dropped[number] = self.xid
        return self

    def rename(self, name: str, new: str) -> Table:
        self.xid += 1
        self.columns[self.number(name)].name = new
        self.columns[self.number(new)].xid = self.xid
        return self

    def retype(self, name: str, type_: int, *, rewrite: bool = True) -> Table:
        self.xid += 1
        column = self.columns[self.number(name)]
        column.type, column.xid = type_, self.xid
        return self.rewrite() if rewrite else self

    def rewrite(self) -> Table:
        """As VACUUM FULL does."""
        self.file += 1
        for column in self.columns.values():
            if column.missing is not None:
                column.missing, column.xid = None, self.xid
        return self

    def number(self, name: str) -> int:
        return next(number for number, column in self.columns.items() if column.name == name)

    def sent(self) -> list[int]:
        return [
            number
            for number, column in self.columns.items()
            if column.generated != "v"
            and (
                number in self.published
                if self.published is not None
                else not column.generated or self.generated_sent
            )
        ]

    def message(self) -> Relation:
        return Relation(
            relation=T,
            namespace="public",
            name=self.name,
            identity="d",
            columns=tuple(
                RelationColumn(
                    self.columns[n].name, self.columns[n].type, -1, key=self.columns[n].name == "id"
                )
                for n in self.sent()
            ),
        )

    def catalog(self) -> CatalogRelation:
        return CatalogRelation(
            oid=T,
            schema="public",
            name=self.name,
            identity="d",
            columns=tuple(
                CatalogColumn(
                    attribute=number,
                    name=column.name,
                    type=column.type,
                    typmod=-1,
                    key=column.name == "id",
                    generated=column.generated != "",
                    virtual=column.generated == "v",
                    missing=column.missing,
                    has_default=column.default or column.missing is not None,
                    xmin=column.xid,
                )
                for number, column in self.columns.items()
            ),
            types={},
            dropped=dict(self.dropped),
            storage={T: self.file},
            published=self.published,
            generated_sent=self.generated_sent,
        )


class Story:
    """A book, the table that it hears of, and the catalog that it sees: the table's, or a later."""

    def __init__(self, *names: str, settled: Callable[[int, int], bool] = NEVER) -> None:
        self.table = Table()
        for name in names or ("id", "a", "b"):
            self.table.add(name)
        self.gone = False
        self.good = 0
        self.book = SchemaBook(
            [],
            lambda oid: None if self.gone else self.table.catalog(),
            settled=settled,
            known_good=lambda relation: self.good,
        )
        self.book.adopt(schema_of(self.table.catalog()))

    def tell(self, message: Relation | None = None, *, xid: int = 0, position: int = 0) -> Schema:
        """The version in force after a message; by default the table's present one."""
        given = self.table.message() if message is None else message
        number = self.book.version_of(given, xid=xid, position=position)
        schema = self.book.schema(T)
        assert schema is not None and schema.id == number
        assert schema.names == tuple(column.name for column in given.columns)
        return schema

    def numbers(self, message: Relation | None = None) -> list[int | None]:
        return [column.attribute for column in self.tell(message).columns]


def copied_to(story: Story) -> None:
    """A copy of the table was made, under the catalog's columns."""
    story.book.adopt(schema_of(story.table.catalog()))


# What is certain


def test_added_dropped_renamed_and_retyped_columns_keep_their_numbers() -> None:
    story = Story()
    first = story.tell()
    assert [c.attribute for c in first.columns] == [1, 2, 3]
    story.table.add("c", missing="7")
    assert story.numbers() == [1, 2, 3, 4]
    story.table.drop("a")
    assert story.numbers() == [1, 3, 4]
    story.table.rename("b", "a")
    assert story.numbers() == [1, 3, 4]
    story.table.add("d").add("e")
    assert story.numbers() == [1, 3, 4, 5, 6]
    story.table.drop("c").drop("e")
    last = story.tell()
    assert [c.attribute for c in last.columns] == [1, 3, 5]
    assert story.book.take_doubts() == [] and not last.inferred and last.unseen_since is None


def test_swapped_names_are_not_swapped_columns() -> None:
    story = Story()
    story.table.rename("a", "x").rename("b", "a").rename("x", "b")
    schema = story.tell()
    assert [(c.name, c.attribute) for c in schema.columns] == [("id", 1), ("b", 2), ("a", 3)]
    assert story.book.take_doubts() == []


def test_additions_that_piled_up_are_certain() -> None:
    story = Story()
    before = story.table.message()
    story.table.add("c")
    middle = story.table.message()
    story.table.add("d").rename("c", "x").rename("a", "c")
    assert story.numbers(before) == [1, 2, 3]
    assert story.numbers(middle) == [1, 2, 3, 4]
    assert story.numbers() == [1, 2, 3, 4, 5]
    assert story.book.take_doubts() == []


def test_drops_that_piled_up_are_certain_where_one_choice_fits() -> None:
    story = Story("id", "a", "b", "c")
    before = story.table.message()
    story.table.drop("a").drop("c")
    after = story.table.message()
    assert story.numbers(before) == [1, 2, 3, 4]
    assert story.numbers(after) == [1, 3]
    assert story.book.take_doubts() == []


def test_one_of_two_dropped_columns_is_not_certain() -> None:
    story = Story("id", "a", "b", "c")
    story.table.drop("a")
    middle = story.table.message()
    story.table.drop("c")
    assert story.numbers(middle) == [None] * 3
    assert story.book.take_doubts() == [(T, WHICH)]


def test_a_column_that_was_known_to_be_dropped_is_never_meant_again() -> None:
    story = Story()
    story.table.drop("b")
    assert story.numbers() == [1, 2]
    story.table.add("b")
    assert story.numbers() == [1, 2, 4]
    story.table.add("c").drop("c").add("c")
    message = story.table.message()
    assert story.numbers(message) == [None] * 4, "c is 5 or 6"
    copied_to(story)
    assert story.numbers(message) == [1, 2, 4, 6]


# What fools


def fooling(settled: Callable[[int, int], bool] = NEVER) -> tuple[Story, Relation, Relation]:
    """v1(id, b), b renamed to c, data, c dropped, c added, data."""
    story = Story("id", "b", settled=settled)
    story.table.rename("b", "c")
    first = story.table.message()
    story.table.drop("c").add("c")
    return story, first, story.table.message()


def test_a_column_dropped_and_added_under_its_name_is_not_taken_for_the_old_one() -> None:
    story, first, second = fooling()
    assert first == second, "nothing in the messages tells them apart"
    story.good = 40
    schema = story.tell(first)
    assert schema.inferred and [c.attribute for c in schema.columns] == [None, None]
    assert (schema.unseen_since, schema.unseen_reason) == (40, WHICH)
    assert story.tell(second) is schema, "marked already"
    assert story.book.take_doubts() == [(T, WHICH)]
    assert story.book.take_doubts() == []
    copied_to(story)
    exact = story.tell(second)
    assert [c.attribute for c in exact.columns] == [1, 3]
    assert exact.unseen_since is None and story.book.take_doubts() == []


def test_what_is_settled_is_certain() -> None:
    story, _, second = fooling(settled=lambda xmin, position: position > xmin)
    assert story.numbers(second) == [None, None], "none of it ended before position 0"
    story, _, second = fooling(settled=lambda xmin, position: True)
    schema = story.tell(second)
    assert [c.attribute for c in schema.columns] == [1, 3]
    assert story.book.take_doubts() == []


def test_what_the_messages_own_transaction_changed_is_not_settled() -> None:
    for xid, certain in ((0, True), (500, False)):
        story, _, second = fooling(settled=lambda xmin, position: True)
        story.table.dropped[2] = story.table.columns[3].xid = 500
        assert story.tell(second, xid=xid).inferred is not certain


def test_a_message_of_the_known_shape_may_still_mean_a_new_column() -> None:
    story = Story("id", "b")
    old = story.table.message()
    story.table.drop("b").add("b")
    assert story.numbers(old) == [None, None]
    assert story.book.take_doubts() == [(T, WHICH)]


def test_a_settled_column_is_meant_by_its_name_and_type_alone() -> None:
    story = Story("id", "b", settled=lambda xmin, position: xmin <= 102)
    story.table.add("c")
    odd = story.table.message()
    odd = odd._replace(columns=(odd.columns[0], odd.columns[1]._replace(name="x"), odd.columns[2]))
    assert story.numbers(odd) == [None] * 3


def test_a_table_that_is_gone_leaves_nothing_certain_but_its_first_version() -> None:
    story = Story()
    message = story.table.message()
    story.gone = True
    schema = story.tell(message)
    assert schema.inferred and schema.unseen_since == 0
    unknown = SchemaBook([], lambda oid: None)
    number = unknown.version_of(message)
    first = unknown.schema(T)
    assert first is not None and (first.id, first.inferred, first.unseen_since) == (0, True, None)
    assert unknown.version_of(message) == number and unknown.take_doubts() == []


def test_after_versions_by_name_the_next_certain_one_is_marked_once() -> None:
    old = Schema(
        id=5,
        offset=70,
        relation=T,
        namespace="public",
        name="t",
        identity="d",
        columns=tuple(
            replace(column, attribute=None) for column in schema_of(Story().table.catalog()).columns
        ),
        inferred=True,
    )
    table = Story().table
    book = SchemaBook([old], lambda oid: table.catalog(), known_good=lambda relation: 90)
    assert book.version_of(table.message()) == 6
    schema = book.schema(T)
    assert schema is not None and not schema.inferred
    assert (schema.unseen_since, schema.unseen_reason) == (
        90,
        "its earlier columns are known by name only",
    )
    assert book.version_of(table.message()) == 6
    table.add("c")
    assert book.version_of(table.message()) == 7
    assert len(book.take_doubts()) == 1


# What older rows have


def test_a_fast_default_belongs_to_the_column_from_when_it_was_first_seen() -> None:
    story = Story()
    story.tell()
    story.table.add("c", missing="7").add("d")
    assert [c.missing for c in story.tell().columns] == [None, None, None, "7", None]
    story.table.rewrite()
    story.table.rename("a", "x")
    assert [c.missing for c in story.tell().columns] == [None, None, None, "7", None]
    assert story.book.take_doubts() == []


@pytest.mark.parametrize("known", [True, False], ids=["files known", "files unknown"])
def test_a_column_added_with_a_value_for_each_row_is_doubtful(known: bool) -> None:
    story = Story()
    if known:
        story.book.stood_on(T, {T: story.table.file})
    story.table.add("c", default=True)
    story.table.rewrite()
    schema = story.tell()
    reason = "column 'c' was added, and the rows before it may have values"
    assert not schema.inferred and schema.unseen_reason == reason
    assert story.book.take_doubts() == [(T, reason)]


def test_a_plain_column_is_null_before_where_the_files_are_the_same() -> None:
    story = Story()
    story.book.stood_on(T, {T: story.table.file})
    story.table.add("c", default=True)  # the default was set afterwards
    assert story.tell().unseen_since is None
    story.table.add("d")
    story.table.rewrite()
    assert story.tell().unseen_reason.startswith("column 'd' was added")


def test_a_new_columns_value_is_unknown_where_it_was_dropped_or_retyped_since() -> None:
    story = Story()
    story.table.add("c", missing="7")
    message = story.table.message()
    story.table.retype("c", BIGINT)
    assert story.tell(message).unseen_reason.startswith("column 'c' was added")
    story = Story()
    story.table.add("c", missing="7")
    message = story.table.message()
    story.table.drop("c")
    schema = story.tell(message)
    assert [c.attribute for c in schema.columns] == [1, 2, 3, 4]
    assert schema.unseen_reason.startswith("column 'c' was added")


def test_another_type_is_doubtful_unless_the_text_is_known_to_be_the_same() -> None:
    story = Story()
    story.tell()
    story.table.retype("a", BIGINT)
    assert story.tell().unseen_reason == "column 'a' was given another type"
    story.table.retype("a", VARCHAR)
    story.tell()
    story.table.retype("a", TEXT, rewrite=False)
    assert story.tell().unseen_since is None
    story.table.retype("a", VARCHAR)
    assert story.tell().unseen_reason == "column 'a' was given another type", "rewritten"
    story.table.retype("a", INT, rewrite=False)
    assert story.tell().unseen_reason == "column 'a' was given another type"


# Generated columns, and columns that are not sent


def test_generated_columns_are_matched_as_they_are_sent() -> None:
    for sent in (True, False, None):
        story = Story("id", "a")
        story.table.generated_sent = sent
        story.table.add("g", generated="s").add("v", generated="v").add("z")
        # Where it is not known, the third may as well be `g` under another name.
        known: list[int | None] = [1, 2, 3, 5] if sent else [1, 2, 5]
        assert story.numbers() == ([None] * 3 if sent is None else known)


def test_where_it_is_not_known_whether_they_are_sent_both_must_agree() -> None:
    story = Story("id", "a")
    story.table.add("g", generated="s")
    story.table.add("z")
    story.table.generated_sent = True
    message = story.table.message()
    story.table.generated_sent = None
    story.table.drop("z")
    # (id, a, g, z), or (id, a, z) with something in place of g: of four columns only one fits.
    assert story.numbers(message) == [1, 2, 3, 4]
    shorter = message._replace(columns=message.columns[:3])
    story = Story("id", "a")
    story.table.add("g", generated="s").add("z")
    story.table.generated_sent = None
    story.table.drop("z")
    assert story.numbers(shorter) == [None] * 3


def test_columns_that_are_not_listed_are_passed_over() -> None:
    story = Story("id", "a", "secret", "b")
    story.table.published = frozenset({1, 2, 4})
    assert story.numbers() == [1, 2, 4]
    story.table.published = frozenset({1, 2, 3, 4})
    schema = story.tell()
    assert [c.attribute for c in schema.columns] == [1, 2, 3, 4]
    assert schema.unseen_reason == "column 'secret', which was not sent before, is sent now"


# Marks, copies, the gate


def test_a_mark_makes_a_version_that_later_messages_keep() -> None:
    story = Story()
    first = story.tell()
    number = story.book.mark_unseen(T, since=12, reason="a partition was attached")
    marked = story.book.schema(T)
    assert marked is not None and marked.id == number == first.id + 1
    assert (marked.unseen_since, marked.unseen_reason) == (12, "a partition was attached")
    assert marked.columns == first.columns
    assert story.tell() is marked
    copied_to(story)
    assert story.book.schema(T) is marked
    story.table.add("c")
    assert story.tell().unseen_since is None, "each version tells of its own change"
    assert story.book.mark_unseen(T + 1, since=0, reason="x") is None
    ids = [number for number, _ in story.book.take_pending()]
    assert ids == list(range(len(ids))) and story.book.take_doubts() == []


def test_an_unseen_change_is_dated_by_the_last_good_look_and_by_the_known_version() -> None:
    stored = replace(schema_of(Story().table.catalog()), id=3, offset=50)
    table = Story().table.retype("a", BIGINT)
    for good, since in ((40, 50), (60, 60)):
        book = SchemaBook(
            [stored], lambda oid: table.catalog(), known_good=lambda relation, good=good: good
        )
        book.version_of(table.message())
        schema = book.schema(T)
        assert schema is not None and schema.unseen_since == since


class Masking:
    """Stores column `a` as text."""

    def __init__(self) -> None:
        self.seen: list[int | None] = []

    def stored(self, schema: Schema, known: Schema | None) -> Schema:
        self.seen.append(None if known is None else known.id)
        columns = tuple(
            replace(c, type=TEXT, hashed=True) if c.name == "a" else c for c in schema.columns
        )
        return replace(schema, columns=columns)


def test_the_gate_sees_every_version_before_it_is_adopted() -> None:
    table = Story().table
    gate = Masking()
    book = SchemaBook([], lambda oid: table.catalog(), gate=gate)
    assert book.adopt(schema_of(table.catalog())) == 0
    assert book.version_of(table.message()) == 0
    table.retype("a", BIGINT)
    assert book.version_of(table.message()) == 0, "what the log has of it is the same"
    assert gate.seen == [None, 0, 0]
    schema = book.schema(T)
    assert schema is not None and schema.columns[1].hashed and schema.columns[1].type == TEXT


def test_only_the_types_in_use_are_kept_and_those_that_are_gone_stay_known() -> None:
    def kind(oid: int, base: int = 0) -> SourceType:
        return SourceType(id=oid, namespace="public", name=f"k{oid}", kind="b", base=base)

    table = Table().add("id").add("a", 900)
    types = {900: kind(900, base=901), 901: kind(901), 950: kind(950)}
    view = replace(table.catalog(), types=types)
    views = [view]
    book = SchemaBook([], lambda oid: views[0])
    book.version_of(table.message())
    schema = book.schema(T)
    assert schema is not None and set(schema.types) == {900, 901}
    views[0] = replace(view, types={}, name="t2")
    book.version_of(table.message()._replace(name="t2"))
    later = book.schema(T)
    assert later is not None and later.types == schema.types and later.id == 1


def test_another_relation_of_the_same_name_begins_anew() -> None:
    story = Story()
    again = replace(story.table.catalog(), oid=T + 1)
    story.book.adopt(schema_of(again))
    new = story.book.schema(T + 1)
    assert new is not None and (new.id, new.unseen_since) == (1, None)
    assert story.book.schema(T) is not None


def test_keys_and_identities_change_without_doubt() -> None:
    story = Story()
    message = story.table.message()
    full = message._replace(
        identity="f", columns=tuple(c._replace(key=True) for c in message.columns)
    )
    schema = story.tell(full)
    assert schema.identity == "f" and schema.unseen_since is None and not schema.inserts_only
    nothing = message._replace(
        identity="n", columns=tuple(c._replace(key=False) for c in message.columns)
    )
    assert story.tell(nothing).inserts_only
    assert story.tell(message).key_indexes == (0,)


def test_under_full_identity_the_primary_key_is_the_catalogs() -> None:
    story = Story("id", "a")
    views = [story.table.catalog()]

    def told(*names: str, identity: str = "f") -> list[str]:
        columns = tuple(replace(c, key=True, primary=c.name in names) for c in views[0].columns)
        views[0] = replace(views[0], columns=columns, identity=identity)
        sent = story.table.message()._replace(identity=identity)
        message = sent._replace(columns=tuple(c._replace(key=True) for c in sent.columns))
        book = SchemaBook(stored, lambda oid: views[0])
        number = book.version_of(message)
        stored.extend(Schema.from_map(*pending) for pending in book.take_pending())
        assert number == len(stored) - 1
        assert book.adopt(schema_of(views[0], [c.name for c in sent.columns])) == number
        return [column.name for column in stored[-1].columns if column.primary]

    stored: list[Schema] = []
    assert told("id") == ["id"]
    assert told("a", "id") == ["id", "a"], "a version of its own"
    assert told() == []
    assert told("a", identity="i") == [], "where the stream tells the key itself"
    # A column that is not sent makes a key of the others only: not one.
    story.table.published = frozenset({1})
    views[0] = story.table.catalog()
    assert told("id", "a") == []
    assert told("id") == ["id"]


def test_sixteen_hundred_columns_are_told_apart() -> None:
    story = Story("id", *(f"c{i}" for i in range(1_599)))
    assert story.numbers()[-1] == 1_600
    for i in range(0, 60, 2):
        story.table.drop(f"c{i}")
    story.table.rename("c1", "x")
    numbers = story.numbers()
    assert len(numbers) == 1_570 and numbers[:3] == [1, 3, 5] and story.book.take_doubts() == []


# Everything at once


@pytest.mark.parametrize("seed", range(300))
def test_a_certain_column_is_always_the_right_one(seed: int) -> None:
    """The messages come late, the catalog is any number of changes ahead of them."""
    chance = random.Random(seed)
    settled_until = 0
    story = Story(settled=lambda xmin, position: xmin <= settled_until)
    told: list[tuple[Relation, list[int], int]] = []
    certain = 0
    for _ in range(30):
        action = chance.choice(["add", "drop", "rename", "retype", "data", "data", "hear"])
        names = [column.name for column in story.table.columns.values()]
        free = [name for name in ("a", "b", "c", "d") if name not in names]
        mine = [name for name in names if name != "id"]
        if action == "add" and free:
            story.table.add(chance.choice(free), chance.choice([INT, TEXT]))
        elif action == "drop" and mine:
            story.table.drop(chance.choice(mine))
        elif action == "rename" and mine and free:
            story.table.rename(chance.choice(mine), chance.choice(free))
        elif action == "retype" and mine:
            story.table.retype(chance.choice(mine), chance.choice([INT, TEXT]))
        elif action == "data":
            told.append((story.table.message(), story.table.sent(), story.table.xid))
        elif action == "hear":
            for message, truth, xid in told:
                if chance.random() < 0.5:
                    settled_until = max(settled_until, xid)
                schema = story.tell(message)
                numbers = [column.attribute for column in schema.columns]
                assert numbers == truth or (schema.inferred and not any(numbers)), seed
                certain += not schema.inferred
            if told and chance.random() < 0.3:
                copied_to(story)
            told = []
    print(seed, certain)
