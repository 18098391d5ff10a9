"""The suite's tests that need CUDA; a failure is a line of results as soon as it is known."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import pytest

from benchmarks.gpu.lab import Lab, Work

REHEARSED = ("tests/ops/test_on_gpu.py",)
"""They are collected, and say that they need a GPU."""


class Watch:
    """A plugin of pytest that writes lines of results."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.lab.line(
                what="failure", test=report.nodeid, phase=report.when, why=str(getattr(crash, "message", ""))[:300]
            )

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        kinds = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")
        counts = {kind: len(terminalreporter.stats.get(kind, ())) for kind in kinds}
        failures = [report.nodeid for kind in ("failed", "error") for report in terminalreporter.stats.get(kind, ())]
        self.lab.line(what="tests", **counts, failures=failures)


def ready(lab: Lab) -> Work:
    return lambda: run(lab)


def run(lab: Lab) -> None:
    """`pytest -m gpu`, on several processes where pytest-xdist is there: most tests wait for a compiler.

    The log has a line for each test, so that a stage that is stopped tells which ones it has not come to.
    """
    words = ["-v", "-m", "gpu", "-p", "no:cacheprovider", "-W", "ignore", *(REHEARSED if lab.rehearse else ())]
    if find_spec("xdist") and not lab.rehearse:
        words += ["-n", str(min(8, max(1, (os.cpu_count() or 2) // 2)))]
    status = pytest.main(words, plugins=[Watch(lab)])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with {pytest.ExitCode(status).name}: see the stage's log")
