"""The loss beside the published expression, and the report on it: `python -m benchmarks.loss [OPTIONS OF PYTEST]`.

Runs `benchmarks/test_loss.py` under pytest-benchmark, then `benchmarks.report` on results/loss.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.common.arguments import help_if_asked


def main() -> None:
    code = pytest.main([str(Path(__file__).parent), "--benchmark-json", str(report.RESULTS), *sys.argv[1:]])
    if code:
        sys.exit(code)
    report.main()


if __name__ == "__main__":
    help_if_asked(__doc__)
    main()
