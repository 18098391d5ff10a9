"""A full-tuning step of SDXL as others take it, at full size: what the trainer's seconds and GiB stand against.

published: the way of Diffusion-DPO's own scripts. float32 weights under bfloat16 autocast, a frozen bfloat16 reference,
torch's fused AdamW in float32, checkpointing, VAE and text encoders at every step. lean: the best that can be put
together from libraries. bfloat16 weights, bitsandbytes' 8-bit AdamW, latents and text ready, a live bfloat16 reference.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import nullcontext
from statistics import median

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from benchmarks.bench_step import BETA_DPO, encode_text
from benchmarks.common.device import CUDA, DEVICE, forget_peaks, gpu_memory
from benchmarks.gpu.lab import Lab, Timer, Work
from benchmarks.published import published_loss
from fdpo_fast.models import presets

TOKENS = 77
STEP_PHASES = ("encode", "forward", "reference", "loss", "backward", "optimizer")


def ready(lab: Lab, kind: str) -> Work:
    import diffusers  # noqa: F401

    if kind == "lean":
        import bitsandbytes  # noqa: F401
    return lambda: measure(lab, kind)


def measure(lab: Lab, kind: str) -> None:
    """A line of seconds a step, by phase, and of memory in the steps and up to them."""
    warm, timed = (1, 1) if lab.rehearse else (2, 5)
    forget_peaks()
    step = {"published": Published, "lean": Lean}[kind](lab)
    losses = [step(Timer()) for _ in range(warm)]
    held = gpu_memory()
    forget_peaks()
    phases = []
    for _ in range(timed):
        timer = Timer()
        losses.append(step(timer))
        phases.append(timer.seconds())
    whole = [sum(one) for one in phases]
    lab.line(
        what="rival", kind=kind, seconds_per_step=median(whole), seconds_per_pair=median(whole), fastest=min(whole),
        slowest=max(whole), first_loss=float(losses[0]),
        **{f"{name}_s": median(values) for name, values in zip(STEP_PHASES, zip(*phases, strict=True), strict=True)},
        **gpu_memory(), **{f"start_{key}": value for key, value in held.items()},
    )  # fmt: skip


class Step(ABC):
    """An optimizer step of one pair with a live reference and the published loss."""

    dtype: torch.dtype

    def __init__(self, lab: Lab) -> None:
        self.policy = lab.unet(self.dtype).train()
        self.policy.enable_gradient_checkpointing()
        self.reference = lab.unet(torch.bfloat16).requires_grad_(False).eval()
        self.reference.load_state_dict(self.policy.state_dict())
        if CUDA:
            torch.cuda.empty_cache()
        config = self.policy.config
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        self.latents = torch.randn(2, 4, lab.side, lab.side, device=DEVICE)
        self.text = torch.randn(2, TOKENS, config.cross_attention_dim, device=DEVICE, dtype=torch.bfloat16)
        self.pooled = torch.randn(2, pooled, device=DEVICE, dtype=torch.bfloat16)
        self.pixels = lab.side * (2 if lab.rehearse else 8)
        sizes = [[self.pixels, self.pixels, 0, 0, self.pixels, self.pixels]] * 2
        self.time_ids = torch.tensor(sizes, device=DEVICE).float()
        self.schedule = presets.SCHEDULERS["epsilon"]()
        self.optimizer = self.make_optimizer()

    @abstractmethod
    def make_optimizer(self) -> Optimizer:
        """The optimizer over the policy's parameters."""

    def encode(self) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [2, 4, h, w], text embeddings [2, tokens, n], pooled ones [2, m]."""
        return self.latents, self.text, self.pooled

    def autocast(self) -> object:
        return nullcontext()

    def __call__(self, timer: Timer) -> Tensor:
        """Take it; the timer is given a mark at the start and after each of `STEP_PHASES`. Returns the loss."""
        timer.mark()
        with torch.no_grad():
            latents, text, pooled = self.encode()
        timer.mark()
        eps = torch.randn_like(latents[:1]).repeat(2, 1, 1, 1)  # both sides share noise and timestep
        timesteps = torch.randint(0, 1000, (1,), device=DEVICE).repeat(2)
        noisy = self.schedule.add_noise(latents, eps, timesteps)
        added = {"text_embeds": pooled, "time_ids": self.time_ids}
        with self.autocast():
            pred = self.policy(noisy.to(self.dtype), timesteps, text.to(self.dtype), added_cond_kwargs=added).sample
        timer.mark()
        with torch.no_grad(), self.autocast():
            ref = self.reference(noisy.bfloat16(), timesteps, text, added_cond_kwargs=added).sample
        timer.mark()
        loss, _ = published_loss(pred, ref, eps, ratio_scale=BETA_DPO / 2)
        timer.mark()
        loss.backward()
        timer.mark()
        nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        timer.mark()
        return loss.detach()


class Published(Step):
    dtype = torch.float32

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        names = [name for name in presets.PRESETS[lab.preset] if name.startswith("text_encoder")]
        with torch.device(DEVICE):
            self.vae = presets.vae(lab.preset).requires_grad_(False).eval()
            with presets.default_dtype(torch.bfloat16):
                encoders = [presets.text_encoder(lab.preset, name) for name in names]
        self.encoders = [encoder.requires_grad_(False).eval() for encoder in encoders]
        vocabulary = min(encoder.config.vocab_size for encoder in encoders)
        self.ids = torch.randint(2, vocabulary, (1, TOKENS), device=DEVICE)
        self.ids[:, 0], self.ids[:, -1] = presets.BEGIN, presets.END
        self.images = torch.rand(2, 3, self.pixels, self.pixels, device=DEVICE) * 2 - 1

    def make_optimizer(self) -> Optimizer:
        return AdamW(self.policy.parameters(), 1e-6, fused=True)

    def encode(self) -> tuple[Tensor, Tensor, Tensor]:
        latents = self.vae.encode(self.images).latent_dist.sample() * self.vae.config.scaling_factor
        return latents, *encode_text(self.encoders, self.ids)

    def autocast(self) -> object:
        return torch.autocast(DEVICE.type, torch.bfloat16)


class Lean(Step):
    dtype = torch.bfloat16

    def make_optimizer(self) -> Optimizer:
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(self.policy.parameters(), 1e-6)
