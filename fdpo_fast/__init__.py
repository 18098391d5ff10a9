"""Preference alignment of text-to-image diffusion models under any f-divergence, fast and small."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdpo_fast import scales
    from fdpo_fast.loss.divergences import DIVERGENCES, Divergence, alpha, divergence
    from fdpo_fast.loss.function import FDPOLoss, fdpo_loss, log_ratio_loss
    from fdpo_fast.loss.stats import LossStats
    from fdpo_fast.noise import add_noise, draws, pair_draw
    from fdpo_fast.ops.target import Target
    from fdpo_fast.optim import AdamW8bit

    __version__: str

_HOMES = {
    "DIVERGENCES": "loss.divergences",
    "AdamW8bit": "optim",
    "Divergence": "loss.divergences",
    "FDPOLoss": "loss.function",
    "LossStats": "loss.stats",
    "Target": "ops.target",
    "add_noise": "noise",
    "alpha": "loss.divergences",
    "divergence": "loss.divergences",
    "draws": "noise",
    "fdpo_loss": "loss.function",
    "log_ratio_loss": "loss.function",
    "pair_draw": "noise",
    "scales": "",
}
"""By public name, the module that has it; a module itself has none. Each is imported when it is first asked for: a
command that only prints its help does not wait for torch."""

__all__ = [
    "DIVERGENCES",
    "AdamW8bit",
    "Divergence",
    "FDPOLoss",
    "LossStats",
    "Target",
    "add_noise",
    "alpha",
    "divergence",
    "draws",
    "fdpo_loss",
    "log_ratio_loss",
    "pair_draw",
    "scales",
]


def __getattr__(name: str) -> Any:
    if name != "__version__" and name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = globals()[name] = _version() if name == "__version__" else _public(name)
    return value


def _public(name: str) -> Any:
    home = _HOMES[name]
    return getattr(import_module(f"{__name__}.{home}"), name) if home else import_module(f"{__name__}.{name}")


def _version() -> str:
    """Return the version that pyproject.toml gave to what is installed; that of a bare checkout is not known."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(__name__)
    except PackageNotFoundError:
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


if not find_spec(f"{__name__}._native"):  # then it says so, and now
    import_module(f"{__name__}.loss.function")
