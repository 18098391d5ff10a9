"""The experiments on the digits: their optimizers beside the formulas, and what is made of their rows."""

import pytest
import torch

from benchmarks.accumulation import SumOfSquares
from benchmarks.anchor import Anchored, beside, rivals
from benchmarks.common.digits import FIGURES, differences, filled

RATES = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8}


def drawn(count, seed):
    return torch.randn(count, 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def adamw(grads, squares, decay_toward, weight_decay, start):
    """AdamW in float64: of gradients and of what its second moment takes, each [steps, n]."""
    p, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step, (g, square) in enumerate(zip(grads, squares, strict=True), 1):
        p = p - 1e-2 * weight_decay * (p - decay_toward)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * square
        p = p - 1e-2 * (m / (1 - 0.9**step)) / ((v / (1 - 0.99**step)).sqrt() + 1e-8)
    return p


def stepped(make, parts, most=None):
    """Weights that an optimizer steps by gradients [steps, micro-batches, n], clipped to a norm."""
    weight = torch.nn.Parameter(torch.ones(30, dtype=torch.float64))
    optimizer = make([weight])
    for step in parts:
        for part in step:
            (weight @ part).backward()
        if most:
            torch.nn.utils.clip_grad_norm_([weight], most)
        optimizer.step()
        weight.grad = None
    return weight.detach()


@pytest.mark.parametrize("weight_decay", [0.0, 0.5, 30.0])
def test_an_anchor_pulls_toward_where_weights_began(weight_decay):
    grads, start = drawn(12, 0), torch.ones(30, dtype=torch.float64)
    got = stepped(lambda weights: Anchored(weights, weight_decay=weight_decay, **RATES), grads[:, None])
    torch.testing.assert_close(got, adamw(grads, grads.square(), start, weight_decay, start))


@pytest.mark.parametrize("most", [None, 1.0])
@pytest.mark.parametrize("micro", [1, 4])
def test_the_second_moment_takes_squares_of_micro_batches(micro, most):
    parts = drawn(12 * micro, 1).view(12, micro, 30)
    sums, squares = parts.sum(1), parts.square().sum(1)
    clipped = (most / sums.norm(dim=1, keepdim=True)).clamp(max=1) if most else 1.0
    want = adamw(sums * clipped, squares * clipped**2, 0.0, 0.3, torch.ones(30, dtype=torch.float64))
    got = stepped(lambda weights: SumOfSquares(weights, weight_decay=0.3, **RATES), parts, most)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)  # clip_grad_norm_ adds 1e-6 to the norm


def test_rows_are_kept_and_nothing_begins_after_the_minutes(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.common.digits.Bench", lambda: None)
    columns, seen = ("kind", "seed", *FIGURES), []

    def run(bench, name, folder):
        seen.append(name)
        return [float(len(seen))] * len(FIGURES)

    wanted = [("a", "0"), ("b", "0")]
    filled(tmp_path / "rows.csv", columns, wanted[:1], run, minutes=1)
    rows = filled(tmp_path / "rows.csv", columns, wanted, run, minutes=1)
    assert seen == wanted
    assert rows == {("a", "0"): [1.0] * len(FIGURES), ("b", "0"): [2.0] * len(FIGURES)}
    assert filled(tmp_path / "rows.csv", columns, [("c", "0")], run, minutes=0) == rows


def test_differences_are_of_the_same_seed():
    rows = {("plain", "0"): [1.0, 4.0], ("plain", "1"): [3.0, 4.0], ("x", "0"): [2.0, 3.0], ("x", "1"): [6.0, 3.0]}
    rows[("y", "2")] = [9.0, 9.0]  # of a seed that no plain run has
    told = differences(rows, ("kind", "seed", *FIGURES[:2]), lambda of: ("plain",))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told]
    assert cells[0] == ["kind", "seeds", *FIGURES[:2]]
    assert cells[2:] == [["plain", "2", "2 ± 1", "4 ± 0"], ["x", "2", "+2 ± 1", "-1 ± 0"]]


def test_anchored_runs_are_compared_with_other_ways_of_holding_a_policy_back():
    assert rivals("200") == [("200", "", "0", "50"), ("200", "", "0", "100"), ("1000", "", "0", "150")]
    assert rivals("1000") == [("1000", "", "0", "50"), ("1000", "", "0", "100")]
    rows = {("200", "", "0", "50", "0"): [1.0] * 8, ("200", "reference", "667", "150", "0"): [3.0] * 8}
    rows |= {("1000", "reference", "667", "150", "0"): [7.0] * 8, ("200", "zero", "0.1", "150", "0"): [7.0] * 8}
    told = beside(rows, "200", ("200", "", "0", "50"))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told[2:]]
    assert cells == [["200", "", "0", "50", "1", *["1"] * 8], ["200", "reference", "667", "150", "1", *["+2"] * 8]]
