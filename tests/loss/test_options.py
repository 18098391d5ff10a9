"""The options of the loss: one object, and what users see of it."""

import inspect
from dataclasses import MISSING, fields
from fractions import Fraction
from operator import attrgetter

import numpy as np
import pytest
import torch
from typing_extensions import Required, get_type_hints

from fdpo_fast import FDPOLoss, fdpo_loss, log_ratio_loss
from fdpo_fast.loss.options import LossArguments, LossOptions, PairArguments, PairOptions
from fdpo_fast.ops import library

GENERATOR = torch.Generator().manual_seed(0)
TENSORS = [torch.randn(4, 3, generator=GENERATOR, dtype=torch.float32) for _ in range(3)]


@pytest.mark.parametrize(("arguments", "options"), [(PairArguments, PairOptions), (LossArguments, LossOptions)])
def test_what_type_checkers_know_is_what_there_is(arguments, options):
    known = get_type_hints(arguments, include_extras=True)
    assert {*known} == {field.name for field in fields(options) if field.init} - {"divergence"}
    required = {field.name for field in fields(options) if field.init and field.default is MISSING}
    assert required == {name for name, kind in known.items() if getattr(kind, "__origin__", None) is Required}


@pytest.mark.parametrize("backend", library.NAMES)
@pytest.mark.parametrize("kind", [float, int, Fraction, np.float32, np.float64, np.int64])
def test_any_real_number_is_a_strength(backend, kind):
    want, _ = fdpo_loss(*TENSORS, beta=2.0, ratio_scale=3.0, backend=backend)
    loss, _ = fdpo_loss(*TENSORS, beta=kind(2), ratio_scale=kind(3), backend=backend)
    assert torch.equal(loss, want)


@pytest.mark.parametrize("function", [fdpo_loss, FDPOLoss.__init__])
def test_help_shows_every_option_with_its_default(function):
    parameters = inspect.signature(function).parameters
    for field in filter(attrgetter("init"), fields(LossOptions)):
        assert parameters[field.name].default == (
            inspect.Parameter.empty if field.default is MISSING else field.default
        )
    assert not [p for p in parameters.values() if p.kind is p.VAR_KEYWORD]


def test_a_wrong_keyword_is_refused_by_the_name_of_what_was_called():
    with pytest.raises(TypeError, match=r"^fdpo_loss\(\) got an unexpected keyword argument 'foo'"):
        fdpo_loss(*TENSORS, beta=1.0, ratio_scale=1.0, foo=2)
    with pytest.raises(TypeError, match=r"^fdpo_loss\(\) missing 1 required keyword-only argument: 'ratio_scale'"):
        FDPOLoss(beta=1.0)
    with pytest.raises(TypeError, match=r"^log_ratio_loss\(\) got an unexpected keyword argument 'layout'"):
        log_ratio_loss(torch.zeros(2), torch.zeros(2), beta=1.0, layout="halves")


def test_the_modules_options_are_those_of_another():
    loss = FDPOLoss("reverse_kl", beta=2.0, ratio_scale=3.0, reduction="sum")
    assert loss.options["beta"] == 2.0
    again = FDPOLoss(**loss.options)
    assert repr(again) == repr(loss)
    assert torch.equal(again(*TENSORS)[0], loss(*TENSORS)[0])


@pytest.mark.parametrize("beta", [np.float32("inf"), np.float64("inf"), 10**400, Fraction(10**400)])
def test_what_is_no_finite_float_is_refused(beta):
    with pytest.raises(ValueError, match="beta must be positive and finite"):
        fdpo_loss(*TENSORS, beta=beta, ratio_scale=1.0)
