"""What a source may read: its own folder, unless a key says otherwise."""

import json
import os
import shutil

import pytest

from fdpo_fast.bounds import Bounds
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Data
from fdpo_fast.data.pairs import Pair, short
from fdpo_fast.data.readers.detect import open_source
from tests.helpers.pictures import BLUE, FORMATS, RED, write

OUT = "outside data.source, which takes data.outside"


def read(source, **options):
    opened = open_source(Data(source=str(source), **options))
    opened.identity()
    return list(opened.read(0, len(opened))), {out.file: out.reason for out in opened.left_out()}


def caption(item):
    return item.caption if isinstance(item, Pair) else item.reason


@pytest.fixture
def secret(tmp_path):
    """A folder beside the source with a picture, a caption, records and a table that it has no business with."""
    folder = tmp_path / "secret"
    folder.mkdir()
    (folder / "key.jpg").write_bytes(BLUE)
    (folder / "key.txt").write_text("a password")
    write(folder / "key.parquet", [("a secret", RED, BLUE, 1.0)])
    (folder / "metadata.jsonl").write_text(records("key.jpg"))
    return folder


def records(name):
    return json.dumps({"image_0": "a.jpg", "image_1": name, "caption": "a", "prefer_0": 1, "prefer_1": 0}) + "\n"


def set_of_records(folder, name, file="metadata.jsonl"):
    folder.mkdir(exist_ok=True)
    (folder / "a.jpg").write_bytes(RED)
    (folder / file).write_text(f"[{records(name)}]" if file.endswith(".json") else records(name))
    return folder


def set_of_folders(folder):
    for side, content in (("w", RED), ("l", BLUE)):
        (folder / side).mkdir(parents=True)
        (folder / side / "0.jpg").write_bytes(content)
    (folder / "w/0.txt").write_text("a")
    return folder


def climbing(folder, secret):
    return "../secret/key.jpg"


def deep(folder, secret):
    return "images/../../secret/key.jpg"


def whole(folder, secret):
    return str(secret / "key.jpg")


def link(folder, secret):
    (folder / "b.jpg").symlink_to(secret / "key.jpg")
    return "b.jpg"


def relative_link(folder, secret):
    (folder / "b.jpg").symlink_to("../secret/key.jpg")
    return "b.jpg"


def chain(folder, secret):
    (folder / "c.jpg").symlink_to(secret / "key.jpg")
    (folder / "b.jpg").symlink_to("c.jpg")
    return "b.jpg"


def linked_folder(folder, secret):
    (folder / "sub").symlink_to(secret)
    return "sub/key.jpg"


def back_again(folder, secret):
    """Climbs from a linked folder: by its words it stays within."""
    (folder / "sub").symlink_to(secret)
    return "sub/../secret/key.jpg"


def beside(folder, secret):
    """A folder whose name begins as the source's does."""
    shutil.copytree(secret, folder.with_name(folder.name + "2"))
    return f"../{folder.name}2/key.jpg"


@pytest.mark.parametrize("file", ["metadata.jsonl", "pairs.jsonl", "pairs.json"])
@pytest.mark.parametrize("way", [climbing, deep, whole, link, relative_link, chain, linked_folder, back_again, beside])
def test_records_read_what_lies_elsewhere_only_by_a_key(tmp_path, secret, way, file):
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    name = way(folder, secret)
    set_of_records(folder, name, file)
    for source in (folder, folder / file):
        (row,), _ = read(source)
        assert row.reason == f"an image lies {OUT}: {short(name)}"
        (pair,), _ = read(source, outside=True)
        assert pair.dispreferred.read() == BLUE


def test_paths_that_stay_within_are_read(tmp_path):
    folder = tmp_path / "set"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.jpg").write_bytes(BLUE)
    (folder / "deep/link.jpg").symlink_to("../b.jpg")
    (folder / "other").symlink_to("deep")
    for name in ("b.jpg", "deep/link.jpg", "other/link.jpg", "deep/../b.jpg", str(folder / "b.jpg"), "./b.jpg"):
        (pair,), _ = read(set_of_records(folder, name))
        assert pair.dispreferred.read() == BLUE, name
    (tmp_path / "named").symlink_to(folder)
    (pair,), _ = read(tmp_path / "named")
    assert pair.dispreferred.read() == BLUE


def test_nothing_is_asked_of_the_disk_about_a_path_that_leads_out(tmp_path, secret, monkeypatch):
    folder = set_of_records(tmp_path / "set", "../secret/key.jpg")
    stat, asked = os.stat, []
    monkeypatch.setattr(os, "stat", lambda path, **options: asked.append(str(path)) or stat(path, **options))
    read(folder)
    assert asked
    assert not [path for path in asked if os.path.abspath(path).startswith(str(secret))]


def test_records_that_are_a_link_themselves(tmp_path, secret):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(RED)
    (folder / "metadata.jsonl").symlink_to(secret / "metadata.jsonl")
    with pytest.raises(UserError, match=OUT):
        read(folder)
    (folder / "metadata.jsonl").unlink()
    (tmp_path / "mine.jsonl").write_text(records("a.jpg"))
    (folder / "pairs.jsonl").symlink_to("../mine.jsonl")
    (pair,), _ = read(folder / "pairs.jsonl")  # the user has named it
    assert pair.preferred.read() == RED


@pytest.mark.parametrize("name", ["l/0.jpg", "w/0.txt"])
def test_images_and_captions_of_folders(tmp_path, secret, name):
    folder = set_of_folders(tmp_path / "set")
    (folder / name).unlink()
    (folder / name).symlink_to(secret / f"key{name[-4:]}")
    (row,), _ = read(folder)
    assert OUT in row.reason
    assert name in row.reason
    (pair,), _ = read(folder, outside=True)
    assert pair.caption == ("a" if name[0] == "l" else "a password")
    assert read(folder)[0] == [row]


@pytest.mark.parametrize("side", ["w", "l"])
def test_a_side_that_is_a_link(tmp_path, side):
    folder, other = set_of_folders(tmp_path / "set"), set_of_folders(tmp_path / "other")
    shutil.rmtree(folder / side)
    (folder / side).symlink_to(other / side)
    with pytest.raises(UserError, match=f"the folder .*set/{side} is {OUT}"):
        read(folder)
    (pair,), _ = read(folder, outside=True)
    assert pair.preferred.read() == RED


def test_a_link_to_the_whole_disk_is_not_walked(tmp_path):
    folder = set_of_folders(tmp_path / "set")
    for name in ("w/root", "l/root", "root"):
        (folder / name).symlink_to("/")
    (pair,), left = read(folder)
    assert pair.caption == "a"
    assert left == {"w/root": OUT, "l/root": OUT, "root": "neither in w nor in l"}


def test_tables_by_links(tmp_path, secret):
    folder = tmp_path / "set"
    folder.mkdir()
    (secret / "metadata.jsonl").unlink()
    write(folder / "a.parquet", [("mine", RED, BLUE, 1.0)])
    (folder / "b.parquet").symlink_to(secret / "key.parquet")
    (folder / "sub").symlink_to(secret)
    for source in (folder, f"{folder}/*.parquet", f"{folder}/**/*.parquet"):
        rows, left = read(source)
        assert [caption(row) for row in rows] == ["mine"]
        assert left["b.parquet"] == OUT
        rows, _ = read(source, outside=True)
        assert {caption(row) for row in rows} == {"mine", "a secret"}
    (folder / "a.parquet").unlink()
    for source in (folder, f"{folder}/*.parquet", f"{folder}/**/*.parquet", f"{folder}/*/*.parquet"):
        with pytest.raises(UserError, match=r"data\.outside"):
            read(source)
    for source in (folder / "b.parquet", folder / "sub", f"{folder}/sub/*.parquet"):  # the user has named it
        rows, _ = read(source)
        assert [caption(row) for row in rows] == ["a secret"]


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "latents"])
@pytest.mark.parametrize("within", ["", "/part"])
def test_the_layout_of_the_hubs_cache_is_read(tmp_path, name, within):
    """A snapshot holds links into the blobs of its repository."""
    rows = [("a", RED, BLUE, 1.0), ("b", BLUE, RED, 1.0)]
    (tmp_path / "made").mkdir()
    made = FORMATS[name](tmp_path / "made", rows)
    plain = [caption(row) for row in read(made)[0]]
    repository = tmp_path / "hub/datasets--owner--name"
    snapshot = repository / f"snapshots/0123abc{within}"
    (repository / "blobs").mkdir(parents=True)
    for path in [made] if made.is_file() else sorted(made.rglob("*")):
        if path.is_file():
            blob = repository / "blobs" / f"{len(list((repository / 'blobs').iterdir())):040x}"
            shutil.copyfile(path, blob)
            place = snapshot / (path.name if made.is_file() else path.relative_to(made))
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(os.path.relpath(blob, place.parent))
    rows, left = read(snapshot)
    assert [caption(row) for row in rows] == plain
    assert left == {}


def test_blobs_that_are_a_link_are_no_cache_of_the_hub(tmp_path, secret):
    snapshot = tmp_path / "evil/snapshots/1"
    snapshot.mkdir(parents=True)
    (tmp_path / "evil/blobs").symlink_to(secret)
    (snapshot / "b.jpg").symlink_to("../../blobs/key.jpg")
    (row,), _ = read(set_of_records(snapshot, "b.jpg"))
    assert OUT in row.reason


@pytest.mark.parametrize("name", ["", ".", "..", "a\0b", "n" * 300, "loop", "loop/x", "a/" * 3000])
def test_any_name_is_answered(tmp_path, name):
    (tmp_path / "loop").symlink_to("loop")
    assert Bounds(tmp_path).hold(f"{tmp_path}/{name}") is (name != "..")
