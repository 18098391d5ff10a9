"""How fast `fdpo cache` makes latents: decoding, encoding and writing, on the CPU.

`python -m benchmarks.encoding [LABEL=PYTHON ...]` runs every case with each interpreter in turns, by default with its
own, and writes results/encoding.csv: medians of the seconds and of the processor's, and images a second. The clocks run
from the first line that announces a cache to that which announces the text embeddings, so that looking at the pairs and
reading the VAE count and imports do not; the command is ended there. JPEGs of 1024 x 768; VAEs with random weights;
every run has an empty cache.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
from diffusers import AutoencoderKL
from PIL import Image

from benchmarks.common.tables import write_csv
from fdpo_fast.models import presets

RESULTS = Path(__file__).parent / "results/encoding.csv"
COLUMNS = ("tree", "case", "images", "runs", "seconds", "least", "most", "processor_seconds", "images_a_second")
FROM, TO = "caching", "caching text:"
LITTLE = {
    "block_out_channels": (4, 4, 4, 4),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}
"""A VAE of as many levels as SDXL's: at 64 x 64 it takes less than decoding does, as SDXL's on a GPU should."""


@dataclass(frozen=True)
class Case:
    """Pictures, a VAE, and what the configuration says of the data."""

    name: str
    images: int
    write: Callable[[Path, int], None]
    """Writes so many pictures into a folder, and what makes pairs of them."""
    vae: dict[str, Any]
    data: dict[str, Any]


def write_picture(path: Path, number: int, size: tuple[int, int] = (1024, 768)) -> None:
    """Write a picture of soft shapes and a little noise, about as large a file as a photograph's; size: its sides."""
    draw = np.random.default_rng(number)
    shapes = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(size, 3)
    pixels = np.asarray(shapes, dtype=np.int16) + draw.integers(-4, 5, (*size[::-1], 3), dtype=np.int16)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def pairs(folder: Path, images: int, size: tuple[int, int] = (1024, 768)) -> None:
    """Write pairs of which no two share an image."""
    for half, first in (("w", 0), ("l", images // 2)):
        (folder / half).mkdir(parents=True)
        for row in range(images // 2):
            write_picture(folder / half / f"{row}.jpg", first + row, size)
            (folder / half / f"{row}.txt").write_text(f"picture {row}")


def rankings(folder: Path, images: int) -> None:
    """Write 20 rankings of five of the images, ten pairs each."""
    folder.mkdir()
    for number in range(images):
        write_picture(folder / f"{number}.jpg", number)
    draw = np.random.default_rng(0)
    records = [
        {
            "images": [f"{number}.jpg" for number in draw.permutation(images)[:5]],
            "caption": f"picture {row}",
            "rank": [1, 2, 3, 4, 5],
        }
        for row in range(20)
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


CASES = (
    Case("400 pairs at 64, a VAE of little work", 800, pairs, LITTLE, {"resolution": 64}),
    Case("8 pairs at 256, a VAE of SDXL's size", 16, pairs, presets.PRESETS["sdxl"]["vae"], {"resolution": 256}),
    Case(
        "40 images at 256 in 200 pairs of 20 rankings, 10 shards",
        40,
        rankings,
        LITTLE,
        {"resolution": 256, "shard_rows": 2},
    ),
)


def prepare(folder: Path, case: Case) -> None:
    """Make pictures, a base and a VAE; the configuration names a cache that each run makes anew."""
    case.write(folder / "pairs", case.images)
    presets.build("tiny_sdxl", folder / "base")
    levels = len(case.vae["block_out_channels"])
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    AutoencoderKL(**blocks, **case.vae).save_pretrained(folder / "vae")
    config = {
        "model": {"family": "sdxl", "base": "base", "vae": "vae", "train": "lora"},
        "data": {"source": "pairs", "cache_dir": "cache", **case.data},
        "loss": {"beta": 2.0, "ratio_scale": 2500.0},
        "optimizer": {"lr": 1e-5},
        "train": {"output_dir": "run", "max_steps": 1, "pairs_per_step": 1, "pairs_per_micro_batch": 1},
    }
    (folder / "run.json").write_text(json.dumps(config))


def run(folder: Path, python: str, environment: dict[str, str], changes: Sequence[str] = ()) -> tuple[float, float]:
    """Fill an empty cache of latents; returns the seconds that took, and the processor's, of all threads.

    environment: the interpreter's, beside the process's own. changes: more words of the command.
    """
    words = [python, "-u", "-m", "fdpo_fast.cli", "cache", "--config", "run.json"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"} | environment
    with (
        TemporaryDirectory(dir=folder) as cache,
        subprocess.Popen(
            [*words, "--set", f"data.cache_dir={cache}", *changes],
            cwd=folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        assert process.stdout
        said, clocks = [], {}
        for line in process.stdout:
            said.append(line)
            if mark := next((mark for mark in (TO, FROM) if line.startswith(mark)), None):
                # the first line of them counts: those of the bar begin alike
                clocks.setdefault(mark, (time.perf_counter(), sum(psutil.Process(process.pid).cpu_times()[:2])))
            if mark == TO:
                process.kill()
                (start, started), (end, ended) = clocks[FROM], clocks[TO]
                return end - start, ended - started
    raise RuntimeError(f"{python} made no latents:\n{''.join(said)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trees", nargs="*", default=[f"here={sys.executable}"], metavar="LABEL=PYTHON")
    parser.add_argument("--runs", type=int, default=3, help="of each case and tree (default 3)")
    options = parser.parse_args()
    trees = {label: python for label, _, python in (tree.partition("=") for tree in options.trees)}
    rows = []
    extensions = TemporaryDirectory()
    for case in CASES:
        with TemporaryDirectory() as name:
            prepare(Path(name), case)
            taken: dict[str, list[tuple[float, float]]] = {label: [] for label in trees}
            for _ in range(options.runs):
                for label, python in trees.items():
                    # torch keeps what it compiles in one folder for each interpreter
                    own = {"PYTHONPATH": "", "TORCH_EXTENSIONS_DIR": str(Path(extensions.name, label))}
                    taken[label].append(run(Path(name), python, own))
        for label, times in taken.items():
            seconds, processor = zip(*times, strict=True)
            middle = median(seconds)
            figures = (middle, min(seconds), max(seconds), median(processor), case.images / middle)
            rows.append((label, case.name, case.images, len(times), *(f"{value:.2f}" for value in figures)))
            print(*rows[-1], sep="  ", flush=True)
    write_csv(RESULTS, COLUMNS, rows)


if __name__ == "__main__":
    main()
