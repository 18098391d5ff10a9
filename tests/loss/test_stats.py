"""LossStats, which is filled at its first use, in whatever way a dict is used."""

import copy
import io
import json
import pickle
from collections import ChainMap, OrderedDict
from concurrent.futures import ThreadPoolExecutor
from operator import eq, ne

import pytest
import torch
from torch.nn.parallel.distributed import _find_tensors
from torch.utils._pytree import tree_map
from torch.utils.data import default_collate

from fdpo_fast import fdpo_loss
from fdpo_fast.loss.stats import LossStats

NAMES = [
    *("error_w", "error_l", "ref_error_w", "ref_error_l", "log_ratio_w", "log_ratio_l", "margin", "clipped"),
    *("loser_scale", "accuracy"),
]


def made(backend=None):
    generator = torch.Generator("cpu").manual_seed(0)
    inputs = (torch.randn(4, 3, generator=generator, dtype=torch.float32) for _ in range(3))
    return fdpo_loss(*inputs, beta=1.0, ratio_scale=1.0, backend=backend)[1]


def saved(stats):
    file = io.BytesIO()
    torch.save(stats, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def updated(stats):
    values = {}
    values.update(stats)
    return values


def merged(stats):
    values = {}
    values |= stats
    return values


TAKEN = {
    "dict": dict,
    "**": lambda stats: {**stats},
    "arguments": lambda stats: (lambda **values: values)(**stats),
    "|": lambda stats: stats | {},
    "r|": lambda stats: {} | stats,
    "|=": merged,
    "update": updated,
    "method copy": lambda stats: stats.copy(),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "torch.save": saved,
    "tree_map": lambda stats: tree_map(torch.clone, stats),
    "ChainMap": lambda stats: dict(ChainMap(stats)),
    "OrderedDict": OrderedDict,
    "items": lambda stats: dict(stats.items()),
    "keys and values": lambda stats: dict(zip(stats.keys(), stats.values(), strict=True)),
    "iteration": lambda stats: {name: stats[name] for name in stats},
    "popitem": lambda stats: dict([stats.popitem() for _ in range(len(stats))][::-1]),
    "pop": lambda stats: {name: stats.pop(name) for name in NAMES},
    "get": lambda stats: {name: stats.get(name) for name in NAMES},
    "attributes": lambda stats: {name: getattr(stats, name) for name in NAMES},
    **{
        f"pickle {protocol}": lambda stats, protocol=protocol: pickle.loads(pickle.dumps(stats, protocol))  # noqa: S301
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}


@pytest.mark.parametrize("way", list(TAKEN))
def test_all_statistics_are_there_whatever_is_asked_first(way):
    got = TAKEN[way](made())
    assert list(got) == NAMES
    want = made("eager")
    for name in NAMES:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-5)


ASKED = {
    "in": (lambda stats: ("margin" in stats, "" in stats, "_packed" in stats), (True, False, False)),
    "len": (len, 10),
    "bool": (bool, True),
    "list": (list, NAMES),
    "sorted": (sorted, sorted(NAMES)),
    "reversed": (lambda stats: list(reversed(stats)), NAMES[::-1]),
    "get": (lambda stats: stats.get("nothing", 3), 3),
    "pop": (lambda stats: (stats.pop("margin").shape, len(stats)), ((2,), 9)),
    "setdefault": (lambda stats: stats.setdefault("margin", 0).shape, (2,)),
    "setdefault of another": (lambda stats: (stats.setdefault("mine", 0), len(stats)), (0, 11)),
    "hasattr": (lambda stats: (hasattr(stats, "margin"), hasattr(stats, "nothing")), (True, False)),
    "==": (lambda stats: (stats == {}, stats != {}, eq({}, stats), ne({}, stats)), (False, True, False, True)),
    "json": (lambda stats: list(json.loads(json.dumps(stats, default=torch.Tensor.tolist))), NAMES),
    "tensors that DDP finds": (lambda stats: len(list(_find_tensors(stats))), 10),
    "collate": (lambda stats: default_collate([stats, made()])["margin"].shape, (2, 2)),
    "subtypes": (lambda stats: [type(f(stats)) for f in (copy.copy, copy.deepcopy, saved)], [LossStats] * 3),
    "repr": (lambda stats: all(name in repr(stats) for name in NAMES), True),
}


@pytest.mark.parametrize("what", list(ASKED))
def test_it_answers_as_a_dict(what):
    ask, want = ASKED[what]
    assert ask(made()) == want


def test_it_can_be_changed():
    stats = made()
    stats["margin"] = 1
    stats["mine"] = 2
    del stats["accuracy"]
    assert (stats.margin, stats.mine, len(stats), "accuracy" in stats) == (1, 2, 10, False)
    stats.clear()
    assert not stats
    with pytest.raises(KeyError, match="margin"):
        stats["margin"]
    with pytest.raises(AttributeError, match="margin"):
        _ = stats.margin
    with pytest.raises(KeyError, match="nothing"):
        made()["nothing"]


def test_threads_that_read_at_once_find_all_items():
    with ThreadPoolExecutor(4) as threads:
        for _ in range(300):
            _, stats = fdpo_loss(*[torch.zeros(4, 3, dtype=torch.float32)] * 3, beta=1.0, ratio_scale=1.0)
            readings = [threads.submit(lambda stats=stats: (stats.margin.shape, len(stats))) for _ in range(4)]
            assert {reading.result() for reading in readings} == {((2,), 10)}
