"""Records and columns that are odd in themselves: what costs a row of its own, and what is read all the same."""

import json
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Data
from fdpo_fast.data.pairs import Pair
from fdpo_fast.data.readers.detect import open_source
from tests.helpers.others_pairs_case import images, jsonl, record
from tests.helpers.pictures import BLUE, RED

ROWS = 4


def opened(source, **data):
    return open_source(Data(source=str(source), **data))


def captions(source):
    """The captions of pairs, and the reasons why others are none."""
    return [item.caption if isinstance(item, Pair) else item.reason for item in source.read(0, len(source))]


def plain():
    return [json.dumps(record(row)).encode() for row in range(ROWS)]


def array(lines):
    return b"[" + b",\n".join(lines) + b"]"


def cr_only(lines):
    return b"\r".join(lines)


FORMS = [("metadata.jsonl", b"\n".join), ("set.json", b"\n".join), ("set.json", array), ("set.jsonl", cr_only)]


@pytest.fixture(params=FORMS, ids=["jsonl", "json-lines", "array", "cr"])
def written(request, tmp_path):
    """Write lines in one of the forms, beside the images that `record` names; returns the source, a file."""
    name, form = request.param
    jsonl(tmp_path / "set", [record(row) for row in range(ROWS)], "plain.jsonl").joinpath("plain.jsonl").unlink()

    def write(lines):
        path = tmp_path / "set" / name
        path.write_bytes(form(lines))
        return opened(path)

    return write


def with_value(row, value, key="seed"):
    """A record in whose text stands a value that Python itself may not write."""
    return json.dumps({key: "?", **record(row)} | {key: "?"}).replace('"?"', value).encode()


def only_the_second_is_refused(source, words):
    source.identity()
    first, odd, *rest = captions(source)
    assert [first, *rest] == ["picture 0", "picture 2", "picture 3"]
    assert words in odd


def test_every_form_of_a_file_is_read(written):
    source = written(plain())
    assert captions(source) == [f"picture {row}" for row in range(ROWS)]
    assert len(source) == ROWS
    assert [item.caption for item in source.read(1, 3)] == ["picture 1", "picture 2"]


@pytest.mark.parametrize("key", ["image_0", "caption", "prefer_0"])
def test_a_key_that_is_there_twice(written, key):
    """Which of both is meant, nobody knows."""
    lines = plain()
    lines[1] = lines[1].replace(b"{", f'{{"{key}": "other", '.encode(), 1)
    only_the_second_is_refused(written(lines), f"a key is there twice: '{key}'")


def test_a_key_twice_in_what_is_not_read_does_not_matter(written):
    lines = plain()
    lines[1] = with_value(1, '{"a": 1, "a": 2}', "meta")
    assert captions(written(lines)) == [f"picture {row}" for row in range(ROWS)]


@pytest.mark.parametrize("number", ["9" * 5000, "-" + "9" * 5000, "1e9999", "9" * 400])
def test_a_number_of_thousands_of_digits(written, number):
    lines = plain()
    lines[1] = with_value(1, number)
    assert captions(written(lines)) == [f"picture {row}" for row in range(ROWS)]
    lines[1] = with_value(1, number, "prefer_0")
    only_the_second_is_refused(written(lines), "no valid label: found ")


@pytest.mark.parametrize("key", ["image_0", "caption", "prefer_0", "images", "meta"])
def test_values_of_many_levels(tmp_path, key):
    """Whatever fails first, reading it or showing it, costs its row, or nothing where nothing is made of it."""
    root = jsonl(tmp_path / "set", [record(row) for row in range(ROWS)])
    deep = [with_value(1, "[" * depth + "]" * depth, key) for depth in (*range(700, 1000), 5000, 100_000)]
    (root / "metadata.jsonl").write_bytes(b"\n".join([plain()[0], *deep, plain()[2]]))
    source = opened(root)
    source.identity()
    first, *odd, last = captions(source)
    assert (first, last) == ("picture 0", "picture 2")
    assert len(odd) == len(deep)
    assert max(len(words) for words in odd) < 400


def test_an_array_of_many_levels_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "set.json"
    for content in ("[" * 5000 + "]" * 5000, "[" * 200_000):
        path.write_text(content)
        with pytest.raises(UserError, match=r"set\.json is no array of records, nor lines of them: ") as error:
            opened(path)
        assert len(str(error.value)) < 600


@pytest.mark.parametrize("first", [b'["x", "y"]', b"[]", b"[1, 2", b"3", b'"text"', b"null"])
def test_a_first_line_that_is_no_record(tmp_path, first):
    root = jsonl(tmp_path / "set", [record(row) for row in range(ROWS)])
    (root / "metadata.jsonl").write_bytes(b"\n".join([first, *plain()]))
    odd, *rest = captions(opened(root))
    assert rest == [f"picture {row}" for row in range(ROWS)]
    assert odd.startswith("no JSON object: ")


def test_a_byte_that_is_not_utf8_costs_its_line(tmp_path):
    for name in ("set.json", "set.jsonl"):
        root = jsonl(tmp_path / name[3:], [record(row) for row in range(ROWS)], name)
        for at in range(ROWS):
            lines = plain()
            lines[at] = lines[at].replace(b"picture", b"pictur\xe9")
            (root / name).write_bytes(b"\n".join(lines))
            found = captions(opened(root / name))
            assert found.pop(at).startswith("the record is not UTF-8: byte 0xe9 at ")
            assert found == [f"picture {row}" for row in range(ROWS) if row != at]


def test_a_long_path_is_no_picture(tmp_path):
    """Qk is how a BMP begins in base64."""
    long = ["Qk" + "a" * length + end for length in range(60, 80) for end in ("", ".png")]
    root = jsonl(tmp_path / "set", [record(row, image_0=name) for row, name in enumerate(long)])
    images(root, *long)
    pairs = list(opened(root).read(0, len(long)))
    assert [pair.preferred.name for pair in pairs] == long
    assert [pair.preferred.read() for pair in pairs] == [(root / name).read_bytes() for name in long]


VOTES = [
    ({"choice_dist": [2, 5]}, [5 / 7, 2 / 7]),
    ({"choice_dist": ["66", "34"]}, [0.66, 0.34]),
    ({"choice_dist": [5, 5]}, [1]),
    ({"choice_dist": [5, -5]}, [1]),
    ({"choice_dist": [3, None], "confidence": 0.9}, [0.9, 0.1]),
    ({"confidence": 0.3}, [1]),
    ({"confidence": 1.5}, [1]),
    ({"confidence": 1}, [1]),
]


@pytest.mark.parametrize(("said", "weights"), VOTES, ids=repr)
def test_the_keys_say_who_is_preferred_and_the_votes_how_surely(tmp_path, said, weights):
    images(tmp_path, "a.jpg", "b.jpg")
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps({"prompt": "x", "chosen": "a.jpg", "rejected": "b.jpg"} | said))
    pairs = list(opened(path, votes="conservative", ties="half").read(0, 1))
    assert [pair.weight for pair in pairs] == pytest.approx(weights)
    assert [pair.preferred.name for pair in pairs] == ["a.jpg", "b.jpg"][: len(weights)]
    assert {pair.first for pair in pairs} == {None}


@pytest.mark.parametrize(("labels", "share"), [((0.66, 0.33), 2 / 3), ((66, 34), 0.66), ((0.9999, 1e-4), 0.9999)])
def test_votes_whose_sum_is_not_one(tmp_path, labels, share):
    root = jsonl(tmp_path / "set", [record(0, prefer_0=labels[0], prefer_1=labels[1])])
    one, other = opened(root, votes="conservative").read(0, 1)
    assert (one.weight, other.weight) == pytest.approx((share, 1 - share), abs=1e-6)
    assert one.id + 1 == other.id


def table(tmp_path, **columns):
    """Write pairs with some other columns; returns the source, a file."""
    made = {"caption": ["a", "b"], "jpg_0": [RED] * 2, "jpg_1": [BLUE] * 2, "label_0": [1.0, 0.0]}
    pq.write_table(pa.table(made | {"label_1": [0.0, 1.0]} | columns), tmp_path / "a.parquet")
    return tmp_path / "a.parquet"


def preferred(source):
    return [(pair.caption, pair.preferred.read(), pair.weight) for pair in source.read(0, len(source))]


USUAL = [("a", RED, 1.0), ("b", BLUE, 1.0)]


@pytest.mark.parametrize("name", ["caption", "jpg_0", "label_1"])
def test_two_columns_of_one_name(tmp_path, name):
    path = table(tmp_path)
    found = pq.read_table(path)
    pq.write_table(pa.Table.from_arrays([*found.columns, found.column(name)], names=[*found.column_names, name]), path)
    for source in (path, tmp_path):
        with pytest.raises(UserError, match=rf"^a\.parquet has the column {name} twice: rename one of them$"):
            opened(source)


def test_two_columns_of_a_name_that_is_not_read(tmp_path):
    path = table(tmp_path, note=["x", "y"])
    found = pq.read_table(path)
    pq.write_table(
        pa.Table.from_arrays([*found.columns, found.column("note")], names=[*found.column_names, "note"]), path
    )
    assert preferred(opened(path)) == USUAL


OTHER_TYPES = {
    "decimal labels": {"label_0": [Decimal("1.0"), Decimal("0.0")], "label_1": [Decimal("0.0"), Decimal("1.0")]},
    "half labels": {name: pa.array(np.array(row, np.float16)) for name, row in (("label_0", [1, 0]),)},
    "whole labels": {"label_0": pa.array([1, 0], pa.int8())},
    "text labels": {"label_0": pa.array(["1", "0"]).dictionary_encode()},
    "binary captions": {"caption": [b"a", b"b"]},
    "large captions": {"caption": pa.array(["a", "b"], pa.large_string())},
    "captions of a dictionary": {"caption": pa.array(["a", "b"]).dictionary_encode()},
    "lists of bytes": {"jpg_0": pa.array([list(RED)] * 2, pa.list_(pa.uint8()))},
    "lists of numbers": {"jpg_0": pa.array([list(RED)] * 2, pa.large_list(pa.int64()))},
    "lists in structs": {"jpg_0": [{"bytes": list(RED), "path": "a.jpg"}] * 2},
    "images of one size": {"jpg_0": pa.array([RED] * 2, pa.binary(len(RED)))},
    "images of a dictionary": {"jpg_0": pa.array([RED] * 2).dictionary_encode()},
}


@pytest.mark.parametrize("columns", OTHER_TYPES.values(), ids=OTHER_TYPES)
def test_columns_of_other_types(tmp_path, columns):
    assert preferred(opened(table(tmp_path, **columns))) == USUAL


def test_shares_of_votes_in_other_types(tmp_path):
    decimals = {name: [Decimal(v) for v in row] for name, row in (("label_0", "31"), ("label_1", "13"))}
    halves = {name: pa.array(np.array(row, np.float16)) for name, row in (("label_0", [3, 1]), ("label_1", [1, 3]))}
    for columns in (decimals, halves):
        found = preferred(opened(table(tmp_path, **columns), votes="weight"))
        assert found == [("a", RED, 0.5), ("b", BLUE, 0.5)]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"caption": [b"gr\xf6\xdfe", b"b"]}, "the caption is not UTF-8: byte 0xf6 at 2 is not UTF-8"),
        ({"jpg_0": [[300, 1], list(RED)]}, "an image is missing: jpg_0 holds [300, 1], no bytes"),
        ({"jpg_0": [[None, 1], list(RED)]}, "an image is missing: jpg_0 holds [None, 1], no bytes"),
        ({"label_0": [None, Decimal("0.0")]}, "no valid label: found None and 0.0"),
    ],
)
def test_values_of_other_types_that_are_none(tmp_path, columns, reason):
    odd, pair = opened(table(tmp_path, **columns)).read(0, 2)
    assert odd.reason.startswith(reason)
    assert pair.caption == "b"
