"""The benchmark of fairness runs, and ends the writers that it started."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.test_benchmarks import run_benchmarks


def test_a_small_writer_is_measured_beside_bulk_writers(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    words = ("--quick", "--rows", "10", "--directory", str(tmp_path), "--json", str(file))
    done = run_benchmarks("fair", *words)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(file.read_text("utf-8"))["results"]
    for figure in (*result["figures"], *result["ratios"]):
        assert len(figure["samples"]) >= 5 and min(figure["samples"]) >= 0
    assert {figure["unit"] for figure in result["figures"]} == {"ms", "1/s"}
    assert "≤ 30" in done.stdout
    assert os.listdir(tmp_path) == ["results.json"]
