"""A stage's own process, started by the runner: imports, a wait for its turn (a line on stdin), then the work."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

from benchmarks.gpu.lab import Lab
from benchmarks.gpu.stages import chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    (stage,) = chosen(options.name)
    lab = Lab(stage.name, options.out, options.scratch, options.device, options.rehearse)
    work = import_module(f"benchmarks.gpu.{stage.module}").ready(lab, **stage.options)
    if sys.stdin.readline():  # empty where the runner has gone
        work()
    sys.stdout.flush()
    os._exit(0)  # what libraries keep for their exit (process groups, compilers' workers) may hang there


if __name__ == "__main__":
    main()
