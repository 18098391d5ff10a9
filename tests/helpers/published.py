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


# --- trainers of flow-matching models: the target is noise minus latents, errors are in float32 -----------------


def improvements(pred, ref, target, dtype):
    """How far each sample's mean squared error is above the reference's."""
    error, ref_error = (F.mse_loss(x.to(dtype), target.to(dtype), reduction="none").flatten(1) for x in (pred, ref))
    return error.mean(1) - ref_error.mean(1)


def longcat(model_pred, ref_pred, target, beta_dpo, dtype=torch.float64):
    """LongCat-Image, train_dpo.py: differences within the policy and within the reference, no factor 1/2."""
    (model_win, model_lose), (ref_win, ref_lose) = (
        ((x.to(dtype) - target.to(dtype)) ** 2).flatten(1).mean(1).chunk(2) for x in (model_pred, ref_pred)
    )
    return -F.logsigmoid(-beta_dpo * ((model_win - model_lose) - (ref_win - ref_lose))).mean()


def flow_grpo(model_pred, ref_pred, target, beta_dpo, dtype=torch.float64):
    """flow_grpo, train_sd3_dpo.py: differences from the reference, those of the batch's halves compared."""
    pairs, diff = len(target) // 2, improvements(model_pred, ref_pred, target, dtype)
    return torch.mean(-F.logsigmoid(-0.5 * beta_dpo * (diff[:pairs] - diff[pairs:])))


def verl_omni(model_pred, ref_pred, target, beta_dpo, dtype=torch.float64):
    """verl-omni, diffusion_algos.py: the samples of a pair are neighbours in the batch."""
    diff = improvements(model_pred, ref_pred, target, dtype)
    return -F.logsigmoid(-0.5 * beta_dpo * (diff[0::2] - diff[1::2])).mean()


def flow_factory(model_pred, ref_pred, target, beta_dpo, dtype=torch.float64):
    """Flow-Factory, dpo.py: each side of the pairs by itself, as an implicit reward."""
    sides = zip(*(x.chunk(2) for x in (model_pred, ref_pred, target)), strict=True)
    reward_w, reward_l = (-0.5 * beta_dpo * improvements(*side, dtype) for side in sides)
    return -F.logsigmoid(reward_w - reward_l).mean()


def simpletuner(model_pred, ref_pred, target, beta_dpo, dtype=torch.float64):
    """SimpleTuner, flow_dpo: squared errors summed over the elements, at a fixed beta."""
    (win, lose), (ref_win, ref_lose) = (
        (x.to(dtype) - target.to(dtype)).pow(2).sum(dim=(1, 2, 3)).chunk(2) for x in (model_pred, ref_pred)
    )
    return -F.logsigmoid(0.5 * beta_dpo * ((ref_win - win) + (lose - ref_lose))).mean()


FLOW_TRAINERS = {
    "longcat": longcat,
    "flow_grpo": flow_grpo,
    "verl_omni": verl_omni,
    "flow_factory": flow_factory,
    "simpletuner": simpletuner,
}
"""By the names that `fdpo_fast.scales` has for them."""

FLOW_LAYOUTS = dict.fromkeys(FLOW_TRAINERS, "halves") | {"verl_omni": "interleaved"}
"""How their batches hold the samples of a pair."""


def interleaved(x):
    """Halves of preferred and dispreferred samples as neighbours."""
    return torch.stack(x.chunk(2), 1).flatten(0, 1)


def as_batched(name, *halves):
    """Tensors in halves as a flow trainer's batch holds them."""
    return tuple(interleaved(x) for x in halves) if FLOW_LAYOUTS[name] == "interleaved" else halves
