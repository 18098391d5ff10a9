"""What the optimizer's backends are told at a step: columns of tensors, their addresses, and all checks of them.

A model of 1,680 tensors takes as many turns of whatever is asked of each, so it is asked column by column, at the speed
of `map`. Addresses, sizes and dtypes are read at every step, since gradients, loaded states and moved weights come with
others; what takes more asking is remembered for as long as the same objects have the same addresses.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from itertools import compress
from operator import is_, itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdpo_fast.optim.checks import check_states, copy_at
from fdpo_fast.optim.eager import DTYPES
from fdpo_fast.optim.update import Columns, Kind, Rule, Updates

State = dict[str, Any]


class Places(NamedTuple):
    """Parameters with the place of each in the optimizer, by columns."""

    parameters: list[Tensor]
    groups: list[int]  # of `param_groups`
    numbers: Sequence[int]

    @classmethod
    def of(cls, param_groups: list[dict[str, Any]]) -> Places:
        """List all parameters of the groups, anew at every step: ZeRO puts other tensors into the groups."""
        parameters = [p for group in param_groups for p in group["params"]]
        groups = [number for number, group in enumerate(param_groups) for _ in group["params"]]
        return cls(parameters, groups, range(len(parameters)))

    def where(self, chosen: list[bool]) -> Places:
        """Take the parameters that are chosen."""
        parameters, groups, numbers = self
        return Places(
            list(compress(parameters, chosen)), list(compress(groups, chosen)), list(compress(numbers, chosen))
        )


class _Known(NamedTuple):
    """What stands as long as the same tensors have the same addresses. They are kept: an id may be used again."""

    tensors: list[Tensor]
    addresses: array[int]
    besides: tuple  # and these are as they were
    result: Any

    def of(self, tensors: list[Tensor], addresses: array[int], besides: tuple) -> bool:
        """Say whether this was found of these tensors at these addresses."""
        same = addresses == self.addresses and besides == self.besides and len(tensors) == len(self.tensors)
        return same and all(map(is_, tensors, self.tensors))


_NOTHING = _Known([], array("q"), (), None)


class _Group(NamedTuple):
    """The parameters of one kind, with what is the same at every step as long as nothing has moved."""

    kind: Kind
    pick: Callable[[Sequence], Sequence]  # its own out of a column
    tensors: Columns[Sequence[Tensor]]  # those of `Updates`; nothing in place of gradients, which each step has anew
    addresses: Columns[array[int]]
    counts: array[int]
    indices: array[int]


class Gatherer:
    """A maker of `Updates` of parameters and their states, one for each kind.

    Args:
        start: makes the states of a parameter that has none.
    """

    def __init__(self, start: Callable[[State, Tensor], None]) -> None:
        self._start = start
        self._weights = self._states = self._groups = _NOTHING
        self._moments: _Moments | None = None  # that the groups were made of

    def __call__(
        self,
        places: Places,
        grads: list[Tensor | None],
        param_groups: list[dict[str, Any]],
        state: dict[Tensor, State],
        copies: dict[Tensor, Tensor],
    ) -> tuple[list[Updates], list[tuple[Tensor, Tensor]], list[Tensor]]:
        """Return the updates of the parameters that have a gradient, after all checks; their steps are counted.

        Also the parameters that do not lie as they read, each with the copy that is stepped in its place; and all.
        """
        counts = array("q", map(Tensor.numel, places.parameters))
        given = [grad for grad in grads if grad is not None]
        if len(given) < len(grads) or 0 in counts:
            live = [grad is not None and count > 0 for grad, count in zip(grads, counts, strict=True)]
            given = [grad for grad in compress(grads, live) if grad is not None]
            places, counts = places.where(live), array("q", compress(counts, live))
        if not given:
            return [], [], []
        parameters = places.parameters
        data, data_at, devices, odd = self._of_weights(places)
        dtypes = [p.dtype for p in parameters]
        given, given_at, grad_dtypes = _of_gradients(given, counts, devices, places.numbers)
        states = list(map(state.__getitem__, parameters))
        if not all(states):
            for parameter, own in zip(parameters, states, strict=True):
                if not own:
                    self._start(own, parameter)
        moments = self._of_states(states, counts, devices, places.numbers)
        mirrors = list(map(copies.get, parameters)) if copies else []
        mirrors_at = array("q", map(copy_at, parameters, mirrors)) if copies else array("q")
        rounding = [group["rounding"] == "stochastic" for group in param_groups]
        besides = (devices, dtypes, grad_dtypes, mirrors_at, places.groups, places.numbers, rounding)
        if odd or moments is not self._moments or not self._groups.of(data, data_at, besides):
            kinds = _by_kind(devices, dtypes, grad_dtypes, moments.dtypes, mirrors, places.groups, rounding)
            m, v, absmax_m, absmax_v = moments.tensors
            columns: Columns[Sequence] = Columns(data, given, m, v, absmax_m, absmax_v, mirrors)
            m_at, v_at, absmax_m_at, absmax_v_at = moments.addresses
            at = Columns(data_at, given_at, m_at, v_at, absmax_m_at, absmax_v_at, mirrors_at)
            made = [_grouped(kind, positions, columns, at, counts, places.numbers) for kind, positions in kinds]
            self._groups, self._moments = _Known(data, data_at, besides, made), moments

        steps = [own["step"] + 1 for own in states]
        together = len(set(steps)) == 1
        keys: list[Any] = places.groups if together else list(zip(places.groups, steps, strict=True))
        order = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        of_step: list[tuple[int, int]] = [(key, steps[0]) if together else key for key in order]
        rules = [Rule.of(param_groups[group], step) for group, step in of_step]
        rule_of = list(map(order.__getitem__, keys))
        updates = [_now(group, given, given_at, rule_of, rules) for group in self._groups.result]
        for own, step in zip(states, steps, strict=True):
            own["step"] = step
        return updates, [(parameters[at], data[at]) for at in odd], parameters

    def _of_weights(self, places: Places) -> tuple[list[Tensor], array[int], list[torch.device], list[int]]:
        """Return the parameters as they will be stepped, their addresses and devices, and which are copies."""
        parameters = places.parameters
        addresses = array("q", map(Tensor.data_ptr, parameters))
        if 0 in addresses:
            kind = type(parameters[addresses.index(0)]).__name__
            raise TypeError(f"a parameter of type {kind} holds no memory of its own: step its local tensor")
        if not self._weights.of(parameters, addresses, ()):
            result = [p.device for p in parameters], _odd(parameters)
            self._weights = _Known(parameters, addresses, (), result)
        devices, odd = self._weights.result
        return *_plain(parameters, addresses, odd), devices, odd

    def _of_states(
        self, states: list[State], counts: array[int], devices: list[torch.device], numbers: Sequence[int]
    ) -> _Moments:
        """Return both moments and the absmax of both, after checks where they are others than before."""
        tensors = [t for own in states for t in (_coded(own) if "absmax1" in own else _single(own))]
        addresses = array("q", map(Tensor.data_ptr, tensors))
        if not self._states.of(tensors, addresses, (counts, devices)):
            columns = [[own.get(name) for own in states] for name in ("state1", "state2", "absmax1", "absmax2")]
            dtypes = [check_states(*row) for row in zip(*columns, counts, devices, numbers, strict=True)]
            at = [array("q", [0 if t is None else t.data_ptr() for t in column]) for column in columns]
            self._states = _Known(tensors, addresses, (counts, devices), _Moments(columns, at, dtypes))
        return self._states.result


class _Moments(NamedTuple):
    """The columns of m, v and the absmax of both, with None where there is no absmax."""

    tensors: list[list[Any]]
    addresses: list[array[int]]
    dtypes: list[torch.dtype]


_coded, _single = itemgetter("state1", "state2", "absmax1", "absmax2"), itemgetter("state1", "state2")


def _by_kind(
    devices: list[torch.device],
    dtypes: list[torch.dtype],
    grad_dtypes: list[torch.dtype],
    state_dtypes: list[torch.dtype],
    mirrors: list[Tensor | None],
    groups: list[int],
    rounding: list[bool],
) -> list[tuple[Kind, list[int]]]:
    """List the kinds that there are, with the positions of each."""
    positions: dict[Kind, list[int]] = {}
    rows = zip(devices, dtypes, grad_dtypes, state_dtypes, mirrors or [None] * len(dtypes), groups, strict=True)
    for at, (device, dtype, grad_dtype, state_dtype, copy, group) in enumerate(rows):
        rounds = rounding[group] and dtype != torch.float32
        positions.setdefault(Kind(device, dtype, grad_dtype, state_dtype, copy is not None, rounds), []).append(at)
    return list(positions.items())


def _grouped(
    kind: Kind,
    positions: list[int],
    columns: Columns[Sequence],
    addresses: Columns[array[int]],
    counts: array[int],
    numbers: Sequence[int],
) -> _Group:
    def pick(column: Sequence) -> Sequence:
        return chosen(column) if len(positions) > 1 else (chosen(column),)

    def pick_numbers(column: Sequence[int]) -> array[int]:
        return array("q", pick(column))

    chosen = itemgetter(*positions)
    return _Group(
        kind,
        pick,
        columns.of(kind).map(pick)._replace(grad=()),
        addresses.of(kind).map(pick_numbers)._replace(grad=array("q")),
        pick_numbers(counts),
        pick_numbers(numbers),
    )


def _now(group: _Group, grads: list[Tensor], grads_at: array[int], rule_of: list[int], rules: list[Rule]) -> Updates:
    """Return what a kind's parameters are told at this step."""
    kind, pick, tensors, addresses, counts, indices = group
    tensors, addresses = tensors._replace(grad=pick(grads)), addresses._replace(grad=array("q", pick(grads_at)))
    return Updates(kind, tensors, addresses, counts, indices, array("q", pick(rule_of)), rules)


def _odd(tensors: list[Tensor]) -> list[int]:
    """List the positions of tensors that do not lie as they read: not contiguous, or with a sign applied lazily."""
    if all(map(Tensor.is_contiguous, tensors)) and not any(map(Tensor.is_neg, tensors)):
        return []
    return [at for at, tensor in enumerate(tensors) if not tensor.is_contiguous() or tensor.is_neg()]


def _plain(tensors: list[Tensor], addresses: array[int], odd: list[int]) -> tuple[list[Tensor], array[int]]:
    """Return the tensors and their addresses, with contiguous copies of those that are odd."""
    if odd:
        tensors, addresses = tensors.copy(), addresses[:]
        for at in odd:
            tensors[at] = tensors[at].detach().resolve_neg().contiguous()
            addresses[at] = tensors[at].data_ptr()
    return tensors, addresses


def _of_gradients(
    grads: list[Tensor], counts: array[int], devices: list[torch.device], numbers: Sequence[int]
) -> tuple[list[Tensor], array[int], list[torch.dtype]]:
    """Return the gradients as they will be read, their addresses and dtypes."""
    dtypes = [grad.dtype for grad in grads]
    if not set(dtypes).issubset(DTYPES) or {grad.layout for grad in grads} != {torch.strided}:
        for grad in grads:
            if grad.layout != torch.strided or grad.dtype not in DTYPES:
                raise TypeError(
                    f"gradients must be dense float32, bfloat16 or float16, got {grad.dtype}, {grad.layout}"
                )
    addresses = array("q", map(Tensor.data_ptr, grads))
    if array("q", map(Tensor.numel, grads)) != counts or 0 in addresses:
        for grad, count, address, number in zip(grads, counts, addresses, numbers, strict=True):
            if grad.numel() != count or not address:
                raise ValueError(
                    f"the gradient of parameter {number} has {grad.numel() if address else 0} elements in memory for "
                    f"its {count}: clear gradients before parameters change their size"
                )
    if len({*map(Tensor.get_device, grads), *map(_index, set(devices))}) > 1:
        for grad, device, number in zip(grads, devices, numbers, strict=True):
            if grad.device != device:
                raise ValueError(f"the gradient of parameter {number} is on {grad.device}, the parameter on {device}")
    return *_plain(grads, addresses, _odd(grads)), dtypes


def _index(device: torch.device) -> int:
    """Return the number of a device as `Tensor.get_device` has it."""
    return -1 if device.index is None else device.index
