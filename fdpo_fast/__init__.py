"""Preference alignment of text-to-image diffusion models under any f-divergence, fast and small."""

from fdpo_fast.divergences import DIVERGENCES, Divergence, alpha, divergence
from fdpo_fast.loss import FDPOLoss, LossStats, fdpo_loss
from fdpo_fast.noise import pair_draw

__all__ = ["DIVERGENCES", "Divergence", "FDPOLoss", "LossStats", "alpha", "divergence", "fdpo_loss", "pair_draw"]
