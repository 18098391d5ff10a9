"""A resumed run refuses what is no checkpoint, is not whole, or belongs to other weights."""

import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from fdpo_fast import checksums
from tests.helpers.pictures import difficult_rows, write


def test_what_is_no_file_is_not_waited_for(run, checkpoints, refused):
    (checkpoints / "latest").unlink()
    os.mkfifo(checkpoints / "latest")
    assert "'latest' names none of them" in refused()
    (checkpoints / "step-000006" / checksums.NAME).unlink()
    os.mkfifo(checkpoints / "step-000006" / checksums.NAME)
    assert "is not as it was written; the newest whole one is step-000004" in refused("--resume-from", "6")


def test_checksums_that_are_gone_are_missed(run, checkpoints, refused):
    """Beside others that have them; where none has, what cannot be loaded is told as well."""
    (checkpoints / "step-000006" / checksums.NAME).unlink()
    assert "it has no checksums.json, and others of its run have" in refused()
    for path in checkpoints.glob("step-*/" + checksums.NAME):
        path.unlink()
    for path in checkpoints.glob("step-000006/mp_*"):
        os.truncate(path, 1000)
    assert "step-000006 cannot be loaded (" in refused()


def test_data_that_no_longer_tell_their_caches(run, launch, refused):
    file = Path(run["train"]["output_dir"]) / "data.json"
    for content in ('{"caches": 5}', '{"caches": {"pairs": 5}}'):
        file.write_text(content)
        assert "does not say with which caches the run has begun" in refused()
    file.unlink()
    assert "data.json is missing: nothing tells" in launch(run, "--resume").stdout


@pytest.mark.parametrize("words", ["", "9" * 5000, "٤", "step-6.bak"])
def test_a_checkpoint_that_is_asked_for_wrongly(refused, words):
    assert "--resume-from '" in refused("--resume-from", words)


def test_a_link_in_a_checkpoints_place_is_not_removed(run, checkpoints, launch, tmp_path):
    (checkpoints / "step-000002").rename(tmp_path / "elsewhere")
    (checkpoints / "step-000002").symlink_to(tmp_path / "elsewhere")
    run["train"] |= {"max_steps": 8, "keep_checkpoints": 1}
    launch(run, "--resume")
    assert (checkpoints / "step-000002").is_symlink()
    assert (checkpoints / "step-000008").is_dir()


def test_an_adapter_goes_on_with_its_own_base(tiny_config, pipelines, launch, tmp_path):
    base = shutil.copytree(pipelines["sd"], tmp_path / "base")
    raw = tiny_config("sd", write(tmp_path / "pairs.parquet", difficult_rows(12)))
    raw["model"] |= {"base": str(base), "train": "lora"}
    raw["train"]["max_steps"] = 3
    launch(raw)
    file = base / "unet/diffusion_pytorch_model.safetensors"
    save_file({name: 1.5 * weight for name, weight in load_file(file).items()}, file)
    raw["train"]["max_steps"] = 6
    done = launch(raw, "--resume", check=False)
    assert done.returncode
    assert "was trained on another denoiser than model.base has now" in done.stderr
