"""The order of training: every pair in its turn, one shape to a step, a function of seed and step."""

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from fdpo_fast.training.order import PairOrder


def one_shape(pairs, per_step, seed=1):
    return PairOrder(torch.zeros(pairs, 2, dtype=torch.int64), per_step, seed)


def test_all_pairs_are_seen_before_any_is_seen_again():
    walk = one_shape(10, 5)
    positions, epochs = (torch.cat(parts) for parts in zip(*(walk.step(step) for step in range(5)), strict=True))
    assert sorted(positions[:10].tolist()) == sorted(positions[10:20].tolist()) == list(range(10))
    assert epochs.tolist() == [0] * 10 + [1] * 10 + [2] * 5
    assert positions[:10].tolist() != positions[10:20].tolist()


def test_the_size_of_a_step_cuts_one_and_the_same_walk():
    small, large = one_shape(7, 2), one_shape(7, 6)
    for part in (0, 1):
        pieces = torch.cat([small.step(step)[part] for step in range(9)])
        assert torch.equal(pieces, torch.cat([large.step(step)[part] for step in range(3)]))


def test_seeds_differ_and_repeat():
    first, again, other = (one_shape(50, 50, seed).step(0)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_more_pairs_to_a_step_than_there_are():
    positions, epochs = one_shape(3, 8).step(0)
    assert sorted(Counter(positions.tolist()).values()) == [2, 3, 3]
    assert epochs.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


@given(
    counts=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    per_step=st.integers(1, 8),
    seed=st.integers(0, 5),
)
def test_shapes_take_turns_in_proportion(counts, per_step, seed):
    shapes = torch.tensor([[number, 1] for number, count in enumerate(counts) for _ in range(count)])
    walk, steps = PairOrder(shapes, per_step, seed), 60
    seen, turns = Counter(), Counter()
    for step in range(steps):
        positions, epochs = walk.step(step)
        assert len(torch.unique(shapes[positions], dim=0)) == 1
        turns[int(shapes[positions[0], 0])] += 1
        for position, epoch in zip(positions.tolist(), epochs.tolist(), strict=True):
            assert epoch == seen[position]  # visits of a pair count up without a gap
            seen[position] += 1
    for number, count in enumerate(counts):
        assert abs(turns[number] - steps * count / sum(counts)) <= len(counts)
    late = PairOrder(shapes, per_step, seed)
    assert torch.equal(late.step(steps - 1)[0], positions)  # a resumed run needs no history
