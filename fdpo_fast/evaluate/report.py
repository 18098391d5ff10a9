"""A page about a training run, also while it runs: `fdpo report RUN_DIR`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fdpo_fast.evaluate.pages import run_page, title_of, write
from fdpo_fast.evaluate.runs import Run


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write RUN_DIR/report.html."""
    parser = argparse.ArgumentParser(prog="fdpo report", description=__doc__.split(":")[0])
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="train.output_dir of the run")
    folder = parser.parse_args(arguments).run.expanduser()
    if not (folder / "config.json").is_file():
        sys.exit(f"fdpo report: {folder} is no run: it has no config.json")
    run = Run(folder)
    try:
        write(folder / "report.html", title_of(run), run_page(run))
    except ValueError as error:  # pydantic's, and those of broken files
        sys.exit(f"fdpo report: {folder} cannot be read: {str(error).splitlines()[0]}")
    print(folder / "report.html")


if __name__ == "__main__":
    main()
