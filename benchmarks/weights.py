"""How closely weights of 16 and 24 bits follow float32 masters in a real run: `python -m benchmarks.weights`.

The digits' UNet in bf16, 150 steps by AdamW8bit, three seeds: with DeepSpeed's float32 masters, with bf16 weights
rounded stochastically or to nearest, and with 24 bits. `distance` is the norm of the difference to the masters of the
same seed, as a share of how far those moved from the base; `of_rounding` is what it would be if the masters themselves
were rounded to the same bits in the end. Intervals are Student's at 95 %. Writes results/weights.csv.
"""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.device import machine
from benchmarks.common.digits import plain
from benchmarks.common.tables import write_csv
from fdpo_fast.evaluate.tables import table

ROOT = Path(__file__).parent.parent
CSV = Path(__file__).parent / "results/weights.csv"
SEEDS = (0, 1, 2)
STUDENT = 4.302653
"""The quantile of two degrees of freedom that 2.5 % lie above."""
PLAIN = {"bf16": {"enabled": False}}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "float32 masters": ({}, {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}),
    "bf16, rounded to nearest": ({"rounding": "nearest"}, PLAIN),
    "bf16, rounded stochastically": ({}, PLAIN),
    "24 bits, rounded to nearest": ({"weights": "bf16+8", "rounding": "nearest"}, PLAIN),
    "24 bits, rounded stochastically": ({"weights": "bf16+8"}, PLAIN),
}
"""The section `optimizer` and DeepSpeed's, by what the weights are."""


def settings(kind: str, seed: int, steps: int, output_dir: Path) -> dict[str, Any]:
    """Return the digits' configuration with weights of a kind."""
    raw = plain()
    optimizer, deepspeed = KINDS[kind]
    raw["model"]["dtype"] = "bf16"
    raw["optimizer"] |= {"type": "adamw8bit", **optimizer}
    raw["deepspeed"] = deepspeed
    raw["train"] |= {"seed": seed, "max_steps": steps, "output_dir": str(output_dir), "checkpoint_every": steps}
    raw["log"] |= {"samples_every": 0, "prompts": [], "tensorboard": False}
    return raw


def trained(raw: dict[str, Any]) -> tuple[Tensor, Tensor, list[float]]:
    """Train; return the weights before and after, in float32, and the record's losses."""
    from deepspeed.utils import safe_get_full_fp32_param

    from fdpo_fast.config.run import Config
    from fdpo_fast.optim.values import Values
    from fdpo_fast.training.records import read_records
    from fdpo_fast.training.trainer import Trainer

    Path(raw["train"]["output_dir"]).mkdir(parents=True)
    trainer = Trainer(Config.model_validate(raw), resume=False)
    engine = trainer.policy.engine
    values = Values(engine.optimizer)

    def now() -> Tensor:
        if raw["deepspeed"]["bf16"]["enabled"]:
            held = [safe_get_full_fp32_param(p) for p in engine.module.parameters()]
        else:
            held = [values.local(p) for p in engine.module.parameters()]
        return torch.cat([tensor.detach().float().flatten() for tensor in held])

    before = now()
    trainer.run()
    return before, now(), [record["loss"] for record in read_records(trainer.folder)]


def rounded(weights: Tensor, bits: int) -> Tensor:
    """Return float32 weights rounded to the nearest of so many bits, sign and exponent included."""
    cut = 32 - bits
    whole = weights.view(torch.int32)
    return (whole + (1 << cut - 1) - 1 + (whole >> cut & 1) & -1 << cut).view(torch.float32)


def compare(found: dict[str, list[tuple[Tensor, Tensor, list[float]]]]) -> list[dict[str, Any]]:
    """Return a row for each kind of weights, against the masters."""
    masters = found["float32 masters"]
    rows = []
    for kind, runs in found.items():
        bits = 32 if "masters" in kind else 24 if kind.startswith("24") else 16
        distances, floors, moved = [], [], []
        for (_, weights, _), (start, master, _) in zip(runs, masters, strict=True):
            length = (master - start).norm()
            distances.append(((weights - master).norm() / length).item())
            floors.append(((rounded(master, bits) - master).norm() / length).item() if bits < 32 else 0.0)
            moved.append(((weights - start) @ (master - start) / length**2).item())
        half = STUDENT * stdev(distances) / len(distances) ** 0.5
        loss = mean(mean(losses[-20:]) for *_, losses in runs)
        rows.append({
            "weights": kind, "distance": f"{mean(distances):.4g}", "half_width": f"{half:.2g}",
            "of_rounding": f"{mean(floors):.4g}", "movement_along_masters": f"{mean(moved):.4f}",
            "loss_of_last_20_steps": f"{loss:.4f}", "machine": machine(torch.device("cpu")),
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    found: dict[str, list] = {kind: [] for kind in KINDS}
    with TemporaryDirectory() as scratch:
        for seed in SEEDS:
            for number, kind in enumerate(KINDS):
                with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process for each run
                    raw = settings(kind, seed, options.steps, Path(scratch) / f"{number}-{seed}")
                    found[kind].append(pool.apply(trained, (raw,)))
                print(f"seed {seed}: {kind}", flush=True)
    rows = compare(found)
    print("\n".join(table(list(rows[0]), [list(row.values()) for row in rows])))
    write_csv(CSV, list(rows[0]), [list(row.values()) for row in rows])


if __name__ == "__main__":
    main()
