"""A page about a training run, also while it runs: `fdpo report RUN_DIR`."""

from __future__ import annotations

from argparse import Namespace

from fdpo_fast.config.errors import UserError
from fdpo_fast.report.pages import run_page, title_of, write
from fdpo_fast.report.run import Run


def report(_: None, options: Namespace) -> None:
    """Write RUN_DIR/report.html."""
    page = options.run / "report.html"
    run = Run(options.run)
    try:
        write(page, title_of(run), run_page(run))
    except ValueError as error:  # pydantic's, and those of broken files
        raise UserError(f"{options.run} cannot be read: {str(error).splitlines()[0]}") from None
    print(page)
