"""Optimizers that do not go with the rest of a configuration are refused in one sentence."""

import pytest

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.load import load

INSIDE = ["train.step_in_backward=true", "optimizer.type=adamw8bit", "optimizer.clipping=per_parameter"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([*INSIDE, "optimizer.type=adamw"], "needs optimizer.type 'adamw8bit'"),
        ([*INSIDE, "deepspeed.zero_optimization.stage=2"], "needs ZeRO stage 0"),
        ([*INSIDE, "deepspeed.bf16.enabled=true"], "has no fp32 master"),
        ([*INSIDE, "train.pairs_per_micro_batch=2"], "cannot accumulate"),
        (["optimizer.clipping=per_parameter"], "needs train.step_in_backward"),
    ],
)
def test_inside_backward(raw_config, write_config, overrides, says):
    raw_config["model"]["dtype"] = "bf16"
    with pytest.raises(UserError, match=says) as caught:
        load(write_config(raw_config), overrides).accumulation(1)
    assert "\n" not in str(caught.value)


ADAMW = ["optimizer.type=adamw", "deepspeed.zero_optimization.stage=2"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["optimizer.type=adamw8bit"], "needs bf16 enabled and ZeRO stage 1, 2 or 3"),
        (ADAMW, "needs optimizer.type 'adamw8bit', or 'cpu_adam' with offload_optimizer, got 'adamw'"),
        ([*ADAMW, "optimizer.type=cpu_adam"], "needs optimizer.type 'adamw8bit', or 'cpu_adam' with"),
    ],
)
def test_masters_in_bf16(raw_config, write_config, overrides, says):
    raw_config["model"]["dtype"] = "bf16"
    overrides = ["deepspeed.bf16.bf16_master_weights_and_grads=true", *overrides]
    with pytest.raises(UserError, match=says) as caught:
        load(write_config(raw_config), overrides)
    assert "\n" not in str(caught.value)


WIDE = ["optimizer.weights=bf16+8", "optimizer.type=adamw8bit", "model.dtype=bf16"]
STAGE_2 = ["deepspeed.zero_optimization.stage=2"]
NO_MASTER, BF16_MASTER = "deepspeed.bf16.enabled=false", "deepspeed.bf16.bf16_master_weights_and_grads=true"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([NO_MASTER, "optimizer.type=adamw"], r"'bf16\+8' needs optimizer.type 'adamw8bit', got 'adamw'"),
        ([NO_MASTER, "optimizer.type=adamw8bit_bnb"], r"'bf16\+8' needs optimizer.type 'adamw8bit'"),
        (["model.dtype=fp32"], r"'bf16\+8' needs model.dtype 'bf16', got 'fp32'"),
        ([], "needs no fp32 master, which has more bits: set deepspeed.bf16.enabled to false"),
        (STAGE_2, "needs no fp32 master, .* set deepspeed.bf16.bf16_master_weights_and_grads to true"),
        ([*STAGE_2, NO_MASTER], "needs no fp32 master"),
        (["optimizer.weights=24"], "optimizer.weights"),
    ],
)
def test_24_bits_are_refused_where_nobody_would_keep_them(raw_config, write_config, overrides, says):
    with pytest.raises(UserError, match=says) as caught:
        load(write_config(raw_config), [*WIDE, *overrides])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("overrides", [[NO_MASTER], [*STAGE_2, BF16_MASTER], INSIDE])
def test_24_bits_go_with_weights_or_masters_in_bf16(raw_config, write_config, overrides):
    assert load(write_config(raw_config), [*WIDE, *overrides]).optimizer.weights == "bf16+8"
    assert load(write_config(raw_config)).optimizer.weights == "plain"


def test_masters_in_bf16_are_enabled_with_bf16(raw_config, write_config):
    raw_config["model"]["dtype"] = "bf16"
    overrides = ["deepspeed.bf16.bf16_master_weights_and_grads=true", "deepspeed.zero_optimization.stage=2"]
    loaded = load(write_config(raw_config), [*overrides, "optimizer.type=adamw8bit"])
    assert loaded.for_deepspeed(1)["bf16"] == {"enabled": True, "bf16_master_weights_and_grads": True}
