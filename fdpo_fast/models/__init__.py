"""Model families: how one kind of pipeline is loaded, encoded, predicted with and exported. One file each."""

from __future__ import annotations

import json
import logging
import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from fdpo_fast.config.embedded import EMBEDDED
from fdpo_fast.config.errors import UserError
from fdpo_fast.models import hub

if TYPE_CHECKING:
    from fdpo_fast.config.schema import Model
    from fdpo_fast.models.family import Family

# Without a GPU it warns, while diffusers imports it, that its 4-bit kernels are missing: they are for GPUs here.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def quiet_libraries() -> None:
    """Turn off the progress bars and notices of the libraries below: a run has one bar of its own."""
    # newer releases of diffusers call it `dtype`, which older ones do not know
    warnings.filterwarnings("ignore", message="`torch_dtype` is deprecated", category=FutureWarning)
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
        library.set_verbosity_error()


FAMILIES = {
    "sd": "fdpo_fast.models.sd.StableDiffusion",
    "sdxl": "fdpo_fast.models.sdxl.StableDiffusionXL",
    "sd3": "fdpo_fast.models.sd3.StableDiffusion3",
    "flux": "fdpo_fast.models.flux.Flux",
    "z_image": "fdpo_fast.models.z_image.ZImage",
}


def load_family(model: Model) -> Family:
    """Load the family of the configuration's model section, over its base: a diffusers folder or a hub name.

    Raises UserError for an unknown family or a base that holds no pipeline of it.
    """
    return family_class(model)(model)


def check(model: Model) -> None:
    """Raise UserError for an unknown family, and for a base or VAE that is no folder here and can be no hub name.

    An embedded base goes with one family and so many tokens; beside others it is refused before it is made.
    """
    if model.family not in FAMILIES:
        raise UserError(f"unknown model.family '{model.family}': use one of {', '.join(FAMILIES)}")
    if made := EMBEDDED.get(model.base):
        for key, goes, value in (
            ("model.family", made.family, model.family),
            ("model.text_tokens", made.text_tokens, model.text_tokens),
        ):
            if goes != value:
                raise UserError(
                    f"model.base '{model.base}' goes with {key} {json.dumps(goes)}, not {json.dumps(value)}: set {key}"
                )
    for key, name in (("model.base", model.base), ("model.vae", model.vae)):
        if name and name not in EMBEDDED and not Path(name).expanduser().is_dir():
            hub.check_name(key, name)


def find(model: Model, reference: str | None = None) -> None:
    """Raise UserError where there is no base, or VAE, of the family; fetches from the hub what is not here.

    reference: the value of `reference.model`, which is held to the same.
    """
    cls = family_class(model)
    for key, base in (("model.base", model.base), ("reference.model", reference)):
        if base and base not in EMBEDDED:
            hub.pipeline_folder(base, cls.pipelines, cls.components, key)
    if model.vae:
        hub.vae_folder(model.vae)


def family_class(model: Model) -> type[Family]:
    """Return the class of `model.family`; UserError for an unknown one."""
    check(model)
    module, _, cls = FAMILIES[model.family].rpartition(".")
    return getattr(import_module(module), cls)
