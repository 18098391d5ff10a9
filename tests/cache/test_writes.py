"""A folder of caches that cannot be read, or written to: one sentence, and what is whole is used all the same."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from fdpo_fast.cache.build import Builder, Cache, writing
from fdpo_fast.cache.open import cache_root
from fdpo_fast.cache.shards import Shard, Shards
from fdpo_fast.config.digits import DigitsRecipe
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.load import load
from fdpo_fast.digits.dataset import embedded, name_of
from fdpo_fast.distributed import Rank
from fdpo_fast.files import read_json

RANK = Rank(0, 1, torch.device("cpu"), lambda: None)
NOBODY = 65534


def filled(shard, bar):
    bar.update(1)
    return Shard(columns={"x": torch.ones(3)})


def cache(**manifest):
    return Cache("kind", manifest or {"a": 1}, {"data.source": "x"}, [1, 1], "entries", filled)


@pytest.fixture
def root():
    """A folder that everyone can reach, as those of pytest are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
        subprocess.run(["chmod", "-R", "u+rwX", folder], check=True)


@contextmanager
def mode(path, bits):
    """Do what is within as a user whom `bits` hold for; root would be let through."""
    before = path.stat().st_mode & 0o777
    path.chmod(bits)
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        path.chmod(before)


def refused(*words, call):
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert "Errno" not in message
    for word in words:
        assert word in message


def test_a_whole_cache_on_a_disk_that_is_only_read_is_used(root, capsys):
    asked = Builder(root, RANK, requested=True)
    folder = asked.build(cache())
    (folder / "requested.json").chmod(0o444)
    with mode(folder, 0o555):
        assert asked.build(cache()) == folder  # it is marked already
        assert "marked" not in capsys.readouterr().err
    (folder / "requested.json").unlink()
    with mode(folder, 0o555):
        assert asked.build(cache()) == folder
    said = capsys.readouterr().err
    assert f"warning: {folder} cannot be marked as made by `fdpo cache` (Permission denied): it is used" in said
    assert asked.build(cache()) == folder
    assert (folder / "requested.json").is_file()


def test_a_cache_dir_that_cannot_be_written(root):
    with mode(root, 0o555):
        refused("kind-", "cannot be written: Permission denied", call=lambda: Builder(root, RANK).build(cache()))


@pytest.mark.parametrize("there", ["", "0.safetensors", ".tmpabcdef"])
def test_a_folder_that_cannot_be_written(root, there):
    """Whether it has nothing yet, or what a killed run left."""
    folder = Builder(root, RANK).build(cache())
    for path in folder.iterdir():
        path.unlink()
    (folder / ".lock").touch()
    (folder / ".lock").chmod(0o666)
    if there:
        (folder / there).touch()
    with mode(folder, 0o555):
        refused(f"{folder} cannot be written: Permission denied", call=lambda: Builder(root, RANK).build(cache()))


def test_what_cannot_be_read(root):
    folder = Builder(root, RANK).build(cache())
    with mode(folder, 0o000):
        refused(f"{folder} cannot be read: Permission denied", call=lambda: Builder(root, RANK).build(cache()))
    with mode(folder / "manifest.json", 0o000):
        refused("manifest.json cannot be read: Permission denied", call=lambda: Builder(root, RANK).build(cache()))
    with mode(folder / "000000.safetensors", 0o000):
        refused("000000.safetensors cannot be read: Permission", call=lambda: Shards(folder, by="x"))


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"', '{"a": 1', "\xff", "[" * 100_000])
def test_a_manifest_that_is_no_object(tmp_path, content):
    folder = Builder(tmp_path, RANK).build(cache())
    (folder / "manifest.json").write_text(content, encoding="latin-1")
    refused("manifest.json is not valid JSON", call=lambda: Builder(tmp_path, RANK).build(cache()))


def test_a_cache_whose_manifest_is_gone_beside_one_that_differs(tmp_path):
    folder = Builder(tmp_path, RANK, requested=True).build(cache())
    (folder / "manifest.json").unlink()
    refused("cannot be read: No such file", call=lambda: Builder(tmp_path, RANK).build(cache(a=2)))
    refused("cannot be read: No such file", call=lambda: read_json(folder / "manifest.json"))


def test_a_home_folder_of_nobody(tiny_config, write_config, tmp_path):
    raw = tiny_config("sd", tmp_path / "x.parquet")
    raw["data"]["cache_dir"] = "~nosuchuser/x"
    config = load(write_config(raw))
    words = "data.cache_dir '~nosuchuser/x' begins with a home folder that is not known here"
    refused(words, call=lambda: cache_root(config))
    refused(words, call=lambda: embedded("digits", config.data.digits, config.data.cache_dir))


def test_embedded_digits_in_a_folder_that_cannot_be_written(root):
    folder = root / name_of("digits", DigitsRecipe())
    with mode(root, 0o555):
        refused(f"{folder} cannot be written: Permission denied", call=lambda: embedded("digits", DigitsRecipe(), root))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        SafetensorError('Error: Io error: Os { code: 28, kind: StorageFull, message: "No space left on device" }'),
    ],
)
def test_a_full_disk_has_its_own_sentence(tmp_path, error):
    def write():
        with writing(tmp_path):
            raise error

    refused(f"the disk of {tmp_path} is full, in bytes or in number of files: what is there stays", call=write)


_FEW_FILES = """
for files in 1 2 3 4; do mkdir {root}/$files; mount -t tmpfs -o nr_inodes=$files,size=1m none {root}/$files; done
{python} -c '
from pathlib import Path
from tests.cache.test_writes import *
for root in sorted(Path("{root}").iterdir()):
    refused("is full, in bytes or in number of files", call=lambda: Builder(root, RANK, requested=True).build(cache()))
    print("refused", len(list(root.rglob("*"))))'
"""


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0,
    reason="a disk of few files is mounted in a namespace of its own, which this machine does not let us have",
)
def test_a_disk_that_holds_no_more_files(tmp_path):
    """Whichever file is the one too many: the folder, its lock, the manifest, a shard."""
    script = _FEW_FILES.format(root=tmp_path, python=sys.executable)
    run = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=120)
    said = [line for line in run.stdout.splitlines() if line.startswith("refused")]
    assert said == [f"refused {files}" for files in range(4)], run.stderr
