"""Filling a cache folder: ranks share the work, a killed build goes on, two runs do not collide."""

import threading
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from fdpo_fast.cache.build import Builder, Cache
from fdpo_fast.cache.shards import Shard, Shards
from fdpo_fast.distributed import Rank


def rank(index=0, count=1, barrier=lambda: None):
    return Rank(index, count, torch.device("cpu"), barrier)


def cache(make, shards=4, **manifest):
    return Cache("kind", manifest or {"a": 1}, {"data.source": "x"}, [2] * shards, "entries", make)


def filled(shard, bar):
    bar.update(2)
    return Shard(columns={"x": torch.full((2, 3), float(shard))})


def test_a_killed_build_keeps_its_whole_shards(tmp_path, capsys):
    made = []

    def make(shard, bar, dies_at=None):
        if shard == dies_at:
            raise KeyboardInterrupt
        made.append(shard)
        return filled(shard, bar)

    with pytest.raises(KeyboardInterrupt):
        Builder(tmp_path, rank()).build(cache(lambda shard, bar: make(shard, bar, dies_at=2)))
    capsys.readouterr()
    folder = Builder(tmp_path, rank()).build(cache(make))
    assert made == [0, 1, 2, 3]
    said = capsys.readouterr()
    assert f"caching kind: 4 entries, to {folder}" in said.out  # of the two shards that are missing
    assert "4/4" in said.err
    rows = Shards(folder, by="x")
    assert len(rows) == 8
    assert rows.column("x")[[7, 0, 3], 0].tolist() == [3, 0, 1]
    assert Builder(tmp_path, rank()).build(cache(make, a=2)) != folder
    assert all(path.is_dir() for path in tmp_path.iterdir())  # a lock goes with its cache


@pytest.fixture
def group():
    """A process group of one, as the trainer makes it: ranks agree through it."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def test_ranks_share_the_work(group, tmp_path):
    made, barrier = {0: [], 1: [], 2: []}, threading.Barrier(3)

    def work(index):
        def make(shard, bar):
            made[index].append(shard)
            return filled(shard, bar)

        Builder(tmp_path, rank(index, 3, barrier.wait)).build(cache(make, shards=7))

    threads = [threading.Thread(target=work, args=(index,)) for index in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert made == {0: [0, 3, 6], 1: [1, 4], 2: [2, 5]}


@pytest.mark.parametrize("deleted", [False, True])
def test_a_second_run_waits_for_the_first_whose_lock_may_be_deleted(tmp_path, capsys, deleted):
    entered, leave, made = threading.Event(), threading.Event(), []

    def slow(shard, bar):
        entered.set()
        leave.wait(timeout=60)
        made.append(("first", shard))
        return filled(shard, bar)

    def quick(shard, bar):
        made.append(("second", shard))
        return filled(shard, bar)

    first = threading.Thread(target=lambda: Builder(tmp_path, rank()).build(cache(slow)))
    first.start()
    entered.wait(timeout=60)
    if deleted:
        next(tmp_path.glob("kind-*/.lock")).unlink()
    second = threading.Thread(target=lambda: Builder(tmp_path, rank()).build(cache(quick)))
    second.start()
    second.join(timeout=1)
    assert second.is_alive()
    leave.set()
    first.join(timeout=60)
    second.join(timeout=60)
    assert made == [("first", shard) for shard in range(4)]
    assert "another run is filling" in capsys.readouterr().out


def test_a_resumed_run_is_told_before_anything_is_built(tmp_path):
    name = Builder(tmp_path, rank()).build(cache(filled, visits=2)).name
    builder = Builder(tmp_path, rank(), resumed={"kind": name})
    assert builder.build(cache(filled, visits=2)).name == name
    with pytest.raises(ValueError, match="trained with another kind cache: 'visits' is 2 there and 3 here"):
        builder.build(cache(filled, visits=3))
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1


def test_a_cache_that_has_to_be_complete(tmp_path):
    builder = Builder(tmp_path, rank(), complete=True)
    with pytest.raises(ValueError, match="the kind cache of this configuration is not complete: run `fdpo"):
        builder.build(cache(filled))
    folder = Builder(tmp_path, rank()).build(cache(filled))
    assert builder.build(cache(filled)) == folder


def test_requested_again_with_the_same_manifest(tmp_path):
    builder = Builder(tmp_path, rank(), requested=True)
    assert builder.build(cache(filled)) == builder.build(cache(filled))
    assert replace(builder, requested=False).build(cache(filled)).name.startswith("kind-")
