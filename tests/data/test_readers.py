"""Readers of the pair formats beside Pick-a-Pic: good rows, ties, and rows that give no pair."""

import json

import fsspec
import numpy as np
import pytest

from fdpo_fast.config.schema import Data
from fdpo_fast.data.pairs import Pair, Rejected, Rules, kind_of
from fdpo_fast.data.readers.detect import READERS, Spread, detect, open_source
from fdpo_fast.data.readers.folders import Folders
from fdpo_fast.data.readers.jsonl import JSONRecords
from fdpo_fast.data.readers.latents import EncodedPairs
from tests.helpers.pictures import BLUE, FORMATS, RED, as_folders, as_jsonl, as_latents, difficult_rows, write


def read(source):
    return list(source.read(0, len(source)))


def reasons(items):
    """Kind and particulars of why rows give no pair."""
    return [(kind_of(item.reason), item.reason.partition(": ")[2]) for item in items if isinstance(item, Rejected)]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_recognised_and_streams(tmp_path, name):
    path = FORMATS[name](tmp_path, difficult_rows(11))
    assert detect(str(path)) == {"rankings": "jsonl"}.get(name, name)
    source = open_source(Data(source=str(path), ties="half"))
    whole = read(source)
    parts = [item for start in range(0, len(source), 3) for item in source.read(start, min(start + 3, len(source)))]
    assert [(item.place, getattr(item, "id", None)) for item in whole] == [
        (item.place, getattr(item, "id", None)) for item in parts
    ]
    ids = [item.id for item in whole if isinstance(item, Pair)]
    assert len(ids) == len(set(ids)) > 0
    assert json.loads(json.dumps(source.identity())) == source.identity()


@pytest.mark.parametrize("name", FORMATS)
def test_identity_follows_the_content(tmp_path, name):
    identities = []
    for count in (10, 12):
        folder = tmp_path / str(count)
        folder.mkdir()
        identities.append(open_source(Data(source=str(FORMATS[name](folder, difficult_rows(count))))).identity())
    assert identities[0] != identities[1]


def test_folders_name_the_preferred_side(tmp_path):
    rows = [("a", RED, BLUE, 1.0), ("b", RED, BLUE, 0.0)]
    first, second = read(Folders(str(as_folders(tmp_path, rows))))
    assert (first.preferred.read(), second.preferred.read()) == (RED, BLUE)
    assert (first.preferred.name, first.dispreferred.name) == ("w/000.jpg", "l/000.jpg")
    assert (first.caption, second.caption, first.first) == ("a", "b", None)


def test_folders_with_gaps(tmp_path):
    root = as_folders(tmp_path, [(caption, RED, BLUE, 1.0) for caption in "abcdef"])
    (root / "l/000.jpg").unlink()
    (root / "w/001.jpg").unlink()
    (root / "w/002.txt").unlink()
    (root / "w/003.txt").write_bytes("größe".encode("latin-1"))
    (root / "l/004.txt").write_text("another")
    (root / "w/005.txt").rename(root / "005.txt")
    (root / "w/notes.md").write_text("no image")
    source = Folders(str(root))
    items = read(source)
    assert reasons(items) == [
        ("no image in l", ""),
        ("no image in w", ""),
        ("no caption", "looked for 002.txt and 002.caption in w, in l and above them"),
        ("the caption is not UTF-8", "w/003.txt: byte 0xf6 at 2 is not UTF-8, as of Windows-1252: save it as UTF-8"),
        ("the captions of its sides differ", "w/004.txt and l/004.txt"),
    ]
    assert (items[-1].caption, items[0].place) == ("f", "pair '000'")
    assert [item.row for item in items] == list(range(6))
    assert ("w/notes.md", "no image that is read") in source.left_out()


def test_jsonl_pairs(tmp_path):
    rows = [("a", RED, BLUE, 1.0), ("b", RED, BLUE, 0.0), ("c", RED, BLUE, 0.5)]
    root = as_jsonl(tmp_path, rows)
    first, second, tie = read(JSONRecords(str(root)))
    assert (first.preferred.read(), second.preferred.read()) == (RED, BLUE)
    assert (first.first, second.first) == (True, False)
    assert tie == Rejected("metadata.jsonl record 2", "a tie")
    half = read(JSONRecords(str(root), Rules(ties="half")))[2:]
    assert [pair.weight for pair in half] == [0.5, 0.5]
    assert half[0].preferred == half[1].dispreferred


@pytest.fixture
def images(tmp_path):
    """Files that records name."""
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(RED)


@pytest.mark.usefixtures("images")
def test_rankings_become_pairs(tmp_path):
    record = {"images": ["a.jpg", "b.jpg", "c.jpg"], "caption": "x", "rank": [3, 1, 1]}
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(record) + "\n")
    dropped = read(JSONRecords(str(path)))
    assert [(p.preferred.name, p.dispreferred.name) for p in dropped[:2]] == [("b.jpg", "a.jpg"), ("c.jpg", "a.jpg")]
    assert dropped[2] == Rejected("r.jsonl record 0 images 1 and 2", "a tie")
    assert len({pair.id for pair in read(JSONRecords(str(path), Rules(ties="half")))}) == 4


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "x", "file_path": ["a.jpg", "b.jpg"], "human_preference": [0, 1]},  # HPDv2, train
        {"prompt": "x", "image_path": ["a.jpg", "b.jpg"], "rank": [2, 1]},  # HPDv2, test
        {"prompt": "x", "generations": ["a.jpg", "b.jpg"], "ranking": [2, 1]},  # ImageReward
        {"caption": "x", "image_0": "a.jpg", "image_1": "b.jpg", "prefer_0": False, "prefer_1": True},
        {"text": "x", "image_0": "a.jpg", "image_1": "b.jpg", "label_0": "0", "label_1": "1", "rank": None},
        {"prompt": "x", "path1": "b.jpg", "path2": "a.jpg"},  # HPDv3
        {"prompt": "x", "rejected": "a.jpg", "chosen": "b.jpg"},
    ],
)
@pytest.mark.usefixtures("images")
def test_other_names_in_use(tmp_path, record):
    (tmp_path / "r.json").write_text(json.dumps([record]))
    (pair,) = read(JSONRecords(str(tmp_path / "r.json")))
    assert (pair.preferred.name, pair.dispreferred.name, pair.caption) == ("b.jpg", "a.jpg", "x")
    assert pair.first is (None if {"path1", "chosen"} & set(record) else False)


@pytest.mark.usefixtures("images")
def test_records_without_a_pair(tmp_path):
    lines = [
        "{broken",
        "[1, 2]",
        json.dumps({"caption": "x", "images": ["a.jpg"], "rank": [1]}),
        json.dumps({"caption": "x", "images": ["a.jpg", "b.jpg"], "rank": [1]}),
        json.dumps({"caption": "x", "image_0": "a.jpg", "image_1": "b.jpg"}),
        json.dumps({"image_0": "a.jpg", "image_1": "b.jpg", "prefer_0": 1, "prefer_1": 0}),
        json.dumps({"caption": "x", "image_0": 3, "image_1": "b.jpg", "prefer_0": 1, "prefer_1": 0}),
        json.dumps({"caption": "x", "image_0": "a.jpg", "image_1": "gone.jpg", "prefer_0": 1, "prefer_1": 0}),
    ]
    (tmp_path / "metadata.jsonl").write_text("\n\n".join(lines))
    items = read(JSONRecords(str(tmp_path)))
    found = [
        ("no JSON object", "Expecting property name"),
        ("no JSON object", "found [1, 2]"),
        ("neither a pair nor a ranking", "found 1 images and 1 labels"),
        ("neither a pair nor a ranking", "found 2 images and 1 labels"),
        ("no valid label", "found None and None"),
        ("no caption", "found the keys image_0, image_1, prefer_0, prefer_1; looked for caption, prompt, text"),
        ("an image is missing", "3 is no path"),
        ("an image is missing", "'gone.jpg' is not in "),
    ]
    assert [kind for kind, _ in reasons(items)] == [kind for kind, _ in found]
    for (_, words), (_, wanted) in zip(reasons(items), found, strict=True):
        assert words.startswith(wanted)
    assert [(item.place, item.row) for item in items] == [(f"metadata.jsonl record {i}", i) for i in range(8)]


def test_ready_latents(tmp_path):
    path = as_latents(tmp_path, [("a", RED, BLUE, 1.0), ("b", RED, BLUE, 0.0)], {"prompt_embeds": (7, 8)})
    source = EncodedPairs(str(path))
    first, second = read(source)
    assert first.preferred.values.shape == (4, 32, 32)
    assert (first.preferred.original_size, first.dispreferred.original_size) == ((480, 640), None)
    assert (second.first, source.embedded) == (False, {"prompt_embeds": (7, 8)})
    ((row, caption, values),) = source.embeddings(1, 2)
    assert (row, caption, values["prompt_embeds"].shape) == (1, "b", (7, 8))


def test_latents_of_a_wrong_form(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    good = np.zeros((4, 8, 8)).tolist()
    bad = [[[[1.0], [1.0, 2.0]]], [[[float("nan")]]]]
    columns = {
        "caption": ["a"] * 2,
        "latents_0": bad,
        "latents_1": [good] * 2,
        "label_0": [1.0] * 2,
        "label_1": [0.0] * 2,
    }
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert reasons(read(EncodedPairs(str(tmp_path / "x.parquet")))) == [
        ("rows differ in length", "latents_0 has rows of 1, 2 numbers"),
        ("not all numbers are finite", "latents_0"),
    ]
    pq.write_table(
        pa.table(columns | {"latents_0": [[[1.0, 2.0]]] * 2, "latents_1": [[[1.0, 2.0]]] * 2}), tmp_path / "x.parquet"
    )
    assert reasons(read(EncodedPairs(str(tmp_path / "x.parquet"))))[0] == (
        "latents are not [c][h][w]",
        "latents_0 is [1, 2]",
    )


def test_parquet_from_any_file_system(tmp_path):
    path = write(tmp_path / "train-0.parquet", [("a", RED, BLUE, 1.0)] * 5)
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/data/train-0.parquet", path.read_bytes())
    for source in ("memory://bucket/data", "memory://bucket/data/train-*.parquet"):
        assert len(read(open_source(Data(source=source)))) == 5


def test_a_spread_takes_rows_from_all_over(tmp_path):
    path = write(tmp_path / "a.parquet", [(f"caption {i}", RED, BLUE, 1.0) for i in range(100)])
    source = open_source(Data(source=str(path), max_rows=20))
    rows = [pair.id // 2 for pair in read(source)]
    assert len(source) == len(rows) == len(set(rows)) == 20
    assert (min(rows), max(rows)) == (0, 89)
    assert isinstance(source, Spread)
    assert [pair.id for pair in source.read(7, 13)] == [2 * row for row in rows[7:13]]
    assert not isinstance(open_source(Data(source=str(path), max_rows=200)), Spread)


@pytest.mark.parametrize("name", READERS)
def test_a_source_that_is_not_there(tmp_path, name):
    with pytest.raises(ValueError, match=r"data\.source"):
        READERS[name](str(tmp_path / "nowhere"))


def test_a_folder_in_no_known_format(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match="no known format: a folder has parquet files, the folders w and l, or metad"):
        detect(str(tmp_path))


def test_marks_of_other_systems(tmp_path):
    """A byte order mark and CRLF from Windows, `._` files from macOS, capitals, a folder with the name of a file."""
    root = as_folders(tmp_path, [("a", RED, BLUE, 1.0), ("b", RED, BLUE, 1.0)])
    for side in "wl":
        (root / side / "000.jpg").rename(root / side / "000.JPG")
        (root / side / "._000.jpg").write_bytes(b"resource fork")
        (root / side / "002.png").mkdir()
    (root / "w/000.txt").write_bytes("a\r\n".encode("utf-8-sig"))
    assert [pair.caption for pair in read(Folders(str(root)))] == ["a", "b"]
    rows = as_jsonl(tmp_path, [("a", RED, BLUE, 1.0), ("b", RED, BLUE, 0.0)]) / "metadata.jsonl"
    text = rows.read_text(encoding="utf-8").replace("\n", "\r\n")
    rows.write_bytes(text.encode("utf-8-sig"))
    assert [pair.caption for pair in read(JSONRecords(str(rows)))] == ["a", "b"]
    rows.with_name("all.json").write_bytes(f"[{','.join(text.splitlines())}]".encode("utf-8-sig"))
    assert len(JSONRecords(str(rows.with_name("all.json")))) == 2


def test_swapped_sides_are_another_identity(tmp_path):
    """Equal names and sizes, the other way round."""
    root = as_folders(tmp_path, [("a", RED, BLUE, 1.0)])
    (root / "l/000.jpg").write_bytes(BLUE.ljust(len(RED), b"\0")[: len(RED)])
    before = Folders(str(root)).identity()
    (root / "w").rename(root / "x")
    (root / "l").rename(root / "w")
    (root / "x").rename(root / "l")
    (root / "l/000.txt").rename(root / "w/000.txt")
    assert Folders(str(root)).identity() != before


def test_two_images_of_one_name_cost_only_their_pair(tmp_path):
    root = as_folders(tmp_path, [("a", RED, BLUE, 1.0), ("b", RED, BLUE, 1.0)])
    (root / "l/000.png").write_bytes(RED)
    twice, pair = read(Folders(str(root)))
    assert (twice.place, *reasons([twice])) == (
        "pair '000'",
        ("a name is there twice", "l has 000.jpg and 000.png; remove one of them"),
    )
    assert (pair.id, pair.caption) == (2, "b")


def test_odd_values_cost_only_their_row(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    wrapped = [{"bytes": RED, "path": "a.jpg"}, {"bytes": None, "path": "a.jpg"}]
    columns = {"caption": ["a", "b"], "jpg_0": wrapped, "jpg_1": [BLUE] * 2, "label_0": [1.0] * 2, "label_1": [0.0] * 2}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    (tmp_path / "._x.parquet").write_bytes(b"resource fork")
    pair, missing = read(open_source(Data(source=str(tmp_path))))
    assert pair.preferred.read() == RED
    assert reasons([missing]) == [("an image is missing", "jpg_0 holds {'bytes': None, 'path': 'a.jpg'}, no bytes")]
    record = {"caption": "x", "image_0": "a.jpg", "image_1": "b" * 400, "prefer_0": [1], "prefer_1": 0}
    (tmp_path / "odd.jsonl").write_text(json.dumps(record) + "\n" + json.dumps(record | {"prefer_0": 1}))
    (label, found), (image, name) = reasons(read(JSONRecords(str(tmp_path / "odd.jsonl"))))
    assert (label, found) == ("no valid label", "found [1] and 0")
    assert image == "an image is missing"
    assert len(name) < 400  # a long name is cut


def test_an_empty_source_is_refused(tmp_path):
    path = write(tmp_path / "a.parquet", [("a", RED, BLUE, 1.0)])
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(ValueError, match="has no row"):
        open_source(Data(source=str(path)))
