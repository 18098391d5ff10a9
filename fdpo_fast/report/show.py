"""A page about a training run, also while it runs: `fdpo report RUN_DIR`."""

from __future__ import annotations

from pathlib import Path

from fdpo_fast.config.errors import UserError
from fdpo_fast.report.pages import run_page, title_of, write
from fdpo_fast.report.run import Run


def report(folder: Path) -> None:
    """Write `report.html` into a run's folder, and print its path; UserError where a file of the run is broken."""
    page = folder / "report.html"
    run = Run(folder)
    try:
        write(page, title_of(run), run_page(run))
    except ValueError as error:  # pydantic's, and those of broken files
        raise UserError(f"{folder} cannot be read: {str(error).splitlines()[0]}") from None
    print(page)
