"""`python -m benchmarks`: every benchmark by its name."""

import subprocess
import sys

from tests.helpers import ROOT


def run(*words):
    return subprocess.run([sys.executable, "-m", "benchmarks", *words], cwd=ROOT, capture_output=True, text=True)


def test_benchmarks_are_listed_and_run_by_name():
    listed = {line.split()[0] for line in run().stdout.splitlines()[2:]}
    assert {"loss", "optimizer", "optimizer_memory", "step", "data", "gpu", "static_gpu", "plan_rivals"} <= listed
    assert not listed & {"__main__", "cases", "launcher", "conftest"}
    unknown = run("los")
    assert unknown.returncode == 1
    assert "there is no benchmark 'los': use one of" in unknown.stderr
    assert "--elements" in run("optimizer", "--help").stdout
    assert "--rehearse" in run("gpu", "--help").stdout


def test_help_is_all_that_help_asks_for():
    for module in ("static_gpu", "exactness"):
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{module}", "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0
        assert done.stdout.count("\n") < 30
