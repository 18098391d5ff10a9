"""The plan of SD3.5-M: the rungs, what is no parameter, and blocks that are computed again."""

from dataclasses import replace

import pytest
import torch

from fdpo_fast.config.load import load
from fdpo_fast.memory import ladder
from fdpo_fast.memory.account import GIB, step_account
from fdpo_fast.memory.needs import Ready, needs
from fdpo_fast.memory.trace import trace, traces
from fdpo_fast.models import trainable
from fdpo_fast.models.architecture import read_architecture
from tests.helpers import ROOT

TABLE = 384**2 * 1536 * 2
"""The bytes of SD3.5-M's table of positions in bf16."""


@pytest.fixture(scope="module")
def published():
    """The configuration on rung A, its architecture and its trace."""
    settings = ladder.on_rung(load(ROOT / "configs/sd35m_js.json"), "A", 1)
    architecture = read_architecture(settings.model)
    return settings, architecture, trace(settings, architecture)


def test_every_rung_is_planned(published):
    """One pair of 1024 x 1024; GiB of GPU tensors."""
    settings, architecture, traced = published
    assert traced.trained == pytest.approx(2.24e9, rel=0.01)
    for name, most in {"A": 15, "B": 11, "C": 7, "D": 3}.items():
        found = needs(ladder.on_rung(settings, name, 1), architecture, traced, 1)
        assert 0.75 * most < found.gpu_tensors / GIB <= most
    assert found.host / GIB < 30


def test_the_table_of_positions_counts_once_on_each_gpu(published):
    settings, _, traced = published
    assert traced.buffer_bytes == TABLE
    assert traced.model_bytes == 2 * traced.trained + TABLE
    for name in "ABCD":
        account = step_account(ladder.on_rung(settings, name, 1), traced, 1, gpu=True)
        assert all(account.parts(phase, "gpu")["buffers"] == TABLE for phase in ("forward", "backward", "step"))


def test_a_plan_knows_how_much_of_the_encoders_a_card_takes(published):
    """Without a card it is one that all else just fits; on the host all are read at once."""
    settings, architecture, traced = published
    settings = ladder.on_rung(settings.replace({"log.samples_every": 0}), "D", 1)
    cards = {24: 11.9, 16: 9.8, 8: 3.6, None: 1}
    for card, most in cards.items():
        found = needs(settings, architecture, traced, 1, Ready(False, False), card and card * GIB)
        assert 0.75 * most < found.beside["caching text"] / GIB < 1.01 * most
        assert found.starting / GIB > 11.8


@pytest.fixture
def deep(tiny_config, write_config, tmp_path):
    """A configuration over a tiny SD3, and its architecture with eight blocks."""
    settings = load(write_config(tiny_config("sd3", tmp_path / "pairs")))
    architecture = read_architecture(settings.model)
    return settings, replace(architecture, denoiser_config=architecture.denoiser_config | {"num_layers": 8})


def test_blocks_of_joint_attention_are_computed_again(deep):
    """Memory falls as the trace says, the gradient stays."""
    settings, architecture = deep
    traced, gradients, held = traces(settings, architecture, ("off", "per_block")), {}, {}
    torch.manual_seed(0)
    transformer = architecture.family.denoiser_class.from_config(architecture.denoiser_config).train()
    own = {p.untyped_storage().data_ptr() for p in (*transformer.parameters(), *transformer.buffers())}
    pairs, side = settings.train.pairs_per_micro_batch, settings.data.resolution // architecture.factors()[0]
    noisy, timesteps = torch.randn(2 * pairs, 4, side, side), torch.full((2 * pairs,), 3)
    text = {key: torch.randn(2 * pairs, *shape) for key, shape in architecture.text_shapes().items()}
    for choice in traced:
        trainable.checkpoint(transformer, choice)
        saved = {}

        def keep(tensor, saved=saved):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = architecture.family.predict(transformer, noisy, timesteps, text).square().sum()
        held[choice] = sum(size for pointer, size in saved.items() if pointer not in own)
        loss.backward()
        gradients[choice] = [parameter.grad for parameter in transformer.parameters()]
        transformer.zero_grad()
    assert held["per_block"] < held["off"] / 4
    for choice, size in held.items():
        assert size == pytest.approx(traced[choice].saved, rel=0.1)
    for ours, plain in zip(gradients["per_block"], gradients["off"], strict=True):
        torch.testing.assert_close(ours, plain)
