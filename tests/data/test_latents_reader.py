"""Latents and embeddings that came ready, and whatever else the columns may hold: a row refused, never a traceback."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fdpo_fast.config.schema import Data
from fdpo_fast.data.check import examine
from fdpo_fast.data.pairs import Pair, Rejected
from fdpo_fast.data.readers.latents import EncodedPairs

GOOD = np.zeros((4, 8, 8)).tolist()


def column(path, **columns):
    """A source of one row, some columns of which are as given: values, or arrays of pyarrow."""
    own = {"caption": ["a"], "latents_0": [GOOD], "latents_1": [GOOD], "label_0": [1.0], "label_1": [0.0]}
    pq.write_table(pa.table(own | columns), path / "x.parquet")
    return EncodedPairs(str(path / "x.parquet"))


def only(source):
    (item,) = source.read(0, len(source))
    return item


NO_NUMBERS = {
    "struct": ([{"x": 1.0}], "is {'x': 1.0}"),
    "list of structs": ([[{"x": 1.0}]], "holds {'x': 1.0}"),
    "map": (pa.array([[("k", 1.0)]], pa.map_(pa.string(), pa.float32())), "is [('k', 1.0)]"),
    "list of maps": (pa.array([[[("k", 1.0)]]], pa.list_(pa.map_(pa.string(), pa.float32()))), "holds [('k', 1.0)]"),
    "bytes": ([b"\0" * 5000], "is b'\\x00"),
    "text": (["1.0 " * 5000], "is '1.0 1.0"),
    "list of text": ([["1.0"] * 5000], "holds '1.0'"),
    "list of long bytes": ([[b"\0" * 5000]], "holds b'\\x00"),
    "nothing in it": (pa.array([[]], pa.list_(pa.float32())), "is []"),
    "lists with nothing in them": (pa.array([[[], []]], pa.list_(pa.list_(pa.float32()))), "is [[], []]"),
    "null": (pa.array([None], pa.list_(pa.float32())), "is None"),
    "a null in it": ([[1.0, None]], "holds null"),
    "number": ([1.0], "is 1.0"),
    "times": (pa.array([[2**62]], pa.list_(pa.timestamp("ns"))), "holds "),
}


@pytest.mark.parametrize("name", ["latents_0", "prompt_embeds"])
@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_what_is_no_numbers_is_refused_with_what_was_found(tmp_path, name, kind):
    values, found = NO_NUMBERS[kind]
    item = only(column(tmp_path, **{name: values}))
    assert isinstance(item, Rejected)
    assert item.reason.startswith(f"numbers are lacking: {name} {found}")
    assert len(item.reason) < 140


def test_rows_of_many_lengths_are_not_all_listed(tmp_path):
    item = only(column(tmp_path, latents_0=[[[1.0] * n for n in range(1, 500)]]))
    assert item.reason == "rows differ in length: latents_0 has rows of 1, 2, 3, 4, ... numbers"


def test_numbers_beyond_float32_are_not_finite(tmp_path):
    far = np.full((4, 8, 8), 1e300).tolist()
    assert only(column(tmp_path, latents_0=[far])).reason == "not all numbers are finite: latents_0"


NOT_TWO = {
    "one": [[5]],
    "three": [[5, 5, 5]],
    "none": pa.array([[]], pa.list_(pa.int64())),
    "a null": [[5, None]],
    "a fraction": [[5.5, 6.0]],
    "NaN": [[float("nan"), 6.0]],
    "infinite": [[float("inf"), 6.0]],
    "negative": [[-1, 6]],
    "beyond int32": [[2**31, 6]],
    "beyond int64": pa.array([[2**64 - 1, 6]], pa.list_(pa.uint64())),
    "a number": [5],
    "text": ["64x64"],
    "texts": [["64", "64"]],
    "truths": [[True, True]],
    "struct": [{"height": 64, "width": 64}],
    "lists": [[[64], [64]]],
    "map": pa.array([[("h", 1), ("w", 1)]], pa.map_(pa.string(), pa.int64())),
    "bytes": [b"\0" * 5000],
}


@pytest.mark.parametrize("name", ["original_size_0", "crop_1"])
@pytest.mark.parametrize("kind", NOT_TWO)
def test_sizes_and_crops_are_two_whole_numbers(tmp_path, name, kind):
    item = only(column(tmp_path, **{name: NOT_TWO[kind]}))
    assert isinstance(item, Rejected)
    assert item.reason.startswith("original size or crop are not two whole numbers: found ")
    assert f" in {name}, each is to be {int(name == 'original_size_0')} or more" in item.reason
    assert len(item.reason) < 200


def test_a_size_is_not_zero_but_a_crop_may_be(tmp_path):
    assert isinstance(only(column(tmp_path, original_size_1=[[0, 64]])), Rejected)
    item = only(column(tmp_path, original_size_1=[[480.0, 640.0]], crop_1=[[0, 3]]))
    assert isinstance(item, Pair)
    assert (item.dispreferred.original_size, item.dispreferred.crop) == ((480, 640), (0, 3))
    assert all(type(number) is int for number in item.dispreferred.original_size)
    item = only(column(tmp_path, original_size_1=pa.array([None], pa.list_(pa.int64()))))
    assert item.dispreferred.original_size is None


def test_findings_of_nan_sizes_are_json(tmp_path):
    source = column(tmp_path, original_size_0=[[float("nan"), 64.0]])
    findings, _ = examine(source.read(0, 1), Data(source="x"), 1)
    assert "NaN" not in json.dumps(findings.sizes, allow_nan=False)
    assert len(findings.refused) == 1
