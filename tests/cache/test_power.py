"""A power cut at an operation on the caches' files: what is there then is gone on from, to the same files."""

import copy
import shutil
from pathlib import Path

import pytest

from tests.helpers.pictures import files, noisy_pairs
from tests.helpers.power import recorded, restore


def content(folder):
    """Files by name, without the locks, which are empty."""
    return {name: data for name, data in files(folder).items() if not name.endswith(".lock")}


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_what_is_left_is_gone_on_from(tiny_config, command, tmp_path, every):
    raw = tiny_config("sd", noisy_pairs(tmp_path, [row % 2 for row in range(6)]))
    raw["data"]["shard_rows"] = 2
    root, left = Path(raw["data"]["cache_dir"]), tmp_path / "left"
    root.mkdir()
    with recorded(root) as record:
        command(raw, "cache")
    want, again = content(root), copy.deepcopy(raw)
    again["data"]["cache_dir"] = str(left)
    assert len(record.states) > 30
    for state in [*record.states][::every]:
        shutil.rmtree(left, ignore_errors=True)
        restore(state, left)
        command(again, "cache")
        assert content(left) == want
