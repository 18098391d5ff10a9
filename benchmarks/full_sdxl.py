"""SDXL's UNet at full size (2.567 B parameters, random weights), trained: `python -m benchmarks.full_sdxl`.

Under the `deepspeed` launcher, as a user would: full tuning in bf16 with cached reference errors and AdamW8bit with
stochastic rounding, three steps of one pair on latents of 16 x 16 (128 x 128 pixels), a checkpoint, an export; then
`--resume` for a fourth step. Latents and text embeddings lie ready in parquet, so VAE and text encoders have no part.
Reports seconds and memory of the trainer by phase, the checkpoint's size, and how many parameters have changed. Memory
is what the trainer holds resident on the host: sampled by phase, the peak of a run by the kernel's own account. On a
GPU there is beside it what the driver counts in use, by phase, and what the trainer's allocator says. Without one the
figures tell what the program holds, not how fast a GPU is. Writes results/full_sdxl.csv, the rows of other rungs and
machines left as they are.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from benchmarks import launcher
from benchmarks.common.device import CUDA, GIB, machine, smi
from benchmarks.common.tables import write_csv
from fdpo_fast.training.resumption import PARTIAL

ROOT = Path(__file__).parent.parent
CSV = Path(__file__).parent / "results/full_sdxl.csv"
COLUMNS = ("rung", "run", "phase", "figure", "value", "machine")
PAIRS, LATENT_SIDE = 4, 16

ALLOCATOR = {"memory_gib": "allocated_gib", "memory_reserved_gib": "reserved_gib"}
"""What the trainer's records say of the GPU's allocator, and the figures' names."""
LIMITS = {"A": 20, "B": 14}
"""GiB that a rung of fdpo_fast/memory/ladder.py must stay under."""


def prepare(
    preset: str,
    folder: Path,
    side: int = LATENT_SIDE,
    changes: dict[str, Any] | None = None,
    pairs: int = PAIRS,
    weights: bool = True,
    text_tokens: int | None = None,
) -> None:
    """Write to `folder` as much of a pipeline as the trainer reads, with random weights, and pairs that are encoded.

    side: of the latents; changes: to the preset's denoiser; pairs: how many; weights: False leaves denoiser and VAE
    without any, for a run whose denoiser comes from elsewhere; text_tokens: as `model.text_tokens` of the run.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from safetensors.torch import save_file

    from fdpo_fast.config.schema import Model
    from fdpo_fast.models import family_class, presets, quiet_libraries

    quiet_libraries()
    folder.mkdir(parents=True, exist_ok=True)
    model = Model(family=family_of(preset), base=str(folder), text_tokens=text_tokens)
    family = family_class(model)
    presets.SCHEDULERS[presets.PRESETS[preset].get("prediction", "epsilon")]().save_pretrained(folder / "scheduler")
    with torch.device("meta"):
        settings = dict(presets.components(preset)[family.denoiser_name]().config) | (changes or {})
    index = {
        "_class_name": presets.PRESETS[preset]["pipeline"],
        "vae": ["diffusers", "AutoencoderKL"],
        family.denoiser_name: ["diffusers", family.denoiser_class.__name__],
        "scheduler": ["diffusers", json.loads((folder / "scheduler/scheduler_config.json").read_text())["_class_name"]],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    with torch.device("meta"):  # the plan of memory looks at their configurations
        for name in (name for name in presets.PRESETS[preset] if name.startswith("text_encoder")):
            presets.text_encoder(preset, name).config.save_pretrained(folder / name)
    torch.manual_seed(0)
    with torch.device("cpu" if weights else "meta"), presets.default_dtype(torch.bfloat16):  # never in float32
        denoiser = family.denoiser_class.from_config(settings).to(torch.bfloat16)  # its table of positions, too
        parts = {family.denoiser_name: denoiser, "vae": presets.vae(preset)}  # the export has a copy of the VAE
    for name, part in parts.items():
        if weights:
            part.save_pretrained(folder / name)
        else:
            part.save_config(folder / name)
            save_file({}, folder / name / "diffusion_pytorch_model.safetensors")
    shapes = {f"latents_{number}": (family.channels(settings), side, side) for number in (0, 1)}
    shapes |= family.text_shapes(settings, model)
    numbers = {name: torch.ones if name in family.on_host else torch.randn for name in shapes}  # a mask is of ones
    columns = {name: [numbers[name](shape).tolist() for _ in range(pairs)] for name, shape in shapes.items()}
    columns["caption"] = ["", *(f"caption {row}" for row in range(1, pairs))]  # the empty one too: nothing to encode
    columns |= {"label_0": [1.0] * pairs, "label_1": [0.0] * pairs}
    pq.write_table(pa.table(columns), folder / "pairs.parquet")


def family_of(preset: str) -> str:
    """The name of the family whose pipelines a preset is one of."""
    from fdpo_fast.config.schema import Model
    from fdpo_fast.models import FAMILIES, family_class, presets

    kind = presets.PRESETS[preset]["pipeline"]
    return next(name for name in FAMILIES if kind in family_class(Model(family=name, base="a/b")).pipelines)


def config(preset: str, base: Path, scratch: Path, rung: str, side: int = LATENT_SIDE) -> dict:
    """Of a run on a rung."""
    from fdpo_fast.config.run import Config
    from fdpo_fast.memory.ladder import on_rung
    from fdpo_fast.models import presets

    denoiser = presets.PRESETS[preset].get("transformer", {})
    guidance = {"guidance": 3.5} if denoiser.get("guidance_embeds") else {}
    plain = {
        "model": {"family": family_of(preset), "base": str(base), "dtype": "bf16", **guidance},
        "data": {
            "source": str(base / "pairs.parquet"),
            "format": "latents",
            "resolution": side * (2 if preset.startswith("tiny") else 8),
            "cache_dir": str(scratch / "cache"),
        },
        "reference": {"mode": "cached", "visits": 1},
        "loss": {"divergence": "reverse_kl", "beta": 1.0, "ratio_scale": 2500.0},
        "optimizer": {"type": "adamw8bit", "lr": 1.28e-6, "rounding": "stochastic"},
        "train": {
            "output_dir": str(scratch / "run"),
            "max_steps": 3,
            "pairs_per_step": 1,
            "pairs_per_micro_batch": 1,
            "keep_checkpoints": 1,
        },
        "log": {"every": 1, "tensorboard": False},
    }
    return json.loads(on_rung(Config.model_validate(plain), rung, 1).dumps())


@dataclass
class Watch:
    """Memory and phases of a training run, from outside."""

    folder: Path
    last: str
    """Name of the checkpoint that the run ends with."""
    log: Path
    seconds: dict[str, float] = field(default_factory=dict)
    resident: dict[str, int] = field(default_factory=dict)
    """Of the trainer, largest sample by phase, in bytes."""
    peak: int = 0
    tree_peak: int = 0
    gpu: dict[str, float] = field(default_factory=dict)
    """In use by the driver's account, less what was so before, largest sample by phase, in bytes; empty without one."""

    def phases(self) -> list[tuple[str, Callable[[str], bool]]]:
        """In order, each with what shows in the output or in the folder once it has begun."""
        checkpoints, latest = self.folder / "checkpoints", self.folder / "checkpoints/latest"
        return [
            ("imports and data", lambda text: True),
            ("reference cache", lambda text: "caching reference" in text),
            ("load", lambda text: "data: " in text),
            ("steps", lambda text: "train: " in text),
            ("checkpoint", lambda text: any((checkpoints / name).exists() for name in (PARTIAL, self.last))),
            ("export", lambda text: latest.exists() and latest.read_text().strip() == self.last),
            ("exit", lambda text: "exported to" in text),
        ]

    def run(self, command: list[str]) -> None:
        """Run the launcher to its end; RuntimeError with its output where it fails."""
        env = launcher.environment(threads=os.cpu_count())
        unused = gpu_used()
        at, phases, before = 0, self.phases(), time.perf_counter()
        with self.log.open("w") as log:
            process = psutil.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)
            while process.poll() is None:
                text = self.log.read_text(errors="replace")
                at = max(number for number in range(at, len(phases)) if number == at or phases[number][1](text))
                name, since, before = phases[at][0], before, time.perf_counter()
                self.seconds[name] = self.seconds.get(name, 0) + before - since
                self._sample(process, name)
                if CUDA:
                    self.gpu[name] = max(self.gpu.get(name, 0), gpu_used() - unused)
                time.sleep(0.1)
        if process.returncode:
            raise RuntimeError(f"the trainer failed:\n{self.log.read_text()[-4000:]}")

    def _sample(self, launcher: psutil.Process, phase: str) -> None:
        """The trainer is whatever process of the launcher's holds most."""
        held = [0]
        for process in launcher.children(recursive=True):
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:  # it has just ended
                continue
            kib = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.endswith("kB")}
            if "VmRSS" in kib:
                held.append(kib["VmRSS"] * 1024)
                self.peak = max(self.peak, kib["VmHWM"] * 1024)
        self.resident[phase] = max(self.resident.get(phase, 0), *held)
        self.tree_peak = max(self.tree_peak, sum(held))


def gpu_used() -> float:
    """Bytes of the GPU in use, all processes together; 0 without one."""
    return float(smi("memory.used") or "nan") * 2**20 if CUDA else 0.0


def changed(base: Path, export: Path) -> tuple[int, int]:
    """How many weights differ, and of how many; read tensor by tensor."""
    from safetensors import safe_open

    file = "unet/diffusion_pytorch_model.safetensors"
    differing = total = 0
    with safe_open(base / file, "pt") as ours, safe_open(export / file, "pt") as theirs:
        for name in ours.keys():  # noqa: SIM118  # not a dict
            before, after = ours.get_tensor(name), theirs.get_tensor(name)
            differing += int((before != after).sum())
            total += before.numel()
    return differing, total


def measure(preset: str, rung: str, base: Path, scratch: Path) -> Iterator[tuple[str, str, str, float]]:
    """(run, phase, figure, value) of three steps from the base, and of a fourth that is resumed."""
    (scratch / "config.json").write_text(json.dumps(config(preset, base, scratch, rung)))
    command = [*launcher.deepspeed(1), "fdpo_fast/train.py", "--config", str(scratch / "config.json")]
    run = scratch / "run"
    for name, steps, more in (("three steps", 3, []), ("resumed", 4, ["--resume", "--set", "train.max_steps=4"])):
        tag = f"step-{steps:06d}"
        watch = Watch(run, tag, scratch / "train.log")
        watch.run([*command, *more])
        for phase, seconds in watch.seconds.items():
            yield name, phase, "seconds", seconds
            yield name, phase, "trainer_rss_gib", watch.resident[phase] / GIB
            if CUDA:
                yield name, phase, "gpu_used_gib", watch.gpu[phase] / GIB
        yield name, "all", "seconds", sum(watch.seconds.values())
        if CUDA:
            yield name, "all", "gpu_peak_gib", max(watch.gpu.values()) / GIB
        yield name, "all", "trainer_peak_gib", watch.peak / GIB
        yield name, "all", "processes_peak_gib", watch.tree_peak / GIB
        size = sum(path.stat().st_size for path in (run / "checkpoints" / tag).rglob("*") if path.is_file())
        yield name, "checkpoint", "size_gib", size / GIB
        differing, total = changed(base, run / "export")
        yield from ((name, "all", *row) for row in (("parameters", total), ("parameters_changed", differing)))
        yield name, "all", "share_changed", differing / total
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        yield f"step {record['step']}", "steps", "loss", record["loss"]
        for key in ALLOCATOR.keys() & record.keys() if CUDA else ():
            yield f"step {record['step']}", "steps", ALLOCATOR[key], record[key]


def write(rung: str, rows: list[tuple]) -> None:
    """Into the CSV, in place of what it has of this rung on a machine of this kind."""
    with CSV.open(newline="") if CSV.exists() else open(os.devnull) as file:
        others = [row for row in list(csv.reader(file))[1:] if row[0] != rung or _on_gpu(row) != CUDA]
    write_csv(CSV, COLUMNS, sorted([*others, *rows], key=lambda row: row[0]))


def _on_gpu(row: list[str]) -> bool:
    return not row[-1].startswith("CPU only")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rung", choices="ABCD", default="A")
    parser.add_argument("--work", type=Path, help="folder that keeps the base and the last run; 25 GiB")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: a smoke test, which writes no CSV")
    options = parser.parse_args()
    preset, limit = "tiny_sdxl" if options.tiny else "sdxl", LIMITS.get(options.rung)
    with TemporaryDirectory(dir=options.work, ignore_cleanup_errors=True) as scratch:
        base = (options.work or Path(scratch)).resolve() / f"base_{preset}"
        if not (base / "pairs.parquet").exists():  # it is written last
            (maker := multiprocessing.get_context("spawn").Process(target=prepare, args=(preset, base))).start()
            maker.join()  # its memory goes with it
        label, rows = machine(), []
        print(f"rung {options.rung}; {label}", flush=True)
        for run, phase, figure, value in measure(preset, options.rung, base, Path(scratch)):
            rows.append((options.rung, run, phase, figure, f"{value:.10g}" if value > 1e6 else f"{value:.4g}", label))
            print(*rows[-1][1:-1], sep=", ", flush=True)
    peak = max(float(row[4]) for row in rows if row[3] == ("gpu_peak_gib" if CUDA else "trainer_peak_gib"))
    verdict = f", {'within' if peak < limit else 'OVER'} the {limit} GiB of rung {options.rung}" if limit else ""
    print(f"peak {peak:.2f} GiB{verdict}")
    if not options.tiny:
        write(options.rung, rows)


if __name__ == "__main__":
    main()
