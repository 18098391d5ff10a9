"""What other codes publish: their expressions, and tensors to execute them on.

Where a script casts to float32, `dtype` stands for that cast.
"""

import torch
import torch.nn.functional as F  # noqa: N812

PAIRS, SHAPE = 5, (4, 8, 8)


def tensors(dtype, seed=0):
    """pred, ref, target: errors around 0.09, logits around one at a beta_dpo of 5000; the fourth pair is a tie."""
    generator = torch.Generator().manual_seed(seed)
    target, r, p = (torch.randn(2 * PAIRS, *SHAPE, generator=generator, dtype=torch.float64) for _ in range(3))
    ref = target + 0.3 * r
    pred = ref + 0.01 * p
    pred[3::PAIRS] = ref[3::PAIRS]
    return pred.to(dtype), ref.to(dtype), target.to(dtype)


def official(model_pred, ref_pred, target, beta_dpo, dtype=torch.float64):
    """Training script of Diffusion-DPO (Wallace et al., arXiv 2311.12908); it has no cast. Also what it logs."""
    model_pred, ref_pred, target = (x.to(dtype) for x in (model_pred, ref_pred, target))
    model_losses = (model_pred - target).pow(2).mean(dim=[1, 2, 3])
    ref_losses = (ref_pred - target).pow(2).mean(dim=[1, 2, 3])
    (model_w, model_l), (ref_w, ref_l) = model_losses.chunk(2), ref_losses.chunk(2)
    inside_term = -0.5 * beta_dpo * ((model_w - model_l) - (ref_w - ref_l))
    implicit_acc = (inside_term > 0).sum().float() / inside_term.size(0)
    logged = {"model_mse": 0.5 * (model_w.mean() + model_l.mean()), "ref_mse": ref_losses.mean()}
    return -1 * F.logsigmoid(inside_term).mean(), implicit_acc, logged


def script_errors(pred, target, dtype):
    """Both diffusers scripts: (errors of preferred, errors of dispreferred)."""
    losses = F.mse_loss(pred.to(dtype), target.to(dtype), reduction="none")
    return losses.mean(dim=list(range(1, losses.ndim))).chunk(2)


def script_accuracy(logits):
    """Both diffusers scripts, where a tie counts 0.5 as it does in ours."""
    return (logits > 0).sum().float() / logits.size(0) + 0.5 * (logits == 0).sum().float() / logits.size(0)


def sdxl_script(model_pred, ref_pred, target, beta_dpo, dtype=torch.float64):
    """diffusers, train_diffusion_dpo_sdxl.py."""
    model_w, model_l = script_errors(model_pred, target, dtype)
    ref_w, ref_l = script_errors(ref_pred, target, dtype)
    scale_term = -0.5 * beta_dpo
    inside_term = scale_term * ((model_w - model_l) - (ref_w - ref_l))
    return -1 * F.logsigmoid(inside_term).mean(), script_accuracy(inside_term)


def sd15_script(model_pred, ref_pred, target, beta_dpo, dtype=torch.float64, loss_type="sigmoid"):
    """diffusers, train_diffusion_dpo.py: no factor 1/2; its ipo compares bare error differences with 1 / (2 beta)."""
    model_w, model_l = script_errors(model_pred, target, dtype)
    ref_w, ref_l = script_errors(ref_pred, target, dtype)
    logits = (ref_w - ref_l) - (model_w - model_l)
    losses = {
        "sigmoid": -1 * F.logsigmoid(beta_dpo * logits),
        "hinge": torch.relu(1 - beta_dpo * logits),
        "ipo": (logits - 1 / (2 * beta_dpo)) ** 2,
    }
    return losses[loss_type].mean(), script_accuracy(logits)
