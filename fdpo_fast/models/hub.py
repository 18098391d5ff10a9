"""Folders of pipelines and VAEs: local ones, or the hub's snapshots. Only safetensors are fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fdpo_fast.config.errors import UserError
from fdpo_fast.files import is_hub_name, read_json

_SMALL = ["*.json", "*.txt", "*.model"]
_VARIANTS = ["*.fp16.*", "*.non_ema.*", "*.bf16.*"]


def pipeline_folder(base: str, pipelines: tuple[str, ...], key: str = "model.base") -> Path:
    """Find the folder of a whole pipeline of one of the kinds `pipelines`, fetched from the hub if it is not here.

    Raises UserError where `base`, the value of `key`, is neither a folder nor a name on the hub, or holds no such
    pipeline.
    """
    folder = _folder(key, base, [*_SMALL, "*/*.safetensors"])
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(f"{key} '{base}' has no model_index.json: give a diffusers pipeline folder")
    parts = read_json(index)
    check_kind(base, parts, pipelines, key)
    missing = [name for name in ("vae", "unet", "scheduler") if name not in parts]
    if missing:
        raise UserError(f"the pipeline {folder} has no {' and no '.join(missing)}")
    for name in (name for name in parts if name in ("vae", "unet") or name.startswith("text_encoder")):
        weights = [path for path in folder.glob(f"{name}/*.safetensors") if not any(map(path.match, _VARIANTS))]
        if not weights or not (folder / name / "config.json").is_file():
            raise UserError(f"{folder / name} lacks config.json or safetensors weights (fp16 variants are not read)")
    return folder


def check_kind(base: str, parts: dict[str, Any], pipelines: tuple[str, ...], key: str = "model.base") -> None:
    """Raise UserError where the model_index.json of `base`, the value of `key`, is of another kind of pipeline."""
    if parts.get("_class_name") not in pipelines:
        raise UserError(
            f"{key} '{base}' is a {parts.get('_class_name')}, this model.family takes {' or '.join(pipelines)}: "
            f"set model.family or {key}"
        )


def vae_folder(name: str) -> Path:
    """Find the folder of a VAE by itself, or of the VAE in a pipeline. Raises UserError where there is none."""
    folder = _folder("model.vae", name, ["config.json", "*.safetensors", "vae/*"])
    for candidate in (folder, folder / "vae"):
        config = candidate / "config.json"
        if config.is_file() and read_json(config).get("_class_name", "").startswith("AutoencoderKL"):
            return candidate
    raise UserError(f"model.vae '{name}' holds no AutoencoderKL: give its folder or hub name")


def component_config(base: str, component: str) -> dict[str, Any] | None:
    """Read the configuration of a component of the hub's pipeline `base`; None where it has not been fetched before.

    Raises UserError where `base` can be no name on the hub.
    """
    check_name("model.base", base)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return read_json(Path(hf_hub_download(base, f"{component}/config.json", local_files_only=True)))
    except LocalEntryNotFoundError:
        return None


def check_name(key: str, name: str) -> None:
    """Raise UserError where `name`, the value of `key`, can be no name on the hub."""
    if not is_hub_name(name):
        raise UserError(f"{key} '{name}' is neither a folder nor a hub name of the form owner/name")


def _folder(key: str, name: str, patterns: list[str]) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    check_name(key, name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=_VARIANTS))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{key} '{name}' is no folder here and cannot be fetched from the hub: {reason}") from None
