"""The plans of Flux and Z-Image: all rungs of all weights, and adapters on a base of 4 bits."""

import pytest

from fdpo_fast.config.load import load
from fdpo_fast.memory import ladder
from fdpo_fast.memory.account import GIB
from fdpo_fast.memory.needs import make_plan, needs
from fdpo_fast.memory.trace import trace
from fdpo_fast.models.architecture import read_architecture
from tests.helpers import ROOT


@pytest.mark.slow
def test_every_rung_of_flux_is_planned():
    """All weights, one pair of 1024 x 1024; GiB of a GPU."""
    settings = ladder.on_rung(load(ROOT / "configs/flux_js_8gpu.json"), "A", 1)
    architecture = read_architecture(settings.model)
    traced = trace(settings, architecture)
    assert traced.trained == pytest.approx(11.9e9, rel=0.01)
    for name, most in {"A": 72, "B": 50, "C": 28, "D": 6}.items():
        found = needs(ladder.on_rung(settings, name, 1), architecture, traced, 1)
        assert 0.75 * most < found.gpu_tensors / GIB <= most


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "card", "frozen"), [("flux_lora_js", 12, 5.7), ("zimage_lora_js", 12, 3.0), ("sdxl_lora_js_6gb", 6, 1.7)]
)
def test_an_adapter_on_four_bits_fits_a_small_card(file, card, frozen):
    """The rungs but the last: ZeRO 3 splits no base of 4 bits."""
    plan = make_plan(load(ROOT / f"configs/{file}.json"), 1, card * GIB)
    assert plan.needs.gpu_total < card * GIB
    assert plan.traced.frozen_bytes / GIB == pytest.approx(frozen, rel=0.05)
    assert sorted(plan.rungs) == ["A", "B", "C"]
    assert all(found.gpu_total < card * GIB for _, found in plan.rungs.values())
