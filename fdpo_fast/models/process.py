r"""Noise processes as tables over timesteps, read from a pipeline's own scheduler: a loss never asks which one it is.

Timestep i of T stands for

    x_t    = signal[i] x_0 + sigma[i] e             what the denoiser sees
    target = on_noise[i] e + on_data[i] x_0         what a perfect one predicts
    fed[i]                                          the number that it is told

With a schedule of variances (abar = alphas_cumprod) signal = sqrt(abar), sigma = sqrt(1 - abar) and fed = i. With a
rectified flow sigma is the share of noise s = k u / (1 + (k - 1) u), u = (i + 1) / T shifted by k, signal = 1 - s and
fed = T s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from fdpo_fast.config.errors import UserError
from fdpo_fast.files import read_json
from fdpo_fast.ops.target import Target


class Predicts(NamedTuple):
    """The shares of noise and data in what a denoiser predicts, where signal and sigma are those of x_t."""

    on_noise: float = 0.0
    on_data: float = 0.0
    signal_on_noise: float = 0.0
    sigma_on_data: float = 0.0


PREDICTIONS = {
    "epsilon": Predicts(on_noise=1),
    "v_prediction": Predicts(signal_on_noise=1, sigma_on_data=-1),
    "sample": Predicts(on_data=1),
    "flow": Predicts(on_noise=1, on_data=-1),
}
"""What a denoiser may predict, by the scheduler's own names; a flow's is noise less data."""

FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
"""The schedulers of diffusers that draw rectified flows, beside those with `use_flow_sigmas`."""


@dataclass(frozen=True)
class Process:
    """The tables of a noise process, each [T] float32 but `on` and `fed`; all on one device."""

    signal: Tensor
    sigma: Tensor
    on: Tensor
    """[2, T]: on_noise and on_data."""
    fed: Tensor
    """Timesteps as the denoiser takes them: int64 of a schedule of variances, float32 of a flow."""
    predicts: Predicts
    """What `on` was made of: known without a look at a GPU's tensors."""

    @classmethod
    def of(cls, signal: Tensor, sigma: Tensor, predicts: Predicts, fed: Tensor) -> Process:
        """Make the tables of a process whose denoiser predicts noise and data in these shares."""
        on_noise = predicts.on_noise + predicts.signal_on_noise * signal
        on_data = predicts.on_data + predicts.sigma_on_data * sigma
        return cls(signal, sigma, torch.stack([on_noise, on_data]), fed, predicts)

    def to(self, device: torch.device) -> Process:
        """Return the tables on a device."""
        tables = {name: getattr(self, name).to(device) for name in ("signal", "sigma", "on", "fed")}
        return replace(self, **tables)

    def target(self, latents: Tensor, draws: Tensor, timesteps: Tensor) -> Target:
        """Return what a perfect denoiser predicts for both sides of each pair.

        latents: x_0 [2b, ...] in halves. draws: [3, b] of `noise.draws`. timesteps: [b] int64, those of the draws.
        """
        if self.predicts == Predicts(on_noise=1):
            return Target(draws)
        if self.predicts == Predicts(on_data=1):
            return Target(data=latents)
        return Target(draws, latents, self.on[:, timesteps])


def read_scheduler(folder: Path) -> SchedulerMixin:
    """Read the scheduler in a folder as the one that training adds noise by.

    Raises UserError where nobody knows how that one does, or what its denoiser predicts.
    """
    config = read_json(folder / "scheduler_config.json")
    kind = config.pop("_class_name", None)
    if kind in FLOWS or config.get("use_flow_sigmas"):
        if config.get("invert_sigmas"):
            raise UserError(f"{folder} has invert_sigmas, where noise and data change places: fdpo_fast trains no such")
        # how samples are spaced is no matter of training
        plain = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
        plain |= {"shift_terminal": None} | ({"shift": config["flow_shift"]} if "flow_shift" in config else {})
        return _made(FlowMatchEulerDiscreteScheduler, config | plain, folder)
    known = ("DDPMScheduler", *DDPMScheduler._compatibles)
    if kind not in known and "beta_schedule" not in config:
        raise UserError(
            f"{folder} is a {kind}, whose noise nobody knows here: use one of {', '.join((*known, *FLOWS))}"
        )
    scheduler = _made(DDPMScheduler, config, folder)
    if (predicted := scheduler.config.prediction_type) not in PREDICTIONS or predicted == "flow":
        names = [name for name in PREDICTIONS if name != "flow"]
        raise UserError(f"{folder} predicts '{predicted}': fdpo_fast trains models that predict {' or '.join(names)}")
    return scheduler


def _made(cls: type[SchedulerMixin], config: dict[str, Any], folder: Path) -> SchedulerMixin:
    try:
        return cls.from_config(config)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UserError(f"{folder} is no {cls.__name__} that diffusers can make: {error}") from None


def shifts_by_size(scheduler: SchedulerMixin) -> bool:
    """Say whether the process depends on the number of tokens of an image."""
    return is_flow(scheduler) and scheduler.config.use_dynamic_shifting


def is_flow(scheduler: SchedulerMixin) -> bool:
    """Say whether a scheduler of `read_scheduler` is of a rectified flow."""
    return isinstance(scheduler, FlowMatchEulerDiscreteScheduler)


def prediction_of(scheduler: SchedulerMixin) -> str:
    """Return what the denoiser predicts, a name of `PREDICTIONS`."""
    return "flow" if is_flow(scheduler) else scheduler.config.prediction_type


def tables(scheduler: SchedulerMixin, tokens: int | None = None) -> Process:
    """Make the tables of a scheduler of `read_scheduler`, on the CPU.

    tokens: of an image, which a schedule that shifts by them goes by.
    """
    predicts, config = PREDICTIONS[prediction_of(scheduler)], scheduler.config
    if not is_flow(scheduler):
        fed = torch.arange(config.num_train_timesteps, dtype=torch.int64, device="cpu")
        return Process.of(scheduler.alphas_cumprod.sqrt(), (1 - scheduler.alphas_cumprod).sqrt(), predicts, fed)
    if config.use_dynamic_shifting:
        steps = config.num_train_timesteps
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist(), mu=_mu(config, tokens))
    else:
        scheduler = type(scheduler).from_config(config)
    # from most noise to least; the sigma behind the last step is 0
    sigma, fed = (table[: config.num_train_timesteps].flip(0) for table in (scheduler.sigmas, scheduler.timesteps))
    return Process.of(1 - sigma, sigma, predicts, fed)


def _mu(config: Any, tokens: int | None) -> float:
    assert tokens is not None
    ends = (config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift)
    return calculate_shift(tokens, *ends)


OWN_NOISE = ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler")
"""The schedulers of diffusers whose noise is not by the generator that they are given: no image is drawn twice."""


def of_same_noise(name: str, pipeline: DiffusionPipeline) -> SchedulerMixin:
    """Make a scheduler of the pipeline's noise; UserError where diffusers has none of that name that fits."""
    fitting = {cls.__name__: cls for cls in pipeline.scheduler.compatibles if cls.__name__ not in OWN_NOISE}
    if name not in fitting:
        raise UserError(f"evaluate.scheduler '{name}' does not fit: use one of {', '.join(sorted(fitting))}")
    return fitting[name].from_config(pipeline.scheduler.config)
