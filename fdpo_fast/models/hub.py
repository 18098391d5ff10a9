"""Folders of pipelines and VAEs: local ones, or the hub's snapshots. Only safetensors are fetched."""

from __future__ import annotations

import json
from pathlib import Path

_SMALL = ["*.json", "*.txt", "*.model"]
_VARIANTS = ["*.fp16.*", "*.non_ema.*", "*.bf16.*"]


def pipeline_folder(base: str, pipelines: tuple[str, ...]) -> Path:
    """The folder of a pipeline of one of the kinds `pipelines`.

    Raises ValueError where `base` is neither a folder nor a name on the hub, or holds no such pipeline.
    """
    folder = _folder("model.base", base, [*_SMALL, "*/*.safetensors"])
    index = folder / "model_index.json"
    if not index.is_file():
        raise ValueError(f"model.base '{base}' has no model_index.json: give a diffusers pipeline folder")
    parts = json.loads(index.read_text())
    if parts.get("_class_name") not in pipelines:
        raise ValueError(
            f"model.base '{base}' is a {parts.get('_class_name')}, this model.family takes {' or '.join(pipelines)}: "
            "set model.family or model.base"
        )
    missing = [name for name in ("vae", "unet", "scheduler") if name not in parts]
    if missing:
        raise ValueError(f"the pipeline {folder} has no {' and no '.join(missing)}")
    return folder


def vae_folder(name: str) -> Path:
    """The folder of a VAE by itself, or of the VAE in a pipeline. Raises ValueError where there is none."""
    folder = _folder("model.vae", name, ["config.json", "*.safetensors", "vae/*"])
    for candidate in (folder, folder / "vae"):
        config = candidate / "config.json"
        if config.is_file() and json.loads(config.read_text()).get("_class_name", "").startswith("AutoencoderKL"):
            return candidate
    raise ValueError(f"model.vae '{name}' holds no AutoencoderKL: give its folder or hub name")


def _folder(key: str, name: str, patterns: list[str]) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ValueError(f"{key} '{name}' is neither a folder nor a hub name of the form owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=_VARIANTS))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{key} '{name}' is no folder here and cannot be fetched from the hub: {reason}") from None
