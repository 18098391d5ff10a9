"""Keys of DeepSpeed's: its own are known without importing it, others are warned of with the nearest."""

import json
import subprocess
import sys

import pytest

from fdpo_fast.cli import main
from fdpo_fast.config.deepspeed_keys import unknown
from fdpo_fast.config.load import extended
from tests.helpers import ROOT


def models(base):
    for model in base.__subclasses__():
        yield model
        yield from models(model)


def test_all_fields_of_deepspeeds_own_models_are_known():
    import deepspeed  # noqa: F401  # makes them all
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel

    fields = {
        field.alias or name for model in models(DeepSpeedConfigModel) for name, field in model.model_fields.items()
    }
    assert {"stage", "enabled", "reduce_bucket_size", "pin_memory"} <= fields
    assert unknown({"zero_optimization": dict.fromkeys(fields)}) == []


def test_what_our_files_say_is_known():
    for path in (ROOT / "configs").glob("*.json"):
        assert unknown(extended(path).get("deepspeed", {})) == [], path


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"zero_optimisation": {"stage": 2}}, ["deepspeed.zero_optimisation is no key", "'zero_optimization'?"]),
        (
            {"zero_optimization": {"reduce_bucketsize": 1}},
            ["zero_optimization.reduce_bucketsize", "'reduce_bucket_size'?"],
        ),
        ({"zero_optimization": {"offload_param": {"devise": "cpu"}}}, [".offload_param.devise", "'device'?"]),
        ({"wall_clock_breakdwn": True}, ["wall_clock_breakdwn", "'wall_clock_breakdown'?"]),
        ({"qqqq": 1}, ["deepspeed.qqqq is no key that DeepSpeed knows"]),
        ({"wall_clock_breakdown": True, "flops_profiler": {"enabled": True}}, []),
        ({"autotuning": {"arg_mappings": {"my_own": "--mine"}}}, []),
        ({}, []),
    ],
)
def test_what_is_said_of_a_key(section, says):
    found = unknown(section)
    assert len(found) == bool(says)
    assert all(part in found[0] for part in says)


def test_train_and_plan_warn_and_go_on(raw_config, write_config, capsys):
    path = str(write_config(raw_config | {"deepspeed": {"wall_clock_breakdwn": True}}))
    main(["train", "--config", path, "--dry-run"])
    said = capsys.readouterr()
    assert json.loads(said.out)["deepspeed"] == {"wall_clock_breakdwn": True}
    assert said.err.count("did you mean 'wall_clock_breakdown'?") == 1
    main(["plan", "--config", path])
    assert capsys.readouterr().err.count("did you mean 'wall_clock_breakdown'?") == 1


@pytest.mark.parametrize(
    ("section", "says"),
    [
        (
            {"zero_optimization": {"reduce_bucketsize": 1, "offload_optimizer": {"device": "gpu"}}},
            'DeepSpeed does not take "gpu" for deepspeed.zero_optimization.offload_optimizer.device: '
            "it takes 'none', 'cpu' or 'nvme'; "
            "deepspeed.zero_optimization.reduce_bucketsize is no key that DeepSpeed takes, "
            "did you mean 'reduce_bucket_size'?",
        ),
        (
            {"zero_optimization": {"reduce_scatter": 7}},
            "DeepSpeed does not take 7 for deepspeed.zero_optimization.reduce_scatter",
        ),
        ({"compile": {"x": 1}}, "deepspeed.compile.x is no key that DeepSpeed takes"),
    ],
)
def test_what_deepspeeds_own_models_refuse_ends_the_trainer_with_a_sentence(launch, raw_config, section, says):
    done = launch(raw_config | {"deepspeed": section}, check=False)
    assert done.returncode
    assert (done.stdout + done.stderr).splitlines()[-1] == f"fdpo train: {says}"


def test_other_ranks_say_nothing(raw_config, write_config, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    path = str(write_config(raw_config | {"deepspeed": {"wall_clock_breakdwn": True}}))
    main(["train", "--config", path, "--dry-run"])
    assert not capsys.readouterr().err


def test_deepspeed_is_not_imported_for_it():
    script = (
        "import sys; from fdpo_fast.config.deepspeed_keys import unknown\n"
        "assert unknown({'wall_clock_breakdwn': 1}); sys.exit('deepspeed' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
