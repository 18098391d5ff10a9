"""The command line of benchmarks that have no options of their own."""

from __future__ import annotations

import sys


def help_if_asked(about: str | None) -> None:
    """Print what a benchmark says of itself and end, where `-h` or `--help` asks for it."""
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print((about or "").strip())
        sys.exit()
