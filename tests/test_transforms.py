"""Transforms: what is one, what its digest covers, and that a version stands for one source."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import eventlog
from eventlog.engine.upkeep.retain import retain
from eventlog.errors import TransformRefused, UnknownColumn, UsageError
from eventlog.snapshots.transform.registry import register
from tests.fix_log import INT, NUMERIC, MadeSource, column, insert
from tests.fix_postgres import RunCli, assert_explained
from tests.transform_examples import centred, filtered, taxed

ROWS = pa.table(
    {
        "_offset": pa.array([4, 7, 9], pa.int64()),
        "id": pa.array([1, 2, 3], pa.int32()),
        "amount": pa.array(["1.00", "2.50", None]).cast(pa.decimal128(12, 2)),
        "note": ["a", None, "ß"],
    }
)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads a module from source text; `name` makes one that was not loaded before."""
    count = 0

    def load(source: str) -> ModuleType:
        nonlocal count
        count += 1
        path = tmp_path / f"written_{count}.py"
        path.write_text(f"import eventlog, pyarrow as pa, pyarrow.compute as pc\n{source}")
        spec = importlib.util.spec_from_file_location("written", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "written", module)
        spec.loader.exec_module(module)
        return module

    return load


def test_a_transform_maps_rows_to_rows_and_keeps_their_offsets() -> None:
    made = taxed.apply(ROWS)
    assert made.column_names == ["_offset", "id", "gross", "amount", "note"]
    assert made["_offset"].to_pylist() == [4, 7, 9]
    assert made["note"].to_pylist() == ["A", None, "ẞ"]
    plain = taxed(ROWS.drop_columns(["_offset"]))
    assert plain.equals(made.drop_columns(["_offset"]))
    assert (taxed.name, taxed.version, taxed.identity, taxed.kind) == (
        "taxed",
        1,
        "taxed@1",
        "function",
    )
    assert taxed.__doc__ == "Amounts with tax, notes in capitals."
    assert repr(taxed) == "<Transform taxed@1>"
    taxed.probe(ROWS)


def test_what_is_not_row_wise_is_refused() -> None:
    with pytest.raises(TransformRefused, match="transform filtered@1 made 2 rows of 3") as refused:
        filtered.apply(ROWS)
    assert "one row out for each row in" in refused.value.hint
    with pytest.raises(TransformRefused, match="another column 'centred' when applied to two"):
        centred.probe(ROWS)


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ("return rows.to_pandas()", "returned a DataFrame"),
        ("return rows.append_column('_offset', rows['id'])", "returned the columns"),
        ("return rows.append_column('id', rows['id'])", "returned the columns"),
        ("rows = rows.select(['id']); return rows.append_column('n', pa.array(range(len(rows))))",
         "another column 'n' when applied to two halves"),
        ("return pa.table({'x': rows['note'].to_pylist()[::-1]})", "another column 'x'"),
        ("return pa.table({'x': rows['amount'].to_pylist()})", "another column 'x' when applied to "
         "the last row alone"),
        ("import random; return pa.table({'x': [random.random() for _ in range(len(rows))]})",
         "another column 'x' when applied twice"),
        ("return pa.table({'x': [[float('nan'), -float(len(rows))]] * len(rows)})",
         "another column 'x'"),
        ("return rows.select(['id']).sort_by('id')",
         "another column 'id' when applied to the rows from last to first"),
    ],
)  # fmt: skip
def test_a_probe_names_the_column(written: Any, body: str, cause: str) -> None:
    module = written(f"@eventlog.transform('t', version=1)\ndef t(rows):\n    {body}\n")
    with pytest.raises(TransformRefused) as refused:
        module.t.probe(ROWS)
    assert cause in str(refused.value)
    assert refused.value.hint


def test_a_probe_takes_nan_for_nan(written: Any) -> None:
    module = written(
        "@eventlog.transform('t', version=1)\n"
        "def t(rows):\n"
        "    nan = pa.array([float('nan')] * len(rows))\n"
        "    return pa.table({'x': nan, 'y': pa.array([[float('nan')]] * len(rows))})\n"
    )
    module.t.probe(ROWS)


@pytest.mark.parametrize("version", [0, -1, True, "2", 1.0])
def test_versions_count_from_one(version: Any) -> None:
    with pytest.raises(UsageError, match="no version"):
        eventlog.transform("t", version=version)(gone)


def gone(rows: pa.Table) -> pa.Table:
    return rows


def test_what_is_no_transform_is_refused() -> None:
    with pytest.raises(UsageError, match="is a int"):
        eventlog.transform("t", version=1)(3)
    with pytest.raises(UsageError):
        eventlog.transform("No Name", version=1)(gone)


BASE = """
RATE = 0.19
TABLE = {"a": 1, "b": [1, 2.5, None]}

def inner(x):
    return pc.multiply(x, RATE)

def outer(x):
    return inner(x)

class Step:
    def run(self, x):
        return outer(x)

@eventlog.transform("t", version=1)
def t(rows):
    return pa.table({"x": Step().run(rows["id"]), "n": len(TABLE)})
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("RATE = 0.19", "RATE = 0.2"),
        ('{"a": 1, "b"', '{"a": 2, "b"'),
        ("pc.multiply(x, RATE)", "pc.add(x, RATE)"),
        ("return outer(x)", "return inner(outer(x))"),
        ('"n": len', '"m": len'),
        ("    return inner(x)", "    return  inner(x)"),
    ],
)
def test_a_change_in_what_a_function_uses_changes_its_digest(
    written: Any, before: str, after: str
) -> None:
    assert before in BASE
    assert written(BASE).t.digest != written(BASE.replace(before, after)).t.digest


WRAPPED = """
import functools
def times(k):
    def around(f):
        @functools.wraps(f)
        def wrapper(x):
            return f(x) * k
        return wrapper
    return around
"""
CLASSES = """
import dataclasses, enum, functools
RATE = 2
def marked(kind):
    kind.factor = 2
    return kind
class Meta(type):
    def twice(cls, x): return x * 2
@marked
class Rates(metaclass=Meta):
    rate = RATE
    class Inner:
        def go(self, x): return x * RATE
    @functools.cached_property
    def cached(self): return RATE
class Slots:
    __slots__ = ("a",)
class Both(Slots):
    def __init__(self): self.a, self.b = 2, 1
class Pairs(list):
    def total(self): return sum(self) + 2
class Level(enum.Enum):
    HIGH = RATE
@dataclasses.dataclass(frozen=True, slots=True)
class Scale:
    by: int
    def go(self, x): return x * self.by
"""


@pytest.mark.parametrize(
    ("source", "body", "before", "after"),
    [
        (WRAPPED + "@times(2)\ndef used(x): return x", "used(rows)", "times(2)", "times(3)"),
        (WRAPPED + "@times(2)\ndef used(x): return x", "used(rows)", "f(x) * k", "f(x) + k"),
        (CLASSES, "Rates.rate", "RATE = 2", "RATE = 3"),
        (CLASSES, "Rates.Inner().go(rows)", "RATE = 2", "RATE = 3"),
        (CLASSES, "Rates().cached", "RATE = 2", "RATE = 3"),
        (CLASSES, "Rates.factor", "factor = 2", "factor = 3"),
        (CLASSES, "Rates.twice(rows)", "x * 2", "x * 3"),
        (CLASSES + "used = Both()", "used.a", "self.a, self.b = 2", "self.a, self.b = 3"),
        (CLASSES + "used = Pairs([1, 2])", "used.total()", "[1, 2]", "[1, 3]"),
        (CLASSES + "used = Pairs([1, 2])", "used.total()", "sum(self) + 2", "sum(self) + 3"),
        (CLASSES + "used = Level.HIGH", "used.value", "RATE = 2", "RATE = 3"),
        (CLASSES + "used = Scale(2)", "used.go(rows)", "x * self.by", "x + self.by"),
        (CLASSES + "used = Scale(2)", "used.go(rows)", "slots=True", "slots=False"),
        (CLASSES + "used = Scale(2).go", "used(rows)", "Scale(2)", "Scale(3)"),
        ("used = {'a': 2}.get", "used('a')", "'a': 2", "'a': 3"),
        ("used = {'a': 1, 'b': 1}", "list(used)[0]", "'a': 1, 'b': 1", "'b': 1, 'a': 1"),
        ("def used(x): return used.k\nused.k = 2", "used(rows)", "used.k = 2", "used.k = 3"),
        (
            "import functools\n@functools.singledispatch\ndef used(x): return x\n"
            "@used.register\ndef _(x: int): return x * 2",
            "used(rows)",
            "x * 2",
            "x * 3",
        ),
        (
            "import numpy as np\nused = np.ma.array([1, 2], mask=[0, 1])",
            "used.sum()",
            "[0, 1]",
            "[1, 0]",
        ),
    ],
)
def test_code_that_is_reached_on_byways_counts(
    written: Any, source: str, body: str, before: str, after: str
) -> None:
    head = '\n@eventlog.transform("t", version=1)\ndef t(rows):\n    return '
    assert before in source
    first = written(source + head + body).t.digest
    assert written(source + head + body).t.digest == first
    assert written(source.replace(before, after) + head + body).t.digest != first


def test_a_wrapper_around_the_transform_itself_counts(written: Any) -> None:
    source = WRAPPED + '@eventlog.transform("t", version=1)\n@times(2)\ndef t(rows): return rows'
    first = written(source).t.digest
    assert written(source.replace("times(2)", "times(3)")).t.digest != first
    assert written(source.replace("f(x) * k", "f(x) + k")).t.digest != first
    assert written(source.replace("return rows", "return -rows")).t.digest != first


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("version=1", "version=2"),
        ('"b": [1, 2.5, None]}', '"b": [1, 2.5, None]}  # a remark outside'),
        ("class Step", "OTHER = 4\n\nclass Step"),
    ],
)
def test_what_a_function_does_not_use_is_no_part_of_its_digest(
    written: Any, before: str, after: str
) -> None:
    assert before in BASE
    assert written(BASE).t.digest == written(BASE.replace(before, after)).t.digest


def test_a_digest_is_the_same_in_another_process() -> None:
    program = "from tests.transform_examples import taxed; print(taxed.digest)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"PYTHONHASHSEED": "77", "PATH": ""},
    )
    assert done.stdout.strip() == taxed.digest
    assert "TAX" in taxed.source and "def gross" in taxed.source


def test_closures_and_defaults_count() -> None:
    def made(by: float, default: Any = None) -> eventlog.Transform:
        def times(rows: pa.Table, factor: Any = default) -> pa.Table:
            return pa.table({"x": pc.multiply(rows["id"], by)})

        return eventlog.transform("times", version=1)(times)

    assert made(2.0).digest == made(2.0).digest
    assert made(2.0).digest != made(2.5).digest
    assert made(2.0).digest != made(2.0, default=np.array([1])).digest


def test_a_value_that_cannot_be_told_is_refused(written: Any, tmp_path: Path) -> None:
    source = (
        "import threading\nLOCK = {}\n"
        "@eventlog.transform('t', version=1)\ndef t(rows):\n    LOCK\n    return rows\n"
    )
    for value in ("threading.Lock()", "__import__('io').StringIO()", "(n for n in 'x')"):
        with pytest.raises(TransformRefused, match=r"uses LOCK, a .*, whose value cannot be told"):
            _ = written(source.format(value)).t.digest


def test_a_function_without_a_source_is_refused() -> None:
    space: dict[str, Any] = {}
    exec("def typed(rows):\n    return rows\n", space)
    with pytest.raises(TransformRefused, match="whose source cannot be read"):
        _ = eventlog.transform("typed", version=1)(space["typed"]).digest
    with pytest.raises(TransformRefused, match="uses a lambda"):
        _ = eventlog.transform("quick", version=1)(lambda rows: rows).digest


def test_a_version_stands_for_one_source(log: eventlog.Log, written: Any) -> None:
    first = written(BASE).t
    register(log.engine, first)
    register(log.engine, first)
    assert log.stream("transforms").end == 1
    (event,) = log.stream("transforms").read()
    assert event.key == "t@1"
    assert (event.value["digest"], event.value["kind"]) == (first.digest, "function")
    changed = written(BASE.replace("0.19", "0.2")).t
    with pytest.raises(TransformRefused, match="transform t@1 is not what this log knows") as no:
        register(log.engine, changed)
    assert no.value.hint == "raise its version to 2, or restore its source"
    register(log.engine, written(BASE.replace("0.19", "0.2").replace("version=1", "version=2")).t)
    register(log.engine, written(BASE).t)
    assert [event.key for event in log.stream("transforms").read()] == ["t@1", "t@2"]


def test_no_version_is_forgotten_whatever_is_dropped(log: eventlog.Log, written: Any) -> None:
    first, changed = written(BASE).t, written(BASE.replace("0.19", "0.2")).t
    register(log.engine, first)
    stream = log.stream("transforms")
    for how in ({"below": "end"}, {"max_bytes": 0}, {"older_than": "0s", "force": True}):
        with pytest.raises(UsageError, match="which source each version") as kept:
            stream.retain(**how)
        assert kept.value.hint
    assert (stream.start, stream.end) == (0, 1)
    # As an earlier release did it.
    retain(log.engine.store, "transforms", below=1, force=True)
    assert (stream.start, stream.end) == (1, 1)
    for version in (changed, first):
        with pytest.raises(TransformRefused, match=r"knew 't@1', and what it was has been dropped"):
            register(log.engine, version)
    newer = written(BASE.replace("version=1", "version=2")).t
    register(log.engine, newer)
    register(log.engine, newer)
    assert (stream.start, stream.end) == (1, 2)


# Fitted scikit-learn transformers


def fitted(scale: float = 1.0) -> Any:
    import pandas as pd
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    frame = pd.DataFrame({"amount": [1.0 * scale, 2.0, 4.0, np.nan], "note": ["a", "b", "a", "ß"]})
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    both = make_column_transformer(
        (numbers, ["amount"]), (OneHotEncoder(handle_unknown="ignore"), ["note"])
    )
    return make_pipeline(both).fit(frame)


def test_a_fitted_pipeline_is_a_transform_of_the_columns_that_it_was_fitted_on() -> None:
    scale = eventlog.transform("scale", version=1)(fitted())
    assert scale.columns == ["amount", "note"]
    made = scale.apply(ROWS)
    assert made.column_names == [
        "_offset",
        "pipeline__amount",
        "onehotencoder__note_a",
        "onehotencoder__note_b",
        "onehotencoder__note_ß",
    ]
    assert made["onehotencoder__note_ß"].to_pylist() == [0.0, 0.0, 1.0]
    assert {f.type for f in made.schema if f.name != "_offset"} == {pa.float64()}
    scale.probe(ROWS)
    assert scale.apply(ROWS.slice(0, 0)).schema == made.schema
    with pytest.raises(UnknownColumn, match="was fitted on column 'note', which is not there"):
        scale.apply(ROWS.drop_columns(["note"]))


def test_the_digest_of_a_pipeline_is_over_its_parameters_and_fitted_arrays() -> None:
    def digest(made: Any) -> str:
        return eventlog.transform("scale", version=1)(made).digest

    import pickle

    assert digest(fitted()) == digest(fitted())
    assert digest(pickle.loads(pickle.dumps(fitted()))) == digest(fitted())
    assert digest(fitted()) != digest(fitted(scale=1.5))
    other = fitted()
    other.steps[0][1].transformers_[0][1].steps[1][1].mean_[0] += 1e-12
    assert digest(other) != digest(fitted())


def test_a_tree_inside_a_pipeline_is_told() -> None:
    import pandas as pd
    from sklearn.ensemble import RandomTreesEmbedding

    frame = pd.DataFrame({"x": np.arange(40.0), "y": np.arange(40.0) % 7})

    def digest(seed: int) -> str:
        made = RandomTreesEmbedding(n_estimators=2, random_state=seed).fit(frame)
        return eventlog.transform("trees", version=1)(made).digest

    assert digest(1) == digest(1)
    assert digest(1) != digest(2)


def test_what_is_not_fitted_on_named_columns_is_refused() -> None:
    from sklearn.linear_model import LinearRegression
    from sklearn.preprocessing import StandardScaler

    for maker in (StandardScaler(), StandardScaler().fit(np.eye(3))):
        with pytest.raises(TransformRefused, match="not fitted on named columns"):
            eventlog.transform("scale", version=1)(maker)
    with pytest.raises(TransformRefused, match="has no transform"):
        eventlog.transform("model", version=1)(LinearRegression())


def test_a_class_of_a_notebook_is_told_by_its_methods(
    written: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest(source: str) -> str:
        made = written(source).t
        monkeypatch.delitem(sys.modules, "written")
        found: str = made.digest
        return found

    assert digest(BASE) == digest(BASE)
    assert digest(BASE) != digest(BASE.replace("return outer(x)", "return inner(outer(x))"))


def test_a_cached_helper_is_told_by_what_it_wraps(written: Any) -> None:
    source = BASE.replace("def inner", "import functools\n\n@functools.cache\ndef inner")
    assert written(source).t.digest == written(source).t.digest
    assert written(source).t.digest != written(source.replace("multiply", "add")).t.digest


def test_a_saved_snapshot_registers_and_probes_its_transform(
    log: eventlog.Log, shop: MadeSource, tmp_path: Path
) -> None:
    money = (12 << 16 | 2) + 4
    orders = shop.table(
        "orders",
        column("id", INT, key=True),
        column("amount", NUMERIC, typmod=money),
        column("note"),
    )
    shop.commit(insert(orders, 1, "1.00", "a"), insert(orders, 2, "2.00", None))
    path = tmp_path / "train.json"
    log.snapshot("shop").save(path, transform=taxed)
    assert [event.key for event in log.stream("transforms").read()] == ["taxed@1"]
    assert log.load_snapshot(path).verify(transform=taxed)
    changed = eventlog.transform("taxed", version=1)(gone)
    assert not log.load_snapshot(path).verify(transform=changed)
    with pytest.raises(TransformRefused, match="is not what this log knows"):
        log.snapshot("shop").save(tmp_path / "again.json", transform=changed)
    with pytest.raises(TransformRefused, match="another column 'centred'"):
        log.snapshot("shop").save(tmp_path / "again.json", transform=centred)
    assert not (tmp_path / "again.json").exists()
    assert [event.key for event in log.stream("transforms").read()] == ["taxed@1"]


def boom(rows: pa.Table) -> pa.Table:
    return pa.table({"amount": rows["amont"]})


def test_a_transform_that_fails_is_told_with_its_line_and_keeps_its_version_free(
    log: eventlog.Log, shop: MadeSource, tmp_path: Path
) -> None:
    orders = shop.table("orders", column("id", INT, key=True), column("amount", INT))
    shop.commit(insert(orders, 1, 5), insert(orders, 2, 6))
    path = tmp_path / "train.json"
    with pytest.raises(TransformRefused) as failed:
        log.snapshot("shop").save(path, transform=eventlog.transform("boom", version=1)(boom))
    assert str(failed.value).startswith("transform boom@1 fails: KeyError: ")
    assert "amont" in str(failed.value)
    line = boom.__code__.co_firstlineno + 1
    assert failed.value.hint == f"look at test_transforms.py, line {line}, in boom"
    assert isinstance(failed.value.__cause__, KeyError)
    assert not path.exists() and "transforms" not in [stream.name for stream in log.streams()]
    mended = eventlog.transform("boom", version=1)(same)
    log.snapshot("shop").save(path, transform=mended)
    assert [event.key for event in log.stream("transforms").read()] == ["boom@1"]
    assert repr(log.snapshot("shop").table("orders")) == "<Table public.orders, 2 rows>"
    mended.maker = boom
    found = log.load_snapshot(path).verify(transform=mended)
    assert found.reasons[0].startswith("the output of table shop.public.orders cannot be made")


FILE = """
import eventlog

@eventlog.transform("boom", version=1)
def boom(rows):
    return rows.select(["amont"])

@eventlog.transform("same", version=1)
def same(rows):
    return rows
"""


def test_the_command_says_what_a_transform_lacks_in_a_sentence(
    log: eventlog.Log, shop: MadeSource, tmp_path: Path, run_cli: RunCli
) -> None:
    orders = shop.table("orders", column("id", INT, key=True), column("amount", INT))
    shop.commit(insert(orders, 1, 5))
    file, path = tmp_path / "made.py", tmp_path / "train.json"
    file.write_text(FILE)
    create = ("snapshot", "create", "--at", "shop=end", "--out", str(path), "--log", str(log.path))
    failed = run_cli(*create, "--transform", f"{file}:boom")
    assert_explained(failed)
    assert "Error: transform boom@1 fails: KeyError: " in failed.stderr
    assert "Hint: look at made.py, line 6, in boom" in failed.stderr
    assert run_cli(*create, "--transform", f"{file}:same").returncode == 0
    found = run_cli("snapshot", "verify", str(path), "--log", str(log.path))
    assert found.returncode == 1
    assert found.stdout.endswith("not proven whole: 1 row proven\n")
    assert found.stderr == "Hint: give the transform: --transform FILE.py:NAME, transform=\n"


def same(rows: pa.Table) -> pa.Table:
    return rows


@pytest.mark.parametrize(
    "use",
    [
        "math.floor(near_rates.RATE + rate())",
        "import near_rates as other; other.RATE",
        "from near_rates import RATE; math.floor(RATE)",
        "near_package.inner.RATE",
    ],
)
def test_modules_beside_a_transform_are_its_own_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)

    def digest(rate: str, depth: str) -> str:
        (tmp_path / "near_rates.py").write_text(
            f"RATE = {rate}\nUNUSED = {depth}\n\ndef rate():\n    return RATE\n"
        )
        (tmp_path / "near_features.py").write_text(
            "import eventlog, near_rates, math, near_package.inner\n"
            "from near_rates import rate\n\n"
            "@eventlog.transform('near', version=1)\n"
            f"def near(rows):\n    {use}\n    return rows\n"
        )
        (tmp_path / "near_package").mkdir(exist_ok=True)
        (tmp_path / "near_package" / "inner.py").write_text(f"RATE = {rate}\nUNUSED = {depth}\n")
        program = "import near_features; print(near_features.near.digest)"
        done = subprocess.run(
            [sys.executable, "-B", "-c", program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout.strip()

    first = digest("0.19", "1")
    assert len(first) == 64
    assert digest("0.19", "2") == first
    assert digest("0.20", "1") != first


def test_a_function_inside_a_pipeline_is_told_by_its_source(
    written: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas as pd
    from sklearn.preprocessing import FunctionTransformer

    def digest(source: str) -> str:
        step = FunctionTransformer(written(source).double, feature_names_out="one-to-one")
        made = eventlog.transform("f", version=1)(step.fit(pd.DataFrame({"x": [1.0]})))
        return made.digest

    assert digest("def double(x):\n    return x * 2\n") == digest(
        "def double(x):\n    return x * 2\n"
    )
    assert digest("def double(x):\n    return x * 2\n") != digest(
        "def double(x):\n    return x + x\n"
    )
