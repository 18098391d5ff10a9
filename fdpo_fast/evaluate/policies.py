"""The denoisers that are compared: the base, exported pipelines, adapters, checkpoints of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from fdpo_fast import checksums
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.load import load
from fdpo_fast.config.run import Config
from fdpo_fast.config.schema import Model
from fdpo_fast.files import digest, file_digest
from fdpo_fast.models import load_family, trainable
from fdpo_fast.models.export import trained_on
from fdpo_fast.models.family import ADAPTER, Family, Pipeline, has_adapter
from fdpo_fast.models.hub import pipeline_folder
from fdpo_fast.models.precision import DTYPES

BASE = "base"
_STATES = "mp_rank_00_model_states.pt"
_AVERAGE = "ema-rank00000.safetensors"


@dataclass(frozen=True)
class Policy:
    """A denoiser by the name under which its images lie."""

    name: str
    folder: Path
    """The folder of a pipeline, of an adapter, or of a checkpoint of a run."""

    def digest(self, config: Config, family: Family) -> str:
        """Return a digest of everything that decides about the policy's images."""
        own = [file_digest(file) for name in (_STATES, _AVERAGE, ADAPTER) if (file := self.folder / name).is_file()]
        return digest([*own, self.family(config, family).pictures_digest()])

    def family(self, config: Config, family: Family) -> Family:
        """Return the family of what draws: a pipeline's own components, or those that an adapter is put on.

        `family` is that of the configuration. Raises UserError where what an adapter was trained on is not here.
        """
        if self._is_checkpoint:
            return family
        base = trained_on(self.folder) or config.model.base if self._is_adapter else str(self.folder)
        if base == config.model.base:
            return family
        try:
            return load_family(config.model.replace({"base": base}))
        except UserError as error:
            raise UserError(f"{self.folder} was trained on '{base}': {error}") from None

    def _trained_as(self, config: Config) -> Model:
        """Return the model section that a checkpoint was trained by, which has its adapter's rank and alpha."""
        file = self.folder / "config.json"
        return load(file).model if file.is_file() else config.model

    @property
    def _is_checkpoint(self) -> bool:
        return (self.folder / _STATES).is_file()

    @property
    def _is_adapter(self) -> bool:
        return self.name != BASE and has_adapter(self.folder)  # what a base was merged from is no matter

    def sampler(self, config: Config, family: Family, device: torch.device) -> Pipeline:
        """Load a diffusers pipeline ready to draw, in the configuration's dtype.

        A policy that is a pipeline brings all of its own components; a run with an adapter is drawn with the adapter
        itself, as it was trained. Raises UserError for a checkpoint of another model, and where a file is not as it was
        written.
        """
        sums = self.folder / checksums.NAME
        if sums.is_file() and (words := checksums.damage(self.folder)):
            raise UserError(f"{self.folder} is damaged: {words}; where that was changed on purpose, delete {sums}")
        dtype, family = DTYPES[config.model.dtype], self.family(config, family)
        if self._is_checkpoint:
            denoiser = family.denoiser(dtype)
            trainable.prepare(denoiser, self._trained_as(config))
            state = torch.load(self.folder / _STATES, mmap=True, weights_only=True)["module"]
            if (average := self.folder / _AVERAGE).is_file():  # what the export holds, too
                state |= load_file(average)
            if unfit := trainable.misfits(denoiser, state):
                raise UserError(f"the checkpoint {self.folder} is of another model: {unfit[0]} does not fit")
            try:
                denoiser.load_state_dict(state, strict=False)
            except RuntimeError as error:
                raise UserError(
                    f"the checkpoint {self.folder} is of another model: {str(error).split(chr(10))[1].strip()}"
                ) from None
        else:
            denoiser = family.denoiser(dtype, self.folder)
        return family.sampler(denoiser.eval().to(device), device)


def policy(text: str, family: Family, option: str = "--checkpoint") -> Policy:
    """Find the policy of `[NAME=]PATH`: a pipeline folder, a run's folder (its export), a checkpoint, or a hub name.

    Without a name it is "policy". Raises UserError, with the `option` that gave it, where there is none, or the name is
    no folder's.
    """
    name, sign, path = text.partition("=")
    if not sign or Path(text).expanduser().is_dir():
        name, path = "policy", text
    if not name or "/" in name or name.startswith(".") or name == BASE:
        raise UserError(f"{option} '{text}': '{name}' cannot name a policy")
    folder = Path(path).expanduser()
    if (folder / "export").is_dir():
        folder /= "export"
    if (folder / _STATES).is_file() or has_adapter(folder):
        return Policy(name, folder)
    if any(folder.glob("zero_pp_rank_*_model_states.pt")):
        raise UserError(f"{option} '{path}' is in the parts of ZeRO-3: let the run finish, and give its export")
    if not folder.is_dir() and folder.parent.is_dir() and "/" in path:
        raise UserError(f"{option} '{path}': there is no folder of that name in {folder.parent}")
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        raise UserError(
            f"{option} '{path}' is no pipeline, adapter or checkpoint: give a run's folder, its export, or one of "
            "its checkpoints/step-N"
        )
    return Policy(name, pipeline_folder(str(folder), family.pipelines, family.components, option))
