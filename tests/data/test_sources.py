"""What lies in a source: links, pipes, hidden folders, splits, capitals, and names that no path can have."""

import json
import os
import shutil
import signal
from collections import Counter

import pytest

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Data
from fdpo_fast.data.pairs import Pair, Rejected
from fdpo_fast.data.readers.detect import Spread, open_source
from fdpo_fast.data.readers.find import is_here
from tests.helpers.others_pairs_case import folders, images, jsonl, pair, parquet, record


@pytest.fixture(autouse=True)
def in_time():
    """Opening a pipe waits for whoever writes into it, which nobody does."""

    def late(*_):
        pytest.fail("it waits for a pipe")  # no Exception, which would be tried again

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def opened(source, **data):
    return open_source(Data(source=str(source), **data))


def read(source):
    return list(source.read(0, len(source)))


def captions(source):
    return [item.caption if isinstance(item, Pair) else item.reason for item in read(source)]


class Numbers:
    """A source of so many rows, each of which says where it stands."""

    split = None

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return self.rows

    def read(self, start, stop):
        return (Rejected(str(row), "a number", row) for row in range(start, stop))


def test_a_spread_of_any_number_of_rows_has_each_once():
    for rows in range(2, 61):
        for wanted in range(1, rows):
            spread = Spread(Numbers(rows), wanted)
            items = read(spread)
            places = [int(item.place) for item in items]
            assert len(spread) == len(places) == wanted
            assert places == sorted(set(places))
            assert places[0] >= 0
            assert places[-1] < rows
            assert [item.row for item in items] == list(range(wanted))
            assert [item for row in range(wanted) for item in spread.read(row, row + 1)] == items


def test_hidden_folders_of_pairs_are_not_taken(tmp_path):
    for name in (".backup", "__MACOSX"):
        folders(tmp_path / "set" / name, 2)
    with pytest.raises(UserError, match="no known format"):
        opened(tmp_path / "set")
    folders(tmp_path / "set/train", 3)
    source = opened(tmp_path / "set", split="all")
    left = source.left_out()
    assert (len(source), len(left), {out.reason for out in left}) == (3, 12, {"hidden"})


@pytest.fixture(params=["train.jsonl val.jsonl", "train/metadata.jsonl val/metadata.jsonl"])
def two_lists(request, tmp_path):
    """Records of two splits whose images lie in the source, and one image that none names."""
    root, files = tmp_path / "set", request.param.split()
    jsonl(root, [record(row) for row in range(4)], "all.jsonl")
    (root / "all.jsonl").unlink()
    images(root, "own.jpg", "spare.jpg")
    rows = {files[0]: [record(row) for row in range(4)], files[1]: [record(0), record(1, image_0="own.jpg")]}
    for name, made in rows.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("".join(json.dumps(row) + "\n" for row in made))
    return root, files


def test_two_lists_of_records_as_one(two_lists):
    root, files = two_lists
    source = opened(root, split="all")
    items = read(source)
    assert [item.place for item in items] == [
        *(f"{files[0]} record {row}" for row in range(4)),
        *(f"{files[1]} record {row}" for row in range(2)),
    ]
    assert [item.row for item in items] == list(range(6))
    assert len({item.id for item in items}) == 6
    assert [(out.file, out.reason) for out in source.left_out()] == [("spare.jpg", "named by no record")]
    assert list(source.read(3, 5)) == items[3:5]
    assert source.extent() == (6, 12)


def test_one_of_two_lists_leaves_the_other_out(two_lists):
    root, files = two_lists
    left = {out.file: out.reason for out in opened(root).left_out()}
    assert left.pop(files[1]).startswith("of the split val")
    assert left == {"own.jpg": "named by no record", "spare.jpg": "named by no record"}


def loop(path):
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def nowhere(path):
    path.unlink(missing_ok=True)
    path.symlink_to("nowhere")


def pipe(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.parametrize("odd", [loop, nowhere, pipe])
def test_a_caption_that_is_no_file_costs_its_row(tmp_path, odd):
    root = folders(tmp_path / "set", 3)
    odd(root / "w/001.txt")
    source = opened(root)
    assert source.identity() == opened(root).identity()
    first, none, last = captions(source)
    assert (first, last) == ("picture 0", "picture 2")
    assert none.startswith("no caption: ")


@pytest.mark.parametrize("odd", [loop, nowhere, pipe])
def test_an_image_that_is_no_file_costs_its_row(tmp_path, odd):
    root = folders(tmp_path / "set", 3)
    odd(root / "l/001.jpg")
    source = opened(root)
    source.identity()
    assert captions(source) == ["picture 0", "no image in l", "picture 2"]
    assert "l/001.jpg" in [out.file for out in source.left_out()]


def make_records(root):
    return jsonl(root, [record(row) for row in range(3)], "pairs.jsonl")


def make_folders(root):
    return folders(root, 3)


def make_parquet(root):
    return parquet(root / "a.parquet", 3).parent


MAKERS = [make_records, make_folders, make_parquet]


@pytest.mark.parametrize("odd", [loop, nowhere, pipe])
@pytest.mark.parametrize("make", MAKERS)
def test_what_is_no_file_lies_beside_without_harm(tmp_path, make, odd):
    root = make(tmp_path / "set")
    before = captions(opened(root))
    odder = [folder for folder in (root, root / "w", root / "l") if folder.is_dir()]
    for folder in odder:
        for name in ("odd", "odd.jsonl", "odd.json", "odd.txt", "odd.png"):
            odd(folder / name)
    source = opened(root)
    source.identity()
    assert captions(source) == before == ["picture 0", "picture 1", "picture 2"]
    left = [out.file for out in source.left_out()]
    assert len(left) == len(set(left)) == 5 * len(odder)


@pytest.mark.parametrize("name", ["w", "train", "metadata.jsonl", "a.parquet"])
def test_a_loop_in_place_of_what_is_looked_for(tmp_path, name):
    loop(tmp_path / name)
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match=r"data\.source"):
            opened(source)


def test_links_to_nothing_are_named(tmp_path):
    root = folders(tmp_path / "set", 1)
    for name in ("w/a.png", "w/a.txt", "l/b", "a.txt"):
        nowhere(root / name)
    assert {out.file: out.reason for out in opened(root).left_out()} == dict.fromkeys(
        ("w/a.png", "w/a.txt", "l/b", "a.txt"), "a link to nothing"
    )
    tables = make_parquet(tmp_path / "tables")
    nowhere(tables / "b.parquet")
    for source in (tables, tables / "*.parquet"):
        assert [tuple(out) for out in opened(source).left_out()] == [("b.parquet", "a link to nothing")]


def test_captions_above_lie_in_folders_like_the_images(tmp_path):
    root = folders(tmp_path / "set", 1)
    pair(root, "s1/p0", 1, None)
    pair(root, "s1/deep/p0", 2, None)
    (root / "s1/deep").mkdir(parents=True)
    (root / "s1/p0.txt").write_text("above")
    (root / "s1/deep/p0.caption").write_text("deep above")
    source = opened(root)
    assert captions(source) == ["picture 0", "deep above", "above"]
    assert source.left_out() == []


def test_links_to_folders_are_followed_but_for_those_that_lead_back(tmp_path):
    root = tmp_path / "set"
    pair(root, "a/0", 0)
    shutil.copytree(root / "l/a", root / "l/b")
    (root / "w/b").symlink_to("a")
    (root / "w/a/up").symlink_to("..")
    assert [item.preferred.name for item in read(opened(root))] == ["w/a/0.jpg", "w/b/0.jpg"]


@pytest.mark.parametrize("pattern", ["", "/**/*.parquet", "/**/link", "/*/*.parquet", "/link/*.parquet", "/link"])
def test_parquet_in_a_linked_folder_is_read(tmp_path, pattern):
    real, root = make_parquet(tmp_path / "real"), tmp_path / "set"
    root.mkdir()
    (root / "link").symlink_to(real)
    (real / "back").symlink_to(root)
    assert captions(opened(f"{root}{pattern}", outside=True)) == ["picture 0", "picture 1", "picture 2"]


def test_names_in_capitals(tmp_path):
    for folder, make, old, new in (
        ("records", make_records, "pairs.jsonl", "PAIRS.JSONL"),
        ("tables", make_parquet, "a.parquet", "TRAIN.PARQUET"),
    ):
        root = make(tmp_path / folder)
        (root / old).rename(root / new)
        for source in (root, root / new):
            assert captions(opened(source)) == ["picture 0", "picture 1", "picture 2"]


NO_PATH = ["~nosuchuser/x", "~nosuchuser/x.jsonl", "n" * 300, f"{'n' * 300}/w", "a\0b", "a\0b.jsonl", "a\0*.parquet"]


@pytest.mark.parametrize("name", NO_PATH, ids=ascii)
@pytest.mark.parametrize("format", ["auto", "folders", "jsonl", "pickapic"])
def test_names_that_no_path_can_have(tmp_path, name, format):
    source = name if name.startswith("~") else f"{tmp_path}/{name}"
    with pytest.raises(UserError, match=r"data\.source"):
        opened(source, format=format)


def test_whether_such_a_name_is_here():
    for name in ("~nosuchuser/x", f"/{'n' * 300}", "/a\0b"):
        with pytest.raises(UserError, match="is no path"):
            is_here(name)


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.jsonl.gz", "PAIRS.TSV", "pairs.zip"])
def test_files_of_other_formats_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"a,b\n")
    suffix = f".{name.rpartition('.')[2]}"
    with pytest.raises(UserError, match=rf"no known format: a file is \.parquet, \.jsonl or \.json, not {suffix}$"):
        opened(tmp_path / name)


@pytest.mark.parametrize("name", ["train.jsonl", "pairs.jsonl", "train.parquet", "pairs.parquet", "train", "set"])
def test_a_split_that_a_single_source_is_not_of(tmp_path, name):
    """A file, or a folder with w and l, is of the split that its name tells, or of none."""
    path = tmp_path / name
    if path.suffix == ".jsonl":
        jsonl(tmp_path, [record(0)], name)
    elif path.suffix:
        parquet(path, 2)
    else:
        folders(path, 2)
    with pytest.raises(UserError, match=r"data\.split 'validation' is not in data\.source"):
        opened(path, split="validation")
    assert len(opened(path)) == len(opened(path, split="all")) > 0


def test_short_names_of_splits(tmp_path):
    root = jsonl(tmp_path / "set", [record(0, caption="val")], "pairs_val.jsonl")
    jsonl(root, [record(0, caption="test")], "pairs_test.jsonl")
    for split in ("val", "validation", "pairs_val"):
        source = opened(root, split=split)
        assert (captions(source), source.split) == (["val"], split)
    assert captions(opened(root / "pairs_val.jsonl", split="val")) == ["val"]
    assert Counter(captions(opened(root, split="all"))) == Counter(["val", "test"])
