"""Where a resumed run goes on: which checkpoint, whether it is whole, and whether the configuration fits it.

All of it is known before torch, DeepSpeed or pickle read a byte of the checkpoint.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from fdpo_fast import checksums
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.load import load
from fdpo_fast.config.run import Config
from fdpo_fast.distributed import Rank, agreed
from fdpo_fast.files import read_json

LATEST = "latest"
"""The file that names the checkpoint a resumed run goes on from."""
PARTIAL = ".step.partial"
"""The name of a checkpoint while the ranks write it: it has its own once all have, so that a kill leaves no half."""
_NAME = re.compile(r"step-([0-9]{6,18})")
_ASKED = re.compile(r"(?:step-)?([0-9]{1,18})")
_TRANSPORT = {
    *("overlap_comm", "contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "allgather_partitions"),
    *("allgather_bucket_size", "stage3_prefetch_bucket_size", "stage3_max_live_parameters"),
    *("stage3_max_reuse_distance", "stage3_param_persistence_threshold", "offload_optimizer", "offload_param"),
    *("memory_efficient_linear", "stage"),
}
"""Keys of ZeRO that do not decide what of the states lies where; the stage is looked at by itself."""
_NO_STEP = re.compile(
    r"(log|evaluate|compare|pairs|rounds)\.|data\.(cache_dir|workers|encode_batch|shard_rows):"
    r"|train\.(output_dir|checkpoint_every|keep_checkpoints|export_dtype|validate_every|validation_visits|keep_best"
    r"|patience):"
)
"""Keys that change no step of a run."""


def name_of(step: int) -> str:
    """Return the name of the checkpoint behind so many steps."""
    return f"step-{step:06d}"


def listed(folder: Path) -> dict[int, Path]:
    """Return the checkpoints in a folder by the steps behind them, ascending; what has another name is none."""
    matches = [(match, path) for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    found = {int(match[1]): path for match, path in matches if path.name == name_of(int(match[1]))}
    return dict(sorted(found.items()))


def pointed(folder: Path) -> Path | None:
    """Return the checkpoint that `latest` names; None where it names none that is there."""
    try:
        if not (point := folder / LATEST).is_file() or point.stat().st_size > 100:
            return None
        name = point.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return next((path for path in listed(folder).values() if path.name == name), None)


class Start(NamedTuple):
    """The checkpoint that a run goes on from."""

    checkpoint: Path
    step: int
    """How many steps are behind it."""
    config: Config
    """That of the run that wrote it."""
    ranks: int | None
    """How many ranks wrote it; None where it does not say, as those of older versions, which have no checksums."""

    def warnings(self, config: Config, ranks: int) -> list[str]:
        """Return what a user should know who goes on from there with another configuration."""
        found = []
        if self.ranks is None:
            found.append(f"{self.checkpoint} has no {checksums.NAME}, as those of older versions: it cannot be checked")
        changes = [change for change in self.config.differences(config) if not _NO_STEP.match(change)]
        if config.optimizer.schedule == "constant":
            changes = [change for change in changes if not change.startswith("train.max_steps:")]
        if self.ranks not in (None, ranks):
            changes.append(f"number of ranks: {self.ranks} -> {ranks}")
        if changes:
            found.append(f"resumed behind step {self.step} with another {', '.join(changes)}")
        return found


def start(folder: Path, resume: bool | str, config: Config, rank: Rank) -> Start | None:
    """Find where a run in a folder of checkpoints goes on; None where it begins. Collective.

    resume: whether to go on at all, or the checkpoint to go on from. Raises UserError, the same on every rank, where
    that has to be said, where the checkpoint is not whole, and where the configuration does not fit it.
    """
    if not resume:
        return None
    checkpoint = agreed(lambda: _chosen(folder, resume))[0]
    if checkpoint is None:
        return None
    if words := _damage(checkpoint, rank):
        whole = [path for path in reversed(listed(folder).values()) if path != checkpoint]
        other = next((path for path in whole if not _damage(path, rank)), None)
        raise UserError(
            f"the checkpoint {checkpoint} is damaged: {words}; "
            + (
                f"the newest whole one is {other.name}: go on there with --resume-from {other.name}"
                if other
                else "no other is whole: name another train.output_dir to begin anew"
            )
        )
    return agreed(lambda: _fitting(checkpoint, config, rank.count))[0]


def _chosen(folder: Path, resume: bool | str) -> Path | None:
    found, point = listed(folder), folder / LATEST
    if point.is_dir():
        raise UserError(f"{point} is a folder where a file should name the newest checkpoint: remove it")
    there = f"there are {', '.join(path.name for path in found.values())}" if found else "there is none"
    if isinstance(resume, str):
        asked = _ASKED.fullmatch(resume)
        if not asked or int(asked[1]) not in found:
            raise UserError(f"--resume-from '{resume}' is no checkpoint in {folder}: {there}")
        return found[int(asked[1])]
    if (checkpoint := pointed(folder)) or not (found or point.exists() or folder.is_file()):
        return checkpoint
    state = "names none of them" if point.exists() else "is missing"
    way = f"go on with --resume-from {next(reversed(found.values())).name}" if found else "remove it to begin anew"
    raise UserError(
        f"{folder} does not say which checkpoint is the newest: its file '{LATEST}' {state}, and {there}; {way}, or "
        "name another train.output_dir"
    )


def _damage(checkpoint: Path, rank: Rank) -> str | None:
    """Return what is wrong with a checkpoint, of which each rank reads a part. Collective."""
    found = agreed(lambda: checksums.damage(checkpoint, rank.index, rank.count))
    if words := next((words for words in found if words), None):
        return words
    others = [path for path in listed(checkpoint.parent).values() if path != checkpoint]
    if not (checkpoint / checksums.NAME).exists() and any((path / checksums.NAME).exists() for path in others):
        return f"it has no {checksums.NAME}, and others of its run have"
    return None


def _fitting(checkpoint: Path, config: Config, ranks: int) -> Start:
    """Return the start from a whole checkpoint; UserError where the configuration does not go on with it."""
    facts, step = checksums.facts_of(checkpoint), int(checkpoint.name.removeprefix("step-"))
    if facts.get("step", step) != step:
        raise UserError(f"the checkpoint {checkpoint} is not what its name says: it is behind {facts['step']} steps")
    if config.train.max_steps < step:
        raise UserError(
            f"train.max_steps {config.train.max_steps} is below the {step} steps that are behind the checkpoint "
            f"{checkpoint}: set at least {step}, or take an earlier one by --resume-from"
        )
    before = load(checkpoint / "config.json")
    # DeepSpeed has a file for each rank's part of the states, which tells of older versions
    parts = len(list(checkpoint.glob("*zero_pp_rank_*optim_states.pt")))
    was, now = _layout(before, facts.get("ranks", parts or ranks)), _layout(config, ranks)
    if config.train.ema_decay and not before.train.ema_decay:  # there is none to go on with
        was["train.ema_decay"], now["train.ema_decay"] = None, config.train.ema_decay
    if other := sorted(
        f"{key} ({json.dumps(was[key])} -> {json.dumps(now[key])})"
        for key in was.keys() & now.keys()
        if was[key] != now[key]
    ):
        export = checkpoint.parent.parent / "export"
        new = f"a new run from its export, model.base '{export}'" if export.is_dir() else "a new run in another folder"
        raise UserError(
            f"the checkpoint {checkpoint} cannot be read with another {' or '.join(other)}: go on as it was written, "
            f"or begin {new}"
        )
    return Start(checkpoint, step, before, facts.get("ranks"))


def _layout(config: Config, ranks: int) -> dict[str, Any]:
    """Return what decides which numbers a checkpoint holds, and in which file; what only one has decides nothing."""
    layout: dict[str, Any] = {
        "model.train": config.model.train,
        "model.dtype": config.model.dtype,
        "optimizer.type": config.optimizer.type,
        "deepspeed.zero_optimization.stage": config.stage,
        "deepspeed.zero_optimization": {key: config.zero[key] for key in config.zero.keys() - _TRANSPORT},
        "deepspeed.bf16.enabled": config.master,
        "deepspeed.bf16.bf16_master_weights_and_grads": config.bf16_masters,
        "deepspeed.data_types": config.deepspeed.get("data_types"),
    }
    if config.model.train == "lora":
        layout["model.lora.rank"] = config.model.lora.rank
        layout["model.lora.targets"] = sorted(config.model.lora.targets)
    if config.stage or config.master:  # DeepSpeed writes each rank's part of the states by itself
        layout["number of ranks"] = ranks
    return layout


def caches_before(file: Path) -> dict[str, str]:
    """Return the names of the caches by kind with which a run has begun; UserError where its file does not say."""
    caches = read_json(file).get("caches", {}) if file.exists() else {}
    if not isinstance(caches, dict) or not all(isinstance(name, str) for name in caches.values()):
        raise UserError(
            f"{file} does not say with which caches the run has begun: delete it to go on with those of now"
        )
    return caches
