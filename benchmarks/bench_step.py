"""A whole optimizer step, beside one in the style of diffusers' SDXL script: `python -m benchmarks.bench_step`.

Ours reads latents, text embeddings and reference errors that were computed once; its process holds one UNet. The rival
does what train_diffusion_dpo_sdxl.py does at every step: VAE encode, both text encoders, policy, reference, published
expression. Its reference is a second, frozen UNet, as full fine-tuning needs it (the script trains LoRA, and switches
it off). Between them, the rival with one part at a time switched to ours, and ours with a live reference. All have the
same weights, batch, clipping and torch.optim.AdamW, in float32, not checkpointed. Decoding, and caching, are left out.

The sizes flatter us: VAE and text encoders are SDXL's own, but the UNet has its block types at 104 M parameters, a 25th
of SDXL's, and images are of 256 x 256. By the FLOPs of the layers the rival's step costs 5.6 times ours here; with the
real UNet at 1024 x 1024 it is 64 T to 41 T a pair, 1.6 times: 13.5 T are the reference, 9.8 T the VAE, 0.1 T the text
encoders. So look at "fdpo_fast, live reference": what is left to gain where latents and text are cached anyway.

All of it is on the GPU where there is one. Each variant lives in a process of its own, two at a time: ours, and one
rival after the other. A round takes one step of each, the device idle at both ends of a phase; times are medians over
the rounds, ratios of medians over the same rounds. Memory is a process's peak (tensors on a GPU, else resident), and
what it held before anything was built. First, every variant's loss must equal ours after a step on the same draws has
moved the policy. Writes step.csv to results or results/gpu; ratio_to_ours is ours' steps/s by the variant's.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import full_sdxl
from benchmarks.common.device import CUDA, DEVICE, held_gib, machine, peak_gib, synchronize
from benchmarks.common.tables import write_csv
from benchmarks.published import published_loss
from fdpo_fast import FDPOLoss, noise
from fdpo_fast.cache.dataset import Batch
from fdpo_fast.config.schema import Model
from fdpo_fast.evaluate.tables import table
from fdpo_fast.models import load_family, quiet_libraries
from fdpo_fast.models.prediction import errors, predict

CSV = Path(__file__).parent / ("results/gpu" if CUDA else "results") / "step.csv"
THREADS, PAIRS, LATENT_SIDE, TOKENS = 2, 2, 32, 77
BETA_DPO, MAX_GRAD_NORM = 5000.0, 1.0
LR = {"sdxl": 1e-6, "tiny_sdxl": 1e-4}  # by preset: what moves the loss within a step
COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2")
MIDDLE = {"block_out_channels": (128, 256, 384), "attention_head_dim": (2, 4, 6), "sample_size": LATENT_SIDE}
MIDDLE["transformer_layers_per_block"] = (1, 1, 2)
SPAWN = multiprocessing.get_context("spawn")
PHASES = ("vae", "text", "reference", "forward", "loss", "backward", "optimizer")
COLUMNS = ("variant", "steps_per_second", "ratio_to_ours", "peak_gib", "baseline_gib", "threads", "machine")
OURS = "fdpo_fast"
VARIANTS = {
    OURS: {"latents", "text", "reference", "loss"},
    "diffusers": set(),
    "diffusers, latents cached": {"latents"},
    "diffusers, text cached": {"text"},
    "diffusers, reference cached": {"reference"},
    "diffusers, fused loss": {"loss"},
    f"{OURS}, live reference": {"latents", "text", "loss"},
}
"""What of a step is ours, by variant."""


def start_process() -> None:
    torch.set_num_threads(THREADS)
    quiet_libraries()
    from fdpo_fast.models import presets, sdxl  # noqa: F401  # not at the top: their libraries are quiet only now

    torch.optim.AdamW([nn.Parameter(torch.zeros(1))]).zero_grad()  # torch imports more at the first one


def component(name: str, preset: str) -> nn.Module:
    from diffusers import UNet2DConditionModel

    from fdpo_fast.models import presets

    torch.manual_seed(COMPONENTS.index(name))
    if name == "unet":
        return UNet2DConditionModel(**presets.unet_config(preset) | (MIDDLE if preset == "sdxl" else {})).to(DEVICE)
    return (presets.vae(preset) if name == "vae" else presets.text_encoder(preset, name)).to(DEVICE)


def frozen(name: str, preset: str) -> nn.Module:
    return component(name, preset).requires_grad_(False).eval()


@torch.no_grad()
def encode_text(encoders: list[nn.Module], ids: Tensor) -> tuple[Tensor, Tensor]:
    """Both encoders' states before the last, and the second's projection; of a caption for both sides of its pair."""
    outputs = [encoder(ids, output_hidden_states=True) for encoder in encoders]
    states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    return states.repeat(2, 1, 1), outputs[-1].text_embeds.repeat(2, 1)


def prepare(preset: str, folder: Path) -> None:
    """Write the batch with its caches, and as much of a pipeline as a `Family` reads, to `folder`."""
    start_process()
    from fdpo_fast.models import presets

    full_sdxl.prepare(preset, folder, weights=False)
    vae, *encoders = (frozen(name, preset) for name in COMPONENTS[1:])
    side = LATENT_SIDE * 2 ** (len(vae.config.block_out_channels) - 1)
    pixels = torch.rand(2 * PAIRS, 3, side, side, device=DEVICE) * 2 - 1
    ids = torch.randint(2, encoders[0].config.vocab_size, (PAIRS, TOKENS), device=DEVICE)
    ids[:, 0], ids[:, -1] = presets.BEGIN, presets.END
    text, pooled = encode_text(encoders, ids)
    sizes = torch.tensor([[side, side, 0, 0, side, side]] * 2 * PAIRS, device=DEVICE).float()
    batch = {
        "latents": vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor,
        "draws": noise.draws(0, torch.arange(PAIRS, device=DEVICE), 0),
        "condition": {"prompt_embeds": text, "pooled_prompt_embeds": pooled, "time_ids": sizes},
        "weight": torch.ones(PAIRS, device=DEVICE),
    }
    with torch.inference_mode():
        family = load_family(Model(family="sdxl", base=str(folder)))
        batch["ref_error"] = errors(*predict(family, frozen("unet", preset), Batch(**batch, ref_error=None))[:2])
    torch.save({"pixels": pixels, "ids": ids, "batch": batch}, folder / "stored.pt")


class Step:
    """An optimizer step as fdpo_fast/train.py takes it, with cached or live reference."""

    def __init__(self, preset: str, folder: Path, ours: set[str]) -> None:
        self.ours, self.family = ours, load_family(Model(family="sdxl", base=str(folder)))
        self.stored = torch.load(folder / "stored.pt")
        self.batch = Batch(**self.stored["batch"])
        self.policy = component("unet", preset).train()
        self.reference = None if "reference" in ours else frozen("unet", preset)
        self.vae = None if "latents" in ours else frozen("vae", preset)
        self.encoders = [] if "text" in ours else [frozen(name, preset) for name in COMPONENTS[2:]]
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), LR[preset])
        self.fused = FDPOLoss("reverse_kl", beta=1.0, ratio_scale=BETA_DPO / 2)

    def __call__(self, check: bool) -> float:
        """Take it and return the loss; leaves `seconds` by phase. `check`: on the stored draws, whoever has others."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        loss = self.loss(check)
        with self.phase("backward"):
            loss.backward()
        with self.phase("optimizer"):
            nn.utils.clip_grad_norm_(self.policy.parameters(), MAX_GRAD_NORM)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.item()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        synchronize()
        self.seconds[name] += time.perf_counter() - start

    def loss(self, check: bool) -> Tensor:
        ref = self.batch.ref_error
        if self.reference:
            with self.phase("reference"), torch.no_grad():
                ref = predict(self.family, self.reference, self.batch)[0]
        with self.phase("forward"):
            pred, target, _ = predict(self.family, self.policy, self.batch)
        with self.phase("loss"):
            return self.fused(pred, ref, target, self.batch.weight)[0]


class DiffusersStep(Step):
    """In the order of the script, less the parts that are ours."""

    def loss(self, check: bool) -> Tensor:
        latents, ref, condition = self.batch.latents, self.batch.ref_error, self.batch.condition
        text, pooled = condition["prompt_embeds"], condition["pooled_prompt_embeds"]
        if self.vae:
            with self.phase("vae"):
                posterior = self.vae.encode(self.stored["pixels"]).latent_dist
                latents = (posterior.mode() if check else posterior.sample()) * self.vae.config.scaling_factor
        if self.encoders:
            with self.phase("text"):
                text, pooled = encode_text(self.encoders, self.stored["ids"])
        added = {"text_embeds": pooled, "time_ids": condition["time_ids"]}
        with self.phase("forward"):
            eps, timesteps = self.draw(latents, check)
            noisy = self.family.schedule.add_noise(latents, eps, timesteps)
            pred = self.policy(noisy, timesteps, text, added_cond_kwargs=added).sample
        if self.reference:
            with self.phase("reference"), torch.no_grad():
                ref = self.reference(noisy, timesteps, text, added_cond_kwargs=added).sample
        with self.phase("loss"):
            if "loss" in self.ours:
                return self.fused(pred, ref, eps)[0]
            # the float32 means of the script move a logit by some 1e-4, about as much as the check allows
            pred, ref, eps = (x.double() if check else x for x in (pred, ref, eps))
            return published_loss(pred, ref, eps, ratio_scale=BETA_DPO / 2)[0]

    def draw(self, latents: Tensor, check: bool) -> tuple[Tensor, Tensor]:
        """Noise and timesteps, the same for both sides; stored reference errors belong to the stored draws."""
        steps = self.family.steps
        if check or not self.reference:
            eps = noise.normals(self.batch.draws, latents[0].numel()).reshape(-1, *latents.shape[1:])
            return eps.repeat(2, 1, 1, 1), noise.timesteps(self.batch.draws, steps).repeat(2)
        return torch.randn_like(latents).chunk(2)[0].repeat(2, 1, 1, 1), torch.randint(
            0, steps, (PAIRS,), device=DEVICE
        ).repeat(2)


def serve(pipe: Connection, name: str, preset: str, folder: Path) -> None:
    """A variant's process: two untimed steps for the check, a timed one for each True, at the end its peak."""
    start_process()
    base = held_gib()
    step = (Step if name.startswith(OURS) else DiffusersStep)(preset, folder, VARIANTS[name])
    pipe.send((base, [step(check=True), step(check=True)], sum(p.numel() for p in step.policy.parameters())))
    step.optimizer.param_groups[0]["lr"] = 0.0  # the same work, and a loss that no number of rounds drives to zero
    while pipe.recv():
        start = time.perf_counter()
        step(check=False)  # which has waited for the device, for its loss
        pipe.send({**step.seconds, "step": time.perf_counter() - start})
    pipe.send(peak_gib())


class Variant:
    """The parent's end of a variant's process, and what it has said so far."""

    def __init__(self, name: str, preset: str, folder: Path) -> None:
        self.name, self.ratio, self.times = name, 1.0, []
        self.pipe, there = SPAWN.Pipe()
        SPAWN.Process(target=serve, args=(there, name, preset, folder), daemon=True).start()
        there.close()
        self.base, self.losses, self.parameters = self.pipe.recv()

    def ask(self, step: bool) -> Any:
        self.pipe.send(step)
        return self.pipe.recv()

    def seconds(self, phase: str, rounds: int = 0) -> float:
        """Median over the last `rounds`, 0: all."""
        return median(times[phase] for times in self.times[-rounds:])


def measure(preset: str, rounds: int) -> list[Variant]:
    """Every variant, ours first."""
    with TemporaryDirectory() as scratch:
        with SPAWN.Pool(1) as pool:  # a process that is gone before the others come
            pool.apply(prepare, (preset, Path(scratch)))
        done = [ours := Variant(OURS, preset, Path(scratch))]
        assert abs(ours.losses[1] - math.log(2)) > 1e-2, f"the first step has not moved the policy: {ours.losses}"
        for name in list(VARIANTS)[1:]:
            done.append(other := Variant(name, preset, Path(scratch)))
            same = all(math.isclose(*pair, rel_tol=1e-4) for pair in zip(ours.losses, other.losses, strict=True))
            assert same, f"losses of {name}: {other.losses}, ours: {ours.losses}"
            for _ in range(rounds):
                for variant in (ours, other):
                    variant.times.append(variant.ask(True))
            other.ratio = other.seconds("step") / ours.seconds("step", rounds)
            other.peak = other.ask(False)
        ours.peak = ours.ask(False)
    return done


def markdown(variants: list[Variant]) -> Iterator[str]:
    """Yield the lines of speed and memory, then of seconds by phase."""
    ours = variants[0]
    yield f"{machine()}; UNet: {ours.parameters / 1e6:.1f} M parameters. ours / this: times the steps/s, and memory.\n"
    columns = ("variant", "steps/s", "ours / this", "peak GiB", "ours / this", "less imports", "ours / this")
    rows = []
    for v in variants:
        built, ratio = v.peak - v.base, (ours.peak - ours.base) / (v.peak - v.base)
        figures = (f"{x:.2f}" for x in (v.ratio, v.peak, ours.peak / v.peak, built, ratio))
        rows.append((v.name, f"{1 / v.seconds('step'):.3f}", *figures))
    yield from (*table(columns, rows, figures=6), "")
    phases = (*PHASES, "step")
    rows = [(v.name, *(f"{v.seconds(phase):.4g}" for phase in phases)) for v in variants]
    yield from table(("seconds", *phases), rows, figures=len(phases))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tiny", action="store_true", help="tiny models: a smoke test, which writes no CSV")
    options = parser.parse_args()
    variants = measure("tiny_sdxl" if options.tiny else "sdxl", options.rounds)
    print("\n".join(markdown(variants)))
    if not options.tiny:
        figures = [(1 / v.seconds("step"), v.ratio, v.peak, v.base, THREADS) for v in variants]
        rows = [(v.name, *(f"{x:.4g}" for x in line), machine()) for v, line in zip(variants, figures, strict=True)]
        write_csv(CSV, COLUMNS, rows)


if __name__ == "__main__":
    main()
