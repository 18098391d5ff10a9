"""Keys of a parameter group: those that would be ignored are refused, whenever they come."""

import copy

import pytest
import torch

from fdpo_fast import AdamW8bit
from tests.helpers.optimizers import parameter


def made(**options):
    p = parameter(torch.ones(5, dtype=torch.float32))
    p.grad = torch.ones_like(p)
    return p, AdamW8bit([{"params": [p], **options}])


IGNORED = [
    ({"maximize": True}, "has no option maximize"),
    ({"amsgrad": True}, "has no option amsgrad"),
    ({"capturable": True}, "has no option capturable"),
    ({"decoupled_weight_decay": False}, "has no option decoupled_weight_decay"),
    ({"optim_bits": 32}, "has no option optim_bits"),
    ({"percentile_clipping": 5}, "has no option percentile_clipping"),
    ({"maximise": True}, "did you mean 'maximize'"),
    ({"weight_decays": 0.1}, "did you mean 'weight_decay'"),
    ({"weightdecay": 0.1}, "did you mean 'weight_decay'"),
    ({"roundings": "nearest"}, "did you mean 'rounding'"),
    ({"beta": (0.9, 0.9)}, "did you mean 'betas'"),
    ({"first_elements": 8}, "did you mean 'first_element'"),
    ({"backend": "cpp"}, "backend is an option of the optimizer"),
    ({"min_8bit_size": 1}, "min_8bit_size is an option of the optimizer"),
]
WRONG = [
    ({"rounding": "stochastik"}, "unknown rounding 'stochastik'"),
    ({"seed": -1}, "seed must lie in"),
    ({"first_element": 3}, "first_element must be a multiple of 8"),
]


@pytest.mark.parametrize(("options", "says"), IGNORED + WRONG)
def test_refused_at_construction(options, says):
    with pytest.raises(ValueError, match=says):
        made(**options)


@pytest.mark.parametrize(("options", "says"), IGNORED + WRONG)
def test_refused_at_the_next_step(options, says):
    p, optimizer = made()
    optimizer.step()
    before, state = p.detach().clone(), copy.deepcopy(optimizer.state[p])
    optimizer.param_groups[0].update(options)
    for step in (optimizer.step, lambda: optimizer.step_parameter(p)):
        for _ in range(2):
            with pytest.raises(ValueError, match=says):
                step()
    assert torch.equal(p, before)
    assert optimizer.state[p]["step"] == state["step"] == 1
    for name in options:
        del optimizer.param_groups[0][name]
    optimizer.param_groups[0] |= {"rounding": "stochastic", "seed": 0, "first_element": 0}
    optimizer.step()
    assert not torch.equal(p, before)


@pytest.mark.parametrize(("options", "says"), IGNORED + WRONG)
def test_refused_in_a_saved_state(options, says):
    p, optimizer = made()
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0] |= {"lr": 7.0, **options}
    with pytest.raises(ValueError, match=says):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 1e-3
    assert optimizer.state[p]["step"] == 1


@pytest.mark.parametrize(
    "options",
    [
        *(
            {"name": "unet"},
            {"lr_scale": 0.5},
            {"initial_lr": 1e-3},
            {"max_lr": 1.0, "min_lr": 0.0},
            {"param_names": "x"},
        ),
        *({"maximize": False}, {"amsgrad": False}, {"foreach": None}, {"fused": True}, {"optim_bits": 8}, {"group": 1}),
        *(
            {"base_momentum": 0.85, "max_momentum": 0.95},
            {"swa_lr": 1.0},
            {"layer": 3},
            {"maximize": None},
            {"tag": ""},
        ),
    ],
)
def test_notes_and_what_we_do_anyway_are_taken(options):
    p, optimizer = made(**options)
    optimizer.step()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.step()
    assert optimizer.state[p]["step"] == 2


def test_a_key_in_place_of_another_is_seen():
    _, optimizer = made(name="unet")
    optimizer.step()
    del optimizer.param_groups[0]["name"]
    optimizer.param_groups[0]["maximise"] = True
    with pytest.raises(ValueError, match="did you mean 'maximize'"):
        optimizer.step()


def test_named_parameters_are_taken():
    model = torch.nn.Linear(3, 2, dtype=torch.float32)
    optimizer = AdamW8bit(model.named_parameters())
    model(torch.ones(1, 3, dtype=torch.float32)).sum().backward()
    before = model.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(model.weight, before)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


@pytest.mark.parametrize("lr", [float("nan"), -1.0, torch.tensor(-1.0, dtype=torch.float32)])
def test_rates_that_are_none_are_refused_at_construction(lr):
    with pytest.raises(ValueError, match="lr must not be negative"):
        made(lr=lr)


@pytest.mark.parametrize("options", [{"seed": 1.5}, {"seed": True}, {"first_element": 8.0}])
def test_numbers_of_the_random_bits_are_integers(options):
    with pytest.raises(TypeError, match="must be an integer"):
        AdamW8bit([{"params": [torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))], **options}])
