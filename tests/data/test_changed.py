"""Sources that change once they are open, and disks that fail while one is looked through."""

import errno
import io
import os

import pytest

from fdpo_fast.config.schema import Data
from fdpo_fast.data import reading
from fdpo_fast.data.pairs import Rejected
from fdpo_fast.data.readers.detect import open_source
from fdpo_fast.data.reading import UnreachableError
from tests.helpers.others_pairs_case import folders, jsonl, pair, parquet, record

ALWAYS = 10**6


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    monkeypatch.setattr(reading, "PAUSES", (0.01, 0.01))


def opened(source, **data):
    return open_source(Data(source=str(source), **data))


def contents(source):
    """Captions and bytes of all pairs; every row has to be one."""
    items = list(source.read(0, len(source)))
    assert [item for item in items if isinstance(item, Rejected)] == []
    return [(item.caption, item.preferred.read(), item.dispreferred.read()) for item in items]


def records(folder):
    return jsonl(folder, [record(row) for row in range(3)])


def array(folder):
    path = records(folder) / "metadata.jsonl"
    path.write_text(f"[{','.join(path.read_text().splitlines())}]")
    return path.rename(folder / "set.json").parent


def halves(folder):
    return folders(folder, 3)


CHANGES = [(halves, "w/001.txt"), (halves, "l/001.jpg"), (records, "metadata.jsonl"), (records, "1-0.jpg")]


@pytest.fixture(params=CHANGES, ids=lambda change: change[1])
def seen(request, tmp_path):
    """A source that was looked at, and a file of it."""
    make, name = request.param
    source = opened(make(tmp_path / "set"))
    source.identity()
    return source, tmp_path / "set" / name


def emptied(content):
    return b""


def cut(content):
    return content[: len(content) // 2]


def grown(content):
    return content + b"\n"


@pytest.mark.parametrize("change", [emptied, cut, grown, bytes.upper, bytes])
def test_a_file_that_changes_for_good_is_out_of_reach(seen, change):
    """Even where only the time of its change differs, and never as an empty caption or rows that are refused."""
    source, path = seen
    status = path.stat()
    path.write_bytes(change(path.read_bytes()))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    with pytest.raises(UnreachableError, match=r"changed.*the same command goes on"):
        contents(source)


def test_a_file_that_is_put_back_is_read(seen, monkeypatch):
    source, path = seen
    before, status, content = contents(source), path.stat(), path.read_bytes()
    path.write_bytes(b"")

    def put_back(seconds):
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    monkeypatch.setattr(reading.time, "sleep", put_back)
    assert contents(source) == before
    assert path.read_bytes() == content


def test_a_file_that_goes_is_out_of_reach(seen):
    source, path = seen
    path.unlink()
    with pytest.raises(UnreachableError, match="No such file"):
        contents(source)


@pytest.mark.parametrize("make", [records, array])
def test_records_are_named_by_what_was_opened(tmp_path, make):
    root = make(tmp_path / "set")
    source = opened(root)
    path = next(root.glob("*.json*"))
    path.write_bytes(b"")
    with pytest.raises(UnreachableError, match="changed"):
        source.identity()


@pytest.fixture
def failing(monkeypatch):
    """Let a function fail, so many times, on paths that end in a name; how often is left is returned.

    A link itself can be looked at; it is what lies behind it that fails.
    """

    def fail(module, function, name, times=ALWAYS, error=errno.EIO):
        original, left = getattr(module, function), [times]

        def call(file, *arguments, **options):
            named = isinstance(file, (str, bytes, os.PathLike)) and os.fsdecode(file).rstrip("/").endswith(name)
            itself = options.get("follow_symlinks") is False and os.path.islink(file)
            if named and left[0] and not itself:
                left[0] -= 1
                raise OSError(error, os.strerror(error), os.fsdecode(file))
            return original(file, *arguments, **options)

        monkeypatch.setattr(module, function, call)
        return left

    return fail


def linked(folder):
    """Files of a store elsewhere, linked, as DVC and git-annex leave them."""
    root = halves(folder)
    (root / "store").mkdir()
    for path in (root / "l/001.jpg", root / "w/001.txt"):
        path.rename(root / "store" / path.name)
        path.symlink_to(root / "store" / path.name)
    return root


STATS = [
    (records, "1-0.jpg"),
    (records, "metadata.jsonl"),
    (halves, "set/w"),
    (halves, "l/001.jpg"),
    (halves, "w/001.txt"),
    (linked, "l/001.jpg"),
    (linked, "w/001.txt"),
]
FAULTS = [errno.EIO, errno.EACCES]


@pytest.mark.parametrize("error", FAULTS, ids=os.strerror)
@pytest.mark.parametrize(("make", "name"), STATS)
def test_a_status_that_cannot_be_had_for_a_moment(tmp_path, failing, make, name, error):
    root = make(tmp_path / "set")
    before = contents(opened(root))
    left = failing(os, "stat", name, 1, error)
    source = opened(root)
    source.identity()
    assert contents(source) == before
    assert left == [0]


@pytest.mark.parametrize("error", FAULTS, ids=os.strerror)
@pytest.mark.parametrize(("make", "name"), STATS)
def test_a_status_that_cannot_be_had_for_good(tmp_path, failing, make, name, error):
    """Nothing is missing, and no row is refused: nothing is known against it."""
    root = make(tmp_path / "set")
    failing(os, "stat", name, error=error)
    with pytest.raises(UnreachableError, match=os.strerror(error)):
        contents(opened(root))


@pytest.mark.parametrize("error", FAULTS, ids=os.strerror)
def test_an_image_whose_folder_fails_after_the_survey(tmp_path, failing, error):
    source = opened(records(tmp_path / "set"))
    source.identity()
    failing(os, "stat", "1-0.jpg", error=error)
    with pytest.raises(UnreachableError, match=os.strerror(error)):
        contents(source)


def test_only_what_is_not_there_is_missing(tmp_path):
    root = jsonl(tmp_path / "set", [record(0), record(1, image_1="gone.jpg"), record(2, image_1="0-0.jpg/x.jpg")])
    pair, *missing = opened(root).read(0, 3)
    assert pair.caption == "picture 0"
    assert [row.reason.partition(" is not in ")[0] for row in missing] == [
        "an image is missing: 'gone.jpg'",
        "an image is missing: '0-0.jpg/x.jpg'",
    ]


@pytest.mark.parametrize(("module", "function"), [(io, "open"), (os, "stat")])
def test_another_split_never_stands_in_for_one_that_cannot_be_read(tmp_path, failing, module, function):
    root = jsonl(tmp_path / "set", [record(row, caption="val") for row in range(2)], "val.jsonl")
    jsonl(root, [record(row, caption="train") for row in range(3)], "train.jsonl")
    left = failing(module, function, "train.jsonl", 1)
    source = opened(root)
    assert ([caption for caption, *_ in contents(source)], source.split) == (["train"] * 3, "train")
    assert left == [0]
    failing(module, function, "train.jsonl")
    with pytest.raises(UnreachableError, match=r"train\.jsonl cannot be read"):
        opened(root)


def test_an_array_that_cannot_be_read_is_no_fault_of_it(tmp_path, failing):
    root = array(tmp_path / "set")
    before = contents(opened(root))
    path = root / "set.json"
    left = failing(reading.Path, "read_bytes", "set.json", 1)
    assert contents(opened(path)) == before
    assert left == [0]
    failing(reading.Path, "read_bytes", "set.json")
    with pytest.raises(UnreachableError, match=r"^\S*set\.json cannot be read"):
        opened(path)


def in_parquet(source):
    """What a reader of parquet yields, without another look at the source before it to tell its format."""
    return contents(opened(source, format="pickapic", outside=True))


def shards(folder):
    for number, name in enumerate("abc"):
        parquet(folder / name / "x.parquet", 2, 2 * number)
    return folder


PATTERNS = ["", "/**/*.parquet", "/**", "/*/*.parquet", "/*", "/[abc]/x.parquet"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_folder_of_parquet_that_cannot_be_listed(tmp_path, failing, pattern):
    """As one of another's, or on a disk that is failing: its rows are not left away."""
    root = shards(tmp_path / "set")
    before = in_parquet(f"{root}{pattern}")
    assert len(before) == 6
    failing(os, "scandir", "set/b", 1)
    assert in_parquet(f"{root}{pattern}") == before
    failing(os, "scandir", "set/b", error=errno.EACCES)
    with pytest.raises(UnreachableError, match=r"set/b cannot be read"):
        in_parquet(f"{root}{pattern}")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_parquet_whose_link_cannot_be_followed(tmp_path, failing, pattern):
    root = shards(tmp_path / "set")
    (root / "b/x.parquet").rename(tmp_path / "y.parquet")
    (root / "b/x.parquet").symlink_to(tmp_path / "y.parquet")
    before = in_parquet(f"{root}{pattern}")
    assert len(before) == 6
    left = failing(os, "stat", "b/x.parquet", 1)
    assert in_parquet(f"{root}{pattern}") == before
    assert left == [0]
    failing(os, "stat", "b/x.parquet")
    with pytest.raises(UnreachableError, match=r"b/x\.parquet cannot be read"):
        in_parquet(f"{root}{pattern}")


@pytest.mark.parametrize("name", ["set/w", "set/l/sub", "set"])
def test_a_folder_of_images_that_cannot_be_listed(tmp_path, failing, name):
    root = halves(tmp_path / "set")
    pair(root, "sub/1", 7)
    before = contents(opened(root))
    left = failing(os, "scandir", name, 1)
    assert contents(opened(root)) == before
    assert left == [0]
    failing(os, "scandir", name)
    with pytest.raises(UnreachableError, match=rf"{name} cannot be read"):
        opened(root)


def test_a_hidden_folder_that_cannot_be_listed_does_not_matter(tmp_path, failing):
    root = halves(tmp_path / "set")
    (root / "w/.Trash-0").mkdir()
    left = failing(os, "scandir", ".Trash-0")
    assert len(contents(opened(root))) == 3
    assert left[0] < ALWAYS


def test_a_name_without_suffix_is_looked_into_again(tmp_path, failing):
    root = halves(tmp_path / "set")
    pair(root, "digest", 7, suffix="")
    before = contents(opened(root))
    assert len(before) == 4
    left = failing(io, "open", "l/digest", 1)
    assert contents(opened(root)) == before
    assert left == [0]
    failing(io, "open", "l/digest")
    with pytest.raises(UnreachableError, match=r"l/digest cannot be read"):
        opened(root)
