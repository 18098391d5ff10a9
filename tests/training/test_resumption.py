"""What a resumed run finds: checkpoints that nothing points to, damaged ones, and those of another configuration."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from fdpo_fast import checksums
from tests.helpers.training import run_of, weights


def names(checkpoints):
    return sorted(path.name for path in checkpoints.glob("step-*"))


@pytest.mark.parametrize(
    "content", [None, "", "\n", "step-000008\n", "step-6", "step-0000006", b"\xff\xfe", "../checkpoints/step-000006"]
)
def test_checkpoints_without_a_pointer_are_a_choice(run, checkpoints, refused, content):
    point = checkpoints / "latest"
    point.unlink()
    if content is not None:
        point.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = refused()
    assert "there are step-000002, step-000004, step-000006; go on with --resume-from step-000006" in said
    assert "or name another train.output_dir" in said


def test_a_pointer_to_nothing_is_told(run, checkpoints, refused):
    for path in checkpoints.glob("step-*"):
        shutil.rmtree(path)
    assert "'latest' names none of them, and there is none; remove it to begin anew" in refused()


def test_what_lies_beside_checkpoints_is_left_alone(run, checkpoints, launch):
    others = ["step-0000002", "step-000008.bak", "step-7", "step-٠٠٠٠٠٦", "step-", "step-00000x", "notes.txt"]
    for name in others[:4]:
        shutil.copytree(checkpoints / "step-000006", checkpoints / name)
    for name in others[4:]:
        (checkpoints / name).touch()
    run["train"]["max_steps"] = 8
    assert "warning" not in launch(run, "--resume").stdout
    assert names(checkpoints) == sorted([*others[:-1], "step-000004", "step-000006", "step-000008"])
    assert (checkpoints / "notes.txt").exists()


def test_an_older_checkpoint_gives_the_same_run_and_later_ones_stay_until_then(run, checkpoints, launch):
    before = weights(run)
    run["train"]["max_steps"] = 4
    launch(run, "--resume-from", "step-2")
    assert names(checkpoints) == ["step-000002", "step-000004", "step-000006"]
    assert (checkpoints / "latest").read_text() == "step-000004\n"
    first = (checkpoints / "step-000006/checksums.json").stat().st_mtime_ns
    run["train"] |= {"max_steps": 7, "checkpoint_every": 7}
    launch(run, "--resume")
    assert names(checkpoints) == ["step-000002", "step-000004", "step-000007"]  # 6 was of another way, and is passed
    run["train"] |= {"max_steps": 6, "checkpoint_every": 6}
    launch(run, "--resume-from", "4")
    assert names(checkpoints) == ["step-000002", "step-000004", "step-000006", "step-000007"]
    assert (checkpoints / "step-000006/checksums.json").stat().st_mtime_ns > first
    assert all(torch.equal(before[name], value) for name, value in weights(run).items())


def test_a_checkpoint_that_is_not_there_is_told(run, refused):
    for asked in ("step-3", "latest", "../step-000002", "step-000008"):
        said = refused("--resume-from", asked)
        assert f"--resume-from '{asked}' is no checkpoint in" in said
        assert "there are step-000002, step-000004, step-000006" in said


def flip(file, at):
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def test_damage_is_one_sentence_before_anything_is_read(run, checkpoints, refused):
    """In every file of a checkpoint: a bit, its end, all of it, the file itself, a folder in its place."""
    newest = checkpoints / "step-000006"
    files = sorted(path.name for path in newest.iterdir())
    assert files == ["checksums.json", "config.json", "ema-rank00000.safetensors", "mp_rank_00_model_states.pt"]
    for name in files:
        file, content = newest / name, (newest / name).read_bytes()
        for harm in ("first", "middle", "last", "shorter", "longer", "empty", "missing", "folder"):
            if harm in ("first", "middle", "last"):
                flip(file, {"first": 0, "middle": len(content) // 2, "last": len(content) - 2}[harm])
            elif harm in ("shorter", "longer", "empty"):
                file.write_bytes({"shorter": content[:-1], "longer": content + b"x", "empty": b""}[harm])
            else:
                file.unlink()
            if harm == "folder":
                file.mkdir()
            if (name, harm) != ("checksums.json", "missing"):
                said = refused()
                assert f"the checkpoint {newest} is damaged: " in said, (name, harm)
                assert name in said, (name, harm)
                assert said.endswith("the newest whole one is step-000004: go on there with --resume-from step-000004")
            if harm == "folder":
                file.rmdir()
            file.write_bytes(content)
    shutil.copy(newest / files[-1], newest / "mp_rank_01_model_states.pt")
    assert "mp_rank_01_model_states.pt was not written with it" in refused()
    shutil.rmtree(newest)
    newest.touch()
    assert "is damaged: it is no folder" in refused()


def test_the_newest_whole_one_takes_the_place_of_a_damaged_one(run, checkpoints, launch, refused):
    before = weights(run)
    shutil.rmtree(checkpoints / "step-000006")
    (checkpoints / "step-000006").touch()
    flip(checkpoints / "step-000004/config.json", 5)
    assert "the newest whole one is step-000002" in refused()
    launch(run, "--resume-from", "step-000002")
    assert all(torch.equal(before[name], value) for name, value in weights(run).items())
    for path in checkpoints.glob("step-*"):
        flip(path / "config.json", 5)
    assert "no other is whole: name another train.output_dir to begin anew" in refused()


def test_a_checkpoint_under_another_name_is_told(run, checkpoints, refused):
    shutil.copytree(checkpoints / "step-000002", checkpoints / "step-000005")
    assert "is not what its name says: it is behind 2 steps" in refused("--resume-from", "5")


def test_one_of_an_older_version_goes_on_with_a_warning(run, checkpoints, launch, read_metrics):
    for path in checkpoints.glob("step-*/checksums.json"):
        path.unlink()
    run["train"]["max_steps"] = 7
    said = launch(run, "--resume").stdout
    assert "step-000006 has no checksums.json, as those of older versions: it cannot be checked" in said


def test_fewer_steps_than_are_done_are_refused(run, checkpoints, refused):
    export = Path(run["train"]["output_dir"]) / "export/model_index.json"
    before = export.stat().st_mtime_ns
    run["train"]["max_steps"] = 5
    assert "train.max_steps 5 is below the 6 steps that are behind the checkpoint" in refused()
    assert export.stat().st_mtime_ns == before


LAYOUTS = {
    'optimizer.type ("adamw" -> "adamw8bit")': {"optimizer": {"type": "adamw8bit"}},
    "deepspeed.zero_optimization.stage (0 -> 2)": {"deepspeed": {"zero_optimization": {"stage": 2}}},
    "deepspeed.zero_optimization.stage (0 -> 3)": {"deepspeed": {"zero_optimization": {"stage": 3}}},
    'deepspeed.bf16.enabled (false -> true) or model.dtype ("fp32" -> "bf16")': {"model": {"dtype": "bf16"}},
    'model.train ("full" -> "lora")': {"model": {"train": "lora"}},
}


@pytest.mark.parametrize("key", LAYOUTS)
def test_what_decides_about_the_files_cannot_change(run, refused, key):
    for section, values in LAYOUTS[key].items():
        run.setdefault(section, {}).update(values)
    said = refused()
    assert f"cannot be read with another {key}: go on as it was written" in said
    assert "or begin a new run from its export, model.base '" in said


def test_what_changes_the_run_is_said_in_one_warning(run, launch, read_metrics):
    run["train"] |= {"max_steps": 7, "checkpoint_every": 5, "seed": 3}
    run["optimizer"] |= {"lr": 1e-5, "betas": [0.8, 0.99]}
    run["loss"]["beta"] = 2.0
    said = launch(run, "--resume").stdout
    (line,) = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert line == (
        "warning: resumed behind step 6 with another loss.beta: 1.0 -> 2.0, optimizer.lr: 0.0001 -> 1e-05, "
        "optimizer.betas: [0.9, 0.999] -> [0.8, 0.99], train.seed: 0 -> 3"
    )
    assert read_metrics(run)[-1]["warnings"] == [line.removeprefix("warning: ")]


def test_lora_says_its_alpha_and_keeps_its_rank_and_targets(raw_config, launch, tmp_path):
    raw_config["model"]["train"] = "lora"
    raw_config["reference"] = {"mode": "adapter"}
    raw_config["train"]["max_steps"] = 3
    launch(raw_config)
    for changed, words in (
        ({"rank": 4}, "model.lora.rank (8 -> 4)"),
        ({"targets": ["to_q"]}, 'model.lora.targets (["to_k", "to_out.0", "to_q", "to_v"] -> ["to_q"])'),
    ):
        raw_config["model"]["lora"] = changed
        done = launch(raw_config, "--resume", check=False)
        assert f"cannot be read with another {words}" in done.stderr
        assert "Traceback" not in done.stderr
    raw_config["model"]["lora"] = {"alpha": 16.0}
    raw_config["train"] |= {"max_steps": 4, "ema_decay": 0.5}
    assert "another train.ema_decay (null -> 0.5)" in launch(raw_config, "--resume", check=False).stderr
    del raw_config["train"]["ema_decay"]
    assert "with another model.lora.alpha: 8.0 -> 16.0" in launch(raw_config, "--resume").stdout


def test_states_that_are_whole_go_on_by_any_number_of_ranks(run, checkpoints, launch):
    """ZeRO 0 in float32: each rank holds all of them, and the averages."""
    run["train"]["max_steps"] = 8
    said = launch(run, "--resume", ranks=2).stdout
    assert "with another number of ranks: 1 -> 2" in said
    assert json.loads((checkpoints / "step-000008/checksums.json").read_text())["ranks"] == 2
    run["train"]["max_steps"] = 10
    launch(run, "--resume")


@pytest.mark.parametrize("stage", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_states_that_are_split_do_not(run, launch, refused, stage):
    """All ranks end, with one sentence, and damage that one of them finds is all ranks'."""
    shutil.rmtree(run["train"]["output_dir"])
    run["deepspeed"] = {"zero_optimization": {"stage": stage}}
    launch(run, ranks=2)
    assert "cannot be read with another number of ranks (2 -> 1)" in refused()
    for part in (0, 1):
        (file,) = Path(run["train"]["output_dir"]).glob(f"checkpoints/step-000006/*zero_pp_rank_{part}*optim_states.pt")
        flip(file, 100)
        assert f"{file.name} does not match its checksum" in refused(ranks=2)
        flip(file, 100)
    run["deepspeed"] = {}
    assert "deepspeed.zero_optimization.stage" in refused(ranks=2)


def test_another_model_is_told_before_it_is_read(run, checkpoints, launch):
    checkpoint = checkpoints / "step-000006"
    facts = checksums.facts_of(checkpoint)
    checksums.write(checkpoint, facts.pop("files"), **(facts | {"trained": "of other shapes"}))
    done = launch(run, "--resume", check=False)
    assert "is of another model: what is trained has other names or shapes" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "changed"),
    [
        (2, {"offload_optimizer": {"device": "cpu"}}),
        (2, {"reduce_bucket_size": 1000, "allgather_bucket_size": 5000, "overlap_comm": False}),
        (3, {"offload_optimizer": {"device": "cpu"}}),
        (3, {"offload_param": {"device": "cpu"}}),
        (3, {"stage3_param_persistence_threshold": 10, "stage3_max_live_parameters": 1000}),
    ],
)
def test_what_moves_states_alone_gives_the_same_run(raw_config, launch, tmp_path, stage, changed):
    whole = run_of(raw_config, tmp_path / "whole", zero_optimization={"stage": stage})
    launch(whole, ranks=2)
    parts = run_of(raw_config, tmp_path / "parts", zero_optimization={"stage": stage})
    parts["train"]["max_steps"] = 3
    launch(parts, ranks=2)
    parts["train"]["max_steps"] = 6
    parts["deepspeed"]["zero_optimization"] |= changed
    assert "resumed behind step 3 with another deepspeed.zero_optimization" in launch(parts, "--resume", ranks=2).stdout
    ours, theirs = weights(parts), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_what_orders_states_otherwise_is_refused(raw_config, launch, tmp_path):
    """DeepSpeed would read them without a word, each at another's place."""
    raw = run_of(raw_config, tmp_path / "run", zero_optimization={"stage": 2})
    launch(raw, ranks=2)
    raw["deepspeed"]["zero_optimization"]["round_robin_gradients"] = True
    said = launch(raw, "--resume", ranks=2, check=False).stderr
    assert 'cannot be read with another deepspeed.zero_optimization ({} -> {"round_robin_gradients": true})' in said
