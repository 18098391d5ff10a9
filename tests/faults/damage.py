"""What can happen to the files of a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

NEWEST = "step-000004"


@dataclass(frozen=True)
class Damage:
    """Something that happens to a file beneath a root; of_newest: to one of the newest checkpoint's."""

    name: str
    path: str
    how: Callable[[Path], None]

    @property
    def of_newest(self) -> bool:
        return f"checkpoints/{NEWEST}" in self.path

    def do(self, root: Path) -> None:
        self.how(root / self.path)


def flip(share: float) -> Callable[[Path], None]:
    """Turn a bit round, so far into the file."""

    def how(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[min(int(len(content) * share), len(content) - 1)] ^= 4
        path.write_bytes(content)

    return how


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replaced(path: Path) -> None:
    """Put a folder in its place."""
    path.unlink()
    path.mkdir()


def junk(path: Path) -> None:
    path.write_bytes(bytes(range(256)))


HOWS: dict[str, Callable[[Path], None]] = {
    "a bit at its beginning": flip(0.0),
    "a bit in its middle": flip(0.5),
    "a bit at its end": flip(1.0),
    "cut in half": cut,
    "empty": empty,
    "junk": junk,
    "gone": Path.unlink,
    "a folder in its place": replaced,
}


def damages(root: Path) -> Iterator[Damage]:
    """All of it to each file of the newest checkpoint; and to those beside the checkpoints."""
    run = root / "run"
    beside = [path for path in sorted(run.rglob("*")) if path.is_file() and "step-" not in str(path)]
    newest = [path for path in sorted((run / "checkpoints" / NEWEST).rglob("*")) if path.is_file()]
    for path in newest + beside:
        if path.stat().st_size:
            for words, how in HOWS.items():
                yield Damage(f"{path.relative_to(run)}, {words}", str(path.relative_to(root)), how)
    yield Damage("the newest checkpoint gone", f"run/checkpoints/{NEWEST}", shutil.rmtree)
    yield Damage("all checkpoints gone", "run/checkpoints", shutil.rmtree)
