"""What AdamW8bit keeps, and what it refuses to step."""

import copy
import io

import pytest
import torch

from fdpo_fast import AdamW8bit
from tests.helpers.optimizers import OPTIONS, parameter, resumed, start, stepped


def test_an_optimizer_can_be_copied_and_pickled():
    start_at, states, grad = start(5000)
    p = parameter(start_at)
    optimizer = resumed(states, p, rounding="nearest")
    twin_p, twin = copy.deepcopy((p, optimizer))
    file = io.BytesIO()
    torch.save((p, optimizer), file)
    file.seek(0)
    saved_p, saved = torch.load(file, weights_only=False)
    want = stepped(optimizer, p, grad)
    assert torch.equal(stepped(twin, twin_p, grad), want)
    assert torch.equal(stepped(saved, saved_p, grad), want)


def test_refused_states_leave_everything_as_it_was():
    start_at, states, _ = start(5000)
    p = parameter(start_at)
    optimizer = resumed(states, p)
    wrong = copy.deepcopy(states)
    wrong["param_groups"][0]["lr"] = 7.0
    wrong["state"][0]["state1"] = wrong["state"][0]["state1"].bfloat16()
    with pytest.raises(ValueError, match="the saved state1 of parameter 0 does not fit"):
        optimizer.load_state_dict(wrong)
    assert optimizer.param_groups[0]["lr"] == OPTIONS["lr"]
    assert optimizer.state[p]["step"] == 3
    foreign = torch.optim.AdamW([p])
    foreign.step()
    with pytest.raises(ValueError, match="the saved state1"):
        optimizer.load_state_dict({**foreign.state_dict(), "state": {0: {"step": 1, "exp_avg": p}}})


def test_states_that_no_longer_fit_are_refused_before_memory_is_touched():
    p = parameter(torch.zeros(5000, dtype=torch.float32))
    optimizer = AdamW8bit([p])
    stepped(optimizer, p, torch.ones(5000, dtype=torch.float32))
    p.data = torch.zeros(6000, dtype=torch.float32)
    p.grad = torch.ones(6000, dtype=torch.float32)
    with pytest.raises(ValueError, match="parameter 0 has 6000 elements on cpu, its states 5000 on cpu"):
        optimizer.step()


def test_a_step_inside_backward_sees_new_options():
    p = parameter(torch.zeros(100, dtype=torch.float32))
    optimizer = AdamW8bit([p], lr=1.0)
    p.grad = torch.ones(100, dtype=torch.float32)
    optimizer.step_parameter(p)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 0.0
    before = p.detach().clone()
    optimizer.step_parameter(p)
    assert torch.equal(p, before)


def test_a_backward_through_moved_weights_is_refused():
    p = parameter(torch.ones(100, dtype=torch.float32))
    loss = p.square().sum()
    loss.backward(retain_graph=True)
    AdamW8bit([p]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_small_rates_still_decay():
    """A decay of lr * weight_decay = 1e-8 is nothing as a factor 1 - 1e-8 in float32; it counts within the update."""
    torch.manual_seed(0)
    values, grads = torch.rand(8192, dtype=torch.float32) / 2 + 0.5, torch.randn(100, 8192, dtype=torch.float32)
    ends = []
    for weight_decay in (0.0, 1e-2):
        p = parameter(values)
        optimizer = AdamW8bit([p], lr=1e-6, weight_decay=weight_decay)
        ends.append(stepped(optimizer, p, *grads).detach().double())
    assert (ends[1] - ends[0]).mean().item() == pytest.approx(-100 * 1e-8 * values.mean().item(), rel=0.2)


def test_groups_and_lazy_conjugation():
    small, large, frozen = (parameter(torch.ones(n, dtype=torch.float32)) for n in (10, 5000, 7))
    groups = [{"params": [small], "lr": 0.0}, {"params": [large, frozen]}]
    optimizer = AdamW8bit(groups, lr=0.1, betas=[0.9, 0.99])
    small.grad, large.grad = torch.ones(10, dtype=torch.float32), torch._neg_view(torch.ones(5000, dtype=torch.float32))
    optimizer.step()
    assert torch.equal(small, torch.ones(10, dtype=torch.float32))
    assert (large > 1).all()
    assert torch.equal(frozen, torch.ones(7, dtype=torch.float32))
    added = parameter(torch.ones(5, dtype=torch.float32))
    optimizer.add_param_group({"params": [added]})
    added.grad = torch.ones(5, dtype=torch.float32)
    optimizer.step()
    assert (added < 1).all()
    with pytest.raises(ValueError, match="min_8bit_size is an option of the optimizer"):
        optimizer.add_param_group({"params": [parameter(torch.ones(3, dtype=torch.float32))], "min_8bit_size": 1})
    with pytest.raises(ValueError, match="first_element must be a multiple of 8"):
        optimizer.add_param_group({"params": [parameter(torch.ones(3, dtype=torch.float32))], "first_element": -8})
    assert len(optimizer.param_groups) == 3


def test_a_wrong_gradient_is_refused_before_anything_moves():
    good, bad = (
        parameter(torch.ones(5, dtype=torch.float32)),
        parameter(torch.ones(5, dtype=torch.float32), torch.float64),
    )
    optimizer = AdamW8bit([good, bad])
    good.grad, bad.grad = torch.ones(5, dtype=torch.float32), torch.ones(5, dtype=torch.float64)
    with pytest.raises(TypeError, match="gradients must be dense"):
        optimizer.step()
    assert not optimizer.state
    assert torch.equal(good, torch.ones(5, dtype=torch.float32))


@pytest.mark.parametrize("copied", [True, False])
def test_loaded_states_are_copied_unless_told_otherwise(copied):
    start_at, saved, grad = start(5000)
    p, before = parameter(start_at), copy.deepcopy(saved["state"][0])
    optimizer = AdamW8bit([p])
    optimizer.load_state_dict(saved, copy=copied)
    stepped(optimizer, p, grad)
    for name in ("state1", "absmax1"):
        assert torch.equal(saved["state"][0][name], before[name]) == copied
        assert torch.equal(saved["state"][0][name], optimizer.state[p][name]) != copied


def test_a_parameter_whose_elements_share_memory_is_refused_before_anything_moves():
    expanded = torch.nn.Parameter(torch.zeros(1, dtype=torch.float32).expand(5000))
    optimizer = AdamW8bit([expanded])
    expanded.grad = torch.ones(5000, dtype=torch.float32)
    with pytest.raises(TypeError, match="an expanded view"):
        optimizer.step()
    assert not optimizer.state


def test_a_copy_without_memory_or_with_a_lazy_sign_is_refused():
    master = parameter(torch.ones(8, dtype=torch.float32))
    optimizer = AdamW8bit([master])
    with pytest.raises(ValueError, match="a copy must be bfloat16, contiguous"):
        optimizer.keep_copy(master, torch._neg_view(torch.zeros(8, dtype=torch.bfloat16)))
    copy = torch.zeros(8, dtype=torch.bfloat16)
    optimizer.keep_copy(master, copy)
    copy.untyped_storage().resize_(0)
    master.grad = torch.ones(8, dtype=torch.float32)
    with pytest.raises(ValueError, match="copy was freed"):
        optimizer.step()


def test_a_step_that_ran_out_of_memory_can_be_tried_again(monkeypatch):
    weight = parameter(torch.ones(8, dtype=torch.float32))
    optimizer, zeros, calls = AdamW8bit([weight]), torch.zeros, []

    def scarce(*sizes, **options):
        calls.append(sizes)
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        return zeros(*sizes, **options)

    weight.grad = torch.ones(8, dtype=torch.float32)
    monkeypatch.setattr(torch, "zeros", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        optimizer.step()
    optimizer.step()
    assert optimizer.state[weight]["step"] == 1
