"""How eight bits may hold an optimizer's moments, by the error of the update: `python -m benchmarks.moment_codecs`.

Gradients are recorded from runs of the trainer (`--record`): 65,536 elements of each of eight weight tensors, over the
digits' 150 steps and over steps of a UNet of 104 M parameters on random latents. AdamW then goes over them twice, in
float64 and with moments that are coded and decoded at every step; eps is 1e-30, so that it hides nothing. The error of
the update is |u - u64| / |u64| over the later half of the steps, the drift the same of the sum of them. All codes
have 8 bits and a scale a block; the bytes a parameter are those of both moments together.

Steps are also taken as sums of micro-batches in the moments, as a step inside backward could accumulate: m takes
(1 - beta1) g_k / K, v takes (1 - beta2) (g_k / K)^2 of each of K micro-batches, a sum of squares in place of the square
of the sum (arXiv 2305.19982). Writes results/codecs.csv; rows of other records stay.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad

from benchmarks.common.tables import write_csv
from fdpo_fast.evaluate.tables import table
from fdpo_fast.optim.codebook import dynamic_map

CSV = Path(__file__).parent / "results/codecs.csv"
BETA1, BETA2, EPS = 0.9, 0.999, 1e-30  # so small that it hides nothing
TENSORS, ELEMENTS = 8, 65_536


# --- codes of numbers in [-1, 1], or in [0, 1] ---


@dataclass(frozen=True)
class Code:
    """A map of numbers to 8 bits and back."""

    round: Callable[[Tensor, Tensor | None], Tensor]
    """(numbers, noise in [0, 1) or None to round to nearest) -> the numbers that are kept."""


def companded(bend: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor], levels: int, least: int = 0) -> Code:
    """Make a code that is uniform in `bend(|x|)`; what is not 0 keeps at least the level `least`."""

    def rounded(x: Tensor, noise: Tensor | None) -> Tensor:
        y = bend(x.abs()) * levels
        code = torch.floor(y + (0.5 if noise is None else noise))
        code = torch.where(x == 0, 0.0, code.clamp(min=least, max=levels))
        return back(code / levels) * x.sign()

    return Code(rounded)


def power(exponent: float, levels: int, least: int = 0) -> Code:
    """Make a code that is uniform in |x|^exponent."""
    return companded(lambda x: x**exponent, lambda y: y ** (1 / exponent), levels, least)


def soft_sign(bend: float, levels: int) -> Code:
    """Make a code that is uniform in |x| (1 + a) / (|x| + a)."""
    return companded(lambda x: x * (1 + bend) / (x + bend), lambda y: bend * y / (1 + bend - y), levels)


def logarithm(octaves: int, levels: int) -> Code:
    """Make a code that is uniform in log2 |x| down to 2^-octaves, which stands for all that is less but not 0."""

    def back(y: Tensor) -> Tensor:
        return torch.where(y == 0, 0.0, 2.0 ** ((y * levels - levels) * octaves / (levels - 1)))

    def bend(x: Tensor) -> Tensor:
        return (torch.log2(x.clamp_min(2.0**-126)) * (levels - 1) / octaves + levels) / levels

    return companded(bend, back, levels, least=1)


def dynamic(signed: bool) -> Code:
    """Make bitsandbytes' dynamic map, with the lower end that the optimizer has (`optim/codebook.py`)."""
    of = dynamic_map(signed)
    values = of.decoded[127:] if signed else of.decoded

    def rounded(x: Tensor, noise: Tensor | None) -> Tensor:
        size = x.abs()
        if noise is None:
            segment = torch.bucketize(size, of.threshold[:-1], right=True)
            at = torch.minimum(of.start[segment] + of.rise[segment] * size, of.last[segment]).int()
        else:
            low = (torch.bucketize(size, values, right=True) - 1).clamp(0, len(values) - 2)
            at = low + (noise < (size - values[low]) / (values[low + 1] - values[low])).int()
            at = torch.where(x == 0, 0, at) if signed else at.clamp_min(7)
        return values[at.clamp(0, len(values) - 1)] * torch.where(x < 0, -1.0, 1.0)

    return Code(rounded)


@dataclass(frozen=True)
class Codec:
    """Codes of both moments, with their blocks."""

    m: Code
    v: Code
    block: int = 256
    scale: torch.dtype = torch.float32
    stochastic: bool = False

    @property
    def bytes(self) -> float:
        return 2 * (1 + self.scale.itemsize / self.block)

    def kept(self, state: Tensor, code: Code, generator: torch.Generator) -> Tensor:
        """Return what is left of a moment, float32 [n], that goes through its code."""
        blocks = pad(state, (0, -len(state) % self.block)).reshape(-1, self.block)
        largest = blocks.abs().amax(1)
        held = largest.to(self.scale).float()
        held = torch.where(held < largest, torch.nextafter(held.to(self.scale), torch.full_like(held, torch.inf).to(
            self.scale)).float(), held) if self.scale != torch.float32 else held  # fmt: skip
        held = torch.where(largest < torch.finfo(self.scale).tiny, 0.0, held)
        x = (blocks * torch.where(held > 0, 1 / held, 0.0)[:, None]).clamp(-1, 1)
        noise = torch.rand(x.shape, generator=generator) if self.stochastic else None
        return (code.round(x, noise) * held[:, None]).flatten()[: len(state)]


DYNAMIC = {"m": dynamic(True), "v": dynamic(False)}
CODECS: dict[str, Codec | None] = {
    "float32": None,
    "dynamic map (bitsandbytes, ours)": Codec(**DYNAMIC),
    **{f"dynamic map, blocks of {n}": Codec(**DYNAMIC, block=n) for n in (64, 1024, 2048)},
    "dynamic map, codes rounded stochastically": Codec(**DYNAMIC, stochastic=True),
    "m linear": Codec(power(1, 127), DYNAMIC["v"]),
    "m square root": Codec(power(0.5, 127), DYNAMIC["v"]),
    "m soft sign, a = 0.3": Codec(soft_sign(0.3, 127), DYNAMIC["v"]),
    "m soft sign, a = 0.05": Codec(soft_sign(0.05, 127), DYNAMIC["v"]),
    "v square root, at least a level": Codec(DYNAMIC["m"], power(0.5, 255, least=1)),
    "v fourth root, at least a level": Codec(DYNAMIC["m"], power(0.25, 255, least=1)),
    "v logarithm, 24 octaves": Codec(DYNAMIC["m"], logarithm(24, 255)),
    "v logarithm, 16 octaves": Codec(DYNAMIC["m"], logarithm(16, 255)),
    **{
        f"m square root, v fourth root, blocks of {n}": Codec(power(0.5, 127), power(0.25, 255, least=1), block=n)
        for n in (64, 256, 1024, 2048)
    },
    "m soft sign, v fourth root": Codec(soft_sign(0.3, 127), power(0.25, 255, least=1)),
    "m soft sign, v square root": Codec(soft_sign(0.3, 127), power(0.5, 255, least=1)),
    "m soft sign, v fourth root, stochastically": Codec(
        soft_sign(0.3, 127), power(0.25, 255, least=1), stochastic=True
    ),
}
SCALES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Dtypes of the blocks' scales that are tried on gradients of several sizes."""


# --- the steps ---


def updates(grads: Tensor, codec: Codec | None, micro: int = 1) -> Iterator[Tensor]:
    """Yield AdamW's direction m / (sqrt(v) + eps) at each step over gradients [T, n], bias corrected."""
    dtype = grads.dtype
    m = torch.zeros(grads.shape[1], dtype=dtype)
    v = torch.zeros_like(m)
    generator = torch.Generator().manual_seed(0)
    for step in range(len(grads) // micro):
        for part in range(micro):
            g = grads[step * micro + part] / micro
            beta1, beta2 = (BETA1, BETA2) if part == 0 else (1.0, 1.0)
            m = beta1 * m + (1 - BETA1) * g
            v = beta2 * v + (1 - BETA2) * g * g
            moments = m, v
            if codec:
                m, v = codec.kept(m, codec.m, generator), codec.kept(v, codec.v, generator)
        t = step + 1  # the step itself sees the moments before they are coded
        yield (moments[0] / (1 - BETA1**t)) / ((moments[1] / (1 - BETA2**t)).sqrt() + EPS)


def exact(grads: Tensor, micro: int) -> list[Tensor]:
    """Return the directions in float64, on the means over micro-batches."""
    means = grads.double().unflatten(0, (-1, micro)).mean(1)
    return list(updates(means, None))


def errors(grads: Tensor, codec: Codec | None, micro: int = 1) -> tuple[float, float]:
    """Return (error of the update over the later half, drift of the sum of all)."""
    wanted = exact(grads, micro)
    missed = size = 0.0
    apart, whole = torch.zeros_like(wanted[0]), torch.zeros_like(wanted[0])
    for step, (ours, theirs) in enumerate(zip(updates(grads, codec, micro), wanted, strict=True)):
        apart += ours.double() - theirs
        whole += theirs
        if step >= len(wanted) // 2:
            missed += (ours.double() - theirs).square().sum().item()
            size += theirs.square().sum().item()
    return (missed / size) ** 0.5, (apart.norm() / whole.norm()).item()


def over_tensors(records: dict[str, Tensor], codec: Codec | None, scale: float = 1.0, micro: int = 1) -> list[float]:
    """Return the medians over the tensors of both errors, for gradients times `scale`."""
    usable = [grads[: len(grads) // micro * micro] for grads in records.values()]
    found = torch.tensor([errors(grads.float() * scale, codec, micro) for grads in usable])
    return found.median(0).values.tolist()


# --- the records ---


def record(settings: dict[str, Any], out: Path) -> None:
    """Train by a configuration, and write the gradients of eight tensors to `out`, each [steps, elements]."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    from fdpo_fast.train import main

    seen: dict[str, list[Tensor]] = {}

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        large = [p for group in optimizer.param_groups for p in group["params"] if p.numel() >= 4096]
        large.sort(key=Tensor.numel, reverse=True)
        if not any(p.grad is not None for p in large):
            return
        for at, p in enumerate(large[:: max(1, len(large) // TENSORS)][:TENSORS]):
            seen.setdefault(f"{at} {list(p.shape)}", []).append(p.grad.detach().flatten()[:ELEMENTS].float().clone())

    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(settings, file)
        file.flush()
        handle = register_optimizer_step_pre_hook(note)
        main(["--config", file.name])
        handle.remove()
    save_file({name: torch.stack(grads) for name, grads in seen.items()}, out)


UNET, UNET_STEPS = "104M", 60
"""The UNet of random weights, and how many of its steps are recorded."""


def of_random_weights(scratch: Path) -> dict[str, Any]:
    """Return the configuration of a run on rung A that trains a UNet of 104 M parameters, two pairs a step."""
    from benchmarks.full_sdxl import config, prepare
    from benchmarks.plan_accuracy import SIZES

    size = SIZES["100M"]
    prepare(size.preset, scratch / "base", size.side, size.changes)
    settings = config(size.preset, scratch / "base", scratch, "A", size.side)
    settings["train"] |= {"max_steps": UNET_STEPS, "pairs_per_step": 2, "pairs_per_micro_batch": 2}
    settings["reference"]["visits"] = 40
    return settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", metavar="CONFIG", help=f"a configuration whose run is recorded, or {UNET}")
    parser.add_argument("records", type=Path, nargs="+", help="safetensors files of gradients, or the one to write")
    options = parser.parse_args()
    if options.record:
        from fdpo_fast.config.load import extended

        with tempfile.TemporaryDirectory() as scratch:
            own = of_random_weights(Path(scratch)) if options.record == UNET else extended(Path(options.record))
            record(own, options.records[0])
        return
    rows = []
    for file in options.records:
        records = load_file(file)
        rms = torch.stack([grads.square().mean().sqrt() for grads in records.values()]).median().item()
        for name, codec in CODECS.items():
            width = f"{codec.bytes if codec else 8:.3f}"
            rows.append([file.stem, "update", name, width, *over_tensors(records, codec)])
        for size in (1e-5, 1e-8, 1e-11, 1e-15, 1e-19):
            for dtype, scale in SCALES.items():
                name = f"dynamic map, scales in {dtype}, gradients of {size:.0e}"
                codec = Codec(**DYNAMIC, scale=scale)
                found = over_tensors(records, codec, size / rms)
                rows.append([file.stem, "size of gradients", name, f"{codec.bytes:.3f}", *found])
        for micro in (2, 4, 8):
            for name, codec in (("float32", None), ("dynamic map", CODECS["dynamic map (bitsandbytes, ours)"])):
                label = f"{micro} micro-batches in the moments, {name}"
                found = over_tensors(records, codec, micro=micro)
                rows.append([file.stem, "accumulation", label, f"{codec.bytes if codec else 8:.3f}", *found])
        print("\n".join(table(COLUMNS, [[*row[:4], *(f"{x:.3g}" for x in row[4:])] for row in rows])), flush=True)
    with CSV.open(newline="") if CSV.exists() else nullcontext([]) as before:
        kept = [row for row in list(csv.reader(before))[1:] if row[0] not in {file.stem for file in options.records}]
    write_csv(CSV, COLUMNS, [*kept, *([*row[:4], *(f"{x:.4g}" for x in row[4:])] for row in rows)])


COLUMNS = ("gradients", "of", "codec", "bytes", "error_of_update", "drift")

if __name__ == "__main__":
    main()
