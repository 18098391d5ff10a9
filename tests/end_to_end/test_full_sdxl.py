"""The benchmark at full size, with a tiny model: what it prints, and that it writes nothing."""

import subprocess
import sys

import pytest

from tests.helpers import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("rung", ["A", "B"])
def test_the_benchmark_at_full_size_runs_with_a_tiny_model(rung):
    before = sorted((ROOT / "benchmarks/results").iterdir())
    command = [sys.executable, "-m", "benchmarks.full_sdxl", "--tiny", "--rung", rung]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split(", ") for line in done.stdout.splitlines() if line.count(", ") == 3]
    figures = {tuple(row[:3]): row[3] for row in rows}
    for run in ("three steps", "resumed"):
        assert 0 < float(figures[run, "all", "trainer_peak_gib"]) <= float(figures[run, "all", "processes_peak_gib"])
        assert 0 < float(figures[run, "all", "share_changed"]) < 1
    assert [float(figures[f"step {step}", "steps", "loss"]) > 0 for step in range(4)] == [True] * 4
    assert f"GiB of rung {rung}" in done.stdout
    assert sorted((ROOT / "benchmarks/results").iterdir()) == before
