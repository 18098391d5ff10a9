"""The account of what a rank keeps: frozen weights, weights of 24 bits, checkpoints, and a second backward."""

import json
from itertools import product

import pytest
import torch

from fdpo_fast.memory.account import step_account
from fdpo_fast.memory.needs import disk
from fdpo_fast.memory.trace import trace
from fdpo_fast.models.architecture import read_architecture


def test_frozen_weights_lie_where_zero_puts_them(tiny):
    """ZeRO-3 splits what is frozen too, and offloads it with the rest; below it every rank has all of it."""
    offload = {"stage": 3, "offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}}
    for stage, place, ranks, share in (
        ({"stage": 0}, "gpu", 2, 1),
        ({"stage": 3}, "gpu", 2, 2),
        (offload, "host", 4, 4),
    ):
        sizes = ("train.pairs_per_step=4", "train.pairs_per_micro_batch=1")
        settings = tiny("model.train=lora", f"deepspeed.zero_optimization={json.dumps(stage)}", *sizes)
        traced = trace(settings, read_architecture(settings.model))
        account = step_account(settings, traced, ranks, gpu=True)
        assert account.parts("forward", place)["frozen weights"] == traced.frozen_bytes / share
        assert traced.frozen_bytes > 0


def test_frozen_weights_are_fetched_as_trained_ones(tiny):
    """An adapter's factors are small; ZeRO-3 gathers the base's layers too, and its norms and biases stay."""
    sizes = {"stage3_prefetch_bucket_size": 0, "stage3_max_reuse_distance": 0, "stage3_param_persistence_threshold": 9}
    settings = tiny("model.train=lora", f"deepspeed.zero_optimization={json.dumps({'stage': 3, **sizes})}")
    architecture = read_architecture(settings.model)
    account = step_account(settings, trace(settings, architecture), 1, gpu=True)
    every = [parameter.numel() for parameter in architecture.denoiser(torch.float32).parameters()]
    kept = sum(n for n in every if n <= 9)
    assert account.parts("step", "gpu")["weights fetched"] == 4 * (kept + 2 * max(every))


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_24_bit_weights_take_a_byte_more(tiny, stage):
    """Of what a rank steps, where it steps it, and in checkpoints: 5.03 bytes a parameter with 8-bit states."""
    zero = {"stage": stage, "offload_optimizer": {"device": "cpu"}} if stage == 3 else {"stage": stage}
    bf16 = {"enabled": True, "bf16_master_weights_and_grads": True} if stage else {"enabled": False}
    settings = [f"deepspeed.bf16={json.dumps(bf16)}", f"deepspeed.zero_optimization={json.dumps(zero)}"]
    settings += ["optimizer.type=adamw8bit", "model.dtype=bf16", "train.pairs_per_step=4"]
    settings += ["train.pairs_per_micro_batch=1"]
    plain, wide = tiny(*settings), tiny(*settings, "optimizer.weights=bf16+8")
    architecture = read_architecture(plain.model)
    traced, ranks = trace(plain, architecture), 2 if stage else 1
    accounts = [step_account(config, traced, ranks, gpu=True) for config in (plain, wide)]
    for phase, device in product(("forward", "backward", "step"), ("gpu", "host")):
        less, more = (account.parts(phase, device) for account in accounts)
        here = device == ("host" if stage == 3 else "gpu")
        assert {name for name in more if more[name] != less[name]} == ({"optimizer states"} if here else set())
        if here:
            assert more["optimizer states"] - less["optimizer states"] == pytest.approx(traced.trained / ranks)
    if not stage:
        held = accounts[1].parts("forward", "gpu")
        assert (held["weights"] + held["optimizer states"]) / traced.trained == pytest.approx(5.03, abs=0.002)
    written = [disk(config, architecture, traced)[0]["checkpoints"] for config in (plain, wide)]
    assert written[1] - written[0] == pytest.approx((plain.train.keep_checkpoints + 1) * traced.trained)


def test_disk_counts_what_a_checkpoint_holds(tiny):
    """Of LoRA the adapter alone. With an average: four bytes for each that is trained."""
    plain, lora, average = tiny(), tiny("model.train=lora"), tiny("train.ema_decay=0.9")
    for settings in (plain, lora, average):
        architecture = read_architecture(settings.model)
        traced = trace(settings, architecture)
        each = 4 * traced.trained * (1 + 2)  # float32 weights and two moments
        each += 4 * traced.trained if settings.train.ema_decay else 0
        found, _ = disk(settings, architecture, traced)
        assert found["checkpoints"] == (settings.train.keep_checkpoints + 1) * each


def test_a_second_backward_is_traced(tiny):
    """It leaves the graph of the first one, and its FLOPs count."""
    inside = ["train.step_in_backward=true", "optimizer.type=adamw8bit", "train.pairs_per_step=4"]
    once, twice = (tiny(*inside, f"optimizer.clipping={clipping}") for clipping in ("per_parameter", "global"))
    architecture = read_architecture(once.model)
    one, two = (trace(config, architecture) for config in (once, twice))
    assert two.backward_with_bucket > one.backward_with_bucket
    assert 1.5 < two.flops / one.flops < 1.8  # a backward is two forwards, and three where they are computed again
    assert (two.forward, two.saved) == (one.forward, one.saved)
