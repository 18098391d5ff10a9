"""At the first step policy and reference are the same weights: margin 0 and loss log 2, whatever is switched."""

import json
import math
from unittest.mock import patch

import pytest
import torch

from fdpo_fast.config.run import Config
from fdpo_fast.loss.stats import LossStats
from fdpo_fast.memory.ladder import on_rung
from fdpo_fast.models import prediction
from fdpo_fast.models.kernels import kernels
from fdpo_fast.training.metrics import FirstMargin
from tests.helpers.pictures import noisy_pairs
from tests.helpers.training import run

slow = pytest.mark.slow


@pytest.fixture
def raw(tiny_config, tmp_path):
    """Two steps of two micro-batches of two pairs, bf16, tiny SDXL."""
    made = tiny_config("sdxl", noisy_pairs(tmp_path, [1] * 4))
    made["model"]["dtype"], made["loss"]["ratio_scale"] = "bf16", 2500.0
    made["optimizer"] |= {"type": "adamw8bit", "warmup_steps": 0}
    made["train"] |= {"max_steps": 2, "pairs_per_micro_batch": 2, "checkpoint_every": 100}
    made["log"]["every"] = 1
    return made


def changed(raw, changes, rung=None, ranks=1):
    """The configuration with `section.key` changes, then on a rung of the ladder."""
    raw = json.loads(json.dumps(raw))
    for path, value in changes.items():
        section, key = path.split(".")
        raw.setdefault(section, {})[key] = value
    if raw["reference"].get("mode", "cached") != "cached":
        raw["reference"]["visits"] = None
    return json.loads(on_rung(Config.model_validate(raw), rung, ranks).dumps()) if rung else raw


def starts(records):
    assert records[0]["margin"] == 0
    assert records[0]["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert records[1]["margin"] != 0
    assert not any("step 0" in words for record in records for words in record.get("warnings", []))


LORA = {"model.train": "lora"}
FULL = {"model.gradient_checkpointing": "full"}
CASES = [
    pytest.param("A", {}, id="A"),
    pytest.param("B", {}, id="B", marks=slow),
    pytest.param("C", {}, id="C", marks=slow),
    pytest.param("D", {}, id="D"),
    pytest.param("D", {"reference.mode": "live"}, id="D-live", marks=slow),
    pytest.param(None, {"model.channels_last": True}, id="channels_last"),
    pytest.param(None, {"model.channels_last": True, "reference.mode": "live"} | FULL, id="channels_last-live"),
    pytest.param(None, LORA, id="lora-adapter"),
    pytest.param(None, LORA | FULL, id="lora-adapter-full", marks=slow),
    pytest.param(None, LORA | {"reference.mode": "live"}, id="lora-live", marks=slow),
    pytest.param(None, LORA | {"reference.mode": "cached"}, id="lora-cached", marks=slow),
    pytest.param(None, {"model.compile": True}, id="compile", marks=slow),
    pytest.param("A", {"model.compile": True, "reference.mode": "live"}, id="compile-A-live", marks=slow),
    pytest.param("C", {"model.compile": True}, id="compile-C", marks=slow),
    pytest.param(None, {"model.compile": True} | LORA | FULL, id="compile-lora-full", marks=slow),
    pytest.param(None, {"model.dtype": "fp32", "optimizer.type": "adamw"}, id="fp32", marks=slow),
]


@pytest.mark.parametrize(("rung", "changes"), CASES)
def test_a_run_starts_at_its_reference(raw, rung, changes):
    starts(run(changed(raw, changes, rung)))


@slow
@pytest.mark.parametrize(("rung", "changes"), [*((rung, {}) for rung in "ABCD"), (None, LORA)])
def test_two_ranks_start_at_the_reference(raw, launch, read_metrics, rung, changes):
    made = changed(raw, changes, rung, ranks=2)
    launch(made, ranks=2)
    starts(read_metrics(made))


@slow
def test_a_compiled_block_is_made_once_for_each_shape(raw):
    """Four blocks of one class; a second shape adds its own versions and changes nothing of the first ones."""
    from diffusers import UNet2DConditionModel
    from torch._dynamo.testing import CompileCounterWithBackend

    from fdpo_fast.models import presets, trainable

    torch._dynamo.reset()
    unet = UNet2DConditionModel(**presets.unet_config("tiny_sdxl"))
    counter = CompileCounterWithBackend("eager")
    with patch.object(torch, "compile", lambda *a, _real=torch.compile, **k: _real(*a, **k, backend=counter)):
        trainable.ready(unet, Config.model_validate(changed(raw, {"model.compile": True})).model)

    def versions(side):
        added = {"text_embeds": torch.zeros(2, 32), "time_ids": torch.zeros(2, 6)}
        unet(torch.zeros(2, 4, side, side), torch.zeros(2), torch.zeros(2, 77, 64), added_cond_kwargs=added)
        return counter.frame_count

    first = versions(16)
    assert versions(16) == first  # four transformer blocks, one program for each width
    second = versions(32)
    assert first < second <= 2 * first
    assert versions(16) == versions(32) == second


GRAPHS = {"model.cuda_graphs": True}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (GRAPHS | FULL, "needs model.gradient_checkpointing 'off'"),
        (GRAPHS | {"data.buckets": True}, "needs data.buckets false"),
        (GRAPHS | {"train.step_in_backward": True}, "needs train.step_in_backward false"),
        (GRAPHS | {"deepspeed.zero_optimization": {"stage": 3}}, "needs ZeRO stage 0, 1 or 2"),
    ],
)
def test_graphs_refuse_what_they_do_not_go_with(raw, changes, says):
    with pytest.raises(ValueError, match=says):
        Config.model_validate(changed(raw, changes))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there they are made")
def test_graphs_want_a_gpu(raw, command):
    with pytest.raises(SystemExit, match=r"model\.cuda_graphs needs a CUDA GPU"):
        command(changed(raw, GRAPHS), "train")


CHOICES = [
    {"model.compile": True},
    {"model.channels_last": True},
    {"model.attention": "sdpa"},
    {"train.pairs_per_micro_batch": 4},
    LORA | {"reference.mode": "cached"},
]


@pytest.mark.parametrize("changes", CHOICES)
def test_errors_of_other_kernels_are_another_cache(raw, changes):
    def named(changes):
        config = Config.model_validate(changed(raw, changes))
        return kernels(config.model, config.train.pairs_per_micro_batch, torch.device("cpu"))

    assert named(changes) != named({})
    assert named({"loss.beta": 3.0, "optimizer.lr": 1e-6}) == named({})


def test_a_cache_that_was_asked_for_is_refused_where_kernels_differ(raw, command, write_config):
    command(raw, "cache")
    config = Config.model_validate(changed(raw, {"model.channels_last": True}))
    with pytest.raises(ValueError, match=r"'kernels\.channels_last' is false there and true"):
        run(json.loads(config.dumps()))


def test_the_trainer_says_what_a_first_margin_means(raw):
    real = prediction.errors
    with patch.object(prediction, "errors", lambda pred, target: real(pred, target) + 1e-4):
        records = run(raw)
    assert records[0]["margin"] == pytest.approx(0, abs=1e-6)  # both sides are off alike, and it is said all the same
    first, later = records[0]["warnings"][0], records[1]["warnings"][0]
    assert "step 0: the margin is up to" in first
    assert "off by about 0.25;" in first  # 1e-4 * 2500
    assert "0.25 at step 0 was rounding alone" in later


def stats(log_ratio_w, log_ratio_l):
    preferred, dispreferred = torch.tensor(log_ratio_w), torch.tensor(log_ratio_l)
    return LossStats(log_ratio_w=preferred, log_ratio_l=dispreferred, margin=preferred - dispreferred)


def test_first_margin_by_hand():
    with patch("fdpo_fast.training.metrics.largest_over_ranks"):
        good = FirstMargin(torch.device("cpu"), True, 3)
        good.add(stats([0.0, 0.0], [0.0, 0.0]))
        assert good.apart() is None
        assert not good.open
        assert not FirstMargin(torch.device("cpu"), False, 3).open  # resumed
        bad = FirstMargin(torch.device("cpu"), True, 3)
        bad.add(stats([0.1, 0.0], [0.0, 0.1]))  # margins 0.1 and -0.1
        assert "up to 0.1," in bad.apart()
        for step in (1, 3):
            bad.add(stats([2.0], [2.0]))
            words = bad.judged(step)
            assert (words is None) == (step == 1)
        assert "the median |u| is 2, and" in words
        assert bad.judged(4) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["cpp", "eager"])
def test_errors_are_the_sums_of_the_loss_to_the_last_bit(dtype, backend):
    from fdpo_fast import fdpo_loss, noise

    torch.manual_seed(0)
    pred = torch.randn(6, 4, 37, 41).to(dtype)
    draws = noise.draws(3, torch.arange(3), torch.zeros(3, dtype=torch.int64))
    for target in (torch.randn(6, 4, 37, 41), draws):
        real = prediction.fdpo_loss
        with patch.object(prediction, "fdpo_loss", lambda *a, **k: real(*a, **k, backend=backend)):  # noqa: B023
            found = prediction.errors(pred, target)
        drawn = noise.normals(draws, pred[0].numel()).reshape(3, 4, 37, 41).repeat(2, 1, 1, 1)
        want = (pred.double() - (drawn if target is draws else target).double()).square().mean((1, 2, 3))
        torch.testing.assert_close(found, want, rtol=1e-7, atol=0)
        _, out = fdpo_loss(pred, found, target, beta=1.0, ratio_scale=1e12, backend=backend)
        assert not out.log_ratio_w.any()
        assert not out.log_ratio_l.any()
