"""`fdpo cache` and `cache verify`, and a trainer that finds another cache than it was asked for."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from fdpo_fast.cache.shards import Shard
from tests.helpers.pictures import (
    as_pickapic,
    difficult_rows,
    files,
)


def test_cache_fills_verifies_and_stays(command, tiny_config, tmp_path):
    raw = tiny_config("sdxl", as_pickapic(tmp_path, difficult_rows()))
    said = command(raw, "cache")
    assert "24 rows, 21 pairs, 2 ties dropped, refused: 1 x an image does not decode" in said
    for kind in ("pairs", "latents", "text", "reference"):
        assert said.count(f"{tmp_path / 'cache' / kind}-") == 2  # as it is filled, and at last
    first = files(tmp_path / "cache")
    assert "caching" not in command(raw, "cache")
    said = command(raw, "cache", "verify")
    assert "checksums match" in said
    assert "1 refused rows were looked at again: none can be used" in said
    for kind in ("latents", "text", "reference"):
        assert f"{kind}: largest difference" in said
    assert files(tmp_path / "cache") == first


def test_verify_finds_what_a_checksum_cannot(command, tiny_config, tmp_path):
    """Values that were written wrong, checksum and all."""
    raw = tiny_config("sd", as_pickapic(tmp_path, difficult_rows()))
    command(raw, "cache")
    folder = next(path for path in (tmp_path / "cache").glob("reference-*") if path.is_dir())
    for path in folder.glob("*.safetensors"):
        Shard(columns={"error": load_file(path)["error"] * 1.01}).save(path)
    with pytest.raises(SystemExit, match=r"fdpo cache verify: .*reference-.* do not hold what is computed now"):
        command(raw, "cache", "verify")


def test_the_trainer_refuses_another_cache_than_the_one_asked_for(command, tiny_config, tmp_path):
    raw = tiny_config("sd", as_pickapic(tmp_path, difficult_rows()))
    command(raw, "cache")
    raw["reference"]["visits"] = 3
    with pytest.raises(
        SystemExit, match=r"fdpo train: the reference cache made by `fdpo cache`.*'visits' is 2 there and 3"
    ):
        command(raw, "train")
    raw["reference"]["visits"] = 2
    unet = Path(raw["model"]["base"]) / "unet"
    before = (unet / "config.json").read_bytes()
    try:  # another model under the same name
        (unet / "config.json").write_bytes(before + b"\n")
        with pytest.raises(SystemExit, match=r"the reference cache .* 'unet' is"):
            command(raw, "train")
    finally:
        (unet / "config.json").write_bytes(before)
