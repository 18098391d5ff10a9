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


def test_masters_in_bf16_are_enabled_with_bf16(raw_config, write_config):
    raw_config["model"]["dtype"] = "bf16"
    overrides = ["deepspeed.bf16.bf16_master_weights_and_grads=true", "deepspeed.zero_optimization.stage=2"]
    loaded = load(write_config(raw_config), [*overrides, "optimizer.type=adamw8bit"])
    assert loaded.for_deepspeed(1)["bf16"] == {"enabled": True, "bf16_master_weights_and_grads": True}
