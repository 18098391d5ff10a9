"""Sets of pairs as others make them: how many of the pairs that are there are read, and what is said of the others.

`python -m benchmarks.others_pairs [LABEL=PYTHON ...]` runs `fdpo data check`, and `fdpo cache` where that passes, on
each case of tests/helpers/others_pairs.py with each interpreter, by default with its own, and writes
results/others_pairs.csv: the pairs that there are, those that were found, the rows refused, the exit status, seconds,
and the last line written. The rows of a label that is not named stay. A tiny SDXL with random weights stands for a
model; there is no network.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.common.tables import write_csv
from tests.helpers.others_pairs import CASES
from tests.helpers.others_pairs_case import Case, folders

RESULTS = Path(__file__).parent / "results/others_pairs.csv"
COLUMNS = ("tree", "case", "command", "pairs_of", "pairs", "refused", "status", "seconds", "last_line")
LIMIT = 300
"""Seconds after which a command is ended."""
TREE = re.compile(r"/\S*/fdpo_fast/")
WHERE = re.compile(r"next: |page  |(pairs|latents|text|reference): ")


def prepare(folder: Path, python: str) -> None:
    """Make the base, and run what is compiled or read for the first time."""
    subprocess.run([python, "-m", "fdpo_fast.models.presets", "tiny_sdxl", "base"], cwd=folder, check=True)
    warm = Case("warm", lambda root: folders(root, 2), 2)
    list(outcomes(warm, folder / "warm", python))


def outcomes(case: Case, folder: Path, python: str) -> list[tuple]:
    """Build a case in a folder and run its commands; returns the columns behind the tree's, a row for each command."""
    (folder / "files").mkdir(parents=True)
    source = case.build(folder / "files")
    config = {
        "model": {"family": "sdxl", "base": "../base", "train": "lora"},
        "data": {"source": str(source), "resolution": 64, "cache_dir": "cache", **case.settings},
        "loss": {"beta": 2.0, "ratio_scale": 2500.0},
        "optimizer": {"type": "adamw8bit", "lr": 1e-5},
        "train": {"output_dir": "run", "max_steps": 12, "pairs_per_step": 4, "pairs_per_micro_batch": 2},
    }
    (folder / "run.json").write_text(json.dumps(config))
    status, seconds, said = run(python, ("data", "check", "--json", "report.json"), case, folder)
    report = folder / "report.json"
    found = json.loads(report.read_text()) if report.exists() else {}
    counted = found.get("pairs", ""), len(found["refused"]) if found else ""
    of = "" if case.stops == ("cache",) else case.expected
    made = [(case.name, "data check", of, *counted, status, seconds, last(said, folder))]
    if status == 0:
        status, seconds, said = run(python, ("cache",), case, folder)
        pairs = re.search(r"([\d,]+) pairs", said) if status == 0 else None
        refused = re.search(r"refused: ([^;\n]*)", said)  # files that are left out are counted behind a semicolon
        refusals = re.findall(r"(\d+) x ", refused[1]) if refused else []
        counted = (pairs[1], sum(map(int, refusals))) if pairs else ("", "")
        of = str(case.cached) if case.cached else case.expected
        made.append((case.name, "cache", of, *counted, status, seconds, last(said, folder)))
    return made


def run(python: str, words: tuple[str, ...], case: Case, folder: Path) -> tuple[int, float, str]:
    """Run a command on the configuration in a folder; returns its exit status, its seconds and all that it wrote."""
    environment = os.environ | {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1", **case.environment}
    environment["TORCH_EXTENSIONS_DIR"] = str(folder.parent / "compiled")
    command = [python, "-m", "fdpo_fast.cli", *words, "--config", "run.json"]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    start = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=folder, env=environment, timeout=LIMIT, **output)
    except subprocess.TimeoutExpired as slow:
        return -1, LIMIT, (slow.output or b"").decode(errors="replace")
    return done.returncode, round(time.perf_counter() - start, 1), done.stdout.decode(errors="replace")


def last(said: str, folder: Path) -> str:
    """The last line that was written but for those that name what comes next and where; 300 characters at most."""
    lines = [line for line in said.splitlines() if line.strip() and not WHERE.match(line)]
    return TREE.sub("fdpo_fast/", lines[-1].replace(str(folder), "."))[:300] if lines else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trees", nargs="*", default=[f"here={sys.executable}"], metavar="LABEL=PYTHON")
    trees = dict(tree.split("=", 1) for tree in parser.parse_args().trees)
    kept = []
    if RESULTS.exists():
        with RESULTS.open(newline="") as file:
            kept = [row for row in list(csv.reader(file))[1:] if row[0] not in trees]
    for label, python in trees.items():
        with TemporaryDirectory() as name:
            prepare(Path(name), python)
            for number, case in enumerate(CASES):
                for row in outcomes(case, Path(name) / str(number), python):
                    kept.append((label, *row))
                    print(*kept[-1], sep="  ", flush=True)
    write_csv(RESULTS, COLUMNS, kept)


if __name__ == "__main__":
    main()
