"""Every bad input of the drop-in raises one sentence."""

from fractions import Fraction

import pytest
import torch

from fdpo_fast import FDPOLoss, Target, draws, fdpo_loss

DRAWS = draws(0, torch.arange(2), 0)
GOOD = {"pred": torch.zeros(4, 3), "ref": torch.zeros(4, 3), "target": torch.zeros(4, 3)} | {
    "beta": 2.0,
    "ratio_scale": 50.0,
}


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({k: torch.zeros(3, 3) for k in ("pred", "ref", "target")}, ValueError, "even first dimension"),
        ({"target": torch.zeros(4, 2)}, ValueError, "target has shape"),
        ({"ref": torch.zeros(4, 2)}, ValueError, "ref has shape"),
        ({"ref": torch.zeros(2)}, ValueError, "ref has shape"),
        ({"ref": torch.zeros(4, dtype=torch.bfloat16)}, TypeError, "float32 or float64"),
        ({"pred": torch.zeros(4, 3, dtype=torch.int64)}, TypeError, "floating-point"),
        ({"pred": torch.zeros(4, 3, dtype=torch.complex64)}, TypeError, "floating-point"),
        ({"target": [1.0]}, TypeError, "must be a tensor"),
        *[({k: None}, TypeError, f"{k} must be a tensor") for k in ("pred", "ref", "target")],
        ({"pred": torch.tensor(0.0)}, ValueError, "pairs"),
        ({k: torch.zeros(4, 0) for k in ("pred", "ref", "target")}, ValueError, "without elements"),
        ({"target": torch.zeros(4, 3, device="meta")}, ValueError, "is on meta"),
        ({"weight": torch.zeros(3)}, ValueError, "one factor per pair"),
        ({"divergence": "kl"}, ValueError, "unknown divergence"),
        ({"divergence": "pearson_chi2"}, ValueError, "not admissible"),
        ({"divergence": 0.5}, TypeError, "divergence must be"),
        ({"beta": 0}, ValueError, "beta must be positive"),
        ({"beta": -1.0}, ValueError, "beta must be positive"),
        ({"beta": float("nan")}, ValueError, "beta must be positive"),
        ({"beta": "1"}, TypeError, "beta must be a number"),
        ({"ratio_scale": 0.0}, ValueError, "ratio_scale must be positive"),
        ({"ratio_scale": float("inf")}, ValueError, "ratio_scale must be positive"),
        ({"loss_type": "kto"}, ValueError, "normaliser"),
        ({"loss_type": "sppo_hard", "divergence": "forward_kl"}, ValueError, "normaliser"),
        ({"loss_type": "mse"}, ValueError, "unknown loss_type"),
        ({"label_smoothing": 0.5}, ValueError, "label_smoothing"),
        ({"label_smoothing": 0.1, "loss_type": "hinge"}, ValueError, "no meaning"),
        ({"winner_preserving": 1.0}, ValueError, r"winner_preserving must lie in \[0, 1\), or be None"),
        ({"winner_preserving": -0.1}, ValueError, "winner_preserving must lie"),
        ({"winner_preserving": float("nan")}, ValueError, "winner_preserving must lie"),
        ({"winner_preserving": Fraction(10**30 - 1, 10**30)}, ValueError, "winner_preserving must lie"),
        ({"winner_preserving": True}, TypeError, "winner_preserving must be a number"),
        ({"winner_preserving": "0.5"}, TypeError, "winner_preserving must be a number"),
        ({"sft_weight": -0.1}, ValueError, "sft_weight must not be negative, and finite, got -0.1"),
        ({"sft_weight": float("inf")}, ValueError, "sft_weight must not be negative, and finite"),
        ({"sft_weight": None}, TypeError, "sft_weight must be a number, got NoneType"),
        ({"margin": float("nan")}, ValueError, "margin must not be negative, and finite"),
        ({"margin": 10**400}, ValueError, "margin must not be negative, and finite"),
        ({"margin": -1}, ValueError, "margin must not be negative, and finite"),
        ({"margin": True}, TypeError, "margin must be a number"),
        ({"clip_log_ratio": 0}, ValueError, "clip_log_ratio must be positive and finite, or None to clip nothing"),
        ({"clip_log_ratio": float("inf")}, ValueError, "clip_log_ratio must be positive"),
        ({"clip_log_ratio": "1"}, TypeError, "clip_log_ratio must be a number"),
        ({"layout": "pairs"}, ValueError, "unknown layout"),
        ({"reduction": "median"}, ValueError, "unknown reduction"),
        ({"backend": "cuda"}, ValueError, "unknown backend"),
        ({"layout": ["halves"]}, ValueError, "unknown layout"),
        ({"beta": 10**400}, ValueError, "beta must be positive and finite"),
        ({"target": torch.zeros(4, 3).to_sparse()}, TypeError, "strided"),
        ({"target": Target()}, TypeError, "target must be a tensor"),
        ({"target": Target(DRAWS, torch.zeros(4, 3))}, ValueError, "takes on"),
        ({"target": Target(DRAWS, on=torch.zeros(2, 2))}, ValueError, "takes on"),
        ({"target": Target(DRAWS, torch.zeros(4, 2), torch.zeros(2, 2))}, ValueError, "the target's data has shape"),
        ({"target": Target(DRAWS, torch.zeros(4, 3), torch.zeros(2, 4))}, ValueError, r"give \(2, 2\), of noise"),
        ({"target": Target(DRAWS, torch.zeros(4, 3), [1, -1])}, TypeError, "the target's on must be a tensor"),
        ({"target": Target(DRAWS.float())}, TypeError, "draws must be int64"),
        ({"target": Target(DRAWS[:, :1])}, ValueError, r"draws have shape \(3, 1\): give \(3, 2\)"),
    ],
)
def test_refusals(change, error, says):
    arguments = GOOD | change
    with pytest.raises(error, match=says) as caught:
        fdpo_loss(arguments.pop("pred"), arguments.pop("ref"), arguments.pop("target"), **arguments)
    assert "\n" not in str(caught.value)


def test_module_refuses_before_the_first_batch():
    with pytest.raises(ValueError, match="beta must be positive"):
        FDPOLoss(beta=-1.0, ratio_scale=1.0)


def test_a_backend_that_is_named_is_not_the_best_one_of_an_earlier_call():
    x = torch.zeros(4, 3, dtype=torch.float64)
    fdpo_loss(x, x, x, beta=1.0, ratio_scale=1.0)
    with pytest.raises(ValueError, match="backend 'cpp' takes float32"):
        fdpo_loss(x, x, x, beta=1.0, ratio_scale=1.0, backend="cpp")


@pytest.mark.parametrize("backend", ["cpp", "eager"])
def test_a_link_of_another_shape_is_refused(backend):
    x = torch.zeros(4, 3, dtype=torch.float32)
    with pytest.raises(ValueError, match="one number for each log-ratio"):
        fdpo_loss(x, x, x, divergence=lambda u: u[:, None], beta=1.0, ratio_scale=1.0, backend=backend)
