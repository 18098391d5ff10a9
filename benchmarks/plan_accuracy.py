"""What `fdpo plan` predicts, beside what a run holds: `python -m benchmarks.plan_accuracy`.

UNets of SDXL's block types up to the full 2.567 B parameters and transformers of SD3.5's, with random weights, on the
rungs of the ladder: three steps of one pair on ready latents, two micro-batches a step where the rung accumulates.
Measured is the most that the trainer holds resident in its steps, sampled, less the interpreter's: what the same run
holds with a UNet, or a transformer, of 0.1 M parameters, less the few MiB of the plan for it. Predicted is the account
of the same configuration with GPU and host in one memory; nothing is fitted to the measurements.

On a GPU measured is the most in tensors by the allocator's account, as the trainer records it, and predicted the
account's part of the GPU; the interpreter has no part in either.

What libraries keep for later is no need of the program, so the runs are made with `ENVIRONMENT`: glibc otherwise holds
on to freed blocks below 32 MiB, oneDNN to the code of up to 1024 kernels (20 MiB here), and Arrow to the rows that it
has read. The tiny UNet's own tensors
are lost in either, so it serves as the interpreter alone. Writes results/plan_accuracy.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import launcher
from benchmarks.common.device import CUDA, GIB, machine
from benchmarks.common.tables import write_csv
from benchmarks.full_sdxl import Watch, config, prepare
from fdpo_fast.training.records import read_records

CSV = Path(__file__).parent / "results/plan_accuracy.csv"
COLUMNS = (
    "denoiser",
    "parameters",
    "latents",
    "rung",
    "predicted_gib",
    "measured_gib",
    "predicted_by_measured",
    "machine",
)
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "16384",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}


@dataclass(frozen=True)
class Size:
    preset: str
    side: int
    """Of the latents."""
    changes: dict[str, Any]
    """To the preset's denoiser."""
    steps: int = 3
    text_tokens: int | None = None


def _transformer(layers: int, heads: int) -> dict[str, Any]:
    sizes = {"num_layers": layers, "num_attention_heads": heads, "caption_projection_dim": 64 * heads}
    # a small table of positions: of one that is mapped from its file most pages are never looked at
    return sizes | {"dual_attention_layers": (0, 1), "pos_embed_max_size": 64}


_HEADS = {"attention_head_dim": (2, 4, 6), "transformer_layers_per_block": (1, 1, 2)}
SIZES = {
    "100M": Size("sdxl", 32, {"block_out_channels": (128, 256, 384), **_HEADS}),
    "500M": Size(
        "sdxl", 32, {"block_out_channels": (256, 512, 768), **_HEADS, "transformer_layers_per_block": (1, 2, 3)}
    ),
    "full": Size("sdxl", 16, {}),
    "100M transformer": Size("sd35m", 32, _transformer(layers=10, heads=8), text_tokens=32),
    "500M transformer": Size("sd35m", 16, _transformer(layers=13, heads=16), text_tokens=32),
}


NOTHING = {"sdxl": Size("tiny_sdxl", 16, {}, 50), "sd35m": Size("tiny_sd3", 16, {}, 50, 32)}
"""By preset a model so tiny that what is left of its memory is the interpreter's."""


def predicted(settings: dict) -> tuple[float, int]:
    """Bytes at the peak of the account, and parameters."""
    from fdpo_fast.config.run import Config
    from fdpo_fast.memory.account import step_account
    from fdpo_fast.memory.trace import trace
    from fdpo_fast.models.architecture import read_architecture

    made = Config.model_validate(settings)
    traced = trace(made, read_architecture(made.model))
    account, devices = step_account(made, traced, 1, gpu=CUDA), ("gpu",) if CUDA else ("gpu", "host")
    return account.total(account.peak(*devices), *devices), traced.trained


def measured(settings: dict, scratch: Path) -> float:
    """Bytes that the trainer holds at most in the steps of a run, resident on the host or in tensors on the GPU."""
    (scratch / "config.json").write_text(json.dumps(settings))
    run = settings["train"]
    watch = Watch(Path(run["output_dir"]), f"step-{run['max_steps']:06d}", scratch / "train.log")
    watch.run([*launcher.deepspeed(1), "fdpo_fast/train.py", "--config", str(scratch / "config.json")])
    if CUDA:
        return max(record.get("memory_gib", 0.0) for record in read_records(watch.folder)) * GIB
    return watch.resident["steps"]


def run(
    size: Size, rung: str, base: Path, work: Path | None, changes: dict[str, Any] | None = None
) -> tuple[float, float, int]:
    """Predicted and measured bytes, and parameters; the model is made in `base` where it is not yet.

    changes: to the configuration's section of the model.
    """
    with TemporaryDirectory(dir=work, ignore_cleanup_errors=True) as scratch:
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process whose memory goes with it
            if not (base / "pairs.parquet").exists():
                pool.apply(prepare, (size.preset, base, size.side, size.changes), {"text_tokens": size.text_tokens})
            settings = config(size.preset, base, Path(scratch), rung, size.side)
            settings["train"]["pairs_per_step"] = 1 if rung == "B" else 2
            settings["train"]["max_steps"] = size.steps
            settings["model"] |= {"text_tokens": size.text_tokens, **(changes or {})}
            need, parameters = pool.apply(predicted, (settings,))
        return need, measured(settings, Path(scratch)), parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rungs", nargs="+", choices="ABCD", default=list("ABCD"))
    parser.add_argument("--work", type=Path, help="where the models and runs lie meanwhile; 25 GiB for the full size")
    options = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    with TemporaryDirectory(dir=options.work, ignore_cleanup_errors=True) as folder:
        for rung in options.rungs:
            interpreter = dict.fromkeys(NOTHING, 0.0)
            for preset in {SIZES[name].preset for name in options.sizes} if not CUDA else ():
                need, held, _ = run(NOTHING[preset], rung, Path(folder) / f"nothing_{preset}", options.work)
                interpreter[preset] = held - need
                print(f"rung {rung}: the interpreter {interpreter[preset] / GIB:.3f} GiB", flush=True)
            for name in options.sizes:
                size = SIZES[name]
                need, held, parameters = run(size, rung, Path(folder) / name, options.work)
                held -= interpreter[size.preset]
                sizes = f"{need / GIB:.4g}", f"{held / GIB:.4g}", f"{need / held:.3f}"
                row = (name, str(parameters), str(size.side), rung, *sizes)
                print(*row, sep=", ", flush=True)
                write((*row, machine()))


def _key(row: Sequence[str]) -> tuple[str, str, bool]:
    """(size, rung, whether on a GPU)."""
    return row[0], row[3], not row[-1].startswith("CPU only")


def write(row: tuple) -> None:
    """Into the CSV, in place of the row of the same size and rung on a machine of this kind."""
    rows = {}
    if CSV.exists():
        with CSV.open(newline="") as file:
            rows = {_key(old): old for old in list(csv.reader(file))[1:]}
    rows[_key(row)] = row
    order = sorted(rows, key=lambda key: (key[2], list(SIZES).index(key[0]), key[1]))
    write_csv(CSV, COLUMNS, [rows[key] for key in order])


if __name__ == "__main__":
    main()
