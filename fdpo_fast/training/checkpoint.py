"""Checkpoints of a DeepSpeed engine: its whole state dict, and the running average of its weights."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from torch import Tensor, nn

from fdpo_fast import checksums
from fdpo_fast.config.errors import UserError
from fdpo_fast.distributed import agreed
from fdpo_fast.files import digest, make_folder, replacing, settle
from fdpo_fast.models import trainable
from fdpo_fast.optim.adamw8bit import AdamW8bit
from fdpo_fast.training import resumption
from fdpo_fast.training.average import EMA


class Checkpoints:
    """`<output_dir>/checkpoints/step-N`, written by all ranks; `latest` names the one that a resumed run goes on from.

    One goes only once the run is behind it: the oldest of the run's own way, and those of another way that it has
    passed. Those behind more steps than the run stay, until it gets there.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self.start, self.written = 0, set[int]()
        """Where this run began, and what it has written since: its own way."""
        self.best: int | None = None
        """How many steps are behind the one that is kept whatever comes after it."""
        self.base: str | None = None
        """The digest of what the run is trained on or beside, where no cache holds it to that."""

    def latest(self) -> str | None:
        """Return the name of the checkpoint that a resumed run goes on from."""
        path = resumption.pointed(self.folder)
        return path.name if path else None

    def fall_back(self, step: int) -> Path | None:
        """Make the newest checkpoint behind at most `step` steps the one that a resumed run loads. Collective."""
        sound = [path for number, path in self._own().items() if number <= step]
        dist.barrier()
        if sound and dist.get_rank() == 0:
            self._point_to(sound[-1].name)
        return sound[-1] if sound else None

    def _own(self) -> dict[int, Path]:
        found = resumption.listed(self.folder).items()
        return {number: path for number, path in found if number <= self.start or number in self.written}

    def _point_to(self, tag: str) -> None:
        with replacing(self.folder / resumption.LATEST) as partial:
            partial.write_text(tag + "\n")

    def save(self, engine: DeepSpeedEngine, step: int, config_text: str, ema: EMA | None) -> None:
        """Write the state after `step` optimizer steps, then point `latest` to it, then drop the oldest. Collective."""
        first, tag = dist.get_rank() == 0, resumption.name_of(step)
        partial = self.folder / resumption.PARTIAL
        if first:
            make_folder(self.folder)
            if partial.exists():
                shutil.rmtree(partial)
        dist.barrier()
        engine.save_checkpoint(
            str(self.folder), tag=partial.name, client_state={"step": step}, save_latest=False,
            exclude_frozen_parameters=True,  # they are the base's, by whose digest a run goes on
        )  # fmt: skip
        if ema:
            ema.save(partial)
        if first:
            (partial / "config.json").write_text(config_text)
        dist.barrier()
        names = agreed(lambda: checksums.names_in(partial))[0]  # the first rank's: others may see some later
        mine = names[dist.get_rank() :: dist.get_world_size()]
        parts = agreed(lambda: checksums.sums(partial, mine))
        if first:
            whole = {name: found for part in parts for name, found in part.items()}
            facts = {"step": step, "ranks": dist.get_world_size(), "trained": _shapes(engine), "base": self.base}
            checksums.write(partial, whole, **facts)
            if (self.folder / tag).is_file():  # in the place of a checkpoint
                (self.folder / tag).unlink()
            settle(partial, self.folder / tag)
            self._point_to(tag)
        self.written.add(step)
        if first:
            kept = sorted(number for number in self._own() if number <= step)[-self.keep :]
            for number, path in resumption.listed(self.folder).items():
                if number <= step and number not in (*kept, self.best) and path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
        dist.barrier()

    def load(self, engine: DeepSpeedEngine, ema: EMA | None, begin: resumption.Start) -> None:
        """Load the checkpoint that a run goes on from; from there it is the `latest`. Collective."""
        checkpoint = begin.checkpoint
        if checksums.facts_of(checkpoint).get("trained", _shapes(engine)) != _shapes(engine):
            raise UserError(
                f"the checkpoint {checkpoint} is of another model: what is trained has other names or shapes"
            )
        if checksums.facts_of(checkpoint).get("base", self.base) not in (None, self.base):
            raise UserError(
                f"the checkpoint {checkpoint} was trained on another denoiser than model.base has now: put it back, or "
                "start a new train.output_dir"
            )
        options: dict[str, Any] = {"load_module_strict": False}
        plain = is_plain(engine)
        if plain:
            _let_go(engine.module)
            options = {"custom_load_fn": _adopt_weights, "load_optimizer_states": False}
        with _told(checkpoint):
            path, state = engine.load_checkpoint(str(self.folder), tag=checkpoint.name, **options)
        if path is None:
            raise UserError(f"the checkpoint {checkpoint} cannot be loaded: it is incomplete")
        if plain:
            adopt = {"copy": False} if isinstance(engine.optimizer, AdamW8bit) else {}  # torch's do by themselves
            try:
                engine.optimizer.load_state_dict(state.pop("optimizer"), **adopt)
            except ValueError as error:
                raise UserError(f"the checkpoint {checkpoint} is of another optimizer or model: {error}") from None
        if ema:
            ema.load(checkpoint)
        self.start = begin.step
        dist.barrier()
        if dist.get_rank() == 0 and self.latest() != checkpoint.name:
            self._point_to(checkpoint.name)
        dist.barrier()


@contextmanager
def _told(checkpoint: Path) -> Iterator[None]:
    """Turn what torch and DeepSpeed say of a checkpoint that nothing could check before into a sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if checksums.facts_of(checkpoint):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the checkpoint {checkpoint} cannot be loaded ({reason}): it may be damaged, and has no {checksums.NAME} "
            "to tell; take another by --resume-from, or name another train.output_dir"
        ) from None


def _shapes(engine: DeepSpeedEngine) -> str:
    """Return a digest of the names and shapes of what is trained."""
    trained = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
    return digest({name: list(getattr(p, "ds_shape", p.shape)) for name, p in trained.items()})


def is_plain(engine: DeepSpeedEngine) -> bool:
    """Say whether ZeRO and fp32 masters are off: the optimizer is ours, and only the model refers to the weights."""
    return engine.optimizer is engine.basic_optimizer


# Resumed, such an engine holds one copy of weights and states: what is loaded takes the place of the model's own.


def _let_go(module: nn.Module) -> None:
    """Free the memory of what is trained, which is about to be loaded; it keeps shape and dtype."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.new_empty(1).expand(parameter.shape)


def _adopt_weights(src: dict[str, Tensor], dst: nn.Module) -> None:
    """Take what is trained, and buffers, from a checkpoint; older ones have the frozen weights too."""
    state = dst.state_dict()  # without buffers that are not saved
    ours: dict[str, Tensor] = {name: tensor for name, tensor in dst.named_buffers() if name in state}
    ours |= {name: parameter for name, parameter in dst.named_parameters() if parameter.requires_grad}
    unfit = trainable.misfits(dst, src)
    if unfit := unfit + [name for name in ours if _kind(ours[name]) != _kind(src.get(name))]:
        raise UserError(f"the checkpoint is of another model: {min(unfit)} does not fit")
    for name, tensor in ours.items():
        tensor.data = src[name].to(tensor.device)


def _kind(tensor: Tensor | None) -> tuple | None:
    return None if tensor is None else (tensor.shape, tensor.dtype)
