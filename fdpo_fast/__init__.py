"""Preference alignment of text-to-image diffusion models under any f-divergence, fast and small."""

from fdpo_fast import scales
from fdpo_fast.divergences import DIVERGENCES, Divergence, alpha, divergence
from fdpo_fast.loss import FDPOLoss, LossStats, fdpo_loss, log_ratio_loss
from fdpo_fast.noise import add_noise, draws, pair_draw
from fdpo_fast.optim import AdamW8bit

__all__ = [
    "DIVERGENCES",
    "AdamW8bit",
    "Divergence",
    "FDPOLoss",
    "LossStats",
    "add_noise",
    "alpha",
    "divergence",
    "draws",
    "fdpo_loss",
    "log_ratio_loss",
    "pair_draw",
    "scales",
]
