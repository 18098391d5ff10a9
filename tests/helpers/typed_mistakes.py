"""Mistakes that a type checker is to find: those lines, and no others, end in `# refused`."""

from __future__ import annotations

import torch
from torch import Tensor

from fdpo_fast import AdamW8bit, FDPOLoss, alpha, divergence, draws, fdpo_loss, log_ratio_loss, pair_draw

x, layer = torch.randn(4, 3), torch.nn.Linear(4, 4)


def gap(u_w: Tensor, u_l: Tensor) -> Tensor:
    return u_w - u_l


fdpo_loss(x, x, x, ratio_scale=1.0)  # refused
fdpo_loss(x, x, x, beta=1.0)  # refused
fdpo_loss(x, x, x, beta=1.0, ratio_scale=1.0, label_smooting=0.1)  # refused
fdpo_loss(x, x, x, beta="1", ratio_scale=1.0)  # refused
fdpo_loss(x, x, x, beta=1.0, ratio_scale=1.0, backend=3)  # refused
fdpo_loss(x, x, x, beta=1.0, ratio_scale=1.0, divergence=3)  # refused
fdpo_loss(x, x, x, beta=1.0, ratio_scale=1.0, divergence=gap)  # refused
fdpo_loss(x, x, 1.0, beta=1.0, ratio_scale=1.0)  # refused
accuracy: float = fdpo_loss(x, x, x, beta=1.0, ratio_scale=1.0)[1].accuracy  # refused
FDPOLoss(ratio_scale=1.0)  # refused
FDPOLoss(alpha, beta=1.0, ratio_scale=1.0)  # refused
log_ratio_loss(x[:, 0], x[:, 0], beta=1.0, ratio_scale=1.0)  # refused
alpha("0.3")  # refused
divergence("alpha", a="0.3")  # refused
draws(0, 0.5, 0)  # refused
pair_draw(0, 1, 2, 16)  # refused
AdamW8bit(layer.parameters(), lr="1e-3")  # refused
AdamW8bit(layer.parameters(), betas=0.9)  # refused
rate: float = AdamW8bit(layer.parameters()).step()  # refused
fdpo_loss(x, x, x, beta=1.0, ratio_scale=1.0)
