"""How far weights have moved: against whole weights, under any ZeRO, gone on with, and by a sample."""

import copy
from pathlib import Path

import pytest
import torch

from fdpo_fast.training.movement import Movement
from tests.helpers import moved
from tests.helpers.ranks import together
from tests.helpers.training import run, run_of, weights, weights_in


def distance(ours, base):
    moved = sum((ours[name].double() - base[name].double()).square().sum() for name in base)
    return (moved / sum(weight.double().square().sum() for weight in base.values())).sqrt().item()


@pytest.fixture
def looked(write_config, tmp_path, read_metrics):
    """Train on ranks that look at all of the weights; returns the distances they found."""

    def train(raw, ranks):
        done = together(ranks, moved.train, (["--config", str(write_config(raw))],), tmp_path / "said")
        assert done.returncode == 0, done.stdout + done.stderr
        return [record["movement"] for record in read_metrics(raw) if "movement" in record]

    return train


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_it_is_the_distance_from_the_base(raw_config, embedded_folder, looked, stage, ranks):
    raw_config["train"]["pairs_per_micro_batch"] = 4 // ranks
    raw_config["deepspeed"] = {"zero_optimization": {"stage": stage}}
    found = looked(raw_config, ranks)
    assert len(found) == 4  # behind steps 2, 3, 4 and 6
    assert found == sorted(found)
    assert found[-1] == pytest.approx(distance(weights(raw_config), weights_in(embedded_folder / "pipeline")), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_masters_and_offload_change_nothing(raw_config, embedded_folder, looked, tmp_path, stage):
    zero = {"stage": stage, "offload_optimizer": {"device": "cpu"}}
    raw = run_of(raw_config, tmp_path / "run", bf16={"enabled": True}, zero_optimization=zero)
    raw["train"]["export_dtype"] = "bf16"
    found = looked(raw, 2)
    base = {name: weight.bfloat16() for name, weight in weights_in(embedded_folder / "pipeline").items()}
    assert found[-1] == pytest.approx(distance(weights(raw), base), rel=1e-5)


def test_a_run_that_is_gone_on_with_looks_back_to_the_base(raw_config, launch, read_metrics, tmp_path):
    whole, parts = (copy.deepcopy(raw_config) for _ in range(2))
    whole["train"]["output_dir"], parts["train"]["output_dir"] = str(tmp_path / "whole"), str(tmp_path / "parts")
    launch(whole)
    parts["train"]["max_steps"] = 3
    launch(parts)
    parts["train"]["max_steps"] = 6
    launch(parts, "--resume")
    assert read_metrics(parts)[-1]["movement"] == read_metrics(whole)[-1]["movement"] > 0


def test_a_policy_that_stays_has_not_moved_and_an_adapter_has_no_such_figure(raw_config, read_metrics):
    raw_config["optimizer"]["lr"] = 0.0
    run(raw_config)
    assert read_metrics(raw_config)[-1]["movement"] == 0
    raw_config["train"]["output_dir"] += "_lora"
    raw_config["model"] |= {"train": "lora", "lora": {"rank": 2}}
    raw_config["reference"] = {}
    run(raw_config)
    assert Path(raw_config["train"]["output_dir"], "export").is_dir()
    assert not any("movement" in record for record in read_metrics(raw_config))


def test_a_sample_stands_for_its_parameter(raw_config):
    """A parameter counts by its size, however few of its elements are looked at."""
    run(raw_config)  # leaves a process group of one
    large, small = torch.nn.Linear(300, 300, bias=False), torch.nn.Linear(10, 10, bias=False)
    module = torch.nn.ModuleList([large, small])
    for parameter in module.parameters():
        parameter.data.fill_(2.0)
    looking = Movement(module, torch.device("cpu"))
    assert looking.figures() == {"movement": 0.0}
    large.weight.data += 0.25
    small.weight.data -= 1.0
    expected = ((90_000 * 0.25**2 + 100) / (4 * 90_100)) ** 0.5
    assert looking.figures()["movement"] == pytest.approx(expected, rel=1e-6)
