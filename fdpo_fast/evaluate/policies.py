"""The denoisers that are compared: the base, exported pipelines, checkpoints of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.load import load
from fdpo_fast.config.run import Config
from fdpo_fast.config.schema import Model
from fdpo_fast.files import digest, file_digest
from fdpo_fast.models import load_family, trainable
from fdpo_fast.models.family import Family, Pipeline
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
    """The folder of a pipeline, or of a checkpoint of a run."""

    def digest(self, config: Config, family: Family) -> str:
        """Return a digest of everything that decides about the policy's images."""
        if self._is_checkpoint:
            return digest([file_digest(self.folder / _STATES), *self._parts(family)])
        return digest(self._parts(self._family(config)))

    @staticmethod
    def _parts(family: Family) -> list[str]:
        return [family.pictures_digest()]

    def _family(self, config: Config) -> Family:
        """Load the family with the components of the policy's own pipeline."""
        return load_family(config.model.replace({"base": str(self.folder)}))

    def _trained_as(self, config: Config) -> Model:
        """Return the model section that a checkpoint was trained by, which has its adapter's rank and alpha."""
        file = self.folder / "config.json"
        return load(file).model if file.is_file() else config.model

    @property
    def _is_checkpoint(self) -> bool:
        return (self.folder / _STATES).is_file()

    def sampler(self, config: Config, family: Family, device: torch.device) -> Pipeline:
        """Load a diffusers pipeline ready to draw, in the configuration's dtype.

        A policy that is a pipeline brings all of its own components. Raises UserError for a checkpoint of another
        model.
        """
        dtype = DTYPES[config.model.dtype]
        if self._is_checkpoint:
            denoiser = family.denoiser(dtype)
            trainable.prepare(denoiser, self._trained_as(config))
            state = torch.load(self.folder / _STATES, mmap=True, weights_only=True)["module"]
            if (average := self.folder / _AVERAGE).is_file():  # what the export holds, too
                state |= load_file(average)
            try:
                denoiser.load_state_dict(state)
            except RuntimeError as error:
                raise UserError(
                    f"the checkpoint {self.folder} is of another model: {str(error).split(chr(10))[1].strip()}"
                ) from None
        else:
            family = self._family(config)
            denoiser = family.denoiser(dtype)
        return family.sampler(denoiser.eval().to(device), device)


def policy(text: str, family: Family) -> Policy:
    """Find the policy of `[NAME=]PATH`: a pipeline folder, a run's folder (its export), a checkpoint, or a hub name.

    Without a name it is "policy". Raises UserError where there is none, or the name is no folder's.
    """
    name, sign, path = text.partition("=")
    if not sign or Path(text).expanduser().is_dir():
        name, path = "policy", text
    if not name or "/" in name or name.startswith(".") or name == BASE:
        raise UserError(f"--checkpoint '{text}': '{name}' cannot name a policy")
    folder = Path(path).expanduser()
    if (folder / "export").is_dir():
        folder /= "export"
    if (folder / _STATES).is_file():
        return Policy(name, folder)
    if any(folder.glob("zero_pp_rank_*_model_states.pt")):
        raise UserError(f"--checkpoint '{path}' is in the parts of ZeRO-3: let the run finish, and give its export")
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        raise UserError(
            f"--checkpoint '{path}' is no pipeline and no checkpoint: give a run's folder, its export, or one of its "
            "checkpoints/step-N"
        )
    return Policy(name, pipeline_folder(str(folder), family.pipelines, "--checkpoint"))
