"""Shards that change, or whose disk fails, while they are read: a sentence, where a mapped file would end us."""

import errno
import os

import pytest
import torch

from fdpo_fast.cache.shards import Shard, Shards
from fdpo_fast.config.errors import UserError


@pytest.fixture
def shards(tmp_path):
    for number in range(2):
        items = {"x": [torch.full((64, 64), float(entry)) for entry in range(8)]}
        Shard(columns={"id": torch.arange(8)}, items=items).save(tmp_path / f"{number:06d}.safetensors")
    return Shards(tmp_path, by="x")


@pytest.mark.parametrize("size", [0, 100, 4096, 64 * 64 * 4 * 4])
def test_a_file_that_is_cut_off_under_a_reader(shards, size):
    assert shards.entry("x", 15)[0, 0] == 7
    os.truncate(shards.paths[1], size)
    with pytest.raises(UserError, match=r"000001\.safetensors is damaged .*: delete this file and run again"):
        shards.entry("x", 15)
    assert shards.entry("x", 7)[0, 0] == 7  # the other file


def test_a_file_that_is_overwritten_under_a_reader(shards):
    shards.entry("x", 15)
    shards.paths[1].write_bytes(bytes(shards.paths[1].stat().st_size))
    with pytest.raises(UserError, match="does not match its checksum"):
        shards.entry("x", 14)


def test_a_file_that_is_made_anew_under_a_reader(shards, tmp_path):
    """What was opened goes on being read."""
    Shard(columns={"id": torch.arange(1)}, items={"x": [torch.zeros(1)]}).save(shards.paths[1])
    assert shards.entry("x", 15)[0, 0] == 7


def test_a_disk_that_fails_under_a_reader(shards, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(UserError, match=r"000001\.safetensors cannot be read: Input/output error"):
        shards.entry("x", 15)


@pytest.mark.parametrize("content", [b"", b"1234", b"\xff" * 8 + b"{}", (2).to_bytes(8, "little") + b"{}", bytes(64)])
def test_what_is_no_shard(tmp_path, content):
    (tmp_path / "000000.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"000000\.safetensors is damaged"):
        Shards(tmp_path, by="x")
