"""A pipeline's architecture without its weights: what a plan is drawn from before anything is fetched or loaded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn

from fdpo_fast.config.embedded import EMBEDDED
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Model
from fdpo_fast.files import read_json
from fdpo_fast.models import family_class, hub, presets
from fdpo_fast.models.denoiser import Denoiser
from fdpo_fast.models.facts import UNGUIDED, check_channels, check_guidance, shrinks
from fdpo_fast.models.family import Family
from fdpo_fast.models.placement import Size


@dataclass(frozen=True, eq=False)
class Architecture:
    """Configurations of the components; the modules they make are on the meta device. Each is equal to itself alone."""

    family: type[Family]
    denoiser_config: dict[str, Any]
    vae_config: dict[str, Any]
    text_configs: dict[str, dict[str, Any]]
    """The configurations of the text encoders by component."""
    source: str
    """The source of the configurations, in words."""
    model: Model

    def denoiser(self, dtype: torch.dtype) -> Denoiser:
        """Make the denoiser on the meta device."""
        with torch.device("meta"), presets.default_dtype(dtype):
            denoiser = self.family.denoiser_class.from_config(self.denoiser_config)
        # buffers may be float32 whatever the default is, until they are loaded; diffusers' own `to` warns of no matter
        return nn.Module.to(denoiser, dtype)

    def vae(self, dtype: torch.dtype) -> AutoencoderKL:
        """Make the VAE on the meta device."""
        with torch.device("meta"), presets.default_dtype(dtype):
            return AutoencoderKL.from_config(self.vae_config)

    @cached_property
    def _text(self) -> dict[str, Size]:
        """Measure the text encoders by component, in elements."""
        with torch.device("meta"):
            encoders = {name: presets.encoder_of(config) for name, config in self.text_configs.items()}
        return {name: Size.of(module, itemsize=1) for name, module in encoders.items()}

    @property
    def text_parameters(self) -> int:
        """Count the elements of all text encoders."""
        return sum(size.whole for size in self._text.values())

    def text_sizes(self, dtype: torch.dtype) -> dict[str, Size]:
        """Measure the text encoders by component, in bytes, where embeddings are wanted in `dtype`."""
        widths = {name: self.family.text_dtype(name, dtype).itemsize for name in self._text}
        return {name: Size(*(width * count for count in self._text[name])) for name, width in widths.items()}

    def text_elements(self) -> int:
        """Return how many numbers the embeddings of a caption are."""
        return self.family.elements_of_text(self.denoiser_config, self.model)

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a caption's embeddings by their names."""
        return self.family.text_shapes(self.denoiser_config, self.model)

    def factors(self) -> tuple[int, int]:
        """Return by how much VAE and denoiser divide a side of the image, and of the latents."""
        return shrinks(self.vae_config), self.family.factor(self.denoiser_config)


def read_architecture(model: Model) -> Architecture:
    """Read the configurations of `model.base`: a folder, what was fetched from the hub, or an embedded pipeline.

    No network is used: a hub name that was not fetched before gives the family's published architecture. Raises
    UserError for an unknown family, or a folder without configurations.
    """
    family = family_class(model)
    family.check_keys(model)
    denoiser = family.denoiser_name
    encoders = [name for name in family.text_components if name.startswith("text_encoder")]
    if model.base in EMBEDDED:
        from fdpo_fast.digits.maker import maker

        configs, source = presets.configs(maker(model.base).parts()), f"the embedded pipeline '{model.base}'"
    elif Path(model.base).expanduser().is_dir():
        folder = Path(model.base).expanduser()
        if (folder / "model_index.json").is_file():
            hub.check_kind(model.base, read_json(folder / "model_index.json"), family.pipelines)
        encoders = [name for name in encoders if (folder / name).is_dir()]  # not needed where the data are encoded
        configs, source = {name: _read(folder, name) for name in (denoiser, "vae", *encoders)}, str(folder)
    else:
        names = (denoiser, "vae", *encoders)
        found = {name: hub.component_config(model.base, name) for name in names}
        configs, source = {name: config for name, config in found.items() if config is not None}, model.base
        if len(configs) < len(names):
            configs = presets.configs(presets.components(family.preset))
            source = f"the published architecture '{family.preset}' ({model.base} is not here)"
            if model.base in UNGUIDED:
                configs[denoiser]["guidance_embeds"] = False
    if model.vae and Path(model.vae).expanduser().is_dir():
        configs["vae"] = read_json(hub.vae_folder(model.vae) / "config.json")
    elif model.vae:
        hub.check_name("model.vae", model.vae)  # the base's stands for it, until it is fetched
    text = {name: configs[name] for name in encoders if name in configs}
    check_guidance(model, configs[denoiser])
    check_channels(model, configs["vae"], family.channels(configs[denoiser]))
    return Architecture(family, configs[denoiser], configs["vae"], text, source, model)


def _read(folder: Path, component: str) -> dict[str, Any]:
    file = folder / component / "config.json"
    if not file.is_file():
        raise UserError(f"{file} does not exist: model.base must be a diffusers pipeline folder or a hub name")
    return read_json(file)
