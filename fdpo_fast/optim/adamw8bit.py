"""AdamW with blockwise 8-bit states and stochastic rounding: the optimizer that users construct."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import Optimizer

from fdpo_fast.ops import library
from fdpo_fast.ops.constants import STATE_BLOCK
from fdpo_fast.optim import cpp, eager, triton
from fdpo_fast.optim.checks import check_copy
from fdpo_fast.optim.codebook import dynamic_map
from fdpo_fast.optim.gather import Gatherer, Places
from fdpo_fast.optim.update import ROUNDINGS, Clip, Updates

Step = Callable[[Updates, Clip | None], None]
BACKENDS: dict[str, Callable[[], Step]] = {
    "cpp": lambda: cpp.step,
    "triton": triton.Stepper,
    "eager": lambda: eager.step,
}
"""What makes the function that steps parameters of one kind, by backend; it may remember what it was told."""

_WRAPPED = "__bnb_optimizer_quant_state__"  # bitsandbytes hides its states there from FSDP
_TENSORS = ("state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2")


class AdamW8bit(Optimizer):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) whose moments take one byte each.

    The states have bitsandbytes' format and names: codes of the dynamic map (signed m, unsigned v), with an absmax per
    block of 256 elements: 2.03 bytes a parameter. `bitsandbytes.optim.AdamW8bit` loads what `state_dict()` gives, and
    the other way. Tensors below `min_8bit_size` elements keep float32 states.

    float32, bfloat16 and float16 parameters, with gradients of any of these. Half-precision parameters are rounded
    stochastically: to nearest, a weight takes no update below 2^-9 of itself, and those of fine-tuning are smaller.
    The random bits are a pure function of (seed, step, parameter's number, element), so that a run repeats bit for bit,
    resumed or not, on any number of threads.

    Args:
        params: parameters or groups. A group may set lr, betas, eps, weight_decay, rounding and seed for itself, and
            `first_element`: the place of its parameters' first element in a larger tensor that was split over ranks
            (a multiple of 8).
        lr, betas, eps, weight_decay: as in `torch.optim.AdamW`.
        rounding: "stochastic" or "nearest", of half-precision parameters.
        seed: of the stochastic rounding, 0 <= seed < 2^64.
        min_8bit_size: elements.
        backend: "cpp" | "triton" | "eager"; None takes the best for each parameter's device.

    Raises:
        TypeError: a parameter or gradient of another dtype, or sparse.
        ValueError: a number out of range, an unknown rounding or backend; states that do not fit, in `load_state_dict`.
    """

    _places: dict[Tensor, tuple[int, int]] | None
    _whole: _Memory
    _parts: dict[Tensor, _Memory]

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        rounding: str = "stochastic",
        seed: int = 0,
        min_8bit_size: int = 4096,
        backend: str | None = None,
    ) -> None:
        if backend is not None and backend not in BACKENDS:
            raise ValueError(f"unknown backend {backend!r}: use one of {', '.join(BACKENDS)}")
        self._backend, self.min_8bit_size = backend, min_8bit_size
        self._copies: dict[Tensor, Tensor] = {}
        self._forget()
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"rounding": rounding, "seed": seed, "first_element": 0})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as in torch, after checks of its options and of the parameters' dtypes."""
        super().add_param_group(param_group)
        self._forget()
        try:
            self._check(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def _check(self, group: dict[str, Any]) -> None:
        if ignored := group.keys() & {"backend", "min_8bit_size"}:
            raise ValueError(f"{ignored.pop()} is an option of the optimizer, not of a group: it would be ignored")
        if len(set(group["params"])) < len(group["params"]):
            raise ValueError("a parameter is twice in one group: it would be stepped twice")
        for name in ("lr", "eps", "weight_decay"):
            if not group[name] >= 0:
                raise ValueError(f"{name} must not be negative, got {group[name]}")
        if len(group["betas"]) != 2 or not all(0 <= beta < 1 for beta in group["betas"]):
            raise ValueError(f"betas must be two numbers in [0, 1), got {group['betas']}")
        if group["rounding"] not in ROUNDINGS:
            raise ValueError(f"unknown rounding {group['rounding']!r}: use one of {', '.join(ROUNDINGS)}")
        if not 0 <= group["seed"] < 2**64:
            raise ValueError(f"seed must lie in [0, 2^64), got {group['seed']}")
        if group["first_element"] % 8 or group["first_element"] < 0:
            raise ValueError(f"first_element must be a multiple of 8, got {group['first_element']}")
        for parameter in group["params"]:
            if parameter.dtype not in eager.DTYPES:
                raise TypeError(f"parameters must be float32, bfloat16 or float16, got {parameter.dtype}")

    def keep_copy(self, parameter: Tensor, copy: Tensor) -> None:
        """Write a float32 parameter's values, rounded to nearest, into the bfloat16 tensor `copy` at every step.

        For masters in float32 whose model is bfloat16; the copy is made in the same pass over memory.
        """
        check_copy(parameter, copy)
        self._copies[parameter] = copy

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Step every parameter that has a gradient; a closure is called before, and its loss returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        places = Places.of(self.param_groups)
        self._step(places, [p.grad for p in places.parameters], self._whole)
        return loss

    @torch.no_grad()
    def step_by(self, grads: Mapping[Tensor, Tensor | None], clip: Clip | None = None) -> None:
        """Step some parameters by gradients that are handed over; to be called from inside backward.

        `clip` bounds each of the gradients, whose memory may be written into.
        """
        if self._places is None:
            self._places = {p: (group, number) for p, group, number in zip(*Places.of(self.param_groups), strict=True)}
        places = Places(list(grads), *map(list, zip(*map(self._places.__getitem__, grads), strict=True)))
        first = places.parameters[0]  # of a bucket, as a rule, which has the same parameters in every backward
        if first not in self._parts:
            self._parts[first] = _Memory(self._start)
        self._step(places, list(grads.values()), self._parts[first], clip)

    def step_parameter(self, parameter: Tensor) -> None:
        """Step one parameter, which has a gradient."""
        self.step_by({parameter: parameter.grad})

    def _step(self, places: Places, grads: list[Tensor | None], memory: _Memory, clip: Clip | None = None) -> None:
        updates, replaced, moved = memory.gather(places, grads, self.param_groups, self.state, self._copies)
        for of_kind in updates:
            kind = of_kind.kind
            memory.steps[library.chosen(self._backend, kind.device, kind.data, kind.grad)](of_kind, clip)
        for parameter, stepped in replaced:
            parameter.copy_(stepped)
        increment_version(moved)  # autograd refuses a backward through weights that have moved since

    def _start(self, state: dict[str, Any], parameter: Tensor) -> None:
        """Give a parameter the states of nothing seen yet, as bitsandbytes has them."""
        coded = parameter.numel() >= self.min_8bit_size
        dtype, shape, device = torch.uint8 if coded else torch.float32, parameter.shape, parameter.device
        state["step"] = 0
        for number in ("1", "2"):
            state["state" + number] = torch.zeros(shape, dtype=dtype, device=device)
            if coded:
                state["qmap" + number] = dynamic_map(number == "1").values.to(device, copy=True)
                state["absmax" + number] = torch.zeros(-(-parameter.numel() // STATE_BLOCK), device=device)

    def load_state_dict(self, state_dict: dict[str, Any], *, copy: bool = True) -> None:
        """Load what `state_dict()` gave, here or in bitsandbytes.

        The moments keep their dtypes; options that the saved groups lack keep their values. `copy=False` takes tensors
        that are on the parameter's device as they are, and writes into them from then on: for states just read.
        """
        saved = [
            {**group, **{name: value for name, value in ours.items() if name not in group and name != "params"}}
            for group, ours in zip(state_dict["param_groups"], self.param_groups, strict=False)
        ]
        saved += state_dict["param_groups"][len(saved) :]  # a wrong number of groups is torch's to refuse
        numbers = (number for group in state_dict["param_groups"] for number in group["params"])
        placed = {}
        for number, parameter in zip(numbers, Places.of(self.param_groups).parameters, strict=False):
            if state := state_dict["state"].get(number):
                flat = {name: value for name, value in state.items() if name != _WRAPPED} | state.get(_WRAPPED, {})
                placed[parameter] = _placed(flat, parameter, number, copy)
        # without the states, which torch would cast to the parameters' dtypes
        super().load_state_dict({"state": {}, "param_groups": saved})
        self.state.update(placed)
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        own = ("_backend", "min_8bit_size", "_copies")
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()

    def _forget(self) -> None:
        """Forget what is remembered of parameters and their states."""
        self._places, self._whole, self._parts = None, _Memory(self._start), {}


class _Memory:
    """What is remembered from one step to the next: of the whole model, or of a part of it inside backward."""

    def __init__(self, start: Callable[[dict[str, Any], Tensor], None]) -> None:
        self.gather = Gatherer(start)
        self.steps = {name: make() for name, make in BACKENDS.items()}


def _placed(state: dict[str, Any], parameter: Tensor, number: int, copy: bool) -> dict[str, Any]:
    """Return a saved state's tensors on the parameter's device; ValueError where they do not fit it."""
    coded = "state1" in state and state["state1"].dtype == torch.uint8
    blocks = ("absmax1", "absmax2") if coded else ()
    for name in ("state1", "state2", *blocks):
        expected = -(-parameter.numel() // STATE_BLOCK) if name in blocks else parameter.numel()
        dtype = torch.uint8 if coded and name not in blocks else torch.float32
        if "step" not in state or name not in state or state[name].numel() != expected or state[name].dtype != dtype:
            raise ValueError(
                f"the saved {name} of parameter {number} does not fit a tensor of shape {tuple(parameter.shape)}: "
                "load the states of AdamW8bit, here or in bitsandbytes, for the same model"
            )
    placed: dict[str, Any] = {"step": int(state["step"])}
    for name in _TENSORS if coded else ("state1", "state2"):
        if name in state:
            placed[name] = state[name].detach().to(parameter.device, copy=copy).contiguous()
    for name in ("state1", "state2"):
        placed[name] = placed[name].reshape(parameter.shape)
    return placed
