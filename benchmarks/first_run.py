"""A first run as somebody makes it, command by command, and what it says where something is amiss.

`python -m benchmarks.first_run [LABEL=PYTHON ...]` runs everything with each interpreter, by default with its own, and
writes results/first_run.csv: seconds, the exit status, the lines that were written and the longest of them, and the
last. A tiny SDXL with random weights and LoRA stands for a model; there is no terminal and no network.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.common.pairs import write_pairs
from benchmarks.common.tables import write_csv

RESULTS = Path(__file__).parent / "results/first_run.csv"
COLUMNS = ("tree", "case", "seconds", "status", "lines", "longest_line", "last_line")
LIMIT = 60
"""Seconds after which a case is ended."""
FDPO = ("-m", "fdpo_fast.cli")
SCORER = "def redness(images, captions):\n    return [image.getpixel((0, 0))[0] for image in images]\n"


@dataclass(frozen=True)
class Case:
    """Words for the interpreter."""

    name: str
    words: tuple[str, ...]
    stop_at: str | None = None
    """Words of the output behind which Ctrl-C is pressed; the seconds then count from there."""
    environment: dict[str, str] = field(default_factory=dict)


def command(name: str, *words: str, stop_at: str | None = None, config: str = "run.json", **settings: str) -> Case:
    """A command of ours on a configuration; `settings` are keys, with `__` for the point."""
    sets = [word for key, value in settings.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]
    return Case(name, (*FDPO, *words, "--config", config, *sets), stop_at)


WAY = (
    command("data check", "data", "check"),
    command("plan", "plan", "--gpu", "12GB"),
    command("calibrate", "calibrate", "--pairs", "8", "--steps", "4"),
    command("train", "train"),
    command("sample", "sample"),
    command("evaluate", "evaluate"),
    Case("report", (*FDPO, "report", "runs/first")),
)
CASES = (
    Case("import, and name the loss", ("-c", "import fdpo_fast; fdpo_fast.fdpo_loss")),
    Case("import torch, for comparison", ("-c", "import torch")),
    Case("help", (*FDPO, "--help")),
    Case("a mistyped command", (*FDPO, "trian", "--config", "run.json")),
    command("a mistyped key", "train", loss__betta="1.0"),
    command("a value of another kind", "train", optimizer__lr="fast"),
    command("a key that DeepSpeed has not", "train", "--dry-run", deepspeed__zero_optimisation="{}"),
    command("a mistyped model.base", "train", model__base="./nowhere", train__output_dir="runs/typo"),
    command("the same folder, with the right base", "train", train__output_dir="runs/typo", train__max_steps="1"),
    command("a mistyped scorer", "evaluate", evaluate__scorers='["my_scorers:redness", "pikscore"]'),
    command("scorers without a network", "evaluate", evaluate__scorers='["clip", "pickscore", "hpsv2.1"]'),
    command("demo of another run", "demo"),
    command("Ctrl-C: train", "train", stop_at="train:", train__output_dir="runs/two", train__max_steps="4000"),
    command("Ctrl-C: cache", "cache", stop_at="caching", data__cache_dir="cache-2"),
    command("Ctrl-C: calibrate", "calibrate", "--steps", "4000", "--pairs", "8", stop_at="errors"),
    command("Ctrl-C: sample", "sample", "--output", "images-2", stop_at="base", evaluate__sampling_steps="900"),
    Case("a second image of one name", ("-c", "import shutil; shutil.copy('my_pairs/w/3.jpg', 'my_pairs/w/3.png')")),
    command("data check with it", "data", "check"),
)


def prepare(folder: Path, python: str) -> None:
    """Make pairs, a base, a scorer and a configuration."""
    write_pairs(folder / "my_pairs", 64, 96)
    (folder / "my_scorers.py").write_text(SCORER)
    subprocess.run([python, "-m", "fdpo_fast.models.presets", "tiny_sdxl", "base"], cwd=folder, check=True)
    config = {
        "model": {"family": "sdxl", "base": "base", "train": "lora"},
        "data": {"source": "my_pairs", "resolution": 64, "cache_dir": "cache"},
        "loss": {"beta": 2.0, "ratio_scale": 2500.0},
        "optimizer": {"type": "adamw8bit", "lr": 1e-5},
        "train": {"output_dir": "runs/first", "max_steps": 12, "pairs_per_step": 4, "pairs_per_micro_batch": 2},
        "log": {"every": 500},
        "evaluate": {"prompts": ["a cat", "a red car"], "sampling_steps": 5, "scorers": ["my_scorers:redness"]},
    }
    (folder / "run.json").write_text(json.dumps(config))
    warm = command("", "train", train__output_dir="runs/warm", train__max_steps="1", data__cache_dir="cache-1")
    subprocess.run([python, *warm.words], cwd=folder, env=_environment(folder), check=True, capture_output=True)


def _environment(folder: Path) -> dict[str, str]:
    """Ours without a network; what is compiled, untimed, is an interpreter's own."""
    return os.environ | {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "TORCH_EXTENSIONS_DIR": str(folder / "compiled")}


def run(case: Case, folder: Path, python: str) -> tuple:
    """Run a case to its end; returns its columns without the tree's."""
    environment = _environment(folder)
    process = subprocess.Popen([python, *case.words], cwd=folder, env=environment, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
    assert process.stdout
    start, said, waiting = time.perf_counter(), b"", case.stop_at
    reader = selectors.DefaultSelector()
    reader.register(process.stdout, selectors.EVENT_READ)
    while time.perf_counter() - start < LIMIT:
        ready = reader.select(timeout=0.05)
        part = os.read(process.stdout.fileno(), 65536) if ready else b""
        if ready and not part:
            break
        said += part
        if waiting and waiting.encode() in said:
            waiting = None
            time.sleep(0.5)
            os.killpg(process.pid, signal.SIGINT)
            start = time.perf_counter()
    seconds = time.perf_counter() - start
    if seconds >= LIMIT:
        os.killpg(process.pid, signal.SIGKILL)
    status = process.wait()
    text = said.decode(errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    last = lines[-1].replace(str(folder), ".")[:200] if lines else ""
    return case.name, round(seconds, 1), status, len(lines), max(map(len, text.split("\n"))), last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trees", nargs="*", default=[f"here={sys.executable}"], metavar="LABEL=PYTHON")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where it is ignored, the commands would ignore it too
    rows = []
    for label, _, python in (tree.partition("=") for tree in parser.parse_args().trees):
        with TemporaryDirectory() as name:
            prepare(Path(name), python)
            for case in (*WAY, *CASES):
                rows.append((label, *run(case, Path(name), python)))
                print(*rows[-1], sep="  ", flush=True)
    write_csv(RESULTS, COLUMNS, rows)


if __name__ == "__main__":
    main()
