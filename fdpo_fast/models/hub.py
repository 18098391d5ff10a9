"""Folders of models: local ones, or the hub's snapshots, which it is asked for once. Pipelines are safetensors."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from fdpo_fast.bounds import Bounds
from fdpo_fast.config.errors import UserError
from fdpo_fast.files import is_hub_name, read_json
from fdpo_fast.progress import say
from fdpo_fast.signals import speaks

_SMALL = ("*.json", "*.txt", "*.model", "*.jinja")
VARIANTS = ["*.fp16.*", "*.non_ema.*", "*.bf16.*"]
"""The names of weights that a pipeline is loaded from only where it is asked for them."""


LOADED = (".json", ".txt", ".model", ".jinja", ".safetensors")
"""The endings of the files that a pipeline is loaded from."""
OPTIONAL = ("text_encoder_3", "tokenizer_3")
"""What a pipeline may be without: its embeddings are zeros then."""
_LIBRARIES = ("diffusers", "transformers", "stable_diffusion")
"""Whose classes a component may be of: that of safety checkers is diffusers' own."""


def pipeline_folder(
    base: str, pipelines: tuple[str, ...], components: tuple[str, ...], key: str = "model.base"
) -> Path:
    """Find the folder of a whole pipeline of one of the kinds `pipelines`, fetched from the hub if it is not here.

    components: of which such a pipeline is made. Raises UserError where `base`, the value of `key`, is neither a folder
    nor a name on the hub, or holds no such pipeline, or one that cannot be read and exported as it is.
    """
    folder = folder_of(key, base, (*_SMALL, "*/*.safetensors"))
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(f"{key} '{base}' has no model_index.json: give a diffusers pipeline folder")
    parts = read_json(index)
    check_kind(base, parts, pipelines, key)
    known = present(parts, components)
    needed = [name for name in ("vae", "unet", "transformer", "scheduler") if name in components]
    missing = [name for name in needed if name not in known]
    if missing:
        raise UserError(f"the pipeline {folder} has no {' and no '.join(missing)}")
    weighty = [name for name in parts if name in needed[:-1] or name.startswith("text_encoder")]
    for name in (name for name in weighty if name in known or name not in OPTIONAL):
        weights = [path for path in folder.glob(f"{name}/*.safetensors") if not any(map(path.match, VARIANTS))]
        if not weights or not (folder / name / "config.json").is_file():
            raise UserError(f"{folder / name} lacks config.json or safetensors weights (fp16 variants are not read)")
    _stay_within(folder, index, key)
    for name in known:
        if not _is_class(parts[name]):
            raise UserError(f"{index} names no class of {' or '.join(_LIBRARIES[:2])} for '{name}': put one there")
        _stay_within(folder, folder / name, key)
        _check_files(folder / name)
    if unknown := sorted(name for name in parts.keys() - {*components} if _is_class(parts[name])):
        raise UserError(f"{index} has a component that no {parts['_class_name']} has, '{unknown[0][:80]}': remove it")
    if not (folder / "scheduler/scheduler_config.json").is_file():
        raise UserError(f"the pipeline {folder} has no scheduler/scheduler_config.json")
    return folder


def present(parts: dict[str, Any], components: tuple[str, ...]) -> list[str]:
    """Return the names of a model_index.json that are components, and not left out by nulls."""
    return [name for name in components if name in parts and parts[name] not in (None, [None, None])]


def _is_class(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and value[0] in _LIBRARIES and isinstance(value[1], str)


def _check_files(folder: Path) -> None:
    """Raise UserError where a file that a component is loaded from is none, or leads to weights that are elsewhere."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix in LOADED and not path.is_file():
            raise UserError(f"{path} is {'no regular file' if path.exists() else 'a link to nowhere'}: remove it")
        if path.name.endswith(".safetensors.index.json"):
            files = read_json(path).get("weight_map")
            names = {str(name) for name in files.values()} if isinstance(files, dict) else {""}
            if not all(name and name == Path(name).name for name in names):
                raise UserError(f"{path} has weights that are not files beside it: put them there under plain names")
            if missing := sorted(name for name in names if not (folder / name).is_file()):
                raise UserError(f"{folder / missing[0]} is missing, which {path.name} names")


def _stay_within(folder: Path, part: Path, key: str) -> None:
    """Raise UserError where a part of a folder of models, or a file in it, leads out of the folder by a link.

    An export would publish what lies there. The links of the hub's cache are within.
    """
    bounds = Bounds(folder)
    for path in (part, *(sorted(part.iterdir()) if bounds.hold(part) and part.is_dir() else ())):
        if not bounds.hold(path):
            raise UserError(f"{path} is a link out of {key} '{folder}': put there what it leads to")


def check_kind(base: str, parts: dict[str, Any], pipelines: tuple[str, ...], key: str = "model.base") -> None:
    """Raise UserError where the model_index.json of `base`, the value of `key`, is of another kind of pipeline."""
    if parts.get("_class_name") not in pipelines:
        raise UserError(
            f"{key} '{base}' is a {parts.get('_class_name')}, this model.family takes {' or '.join(pipelines)}: "
            f"set model.family or {key}"
        )


def vae_folder(name: str) -> Path:
    """Find the folder of a VAE by itself, or of the VAE in a pipeline. Raises UserError where there is none."""
    folder = folder_of("model.vae", name, ("config.json", "*.safetensors", "vae/*"))
    for candidate in (folder, folder / "vae"):
        config = candidate / "config.json"
        if config.is_file() and read_json(config).get("_class_name", "").startswith("AutoencoderKL"):
            _stay_within(folder, candidate, "model.vae")
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


def here(name: str, patterns: tuple[str, ...]) -> Path | None:
    """Find a local folder, or that of a repository's files that were fetched before; None where there is neither."""
    folder = Path(name).expanduser()
    if folder.is_dir() or not is_hub_name(name):
        return folder if folder.is_dir() else None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=[*patterns], local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def check_name(key: str, name: str) -> None:
    """Raise UserError where `name`, the value of `key`, can be no name on the hub."""
    if not is_hub_name(name):
        raise UserError(f"{key} '{name}' is neither a folder nor a hub name of the form owner/name")


def folder_of(key: str, name: str, patterns: tuple[str, ...]) -> Path:
    """Find a local folder, or that of a repository's files that match `patterns`. Raises UserError with `key`."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    check_name(key, name)
    return fetched(key, name, patterns)


@cache
def fetched(key: str, name: str, patterns: tuple[str, ...]) -> Path:
    """Find the folder of a repository's files that match `patterns`, fetched from the hub where it answers.

    The hub is asked once; what was fetched before does without its answer. Raises UserError with `key` and `name` where
    the files are not here and cannot be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    reason = _refusal(name)
    try:
        folder = snapshot_download(
            name, allow_patterns=[*patterns], ignore_patterns=VARIANTS, local_files_only=reason is not None
        )
    except LocalEntryNotFoundError:
        reason = reason or "the connection broke"
    except (*HfHubHTTPError.__bases__, OSError) as error:  # type: ignore[misc]  # of requests or httpx
        reason = f"the connection broke ({_first_line(error)})"
    else:
        weights = [pattern for pattern in patterns if pattern not in _SMALL] or patterns
        if reason is None or any(True for pattern in weights for _ in Path(folder).glob(pattern)):
            return Path(folder)
    raise UserError(f"{key} '{name}' is not here and cannot be fetched from the hub: {reason}")


_silent: list[str] = []
"""Why the hub did not answer, once it did not: nothing else is asked of it then."""


@cache
def _refusal(name: str) -> str | None:
    """Ask the hub for a repository; returns why it does not give it, None where it does."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    if _silent:
        return _silent[0]
    patience = constants.HF_HUB_ETAG_TIMEOUT
    if speaks() and not constants.HF_HUB_OFFLINE:
        say(f"asking the hub for {name}, {patience} s at most")
    try:
        HfApi().model_info(name, timeout=patience)
    except OfflineModeIsEnabled:
        _silent.append("HF_HUB_OFFLINE is set")
    except RepositoryNotFoundError:
        return "there is none of that name, or it is private: see `hf auth login`"
    except HfHubHTTPError as error:
        return _first_line(error)
    except (*HfHubHTTPError.__bases__, OSError) as error:  # type: ignore[misc]  # of requests or httpx
        _silent.append(f"{constants.ENDPOINT} does not answer ({_first_line(error)})")
    return _silent[0] if _silent else None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
