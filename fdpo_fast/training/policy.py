"""The policy: the base's denoiser made ready to be trained, with its optimizer and DeepSpeed's engine."""

from __future__ import annotations

from typing import NamedTuple

import deepspeed
import torch
from deepspeed.runtime.config import DeepSpeedConfig
from pydantic import ValidationError
from torch import Tensor

from fdpo_fast.config.deepspeed_keys import refused
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.run import Config
from fdpo_fast.distributed import Rank, largest_over_ranks, mean_over_ranks
from fdpo_fast.models import trainable
from fdpo_fast.models.denoiser import Denoiser
from fdpo_fast.models.family import Family
from fdpo_fast.models.precision import DTYPES
from fdpo_fast.optim import AdamW8bit, build, zero
from fdpo_fast.optim.finite import SkipNonFinite
from fdpo_fast.optim.in_backward import StepInBackward
from fdpo_fast.optim.watch import UpdateWatch
from fdpo_fast.training.movement import Movement


class Policy(NamedTuple):
    """A denoiser in training."""

    denoiser: Denoiser
    engine: deepspeed.DeepSpeedEngine
    guard: SkipNonFinite
    """Skips steps whose gradients are not finite, and clips the others where DeepSpeed does not."""
    inside: StepInBackward | None
    """Steps parameters while backward goes on; None where the engine's step does it."""
    clips: bool
    """Whether the guard clips, and so knows the norm of the gradients."""
    watch: UpdateWatch | None
    """Looks at what becomes of updates; None where the optimizer is not ours."""
    movement: Movement | None
    """Looks at how far the weights have moved; None under LoRA, whose weights begin at no reference's."""

    def backward(self, loss: Tensor) -> None:
        """Form the gradients of a micro-batch's loss."""
        if self.inside:
            if self.watch:
                self.watch.look()
            self.inside.backward(loss, self.engine.backward)
        else:
            self.engine.backward(loss)

    def step(self) -> None:
        """Take the step of a micro-batch whose backward is done."""
        if self.inside:
            self.guard.note(self.inside.bad())
            if self.watch:
                self.watch.compare()
        self.engine.step()

    def grad_norm(self) -> Tensor | float | None:
        """Return the gradients' norm at the last step, before clipping."""
        if self.inside:
            return self.inside.norm
        return self.guard.norm if self.clips else self.engine.get_global_grad_norm()


def make(config: Config, family: Family, rank: Rank) -> Policy:
    """Load the base's denoiser and make its optimizer and engine. Collective.

    Raises UserError where DeepSpeed cannot do what is asked for, and for LoRA targets that do not exist.
    """
    _check(config, rank)
    settings = config.train
    torch.manual_seed(settings.seed)  # the initial weights of an adapter
    denoiser = family.denoiser(DTYPES[config.model.dtype])
    trained = trainable.ready(denoiser, config.model)
    in_groups = config.stage in (1, 2) and config.offloaded("optimizer")
    optimizer = build.optimizer(config.optimizer, zero.grouped(trained) if in_groups else trained, settings.seed)
    clips = config.whole_gradients and not settings.step_in_backward
    guard = SkipNonFinite(optimizer, largest_over_ranks, config.optimizer.max_grad_norm if clips else None)
    watch = UpdateWatch(optimizer) if isinstance(optimizer, AdamW8bit) else None
    if config.stage == 3:
        zero.split(denoiser, config.for_deepspeed(rank.count), rank.device)
    with zero.bf16_masters(config.bf16_masters):
        engine, _, _, _ = deepspeed.initialize(
            model=denoiser,
            model_parameters=trained,
            optimizer=optimizer,
            lr_scheduler=build.schedule(config.optimizer, settings.max_steps),
            config=config.for_deepspeed(rank.count),
            dist_init_required=False,
        )
    zero.share(engine.optimizer)
    inside = None
    if settings.step_in_backward and isinstance(optimizer, AdamW8bit):  # the configuration admits no other one
        average = mean_over_ranks if rank.count > 1 else None
        inside = StepInBackward(optimizer, trained, config.optimizer.max_grad_norm, average, config.backward_twice)
    if inside or (config.stage == 0 and rank.count == 1):
        # the gradients are averaged, and gone, before it would be its turn; or are their own mean, and it copies them
        engine.enable_backward_allreduce = False
    movement = Movement(denoiser, rank.device) if config.model.train == "full" else None
    return Policy(denoiser, engine, guard, inside, clips, watch, movement)


def _check(config: Config, rank: Rank) -> None:
    """Raise UserError where DeepSpeed's own models refuse the section `deepspeed`, before any weights are read."""
    try:
        DeepSpeedConfig(config.for_deepspeed(rank.count))
    except ValidationError as error:
        raise UserError(refused(config.deepspeed, error)) from None
