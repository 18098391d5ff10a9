"""Caches that several ranks fill together."""

from fdpo_fast.cli import main
from tests.helpers.pictures import as_pickapic, difficult_rows, files
from tests.helpers.ranks import together


def test_two_ranks_write_the_bytes_of_one(tiny_config, write_config, command, tmp_path):
    """Of pairs that share images, some of which do not decode; each file is made by one of them."""
    rows = difficult_rows()
    rows += [("shared", rows[0][1], rows[11][2], 1.0), ("broken", rows[3][1], rows[12][1][:1500], 0.0)]
    raw = tiny_config("sdxl", as_pickapic(tmp_path, rows))
    raw["data"] |= {"shard_rows": 4, "latents": "sample"}
    raw["data"]["cache_dir"] = str(tmp_path / "one")
    command(raw, "cache")
    raw["data"]["cache_dir"] = str(tmp_path / "two")
    done = together(2, main, (["cache", "--config", str(write_config(raw))],), tmp_path / "said")
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert {name.split("-")[0] for name in one} == {"pairs", "latents", "text", "reference"}
    assert sum(name.startswith("latents") and name.endswith("safetensors") for name in one) > 4
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
