"""The versions that are promised: one place says each, and what is older is named in a sentence."""

import re

import pytest

from fdpo_fast.config.errors import UserError
from fdpo_fast.ops.triton import launch
from tests.helpers import ROOT


def lowest(package):
    """Its lower bounds in pyproject.toml, over all lists."""
    return set(re.findall(rf'"{package}>=([\d.]+)', (ROOT / "pyproject.toml").read_text()))


def test_one_lower_bound_for_triton():
    assert lowest("triton") == {".".join(map(str, launch.LOWEST_TRITON))}


@pytest.mark.parametrize(("found", "fine"), [("3.2.0", False), ("2.3.1+rocm", False), ("3.3.0", True), ("3.10", True)])
def test_an_older_triton_is_named(monkeypatch, found, fine):
    monkeypatch.setattr(launch, "version", lambda name: found)
    monkeypatch.setattr(launch, "find_spec", lambda name: object())
    assert launch._missing() == (None if fine else f"Triton >= 3.3 ({found} is installed)")


def test_a_deepspeed_without_bf16_masters_is_refused_only_where_they_are_wanted(monkeypatch):
    offload = pytest.importorskip("fdpo_fast.optim.zero")
    monkeypatch.delattr(offload.ZeROOptimizer, "_configure_master_weights")
    with offload.bf16_masters(False):
        pass
    (bound,) = lowest("deepspeed")
    with pytest.raises(UserError, match=f"DeepSpeed >= {re.escape(bound)}"), offload.bf16_masters(True):
        pass
