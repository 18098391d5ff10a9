"""What a disk holds after a power cut, at every operation on the files of a folder while it is written to."""

import os
import stat
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}
_recording = []


def _hear(event, arguments):
    if event in EVENTS:
        for record in _recording:
            record.note(str(arguments[0]))


sys.addaudithook(_hear)  # it cannot be taken away


class Record:
    """What would be left, before each operation: files by name, with content.

    Of a file there is what `fsync` has put on the disk, else nothing. Names are `kept` as `fsync` has put those of
    their folder there; in a second disk they are all there at once, ahead of the content.
    """

    def __init__(self, root):
        self.root, self.busy = Path(root), False
        self.files, self.folders, self.held = {}, {}, []
        self.states = {}
        """What was the newest checkpoint when the disk was last so, by the files on it."""

    def sync(self, handle, real):
        real(handle)
        self.held.append(os.dup(handle))  # so that nobody else gets its number
        status = os.fstat(handle)
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if stat.S_ISDIR(status.st_mode):
            self.folders[status.st_ino] = {e.name: (e.inode(), e.is_dir()) for e in os.scandir(path)}
        else:
            self.files[status.st_ino] = path.read_bytes()

    def note(self, path):
        if not self.busy and path.startswith(str(self.root)):
            self.busy = True  # what looks is not looked at
            try:
                for left in (self._kept(self.root.stat().st_ino, Path()), self._ahead()):
                    self.states[tuple(sorted(left.items()))] = self.truth()
            finally:
                self.busy = False

    def truth(self):
        """The checkpoint that is the newest as long as the power is on."""
        file = self.root / "checkpoints/latest"
        return file.read_text().strip() if file.exists() else None

    def _kept(self, folder, path):
        found = {}
        for name, (number, is_folder) in self.folders.get(folder, {}).items():
            if is_folder:
                found |= self._kept(number, path / name) or {str(path / name): None}
            else:
                found[str(path / name)] = self.files.get(number, b"")
        return found

    def _ahead(self):
        paths = [path for path in self.root.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.root)): self.files.get(path.stat().st_ino, b"") for path in paths}


@contextmanager
def recorded(root):
    """Record what happens to a folder within the block."""
    record, real = Record(root), os.fsync
    with patch("os.fsync", lambda handle: record.sync(handle, real)):
        _recording.append(record)
        try:
            yield record
        finally:
            _recording.remove(record)
            for handle in record.held:
                os.close(handle)


def restore(state, folder):
    """Write what is left."""
    for name, content in state:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if content is None:  # a folder of which nothing is known
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)
