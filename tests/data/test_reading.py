"""What a disk that is away for a moment does, and one that is away for good."""

import errno
import io
import os

import pytest

from fdpo_fast.config.errors import UserError
from fdpo_fast.data import reading
from fdpo_fast.data.reading import PatientFile, UnreachableError, UnusableError, patiently, read_file, text

CONTENT = bytes(range(256)) * 40
PAUSES = (0.001, 0.002, 0.001)


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The seconds that were waited; all are short."""
    waited, sleep = [], reading.time.sleep
    monkeypatch.setattr(reading, "PAUSES", PAUSES)
    monkeypatch.setattr(reading.time, "sleep", lambda seconds: (waited.append(seconds), sleep(seconds)))
    return waited


class Failing:
    """Something that fails so many times, then works."""

    def __init__(self, times, error=None):
        self.left, self.error, self.calls = times, error or OSError(errno.EIO, "Input/output error"), 0

    def __call__(self):
        self.calls += 1
        if self.left:
            self.left -= 1
            raise self.error
        return "content"


@pytest.mark.parametrize(
    "error", [OSError(errno.ESTALE, "Stale file handle"), KeyError("a"), TimeoutError(), EOFError()]
)
def test_what_fails_for_a_moment_is_tried_again(pauses, capsys, error):
    """Whatever it raises: network libraries have exceptions of their own."""
    once, thrice = Failing(1, error), Failing(3, error)
    assert patiently(once, "s3://a/b") == "content"
    assert pauses == [PAUSES[0]]
    assert capsys.readouterr().out == ""  # too short to speak of
    assert patiently(thrice, "s3://a/b") == "content"
    assert pauses[1:] == [*PAUSES]
    assert thrice.calls == 4
    said = capsys.readouterr().out
    assert said.count("trying again") == 1
    assert said.startswith("s3://a/b cannot be read (")


def test_what_fails_for_good_ends_in_a_sentence_with_the_name(pauses):
    never = Failing(100)
    with pytest.raises(
        UnreachableError, match=r"^s3://a/b cannot be read \(Input/output error\).*the same command goes"
    ):
        patiently(never, "s3://a/b")
    assert never.calls == len(PAUSES) + 1
    assert pauses == [*PAUSES]
    assert issubclass(UnreachableError, UserError)
    with pytest.raises(UnreachableError, match=r"cannot be read \(TimeoutError\)"):
        patiently(Failing(100, TimeoutError()), "a")


@pytest.mark.parametrize("error", [UnusableError("it is a folder"), UserError("no such column")])
def test_what_waiting_cannot_mend_passes_at_once(pauses, error):
    failing = Failing(1, error)
    with pytest.raises(type(error), match=str(error)):
        patiently(failing, "a")
    assert (failing.calls, pauses) == (1, [])


def test_a_file_by_its_path(tmp_path, pauses):
    path = tmp_path / "a.bin"
    path.write_bytes(CONTENT)
    assert read_file(path, "a.bin") == CONTENT
    for name, words in (
        ("", "it is no regular file"),
        ("a.bin/b", os.strerror(errno.ENOTDIR)),
        ("b" * 300, os.strerror(errno.ENAMETOOLONG)),
        ("a\0b", "null"),
    ):
        with pytest.raises(UnusableError, match=words):
            read_file(tmp_path / name, name)
    os.mkfifo(tmp_path / "pipe")  # opened, it would wait for a writer
    with pytest.raises(UnusableError, match="no regular file"):
        read_file(tmp_path / "pipe", "pipe")
    assert pauses == []
    with pytest.raises(UnreachableError, match=r"^gone cannot be read \(No such file"):
        read_file(tmp_path / "gone", "gone")


class Flaky(io.BytesIO):
    """A file whose reading fails where `faults` says so, and which cannot be used any more then."""

    def __init__(self, faults):
        super().__init__(CONTENT)
        self.faults, self.broken = faults, False

    def read(self, size=-1):
        if self.broken or (self.faults and self.faults.pop(0)):
            self.broken = True
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        return super().read(size)


def patient(faults):
    """A patient file over flaky ones; returns it and the files that were opened."""
    opened = []

    def open_file():
        opened.append(Flaky(faults))
        return opened[-1]

    return PatientFile(open_file, "hf://datasets/a/b/c.parquet", len(CONTENT)), opened


def test_a_patient_file_reads_as_any_file():
    file, opened = patient([])
    plain = io.BytesIO(CONTENT)
    for do in (
        lambda f: f.read(10),
        lambda f: f.seek(-7, os.SEEK_END),
        lambda f: f.read(),
        lambda f: f.read(5),
        lambda f: (f.seek(100), f.seek(20, os.SEEK_CUR), f.tell()),
        lambda f: f.readinto(bytearray(33)),
        lambda f: f.tell(),
        lambda f: f.read(-1),
        lambda f: (f.readable(), f.seekable()),
    ):
        assert do(file) == do(plain)
    filled = bytearray(300)
    file.seek(len(CONTENT) - 200)
    assert file.readinto(filled) == 200
    assert filled == CONTENT[-200:] + bytes(100)
    assert len(opened) == 1


def test_a_patient_file_is_opened_anew_and_goes_on_where_it_was():
    file, opened = patient([False, True, True, False, True])
    assert file.read(1000) == CONTENT[:1000]
    assert file.read(1000) == CONTENT[1000:2000]
    assert file.tell() == 2000
    assert len(opened) == 3
    assert file.read() == CONTENT[2000:]
    assert len(opened) == 4


def test_a_patient_file_that_is_gone_names_itself():
    file, opened = patient([True] * 100)
    with pytest.raises(UnreachableError, match=r"^hf://datasets/a/b/c.parquet cannot be read \(Connection reset"):
        file.read(10)
    assert len(opened) == len(PAUSES) + 1
    assert file.tell() == 0


def test_text_says_what_it_is_in():
    words = "größe\r\n猫\rx"
    for coding in ("utf-8", "utf-8-sig", "utf-16"):
        assert text(words.encode(coding)) == "größe\n猫\nx"
    with pytest.raises(UnusableError, match="byte 0xf6 at 2 is not UTF-8, as of Windows-1252"):
        text("größe".encode("latin-1"))
