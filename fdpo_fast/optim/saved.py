"""Saved states of the optimizer, its own or bitsandbytes', on their way into it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fdpo_fast.optim import low_byte, sharded
from fdpo_fast.optim.codebook import dynamic_map
from fdpo_fast.optim.options import check_options

if TYPE_CHECKING:
    from fdpo_fast.optim.adamw8bit import AdamW8bit

_WRAPPED = "__bnb_optimizer_quant_state__"  # bitsandbytes hides its states there from FSDP


@dataclass
class Saved:
    """A parameter's saved state, which torch would cast to the parameter's dtype if it saw its tensors."""

    state: dict[str, Any]
    number: int
    copy: bool

    def placed(self, parameter: Tensor) -> dict[str, Any]:
        """Return the state's tensors on the parameter's device; ValueError where they do not fit it."""
        state = self.state
        coded = "state1" in state and state["state1"].dtype == torch.uint8
        elements: tuple[str, ...] = ("state1", "state2")
        absmax = ("absmax1", "absmax2") if coded else ()
        self._check(parameter, elements, torch.uint8 if coded else torch.float32, parameter.numel())
        low = state.get(low_byte.NAME)
        if low is not None and low.dtype == torch.int8:  # not one that bitsandbytes has cast, and stepped without
            self._check(parameter, (low_byte.NAME,), torch.int8, parameter.numel())
            elements = (*elements, low_byte.NAME)
        self._check(parameter, absmax, torch.float32, sharded.saved_blocks(parameter))
        sharded.check_saved(state, parameter, (*elements, *absmax), self.number)
        placed: dict[str, Any] = {"step": int(state["step"])}
        if sharded.is_sharded(parameter):
            return placed | sharded.placed(state, parameter, (*elements, *absmax), self.copy)
        for signed, name in ((True, "qmap1"), (False, "qmap2")):
            if coded and name in state:
                ours = dynamic_map(signed).values
                if state[name].shape != ours.shape or not torch.allclose(state[name].float().cpu(), ours, atol=1e-6):
                    raise ValueError(f"the saved {name} of parameter {self.number} is not bitsandbytes' dynamic map")
                placed[name] = state[name].detach().to(parameter.device, copy=self.copy)
        for name in (*elements, *absmax):
            placed[name] = state[name].detach().to(parameter.device, copy=self.copy).contiguous()
        return placed | {name: placed[name].reshape(parameter.shape) for name in elements}

    def _check(self, parameter: Tensor, names: Iterable[str], dtype: torch.dtype, count: int) -> None:
        for name in names:
            saved = self.state.get(name)
            if "step" not in self.state or saved is None or saved.numel() != count or saved.dtype != dtype:
                raise ValueError(
                    f"the saved {name} of parameter {self.number} does not fit a tensor of shape "
                    f"{tuple(parameter.shape)}: load the states of AdamW8bit, here or in bitsandbytes, for the same "
                    "model"
                )


def shielded(optimizer: AdamW8bit, state_dict: dict[str, Any], copy: bool) -> dict[str, Any]:
    """Return a state dict whose options are complete and checked, and whose tensors torch does not see."""
    saved = [
        {**group, **{name: value for name, value in ours.items() if name not in group and name != "params"}}
        for group, ours in zip(state_dict["param_groups"], optimizer.param_groups, strict=False)
    ]
    saved += state_dict["param_groups"][len(saved) :]  # a wrong number of groups is torch's to refuse
    for group, ours, given in zip(saved, optimizer.param_groups, state_dict["param_groups"], strict=False):
        if "weights" not in given and group["weights"] != "plain":  # elements were numbered otherwise
            group["first_element"] = ours["first_element"]
    for group in saved:
        check_options(group)
    states = {}
    for number, state in state_dict["state"].items():
        flat = {name: value for name, value in state.items() if name != _WRAPPED} | state.get(_WRAPPED, {})
        if flat:
            states[number] = Saved(flat, number, copy)
    return {**state_dict, "state": states, "param_groups": saved}
