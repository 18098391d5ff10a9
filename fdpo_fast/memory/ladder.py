"""The rungs: settings that trade speed for memory, from what is fastest to what is smallest."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from fdpo_fast.config.mistakes import checked
from fdpo_fast.config.run import Config


class Rung(NamedTuple):
    """A step of the ladder: what it is, and the settings that make it."""

    title: str
    sections: dict[str, dict[str, Any]]
    """The settings of the run by section."""
    caching: dict[str, Any] | None = None
    """The settings of data: caches are filled before the run, and may have been elsewhere."""


_ON_HOST = {"device": "cpu"}
_BUCKETS = {"reduce_bucket_size": 50_000_000, "allgather_bucket_size": 50_000_000}
_SMALL = {"dtype": "bf16", "gradient_checkpointing": "full", "cuda_graphs": False}
_PLAIN = {"type": "adamw8bit", "rounding": "stochastic", "clipping": "global"}
_NO_MASTER = {"bf16": {"enabled": False}, "zero_optimization": {"stage": 0}}
_BF16_MASTER = {"enabled": True, "bf16_master_weights_and_grads": True}

RUNGS = {
    "A": Rung(
        "bf16 weights, rounded stochastically, 8-bit states",
        {"model": _SMALL, "optimizer": _PLAIN, "train": {"step_in_backward": False}, "deepspeed": _NO_MASTER},
    ),
    "B": Rung(
        "A, each parameter stepped inside backward: no gradients are kept, none accumulated",
        {
            "model": _SMALL,
            "optimizer": _PLAIN | {"clipping": "per_parameter"},
            "train": {"step_in_backward": True},
            "deepspeed": _NO_MASTER,
        },
    ),
    "C": Rung(
        "ZeRO-2, optimizer on the host",
        {
            "model": _SMALL,
            "optimizer": _PLAIN,
            "train": {"step_in_backward": False},
            "deepspeed": {
                "bf16": _BF16_MASTER,
                "zero_optimization": {"stage": 2, "offload_optimizer": _ON_HOST, "overlap_comm": False, **_BUCKETS},
            },
        },
    ),
    "D": Rung(
        "ZeRO-3, parameters on the host too",
        {
            "model": _SMALL | {"compile": False},
            "optimizer": _PLAIN,
            "train": {"step_in_backward": False},
            "deepspeed": {
                "bf16": _BF16_MASTER,
                "zero_optimization": {
                    "stage": 3,
                    "offload_optimizer": _ON_HOST,
                    "offload_param": _ON_HOST,
                    "overlap_comm": False,
                    "reduce_bucket_size": 20_000_000,
                    "stage3_prefetch_bucket_size": 20_000_000,
                    "stage3_max_live_parameters": 50_000_000,
                    "stage3_max_reuse_distance": 1_000_000,
                    "stage3_param_persistence_threshold": 10_000,
                    "sub_group_size": 100_000_000,
                },
            },
        },
        {"encode_batch": 1},
    ),
}


def on_rung(config: Config, name: str, ranks: int) -> Config:
    """Put the configuration on a rung; everything that is not about memory stays as it is."""
    return checked(Config, settled(json.loads(config.dumps()), name, ranks), f"on rung {name}: ")


def settled(raw: dict[str, Any], name: str, ranks: int) -> dict[str, Any]:
    """Return the sections of a configuration with the settings of a rung.

    A rung without accumulation takes as many pairs a step as a micro-batch holds on all ranks.
    """
    raw = dict(raw)
    for section, values in [*RUNGS[name].sections.items(), ("data", RUNGS[name].caching or {})]:
        raw[section] = raw.get(section, {}) | values
    if raw["train"]["step_in_backward"]:
        raw["train"]["pairs_per_step"] = raw["train"]["pairs_per_micro_batch"] * ranks
    return raw


def current(config: Config) -> str | None:
    """Name the rung that the configuration stands on; None for settings of its own."""
    raw = json.loads(config.dumps())
    raw["deepspeed"]["bf16"] = {"enabled": config.master, **config.deepspeed.get("bf16", {})}
    raw["deepspeed"]["zero_optimization"] = {"stage": 0, **config.zero}
    return next((name for name, rung in RUNGS.items() if _holds(raw, rung.sections)), None)


def _holds(settings: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Say whether everything that is wanted is in there, at any depth."""
    return all(
        _holds(settings.get(key) or {}, value) if isinstance(value, dict) else settings.get(key) == value
        for key, value in wanted.items()
    )
