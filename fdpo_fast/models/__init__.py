"""Model families: how one kind of pipeline is loaded, encoded, predicted with and exported. One file each."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fdpo_fast.models.family import Family


def quiet_libraries() -> None:
    """Turn off the progress bars and notices of the libraries below: a run has one bar of its own."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
        library.set_verbosity_error()


FAMILIES = {"sd": "fdpo_fast.models.sd.StableDiffusion"}


def family(name: str, base: str) -> Family:
    """The family `name` over the pipeline `base`, a diffusers folder or a hub name.

    Raises ValueError for an unknown family or a base that holds no diffusers pipeline.
    """
    if name not in FAMILIES:
        raise ValueError(f"unknown model.family '{name}': use one of {', '.join(FAMILIES)}")
    module, _, cls = FAMILIES[name].rpartition(".")
    return getattr(import_module(module), cls)(base)
