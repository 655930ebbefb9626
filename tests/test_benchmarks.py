"""The benchmarks run, and say what they found; how fast anything was is no test's business."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.child import ChildFailed, run_child
from benchmarks.machine import fingerprint
from benchmarks.measure import Ratio, in_turn, ratio_samples, summary

ROOT = Path(__file__).parents[1]


def run_benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_append_prints_a_table_and_writes_its_samples(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    done = run_benchmarks(
        "append", "--quick", "--rows", "50", "--directory", str(tmp_path), "--json", str(file)
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text("utf-8"))
    (result,) = found["results"]
    assert result["name"] == "append"
    assert {figure["role"] for figure in result["figures"]} == {"subject", "peer", "limit"}
    for measured in (*result["figures"], *result["ratios"]):
        assert len(measured["samples"]) >= 5
        assert min(measured["samples"]) > 0
        assert measured["median"] == pytest.approx(statistics.median(measured["samples"]), 1e-4)
    for figure in result["figures"]:
        assert figure["contender"] in done.stdout
    assert os.listdir(tmp_path) == ["results.json"]


def test_a_name_that_is_no_program_is_wrong_usage() -> None:
    done = run_benchmarks("nonesuch")
    assert done.returncode == 2
    assert "'nonesuch'" in done.stderr
    assert "Traceback" not in done.stderr


def test_fewer_than_five_samples_are_wrong_usage() -> None:
    done = run_benchmarks("append", "--samples", "4")
    assert done.returncode == 2
    assert "--samples" in done.stderr


def test_contenders_take_turns_and_the_warm_up_is_dropped() -> None:
    order: list[str] = []

    def contender(name: str) -> Any:
        def run() -> dict[str, float]:
            order.append(name)
            return {"place": float(len(order))}

        return run

    contenders = {"a": contender("a"), "b": contender("b")}
    taken = in_turn(contenders, samples=5, note=lambda _: None)
    assert order == ["a", "b"] * 6
    assert [sample["place"] for sample in taken["a"]] == [3, 5, 7, 9, 11]
    assert ratio_samples(taken, "place", of="b", to="a") == (4 / 3, 6 / 5, 8 / 7, 10 / 9, 12 / 11)


def test_a_ratio_meets_its_target_by_its_median() -> None:
    def ratio(**target: float) -> Ratio:
        return Ratio(case="", quantity="", of="", to="", samples=(1.0, 2.0, 9.0), **target)

    assert ratio(at_least=2.0).met is True
    assert ratio(at_least=2.1).met is False
    assert ratio(at_most=2.0).met is True
    assert ratio(at_most=1.9).met is False
    assert ratio().met is None


def test_a_summary_keeps_the_samples_and_their_spread() -> None:
    assert summary((3.0, 1.0, 2.0, 5.0, 4.0)) == {
        "median": 3.0,
        "min": 1.0,
        "max": 5.0,
        "quartiles": [2.0, 4.0],
        "samples": [3.0, 1.0, 2.0, 5.0, 4.0],
    }


def test_the_fingerprint_names_no_host_user_or_path(tmp_path: Path) -> None:
    text = json.dumps(fingerprint(tmp_path))
    for secret in (os.uname().nodename, str(tmp_path), str(Path.home())):
        assert f'"{secret}' not in text and f" {secret}" not in text
    assert "/" not in fingerprint(tmp_path)["filesystem"]


def test_a_child_that_fails_is_no_sample(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('the server is gone')"]
    with pytest.raises(ChildFailed, match="the server is gone"):
        run_child(command, {}, tmp_path)


def test_a_child_s_cpu_and_output_are_its_own(tmp_path: Path) -> None:
    code = "import os, time\nwhile time.process_time() < 0.2: pass\nprint(os.environ['WORD'])"
    used = run_child([sys.executable, "-c", code], {"WORD": "told"}, tmp_path)
    assert used.output == "told\n"
    assert used.cpu_s >= 0.2
    assert used.ended > used.started
    assert used.anonymous_bytes > 0
