"""A user's typed script over all public names: `mypy --strict` passes on it, and it runs."""

from __future__ import annotations

import torch
from torch import Tensor

import fdpo_fast
from fdpo_fast import (
    DIVERGENCES,
    AdamW8bit,
    Divergence,
    FDPOLoss,
    LossStats,
    add_noise,
    alpha,
    divergence,
    draws,
    fdpo_loss,
    log_ratio_loss,
    pair_draw,
    scales,
)


def link(u: Tensor) -> Tensor:
    """A divergence of one's own."""
    return u + u.tanh()


def losses(pred: Tensor, ref: Tensor, target: Tensor) -> list[Tensor]:
    beta_dpo: float = scales.convert(5000, "diffusion_dpo", "fdpo_fast")
    ratio_scale: float = scales.ratio_scale(beta_dpo, "fdpo_fast", beta=0.5)
    kinds: list[str | Divergence] = ["reverse_kl", alpha(0.3), divergence("alpha", a=0.2), *DIVERGENCES.values()]
    found = [fdpo_loss(pred, ref, target, divergence=kind, beta=0.5, ratio_scale=ratio_scale)[0] for kind in kinds]
    loss, stats = fdpo_loss(
        pred,
        ref,
        target,
        divergence=link,
        beta=1,
        ratio_scale=2.0,
        weight=torch.ones(2),
        loss_type="robust",
        label_smoothing=0.1,
        winner_preserving=0.5,
        sft_weight=3,
        margin=0.2,
        clip_log_ratio=1.5,
        layout="interleaved",
        reduction="sum",
        backend="eager",
    )
    margin: Tensor = stats.margin + stats["margin"]
    criterion = FDPOLoss("chi_po", beta=1.0, ratio_scale=2.0, reduction="none")
    both: tuple[Tensor, LossStats] = criterion.forward(pred, ref, target)
    pairs, margins = log_ratio_loss(
        both[1].log_ratio_w, both[1].log_ratio_l, divergence=alpha(0.7), beta=0.1, margin=0.1
    )
    slope: Tensor = DIVERGENCES["jeffreys"].slope(margins)
    return [*found, loss, margin, both[0], pairs, slope]


def noised(latents: Tensor) -> tuple[Tensor, Tensor]:
    drawn: Tensor = draws(0, torch.arange(2), 1, device="cpu")
    timestep, noise = pair_draw(0, 3, 1, (4, 8, 8), dtype=torch.bfloat16)
    share: float = timestep.item() / 1000 + noise.float().mean().item()
    noisy, timesteps = add_noise(latents, drawn, torch.linspace(1, 0, 10), torch.linspace(0, 1, 10))
    return noisy * share, timesteps


def trained(model: torch.nn.Module) -> float:
    optimizer = AdamW8bit(model.parameters(), lr=1e-3, betas=(0.9, 0.99), rounding="nearest", seed=1, backend=None)

    def closure() -> float:
        optimizer.zero_grad()
        loss: Tensor = model(torch.ones(1, 4)).sum()
        torch.autograd.backward(loss)
        return loss.item()

    optimizer.step()
    return optimizer.step(closure)


def main() -> None:
    pred = torch.randn(4, 4, 8, 8, requires_grad=True)
    for loss in losses(pred, torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8)):
        loss.sum()
    noised(torch.randn(4, 4, 8, 8))
    trained(torch.nn.Linear(4, 4))
    print(fdpo_fast.__all__)
