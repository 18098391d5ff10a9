"""What the plan says of encoding the images: the work, the hours, the memory."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from fdpo_fast.config.load import load
from fdpo_fast.memory.cards import CARDS, ENCODING
from fdpo_fast.memory.trace import vae_passes
from fdpo_fast.memory.tracker import HostAttention
from fdpo_fast.models.architecture import read_architecture
from fdpo_fast.models.vae import without_decoder


@pytest.fixture
def raw(tiny_config):
    """A tiny SDXL with pairs that are not here, 50 rows of them."""
    made = tiny_config("sdxl", "owner/name")
    made["data"]["max_rows"] = 50
    return made


def lines(text):
    return [line for line in text.splitlines() if line.startswith(("encoding", "    estimated"))]


def test_the_flops_are_those_of_torchs_counter(raw, write_config):
    """Of one image, whatever the batch."""
    settings = load(write_config(raw))
    architecture = read_architecture(settings.model)
    own = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
    }
    vae = without_decoder(architecture.vae(torch.float32))
    with HostAttention(), torch.no_grad(), FlopCounterMode(display=False, custom_mapping=own) as counter:
        vae.encode(torch.zeros(1, 3, 64, 64, device="meta"))
    assert settings.data.encoded_at_once > 1
    assert vae_passes(settings, architecture).flops == counter.get_total_flops() > 0


def test_the_hours_of_a_card(plan, raw):
    raw["data"]["resolution"], raw["train"]["pairs_per_micro_batch"] = 1024, 2
    figures = json.loads(plan(raw, "--json", "--card", "RTX 4090", "--gpus", "2"))["encoding"]
    assert figures["images"] == 100  # two a row
    assert list(figures["hours"]) == ["RTX 4090"]
    work = 100 * figures["tflop_an_image"] / 2 / 3600
    for dtype, peak in (("fp32", CARDS["RTX 4090"].tflops / 2), ("bf16", CARDS["RTX 4090"].tflops)):
        hours = figures["hours"]["RTX 4090"][dtype]
        assert hours["from"] == pytest.approx(work / (ENCODING[1] * peak), rel=1e-2)
        assert hours["to"] == pytest.approx(work / (ENCODING[0] * peak), rel=1e-2)
    first, basis = lines(plan(raw, "--card", "RTX 4090", "--gpus", "2"))
    here, there = figures["hours"]["RTX 4090"]["fp32"], figures["hours"]["RTX 4090"]["bf16"]
    assert f"on 2 x RTX 4090 {here['from']} to {here['to']} h;" in first
    assert first.endswith(f"data.vae_dtype bf16: {there['from']} to {there['to']} h")
    assert "TF32" in basis
    assert "not measured by us" in basis


def test_sixteen_bits_are_the_hours_then(plan, raw):
    raw["data"]["vae_dtype"] = "fp16"
    first, basis = lines(plan(raw, "--card", "L4"))
    assert first.count(" h") == 1
    assert "TF32" not in basis


def test_without_a_card_it_is_asked_for(plan, raw):
    (line,) = lines(plan(raw))
    assert line.startswith("encoding 100 images at the most")
    assert line.endswith("--card estimates the hours")
    assert json.loads(plan(raw, "--json"))["encoding"]["hours"].keys() == CARDS.keys()


@pytest.mark.parametrize("data", [{"format": "latents"}, {"max_rows": None}], ids=["ready", "unknown"])
def test_nothing_is_said_where_nothing_is_encoded_or_known(plan, raw, data):
    raw["data"] |= data
    assert not lines(plan(raw, "--card", "RTX 4090"))
    assert json.loads(plan(raw, "--json"))["encoding"] is None


def test_the_memory_follows_the_vaes_dtype(plan, raw):
    raw["data"]["resolution"] = 1024  # figures are in thousandths of a GiB
    whole = json.loads(plan(raw, "--json"))["phases"]["caching images"]
    raw["data"]["vae_dtype"] = "bf16"
    assert json.loads(plan(raw, "--json"))["phases"]["caching images"] == pytest.approx(whole / 2, abs=2e-3)
