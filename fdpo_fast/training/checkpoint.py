"""Checkpoints of a DeepSpeed engine, its whole state dict, and the running average of its weights."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fdpo_fast.config.errors import UserError
from fdpo_fast.files import replacing
from fdpo_fast.optim.adamw8bit import AdamW8bit


class Checkpoints:
    """`<output_dir>/checkpoints/step-N`, written by all ranks; `latest` names the newest whole one."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def latest(self) -> str | None:
        """Return the name of the newest checkpoint that was written to its end."""
        pointer = self.folder / "latest"
        return pointer.read_text().strip() if pointer.exists() else None

    def fall_back(self, step: int) -> Path | None:
        """Make the newest checkpoint behind at most `step` steps the one that a resumed run loads. Collective."""
        steps = {int(path.name[5:]): path for path in self.folder.glob("step-*")}
        sound = [steps[number] for number in sorted(steps) if number <= step]
        dist.barrier()
        if sound and dist.get_rank() == 0:
            self._point_to(sound[-1].name)
        return sound[-1] if sound else None

    def _point_to(self, tag: str) -> None:
        with replacing(self.folder / "latest") as partial:
            partial.write_text(tag + "\n")

    def save(self, engine: DeepSpeedEngine, step: int, config_text: str, ema: EMA | None) -> None:
        """Write the state after `step` optimizer steps, then point `latest` to it, then drop the oldest. Collective."""
        tag = f"step-{step:06d}"
        # `latest` is ours: it is renamed into place after every rank has written, so a kill leaves the previous one.
        engine.save_checkpoint(str(self.folder), tag=tag, client_state={"step": step}, save_latest=False)
        if ema:
            ema.save(self.folder / tag)
        dist.barrier()
        if dist.get_rank() == 0:
            (self.folder / tag / "config.json").write_text(config_text)
            self._point_to(tag)
            steps = {int(path.name[5:]): path for path in self.folder.glob("step-*")}
            kept = sorted(number for number in steps if number <= step)[-self.keep :]
            for number in steps.keys() - set(kept):  # later numbers are leftovers of a kill
                shutil.rmtree(steps[number])
        dist.barrier()

    def load(self, engine: DeepSpeedEngine, ema: EMA | None) -> int:
        """Load the `latest` checkpoint; returns the number of optimizer steps it has behind it. Collective."""
        tag = self.latest()
        if tag is None:
            raise UserError(f"{self.folder} has no checkpoint to go on from")
        options: dict[str, Any] = {}
        plain = is_plain(engine)
        if plain:
            _let_go(engine.module)
            options = {"custom_load_fn": _adopt_weights, "load_optimizer_states": False}
        path, state = engine.load_checkpoint(str(self.folder), tag=tag, **options)
        if path is None:
            raise UserError(f"the checkpoint {self.folder / tag} cannot be loaded: it is incomplete")
        if plain:
            adopt = {"copy": False} if isinstance(engine.optimizer, AdamW8bit) else {}  # torch's do by themselves
            try:
                engine.optimizer.load_state_dict(state.pop("optimizer"), **adopt)
            except ValueError as error:
                raise UserError(
                    f"the checkpoint {self.folder / tag} is of another optimizer or model: {error}"
                ) from None
        if ema:
            ema.load(self.folder / tag)
        dist.barrier()
        if dist.get_rank() == 0:  # leftovers of a kill, or of steps that are about to be taken anew
            for later in self.folder.glob("step-*"):
                if int(later.name[5:]) > state["step"]:
                    shutil.rmtree(later)
        return state["step"]


def is_plain(engine: DeepSpeedEngine) -> bool:
    """Say whether ZeRO and fp32 masters are off: the optimizer is ours, and only the model refers to the weights."""
    return engine.optimizer is engine.basic_optimizer


# Resumed, such an engine holds one copy of weights and states: what is loaded takes the place of the model's own.


def _let_go(module: nn.Module) -> None:
    """Free the memory of the parameters, which are about to be loaded; they keep shape and dtype."""
    for parameter in module.parameters():
        parameter.data = parameter.new_empty(1).expand(parameter.shape)


def _adopt_weights(src: dict[str, Tensor], dst: nn.Module) -> None:
    ours = {**dict(dst.named_parameters()), **dict(dst.named_buffers())}
    ours = {name: ours[name] for name in dst.state_dict()}  # without buffers that are not saved
    if unfit := [name for name in {*ours, *src} if _kind(ours.get(name)) != _kind(src.get(name))]:
        raise UserError(f"the checkpoint is of another model: {min(unfit)} does not fit")
    for name, tensor in ours.items():
        tensor.data = src[name].to(tensor.device)


def _kind(tensor: Tensor | None) -> tuple | None:
    return None if tensor is None else (tensor.shape, tensor.dtype)


def local(parameter: nn.Parameter) -> Tensor:
    """Return what this rank holds of a parameter: its ZeRO-3 shard, or the whole."""
    return getattr(parameter, "ds_tensor", parameter).detach()


class EMA:
    """Exponential moving average in float32 of this rank's part of the trainable parameters, under any ZeRO stage."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        # ZeRO-3 adds methods to parameters
        self.live: dict[str, Any] = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.average = {name: local(parameter).float().clone() for name, parameter in self.live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the weights, after a step."""
        for name, parameter in self.live.items():
            self.average[name].lerp_(local(parameter).float(), 1 - self.decay)

    def whole(self, name: str) -> Tensor:
        """Return the average of a parameter, whole, in float32 and on the CPU. Collective."""
        average, parameter = self.average[name], self.live[name]
        if not hasattr(parameter, "ds_id"):
            return average.cpu()
        if parameter.ds_status is ZeroParamStatus.AVAILABLE:
            parameter.partition()  # ZeRO-3 keeps small parameters whole: that copy would hide the shard
        shard, rest, total = local(parameter), average.clone(), torch.zeros((), dtype=torch.float32, device="cpu")
        kept = shard.clone()
        for _ in range(3):  # what gathers a parameter does so in its dtype: a float32 is the sum of three bfloat16s
            shard.copy_(rest)
            rest -= shard.float()
            total = total + _gathered(parameter).float()
        shard.copy_(kept)
        return total

    def _file(self, folder: Path) -> Path:
        return folder / f"ema-rank{dist.get_rank():05d}.safetensors"

    def save(self, folder: Path) -> None:
        """Write this rank's averages into a checkpoint."""
        with replacing(self._file(folder)) as partial:
            save_file(self.average, partial)

    def load(self, folder: Path) -> None:
        """Read this rank's averages from a checkpoint; UserError where it has none."""
        file = self._file(folder)
        if not file.exists():
            raise UserError(f"{folder} has no average for this rank: resume with its rank count and train.ema_decay")
        for name, value in load_file(file).items():
            self.average[name].copy_(value)


def trained(module: nn.Module, average: EMA | None) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and values of what is trained, or of its average, whole and on the CPU, one after the other.

    The values are for rank 0, and may be the model's own tensors. Collective: every rank reads to the end.
    """
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            yield name, average.whole(name) if average else _gathered(parameter)


def _gathered(parameter: nn.Parameter) -> Tensor:
    """Return a parameter on the CPU, whole; not copied where it is that already. Collective."""
    sharded = hasattr(parameter, "ds_id")
    with deepspeed.zero.GatheredParameters([parameter], enabled=sharded):
        return parameter.detach().to("cpu", copy=sharded)
