"""The drift of models from their base: against calibration's own way of measuring it, and what it is made from."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fdpo_fast.compare import calibrate
from fdpo_fast.compare import drift as module
from fdpo_fast.compare.drift import drift, paired
from fdpo_fast.config.mistakes import checked
from fdpo_fast.config.run import Config
from fdpo_fast.config.schema import Data
from fdpo_fast.data.readers.detect import open_source
from fdpo_fast.evaluate.gallery import Gallery


def gallery(folder, images):
    """Random pictures of three captions."""
    rng = np.random.default_rng(0)
    (folder / "base").mkdir(parents=True)
    files = [[folder / f"base/{caption}-{image}.png" for image in range(images)] for caption in range(3)]
    for path in (path for own in files for path in own):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return Gallery("base", folder / "base", ["größe", "a red car", ""], files, [[*range(images)]] * 3)


@pytest.mark.parametrize(("images", "pairs"), [(2, 3), (5, 6)])
def test_neighbours_are_paired(tmp_path, images, pairs):
    base = gallery(tmp_path, images)
    found = list(open_source(Data(source=str(paired(base)))).read(0, 99))
    assert len(found) == pairs
    for pair in found:
        own = base.files[base.prompts.index(pair.caption)]
        at = own.index(pair.preferred.content)
        assert at % 2 == 0
        assert pair.dispreferred.content == own[at + 1]


def test_drift_is_what_calibration_measures(tiny_config, pipelines, tmp_path, monkeypatch):
    """On the one draw that calibration takes, of policies whose weights are moved at random."""
    monkeypatch.setattr(module, "VISITS", 1)
    raw = tiny_config("sd", tmp_path / "elsewhere") | {"reference": {}}
    raw["data"] |= {"validation": 0.3, "labels": "none.jsonl"}
    raw["train"] |= {"validate_every": 1}
    config, base = checked(Config, raw), gallery(tmp_path / "images", 4)
    policies = {}
    for name, scale in {"near": 1e-3, "far": 1e-1}.items():
        policies[name] = shutil.copytree(pipelines["sd"], tmp_path / name)
        (file,) = (policies[name] / "unet").glob("*.safetensors")
        generator = torch.Generator().manual_seed(1)
        weights = {key: w + scale * torch.randn(w.shape, generator=generator) for key, w in load_file(file).items()}
        save_file(weights, file, {"format": "pt"})
    found = drift(config, base, policies)
    assert [*found] == ["base", "near", "far"]
    assert found["base"] == (0, 0, 0)
    source = {"data.source": str(paired(base)), "data.labels": None, "data.validation": None, "train.validate_every": 0}
    for name, folder in policies.items():
        delta = calibrate.drift(config.replace(source), 99, 0, folder).delta
        assert delta.shape == (6, 2)
        assert found[name].value == pytest.approx(config.loss.ratio_scale * delta.mean().item(), rel=1e-5)
        assert found[name].low < found[name].value < found[name].high
    assert abs(found["near"].value) < found["far"].value


def test_a_single_image_of_a_caption_has_no_drift(tiny_config, tmp_path):
    config = checked(Config, tiny_config("sd", tmp_path / "elsewhere"))
    assert drift(config, gallery(tmp_path / "images", 1), {}) == {}
