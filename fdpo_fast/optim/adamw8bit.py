"""AdamW with blockwise 8-bit states and stochastic rounding: the optimizer that users construct."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import Optimizer

from fdpo_fast.ops import library
from fdpo_fast.optim import cpp, eager, low_byte, sharded, triton
from fdpo_fast.optim.checks import blocks_of, check_copy, check_dtype
from fdpo_fast.optim.codebook import dynamic_map
from fdpo_fast.optim.gather import Gatherer
from fdpo_fast.optim.options import check_options, options_of
from fdpo_fast.optim.places import Places
from fdpo_fast.optim.saved import Saved, shielded
from fdpo_fast.optim.tracing import untraced
from fdpo_fast.optim.update import Clip, Updates

Step = Callable[[Updates, Clip | None], None]
BACKENDS: dict[str, Callable[[], Step]] = {
    "cpp": lambda: cpp.step,
    "triton": triton.Stepper,
    "eager": lambda: eager.step,
}
"""What makes the function that steps parameters of one kind, by backend; it may remember what it was told."""


class AdamW8bit(Optimizer):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) whose moments take one byte each.

    The states have bitsandbytes' format and names: codes of the dynamic map (signed m, unsigned v), with an absmax per
    block of 256 elements: 2.03 bytes a parameter. `bitsandbytes.optim.AdamW8bit` loads what `state_dict()` gives, and
    the other way. Tensors below `min_8bit_size` elements keep float32 states.

    float32, bfloat16 and float16 parameters, with gradients of any of these. Half-precision parameters are rounded
    stochastically: to nearest, a weight takes no update below 2^-9 of itself, and those of fine-tuning are smaller.
    The random bits are a pure function of (seed, step, parameter's number, element), so that a run repeats bit for bit,
    resumed or not, on any number of threads. Parameters are numbered within their optimizer: several optimizers, such
    as one for each parameter, need a seed each, or they share their bits.

    DTensors, as `torch.distributed.fsdp.fully_shard` makes them, are stepped by their parts; their states go through
    torch.distributed.checkpoint, to as many ranks. FSDP1 works too, with another seed on each rank, but its
    `optim_state_dict` cannot take blockwise states apart: save each rank's own `optimizer.state_dict()`.

    Args:
        params: parameters or groups. A group may set lr, betas, eps, weight_decay, rounding, weights and seed for
            itself, and `first_element`: the place of its parameters' first element in a larger tensor that was split
            over ranks (a multiple of 8, or of 16 where weights have 24 bits).
        lr, betas, eps, weight_decay: as in `torch.optim.AdamW`.
        rounding: "stochastic" or "nearest", of half-precision parameters.
        weights: "plain", or "bf16+8": to each bfloat16 parameter a byte is kept among its states, `low`, that makes it
            the upper part of a weight of 24 bits, which the step reads, and rounds to. The parameter is the nearest
            bfloat16 to it. float32 parameters stay as they are.
        seed: of the stochastic rounding, 0 <= seed < 2^64.
        min_8bit_size: elements.
        backend: "cpp" | "triton" | "eager"; None takes the best for each parameter's device.

    Raises:
        TypeError: a parameter or gradient of another dtype, or sparse; a float16 parameter with weights "bf16+8"; a
            seed that is no integer.
        ValueError: a number out of range, an unknown rounding or backend; states that do not fit, in `load_state_dict`.
    """

    _options: list[tuple[Any, ...]]
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
        weights: str = "plain",
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
        defaults |= {"rounding": rounding, "weights": weights, "seed": seed, "first_element": 0}
        super().__init__(params, defaults)

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
        if len(set(group["params"])) < len(group["params"]):
            raise ValueError("a parameter is twice in one group: it would be stepped twice")
        check_options(group)
        for parameter in group["params"]:
            if parameter.requires_grad:  # a frozen one, of quantised weights perhaps, is never stepped
                check_dtype(parameter)
                low_byte.check(parameter, group["weights"] != "plain")
                sharded.check_placements(parameter)

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
    @untraced
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

    @untraced
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
        options = [options_of(group) for group in self.param_groups]
        if options != self._options:  # a scheduler, or a slip of somebody's
            for group in self.param_groups:
                check_options(group)
            self._options = options
        gathered = memory.gather(places, grads, self.param_groups, self.state, self._copies)
        kinds = [updates.kind for updates in gathered.updates]
        backends = [library.chosen(self._backend, kind.device, kind.data, kind.grad) for kind in kinds]
        for own in gathered.states:
            own["step"] += 1
        for backend, updates in zip(backends, gathered.updates, strict=True):
            memory.steps[backend](updates, clip)
        for parameter, stepped in gathered.replaced:
            parameter.copy_(stepped)
        increment_version(gathered.stepped)  # autograd refuses a backward through weights that have moved since

    def _start(self, state: dict[str, Any], parameter: Tensor) -> None:
        """Give a parameter the states of nothing seen yet, as bitsandbytes has them."""
        coded = parameter.numel() >= self.min_8bit_size
        dtype, device = torch.uint8 if coded else torch.float32, parameter.device
        made: dict[str, Any] = {"step": 0}
        if sharded.is_sharded(parameter):
            sharded.start(made, parameter, dtype)
        else:
            for number in ("1", "2"):
                made["state" + number] = sharded.zeros_like(parameter, dtype)
                if coded:
                    made["qmap" + number] = dynamic_map(number == "1").values.to(device, copy=True)
                    blocks = blocks_of(parameter.numel())
                    made["absmax" + number] = torch.zeros(blocks, dtype=torch.float32, device=device)
        state.update(made)  # all at once: there may not be memory for all

    def load_state_dict(self, state_dict: dict[str, Any], *, copy: bool = True) -> None:
        """Load what `state_dict()` gave, here or in bitsandbytes.

        The moments keep their dtypes; options that the saved groups lack keep their values. Low bytes of 24-bit weights
        are loaded with the group's option that wants them; where there are none they start at zero, and those that no
        group wants, or that another optimizer carried along in its own dtype, are left out. `copy=False` takes tensors
        that are on the parameter's device as they are, and writes into them from then on: for states just read.
        """
        # behind all hooks of users, which may change what is loaded
        handle = self.register_load_state_dict_pre_hook(partial(shielded, copy=copy))
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def __setstate__(self, state: dict[str, Any]) -> None:
        of = state.get("state", {})
        for group in state.get("param_groups", []):
            group.setdefault("weights", "plain")  # in pickles of before it was an option
        placed = {p: own.placed(p) if isinstance(own, Saved) else own for p, own in of.items()}
        super().__setstate__(state | {"state": defaultdict(dict, placed)})
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        own = ("_backend", "min_8bit_size", "_copies")
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    def _forget(self) -> None:
        """Forget what is remembered of parameters and their states."""
        self._places, self._whole, self._parts, self._options = None, _Memory(self._start), {}, []


class _Memory:
    """What is remembered from one step to the next: of the whole model, or of a part of it inside backward."""

    def __init__(self, start: Callable[[dict[str, Any], Tensor], None]) -> None:
        self.gather = Gatherer(start)
        self.steps = {name: make() for name, make in BACKENDS.items()}
