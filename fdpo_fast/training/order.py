"""The order of training: an endless walk over the pairs that depends on seed and step alone."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


class PairOrder:
    """Which pairs make up optimizer step s, and on which visit.

    The pairs of one shape are shuffled anew each time they have all been seen. Where there are several shapes (aspect
    ratio buckets), a step is of one shape, each taking its turn as often as it has pairs. Rank count, micro-batch and
    accumulation have no part in it: they only cut the step up.
    """

    def __init__(self, shapes: Tensor, pairs_per_step: int, seed: int) -> None:
        """Take the shapes [pairs, k] int64, whose rows are equal where latents have one shape."""
        _, group = torch.unique(shapes, dim=0, return_inverse=True)
        self.groups = [torch.nonzero(group == number).flatten() for number in range(int(group.max()) + 1)]
        self.pairs_per_step, self.seed = pairs_per_step, seed
        self.turns: list[tuple[int, int]] = []  # (group, how often it has had its turn) by step
        self.taken = [0] * len(self.groups)

    @property
    def rare(self) -> int:
        """Count pairs in shapes with fewer pairs than a step has: such a step holds some of them several times."""
        return sum(len(group) for group in self.groups if len(group) < self.pairs_per_step)

    def _turn(self, step: int) -> tuple[int, int]:
        total = sum(len(group) for group in self.groups)
        while len(self.turns) <= step:
            due = [(len(self.turns) + 1) * len(g) / total - t for g, t in zip(self.groups, self.taken, strict=True)]
            number = due.index(max(due))
            self.turns.append((number, self.taken[number]))
            self.taken[number] += 1
        return self.turns[step]

    def step(self, step: int) -> tuple[Tensor, Tensor]:
        """Return (positions, epochs), each [pairs_per_step] int64: epochs count how often a pair was seen before."""
        number, turn = self._turn(step)
        group, first = self.groups[number], turn * self.pairs_per_step
        draws = [divmod(draw, len(group)) for draw in range(first, first + self.pairs_per_step)]
        at = torch.tensor(
            [int(_shuffled(len(group), self.seed, number, epoch)[place]) for epoch, place in draws],
            dtype=torch.int64,
            device="cpu",
        )
        return group[at], torch.tensor([epoch for epoch, _ in draws], dtype=torch.int64, device="cpu")


@lru_cache(maxsize=64)
def _shuffled(count: int, seed: int, group: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) * 1_009 + group)
    return torch.randperm(count, generator=generator, dtype=torch.int64, device="cpu")
