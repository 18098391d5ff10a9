"""The low byte among the states: saved, loaded, wanted and not, here and in bitsandbytes."""

import copy
import io

import pytest
import torch

from fdpo_fast import AdamW8bit
from fdpo_fast.optim import in_backward
from fdpo_fast.optim.in_backward import StepInBackward
from tests.helpers.backends import FUSED
from tests.helpers.optimizers import parameter, stepped

N = 5000
WIDE = {"weights": "bf16+8", "lr": 1e-3, "seed": 3}


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return parameter(torch.randn(N, generator=generator, dtype=torch.float32).bfloat16())


def gradients(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(N, generator=generator, dtype=torch.float32).bfloat16() for _ in range(count)]


def behind(steps, **options):
    p = weights()
    optimizer = AdamW8bit([p], **WIDE | options)
    stepped(optimizer, p, *gradients(4)[:steps])
    return p, optimizer


def saved_and_read(of):
    file = io.BytesIO()
    torch.save(of, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def same(one, other):
    """Whether two (parameter, optimizer) have the same weights and states."""
    (p, optimizer), (q, twin) = one, other
    ours, theirs = optimizer.state[p], twin.state[q]
    assert ours.keys() == theirs.keys()
    tensors = [name for name, value in ours.items() if isinstance(value, torch.Tensor)]
    return torch.equal(p, q) and all(torch.equal(ours[name], theirs[name]) for name in tensors)


def test_a_resumed_run_is_the_same_run():
    whole = behind(4)
    p, optimizer = behind(2)
    assert optimizer.state[p]["low"].any()
    q = parameter(p.detach())
    resumed = AdamW8bit([q])  # the option is in the state dict
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    stepped(resumed, q, *gradients(4)[2:])
    assert resumed.param_groups[0]["weights"] == "bf16+8"
    assert same((q, resumed), whole)


def test_an_optimizer_can_be_copied_and_pickled():
    p, optimizer = behind(2)
    for q, twin in (copy.deepcopy((p, optimizer)), saved_and_read((p, optimizer))):
        stepped(twin, q, *gradients(4)[2:])
        assert same((q, twin), behind(4))


def test_a_pickle_of_before_the_option_steps_plain_weights():
    p, optimizer = behind(2, weights="plain")
    for group in optimizer.param_groups:
        del group["weights"]
    q, twin = saved_and_read((p, optimizer))
    stepped(twin, q, *gradients(4)[2:])
    assert same((q, twin), behind(4, weights="plain"))


def test_states_of_before_the_option_start_with_zeros():
    p, before = behind(2, weights="plain")
    saved = copy.deepcopy(before.state_dict())
    del saved["param_groups"][0]["weights"]
    saved["param_groups"][0]["rounding"] = "nearest"
    q = parameter(p.detach())
    optimizer = AdamW8bit([q], **WIDE)
    optimizer.load_state_dict(saved)
    stepped(optimizer, q, torch.zeros(N, dtype=torch.float32))
    assert optimizer.state[q]["step"] == 3
    assert optimizer.state[q]["low"].dtype == torch.int8
    r = parameter(p.detach().float())  # what float32 does from there, to half a unit of 24 bits
    exact = AdamW8bit([r], lr=1e-3)
    exact.load_state_dict(copy.deepcopy(saved))
    stepped(exact, r, torch.zeros(N, dtype=torch.float32))
    value = q.detach().float().view(torch.int32) + (optimizer.state[q]["low"].int() << 8)
    assert ((value - r.detach().view(torch.int32)).abs() <= 128).all()


def test_states_of_before_the_option_number_elements_anew():
    """ZeRO had numbered them by multiples of 8; an optimizer of 24 bits has its own place in the larger tensor."""
    _, before = behind(1, weights="plain")
    saved = before.state_dict()
    saved["param_groups"][0] = {k: v for k, v in saved["param_groups"][0].items() if k != "weights"}
    saved["param_groups"][0]["first_element"] = 5000
    p = weights()
    optimizer = AdamW8bit([{"params": [p], "first_element": 5008}], **WIDE)
    optimizer.load_state_dict(copy.deepcopy(saved))
    assert optimizer.param_groups[0]["first_element"] == 5008
    plain = AdamW8bit([weights()])
    plain.load_state_dict(copy.deepcopy(saved))
    assert plain.param_groups[0]["first_element"] == 5000


def test_the_option_can_be_switched_at_any_step():
    p, optimizer = behind(2)
    optimizer.param_groups[0]["weights"] = "plain"
    rounded = p.detach().clone()
    stepped(optimizer, p, gradients(4)[2])
    assert "low" not in optimizer.state[p]
    q = parameter(rounded)
    plain = AdamW8bit([q], **WIDE | {"weights": "plain"})
    states = behind(2)[1].state_dict()
    states["param_groups"][0]["weights"] = "plain"
    plain.load_state_dict(states)
    stepped(plain, q, gradients(4)[2])
    assert same((p, optimizer), (q, plain))
    optimizer.param_groups[0]["weights"] = "bf16+8"
    stepped(optimizer, p, gradients(4)[3])
    assert optimizer.state[p]["low"].any()


def test_states_go_to_bitsandbytes_which_carries_the_byte_along_and_back():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    p, optimizer = behind(2)
    q = parameter(p.detach())
    theirs = bitsandbytes.optim.AdamW8bit([q], lr=1e-3)
    theirs.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for name in ("state1", "state2", "absmax1", "absmax2"):
        assert torch.equal(theirs.state[q][name], optimizer.state[p][name])
    stepped(theirs, q, gradients(4)[2])
    assert (q != p).any()
    saved = copy.deepcopy(theirs.state_dict())
    back = AdamW8bit([r := parameter(q.detach())], **WIDE)
    back.load_state_dict(saved)
    assert "low" not in back.state[r]  # theirs is of weights from before its step
    stepped(back, r, gradients(4)[3])
    assert back.state[r]["low"].dtype == torch.int8


def test_float32_parameters_have_no_low_byte():
    p = parameter(torch.ones(N, dtype=torch.float32))
    twin = parameter(torch.ones(N, dtype=torch.float32))
    wide, plain = AdamW8bit([p], **WIDE), AdamW8bit([twin], **WIDE | {"weights": "plain"})
    for optimizer, q in ((wide, p), (plain, twin)):
        stepped(optimizer, q, *gradients(2))
    assert "low" not in wide.state[p]
    assert torch.equal(p, twin)


def test_a_model_that_is_cast_has_a_byte_where_it_is_bfloat16():
    p, optimizer = behind(2)
    p.data, p.grad = p.data.float(), None
    stepped(optimizer, p, gradients(4)[2].float())
    assert "low" not in optimizer.state[p]


def test_float16_is_refused_whenever_it_comes():
    half = parameter(torch.ones(N, dtype=torch.float16))
    with pytest.raises(TypeError, match=r"weights 'bf16\+8' add a byte to bfloat16: keep float16 parameters by"):
        AdamW8bit([half], **WIDE)
    optimizer = AdamW8bit([half], **WIDE | {"weights": "plain"})
    stepped(optimizer, half, torch.ones(N))
    optimizer.param_groups[0]["weights"] = "bf16+8"
    before = half.detach().clone()
    with pytest.raises(TypeError, match=r"weights 'bf16\+8' add a byte to bfloat16"):
        stepped(optimizer, half, torch.ones(N))
    assert torch.equal(half, before)
    assert optimizer.state[half]["step"] == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weights": "bf16+9"}, r"unknown weights 'bf16\+9': use one of plain, bf16\+8"),
        ({"weights": None}, "unknown weights None"),
        ({"weights": ["plain"]}, "unknown weights"),
        (WIDE | {"first_element": 8}, r"first_element must be a multiple of 16 with weights 'bf16\+8', got 8"),
    ],
)
def test_refused_options(options, says):
    with pytest.raises(ValueError, match=says):
        AdamW8bit([{"params": [weights()], **options}])
    p, optimizer = behind(1)
    optimizer.param_groups[0].update(options)
    with pytest.raises(ValueError, match=says):
        optimizer.step()
    assert optimizer.state[p]["step"] == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda low: low[:-1].clone(),
        lambda low: low.short(),
        lambda low: low.to("meta"),
        lambda low: torch.stack((low, low), 1)[:, 0],
    ],
)
def test_a_byte_that_does_not_fit_is_refused_before_anything_moves(change):
    p, optimizer = behind(1)
    optimizer.state[p]["low"] = change(optimizer.state[p]["low"])
    before = p.detach().clone()
    with pytest.raises(ValueError, match="the states of parameter 0 are not those of AdamW8bit"):
        optimizer.step()
    assert torch.equal(p, before)


def test_a_saved_byte_of_another_size_is_refused():
    p, optimizer = behind(1)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["low"] = saved["state"][0]["low"][:-1]
    with pytest.raises(ValueError, match="the saved low of parameter 0 does not fit"):
        optimizer.load_state_dict(saved)
    saved["state"][0]["low"] = optimizer.state[p]["low"].float()  # another optimizer's cast
    optimizer.load_state_dict(saved)
    assert "low" not in optimizer.state[p]


@pytest.mark.parametrize(("backend", "device"), FUSED)
@pytest.mark.parametrize("name", ["replaced", "moved in place", "freed"])
def test_a_byte_that_lies_elsewhere_is_seen(backend, device, name):
    ends = []
    for backend_, where in ((backend, device), ("eager", "cpu")):
        p = parameter(torch.linspace(0.5, 1, 520).bfloat16().to(where))
        options = {"lr": 2.0**-14, "betas": (0.5, 0.5), "eps": 2.0**-20, "weight_decay": 0.0}
        optimizer = AdamW8bit([p], **options, weights="bf16+8", min_8bit_size=256, backend=backend_)
        stepped(optimizer, p, torch.ones(520), torch.ones(520))
        low = optimizer.state[p]["low"]
        if name == "replaced":
            optimizer.state[p]["low"] = low.clone()
            low.fill_(77)
        elif name == "moved in place":
            low.data = low.data.clone()
        else:
            low.untyped_storage().resize_(0)
            with pytest.raises(ValueError, match="the state of parameter 0 has no memory"):
                optimizer.step()
            return
        stepped(optimizer, p, torch.ones(520))
        ends.append((p.detach().cpu(), optimizer.state[p]["low"].cpu()))
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize(("backend", "device"), FUSED)
@pytest.mark.parametrize("max_norm", [0.0, 20.0])
def test_steps_inside_backward_are_those_of_step(backend, device, max_norm, monkeypatch):
    """Gradients are powers of two, so that all norms are exact; one that is not finite counts as zero."""
    monkeypatch.setattr(in_backward, "BUCKET_BYTES", 2000)
    options = {"lr": 2.0**-12, "betas": (0.5, 0.5), "eps": 2.0**-20, "weight_decay": 0.0, "min_8bit_size": 256}
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        parameters = [parameter(torch.randn(size).bfloat16().to(device)) for size in (512, 40, 1000, 256, 3)]
        runs.append((parameters, AdamW8bit(parameters, **options, weights="bf16+8", backend=backend)))
    (ours, inside), (theirs, plain) = runs
    StepInBackward(inside, ours, max_norm, None)
    for step in range(3):
        slopes = [2.0 ** torch.randint(-3, 3, p.shape) for p in ours]
        if step:
            slopes[2][17] = torch.nan
        sum((p * slope.to(p)).sum() for p, slope in zip(ours, slopes, strict=True)).backward()
        for p, slope in zip(theirs, slopes, strict=True):
            grad = slope.to(p)
            norm = torch.linalg.vector_norm(grad, dtype=torch.float32)
            factor = (max_norm / norm).clamp(max=1.0).to(grad.dtype) if max_norm else 1.0
            p.grad = grad * factor if norm.isfinite() else torch.zeros_like(grad)
        plain.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)
        assert torch.equal(inside.state[p]["low"], plain.state[q]["low"])
