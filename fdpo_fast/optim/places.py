"""Where parameters stand in an optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any, NamedTuple

from torch import Tensor


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
