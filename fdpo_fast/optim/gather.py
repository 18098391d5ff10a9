"""What the optimizer's backends are told at a step: columns of tensors, their addresses, and all checks of them.

A model of 1,680 tensors takes as many turns of whatever is asked of each, so it is asked column by column, at the speed
of `map`. Addresses, sizes and dtypes are read at every step, since gradients, loaded states and moved weights come with
others; what takes more asking is remembered for as long as the same objects have the same addresses.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from itertools import compress, repeat
from operator import is_, itemgetter, not_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdpo_fast.optim import low_byte, sharded
from fdpo_fast.optim.checks import (
    DTYPES,
    blocks_of,
    check_addresses,
    check_gradients,
    check_parameters,
    check_states,
    copy_at,
    plain,
)
from fdpo_fast.optim.kinds import by_kind, grouped, now
from fdpo_fast.optim.places import Places
from fdpo_fast.optim.update import WEIGHTS, Columns, Rule, Updates

State = dict[str, Any]


class _Known(NamedTuple):
    """What stands as long as the same tensors have the same addresses. They are kept: an id may be used again."""

    tensors: list[Tensor]
    addresses: array[int]
    besides: tuple  # and these are as they were
    result: Any

    def of(self, tensors: list[Tensor], addresses: array[int], besides: tuple) -> bool:
        """Say whether this was found of these tensors at these addresses."""
        return addresses == self.addresses and besides == self.besides and self.same(tensors)

    def same(self, tensors: list[Tensor]) -> bool:
        """Say whether this was found of these tensors, wherever they are now."""
        return len(tensors) == len(self.tensors) and all(map(is_, tensors, self.tensors))


_NOTHING = _Known([], array("q"), (), None)


class Gathered(NamedTuple):
    """What a step does, after all checks, and what is left to do behind it."""

    updates: list[Updates]  # one for each kind
    replaced: list[tuple[Tensor, Tensor]]  # parameters that do not lie as they read, with the copies that are stepped
    stepped: list[Tensor]
    states: list[State]  # whose steps are to be counted


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
    ) -> Gathered:
        """Return the updates of the parameters that have a gradient; nothing but new states has changed until then."""
        given = [grad for grad in grads if grad is not None]
        if len(given) < len(grads):
            places = places.where([grad is not None for grad in grads])
        whole, wide = places.parameters, [group["weights"] != "plain" for group in param_groups]
        parts, given, firsts = _on_this_rank(places, given, param_groups)
        counts, idle = array("q", map(Tensor.numel, parts)), places.where([])
        if 0 in counts:  # nothing to step, but a step all the same
            live = list(map(bool, counts))
            idle = places.where(list(map(not_, live)))
            places, parts, given = places.where(live), list(compress(parts, live)), list(compress(given, live))
            firsts = None if firsts is None else list(compress(firsts, live))
            whole, counts = places.parameters, array("q", filter(None, counts))
        if not given:
            return Gathered([], [], [], self._states_of(idle, state, wide))
        data, data_at, devices, odd = self._of_weights(parts, places.numbers)
        dtypes = [part.dtype for part in parts]
        if not set(dtypes).issubset(DTYPES):
            check_parameters(parts)
        grad_dtypes = check_gradients(given, parts, devices, places.numbers)
        grads_at = array("q", map(Tensor.data_ptr, given))
        check_addresses(grads_at, "the gradient of parameter", places.numbers)
        given, grads_at = _plain(given, grads_at, _odd(given))
        states = self._states_of(places, state, wide)
        blocks = None if firsts is None else [sharded.blocks(*row) for row in zip(whole, counts, strict=True)]
        moments = self._of_states(states, counts, blocks, devices, places.numbers)
        mirrors = list(map(copies.get, whole)) if copies else []
        mirrors_at = array("q", map(copy_at, parts, mirrors)) if copies else array("q")
        rounding = [group["rounding"] == "stochastic" for group in param_groups]
        besides = (devices, dtypes, grad_dtypes, mirrors_at, places.groups, places.numbers, rounding, counts)
        if odd or moments is not self._moments or not self._groups.of(data, data_at, besides):
            m, v, absmax_m, absmax_v, low = moments.tensors
            kinds = by_kind(devices, dtypes, grad_dtypes, moments.dtypes, mirrors, low, places.groups, rounding)
            columns: Columns[Sequence] = Columns(data, given, m, v, absmax_m, absmax_v, mirrors, low)
            m_at, v_at, absmax_m_at, absmax_v_at, low_at = moments.addresses
            at = Columns(data_at, grads_at, m_at, v_at, absmax_m_at, absmax_v_at, mirrors_at, low_at)
            made = [grouped(kind, positions, columns, at, counts, places.numbers) for kind, positions in kinds]
            self._groups, self._moments = _Known(data, data_at, besides, made), moments

        uncounted = states + self._states_of(idle, state, wide)
        _check_steps(uncounted)
        rule_of, rules = _rules(states, places.groups, firsts, param_groups)
        updates = [now(group, given, grads_at, rule_of, rules) for group in self._groups.result]
        return Gathered(updates, [(parts[at], data[at]) for at in odd], parts, uncounted)

    def _states_of(self, places: Places, state: dict[Tensor, State], wide: list[bool]) -> list[State]:
        """Return the states of parameters, made where there are none yet; `wide`: which groups have 24-bit weights."""
        parameters = places.parameters
        states = list(map(state.__getitem__, parameters))
        if not all(states):
            for parameter, own in zip(parameters, states, strict=True):
                if not own:
                    self._start(own, parameter)
        low_byte.fit(parameters, states, list(map(wide.__getitem__, places.groups)))
        return states

    def _of_weights(
        self, parameters: list[Tensor], numbers: Sequence[int]
    ) -> tuple[list[Tensor], array[int], list[torch.device], list[int]]:
        """Return the parameters as they will be stepped, their addresses and devices, and which are copies."""
        if not self._weights.same(parameters):
            check_parameters(parameters)
        addresses = array("q", map(Tensor.data_ptr, parameters))
        if not self._weights.of(parameters, addresses, ()):
            check_parameters(parameters)  # their dtypes may be others too
            check_addresses(addresses, "parameter", numbers)
            self._weights = _Known(parameters, addresses, (), [p.device for p in parameters])
        devices, odd = self._weights.result, _odd(parameters)
        return *_plain(parameters, addresses, odd), devices, odd

    def _of_states(
        self,
        states: list[State],
        counts: array[int],
        blocks: list[int] | None,
        devices: list[torch.device],
        numbers: Sequence[int],
    ) -> _Moments:
        """Return both moments and the absmax of both, after checks where they are others than before.

        blocks: of the parameters' 8-bit states, where these are split over ranks.
        """
        try:
            tensors = [t for own in states for t in (_coded(own) if "absmax1" in own else _single(own))]
            tensors += [own[low_byte.NAME] for own in states if low_byte.NAME in own]
        except KeyError as error:
            raise ValueError(f"a parameter's states lack {error}: load them by load_state_dict") from None
        if blocks is not None:
            tensors = list(map(sharded.part, tensors))
        besides = counts, devices
        known = self._states.same(tensors)
        if not known or not self._states.of(tensors, array("q", map(Tensor.data_ptr, tensors)), besides):
            columns = [[sharded.part(own.get(name)) for own in states] for name in STATES]
            rows = zip(*columns, counts, blocks or map(blocks_of, counts), devices, numbers, strict=True)
            dtypes = [check_states(*row) for row in rows]
            at = [array("q", [0 if t is None else t.data_ptr() for t in column]) for column in columns]
            addresses = array("q", map(Tensor.data_ptr, tensors))
            if 0 in addresses:  # one without memory; those that are not there have none in their column
                for column, ats in zip(columns, at, strict=True):
                    there = [1 if t is None else address for t, address in zip(column, ats, strict=True)]
                    check_addresses(there, "the state of parameter", numbers)
            self._states = _Known(tensors, addresses, besides, _Moments(columns, at, dtypes))
        return self._states.result


class _Moments(NamedTuple):
    """The columns of m, v, the absmax of both and the low byte, with None where there is no absmax or low byte."""

    tensors: list[list[Any]]
    addresses: list[array[int]]
    dtypes: list[torch.dtype]


_coded, _single = itemgetter("state1", "state2", "absmax1", "absmax2"), itemgetter("state1", "state2")
STATES = ("state1", "state2", "absmax1", "absmax2", low_byte.NAME)


def _on_this_rank(
    places: Places, grads: list[Tensor], param_groups: list[dict[str, Any]]
) -> tuple[list[Tensor], list[Tensor], list[int] | None]:
    """Return what is stepped of parameters, by which gradients; where some are split, the first element of each."""
    parameters = places.parameters
    if plain(parameters) or not any(map(sharded.is_sharded, parameters)):
        return parameters, grads, None
    sharded.check_gradients(parameters, grads, places.numbers)
    together = [WEIGHTS[group["weights"]] for group in param_groups]
    firsts = list(map(sharded.first_element, parameters, [together[group] for group in places.groups]))
    return list(map(sharded.part, parameters)), list(map(sharded.part, grads)), firsts


def _check_steps(states: list[State]) -> None:
    """Raise ValueError for a count of steps that is none."""
    counts = [own.get("step") for own in states]
    if set(map(type, counts)) != {int}:
        wrong = next(type(count).__name__ for count in counts if type(count) is not int)
        raise ValueError(f"a parameter's state counts its steps by {wrong}, not int: load states by load_state_dict")


def _rules(
    states: list[State], groups: list[int], firsts: list[int] | None, param_groups: list[dict[str, Any]]
) -> tuple[list[int], list[Rule]]:
    """Return the number of each parameter's rule, and the rules."""
    steps = [own["step"] + 1 for own in states]
    together = firsts is None and len(set(steps)) == 1
    keys: list[Any] = groups if together else list(zip(groups, steps, firsts or repeat(0), strict=False))
    order = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    of: list[tuple[int, int, int]] = [(key, steps[0], 0) if together else key for key in order]
    return list(map(order.__getitem__, keys)), [Rule.of(param_groups[group], step, first) for group, step, first in of]


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
