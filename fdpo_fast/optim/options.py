"""The options of an optimizer's parameter group, and what is refused because it would be ignored."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from typing import Any

from fdpo_fast.ops.constants import one_of
from fdpo_fast.optim.update import ROUNDINGS, WEIGHTS

_OWN = ("lr", "betas", "eps", "weight_decay", "rounding", "weights", "seed", "first_element", "params", "param_names")

_ELSEWHERE: dict[str, Any] = {
    "amsgrad": False,
    "maximize": False,
    "capturable": False,
    "differentiable": False,
    "decoupled_weight_decay": True,
    "optim_bits": 8,
    "percentile_clipping": 100,
    "block_wise": True,
    "is_paged": False,
    "max_unorm": 0,
    "skip_zeros": False,
    "cautious": False,
    "bf16_stochastic_round": True,
}
"""Options of torch's, bitsandbytes' and torchao's AdamW that change a result, each with the value that we have."""


def options_of(group: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells whether a group's options have to be looked at again."""
    own = (group["betas"], group["rounding"], group["weights"], group["seed"], group["first_element"])
    return *group, *own, *map(group.get, _ELSEWHERE)


def check_options(group: dict[str, Any]) -> None:
    """Raise ValueError for a number out of range, an unknown name, and a key that would be ignored.

    Raises TypeError for a seed or a first element that is no integer.
    """
    if ignored := group.keys() & {"backend", "min_8bit_size"}:
        raise ValueError(f"{ignored.pop()} is an option of the optimizer, not of a group: it would be ignored")
    for name, ours in _ELSEWHERE.items():
        if group.get(name) not in (None, ours):
            raise ValueError(f"AdamW8bit has no option {name}: {name}={group[name]!r} would be ignored")
    for name in group:
        if meant := _meant(name):
            raise ValueError(f"unknown option {name!r} of a group, which would be ignored: did you mean {meant!r}?")
    for name in ("lr", "eps", "weight_decay"):
        if not group[name] >= 0:
            raise ValueError(f"{name} must not be negative, got {group[name]}")
    if len(group["betas"]) != 2 or not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"betas must be two numbers in [0, 1), got {group['betas']}")
    one_of("rounding", group["rounding"], ROUNDINGS)
    one_of("weights", group["weights"], WEIGHTS)
    for name in ("seed", "first_element"):
        if isinstance(group[name], bool) or not isinstance(group[name], int):
            raise TypeError(f"{name} must be an integer, got {group[name]!r}")
    if not 0 <= group["seed"] < 2**64:
        raise ValueError(f"seed must lie in [0, 2^64), got {group['seed']}")
    together = WEIGHTS[group["weights"]]
    if group["first_element"] % together or group["first_element"] < 0:
        beside = "" if group["weights"] == "plain" else f" with weights {group['weights']!r}"
        raise ValueError(f"first_element must be a multiple of {together}{beside}, got {group['first_element']}")


@cache
def _meant(name: str) -> str | None:
    """Return the option that a key is a slip of; None for one of ours and for what users may note in a group."""
    if name in _OWN or name in _ELSEWHERE:
        return None
    return next(iter(get_close_matches(name, (*_OWN, *_ELSEWHERE), n=1, cutoff=0.8)), None)
