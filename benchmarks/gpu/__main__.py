"""Measures everything there is to measure on a GPU, within the minutes there are: `python -m benchmarks.gpu`.

Each stage is a process in a box of time, and each of its figures a line of results.jsonl as soon as it is there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results/gpu"


def main() -> None:
    if sys.argv[1:2] == ["pack"]:
        from benchmarks.gpu.pack import main as pack

        return pack(sys.argv[2:])
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0],
        epilog="`python -m benchmarks.gpu pack --help`: what a machine without a network lacks.",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=900, metavar="N", help="for all stages (default: 900)")
    parser.add_argument("--only", metavar="NAME,...", help="these stages alone; see --list")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for results.jsonl and the logs")
    parser.add_argument("--rehearse", action="store_true", help="everything tiny, on the CPU: no figure means anything")
    parser.add_argument("--list", action="store_true", help="name the stages and stop")
    parser.add_argument(
        "--report", nargs="?", type=Path, const=RESULTS / "results.jsonl", metavar="FILE",
        help="turn lines of results into tables and a picture for each card, beside FILE or in --out",
    )  # fmt: skip
    options = parser.parse_args()
    try:
        sound = start(options)
    except ValueError as error:
        sys.exit(str(error))
    sys.exit(not sound)


def start(options: argparse.Namespace) -> bool:
    """Do what was asked for; whether all went well. ValueError with a sentence for what cannot be."""
    if options.report:
        from benchmarks.gpu.report import report

        report(options.report, options.out or options.report.parent)
        return True
    from benchmarks.gpu.stages import chosen

    stages = chosen(options.only)
    if options.list:
        width = max(len(stage.name) for stage in stages)
        print("\n".join(f"{stage.name:{width}}  {stage.seconds:4.0f} s at most  {stage.about}" for stage in stages))
        return True
    from benchmarks.common.device import CUDA
    from benchmarks.gpu.runner import run

    if not (CUDA or options.rehearse):
        raise ValueError("torch finds no CUDA device here: --rehearse takes every stage, tiny, on the CPU")
    out = options.out or (Path("runs/gpu_rehearsal") if options.rehearse else RESULTS)
    return run(stages, options.seconds, out.resolve(), options.rehearse)


if __name__ == "__main__":
    main()
