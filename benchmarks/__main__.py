"""Runs a benchmark by its name: `python -m benchmarks NAME ...`; without a name it lists them."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def benchmarks() -> dict[str, Path]:
    """Return the file of each benchmark by its name: the modules of this folder that can be run, and `gpu`."""
    files = [path for path in sorted(FOLDER.glob("*.py")) if 'if __name__ == "__main__":' in path.read_text()]
    names = {path.stem.removeprefix("bench_"): path for path in files if path.name != Path(__file__).name}
    return names | {"gpu": FOLDER / "gpu/__main__.py"}


def listing() -> str:
    """Return a line for each benchmark: its name, and what it says of itself first."""
    about = {name: ast.get_docstring(ast.parse(path.read_text())) for name, path in benchmarks().items()}
    return "\n".join(f"{name:17} {text.splitlines()[0].partition(': `')[0]}" for name, text in about.items())


def main() -> None:
    """Run the benchmark that is named, with the words behind its name as its arguments."""
    name, *words = sys.argv[1:] or [""]
    if name in ("", "-h", "--help"):
        print(f"python -m benchmarks NAME ...\n\n{listing()}")
        return
    if name not in benchmarks():
        sys.exit(f"there is no benchmark '{name}': use one of {', '.join(benchmarks())}")
    sys.argv[1:] = words
    path = benchmarks()[name]
    module = "gpu.__main__" if name == "gpu" else path.stem
    runpy.run_module(f"benchmarks.{module}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
