"""Noise processes as tables, beside diffusers' schedulers at every timestep, and the formulas in float64."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from fdpo_fast.config.errors import UserError
from fdpo_fast.models.presets import SCHEDULERS
from fdpo_fast.models.process import prediction_of, read_scheduler, shifts_by_size, tables
from fdpo_fast.noise import add_noise, draws, normals
from fdpo_fast.ops.target import as_one

T = 1000
KNOWN = {"_class_name": "DDPMScheduler", "beta_schedule": "scaled_linear"}
FLUX = {"shift": 3.0, "use_dynamic_shifting": True}  # base 0.5 at 256 tokens, 1.15 at 4096


def saved(scheduler, folder):
    scheduler.save_pretrained(folder)
    return read_scheduler(folder)


def every_timestep(process):
    """(x_0, noise, x_t, target, timesteps), a pair of images at each timestep, of our tables."""
    latents = torch.randn(2 * T, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    drawn = draws(1, torch.arange(T), 0)
    noise = normals(drawn, 48, "eager").view(T, 3, 4, 4)
    timesteps = torch.arange(T)
    at = (slice(None), None, None, None)
    noisy = process.signal[at] * latents[:T] + process.sigma[at] * noise
    target = process.target(latents, drawn, timesteps)
    whole = as_one(target, None if target.draws is None else noise.flatten(1), latents, False)
    return latents[:T], noise, noisy, whole[:T], timesteps


@pytest.mark.parametrize("name", ["epsilon", "v_prediction", "v_zero_snr", "sample"])
def test_a_schedule_of_variances_is_the_schedulers(tmp_path, name):
    theirs = SCHEDULERS[name]()
    process = tables(saved(theirs, tmp_path))
    x, e, noisy, target, timesteps = every_timestep(process)
    assert torch.equal(process.fed, timesteps)
    torch.testing.assert_close(noisy, theirs.add_noise(x, e, timesteps), rtol=0, atol=0)
    velocity = DDPMScheduler.from_config(theirs.config).get_velocity(x, e, timesteps)
    want = {"epsilon": e, "sample": x}.get(name, velocity)
    torch.testing.assert_close(target, want, rtol=1e-6, atol=1e-6)
    if name == "v_zero_snr":
        assert (process.signal[-1].item(), process.sigma[-1].item()) == (0, 1)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_a_flow_of_fixed_shift_is_the_schedulers(tmp_path, shift):
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    process = tables(saved(theirs, tmp_path))
    x, e, noisy, target, _ = every_timestep(process)
    assert torch.equal(process.sigma, theirs.sigmas.flip(0))
    assert torch.equal(process.fed, theirs.timesteps.flip(0))
    assert torch.equal(target, e - x)
    for i in (0, 1, 499, 998, 999):
        want = theirs.scale_noise(x[i : i + 1], process.fed[i : i + 1], e[i : i + 1])
        torch.testing.assert_close(noisy[i : i + 1], want, rtol=1e-6, atol=1e-6)
    u = np.arange(1, T + 1) / T
    np.testing.assert_allclose(process.sigma, shift * u / (1 + (shift - 1) * u), rtol=1e-6)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("tokens", [256, 1024, 4096, 6144])
def test_a_shift_by_tokens_is_the_pipelines(tmp_path, tokens, kind):
    theirs = FlowMatchEulerDiscreteScheduler(**FLUX, time_shift_type=kind)
    ours = saved(theirs, tmp_path)
    assert shifts_by_size(ours)
    process = tables(ours, tokens)
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / T, T).tolist(), mu=mu)
    assert torch.equal(process.sigma, theirs.sigmas[:-1].flip(0))
    assert torch.equal(process.fed, theirs.timesteps.flip(0))
    k, u = np.exp(mu) if kind == "exponential" else mu, np.arange(1, T + 1) / T
    np.testing.assert_allclose(process.sigma, k * u / (1 + (k - 1) * u), rtol=1e-6)
    assert torch.equal(tables(ours, tokens).sigma, process.sigma)


def test_other_schedulers_of_flows_are_read_by_their_shift(tmp_path):
    theirs = DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=2.5, prediction_type="flow_prediction")
    process = tables(saved(theirs, tmp_path / "dpm"))
    same = tables(saved(FlowMatchEulerDiscreteScheduler(shift=2.5), tmp_path / "euler"))
    assert torch.equal(process.sigma, same.sigma)
    spaced = FlowMatchEulerDiscreteScheduler(shift=2.5, use_karras_sigmas=True, shift_terminal=0.02)
    assert torch.equal(tables(saved(spaced, tmp_path / "spaced")).sigma, same.sigma)
    assert prediction_of(read_scheduler(tmp_path / "dpm")) == "flow"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {"_class_name": "VQDiffusionScheduler"},
            "is a VQDiffusionScheduler, whose noise nobody knows",
        ),
        ({}, "is a None, whose noise nobody knows here"),
        (
            KNOWN | {"prediction_type": "flow"},
            "predicts 'flow': fdpo_fast",
        ),
        (KNOWN | {"prediction_type": "score"}, "epsilon or v_prediction or sample"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "has invert_sigmas"),
        ({"_class_name": "DDPMScheduler", "beta_schedule": "squared"}, "is no DDPMScheduler that diffusers can make"),
    ],
)
def test_what_nobody_knows_is_a_sentence(tmp_path, config, says):
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": config.get("_class_name"), **config}))
    with pytest.raises(UserError, match=says):
        read_scheduler(tmp_path)


@pytest.mark.parametrize("name", ["epsilon", "v_zero_snr", "flow", "sample"])
def test_kernels_noise_by_the_tables(tmp_path, name):
    process = tables(saved(SCHEDULERS[name](), tmp_path))
    latents, drawn = torch.randn(8, 4, 8, 8, dtype=torch.float32), draws(3, torch.arange(4), 1)
    noisy, timesteps = add_noise(latents, drawn, process.signal, process.sigma)
    e = normals(drawn, 256, "eager").view(4, 4, 8, 8).repeat(2, 1, 1, 1)
    a, s = (table[timesteps].repeat(2)[:, None, None, None] for table in (process.signal, process.sigma))
    torch.testing.assert_close(noisy, a * latents + s * e, rtol=1e-6, atol=1e-6)
