"""What a person is asked: pairs of images of one caption, of a source of pairs."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

from fdpo_fast.config.embedded import EMBEDDED
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.run import Config
from fdpo_fast.config.schema import Data
from fdpo_fast.data.labels import Question, question, to_be_judged
from fdpo_fast.data.pairs import Pair, Picture, Rejected
from fdpo_fast.data.readers.detect import Spread, open_source
from fdpo_fast.data.readers.jsonl import JSONRecords
from fdpo_fast.data.reading import UnusableError
from fdpo_fast.progress import progress

LABELS = ".labels.jsonl"
"""How the names of files of labels end, where nobody names another."""


class Asked(NamedTuple):
    """Two images of a caption, without the images. `id` and `place` are those of the line that an answer becomes."""

    id: int
    place: str
    caption: str
    known: float | None = None
    """The source's own label, the share in favour of image 0; None where it has none."""


class Questions(Protocol):
    """All that may be asked."""

    name: str
    """What the page and the command call it."""
    every: list[Asked]
    refused: int
    """How many rows give no question."""
    megapixels: float
    """Millions of pixels; a larger image is not shown."""
    models: tuple[str, str] | None
    """Whose images number 0 and number 1 are, where two models are compared."""

    def picture(self, id: int, image: int) -> bytes:
        """Return the stored bytes of image 0 or 1 of a question.

        Raises UnusableError for what is stored and cannot be used, UnreachableError where it cannot be read now.
        """

    def scores(self) -> Mapping[int, Mapping[str, tuple[float, float]]]:
        """Return the scores of image 0 and image 1 that the source has, by pair's id and scorer."""


def section(source: str | None, config: Config | None) -> Data:
    """Return the section of a source of pairs, by a configuration, or else by its name.

    The pairs of an embedded base are made now if need be.
    """
    data = config.data if config else Data(source=source or "")
    if data.source in EMBEDDED:
        from fdpo_fast.digits.dataset import embedded

        data = data.replace({"source": str(embedded(data.source, data.digits, data.cache_dir) / "pairs.parquet")})
    return data


def beside(source: str | None, data: Data) -> Path:
    """Return where answers go unless another file is named: `data.labels`, or beside the source.

    Of a source that is no file or folder here, they go to the working folder.
    """
    if data.labels:
        return Path(data.labels)
    path = Path(source or data.source).expanduser()
    folder = path.parent if path.exists() and path.name else Path()
    return folder / ((re.sub(r"[^\w.-]+", "-", path.stem) or "pairs") + LABELS)


class OfSource:
    """The pairs of a source, whatever their labels, ties among them; which image is number 0 says `data.labels`.

    Raises UserError where no pair has images.
    """

    models: tuple[str, str] | None = None

    def __init__(self, data: Data) -> None:
        self.name, self.megapixels = Path(data.source).name or data.source, data.max_megapixels
        self._source = open_source(to_be_judged(data))
        self.every: list[Asked] = []
        self.refused = 0
        self._rows: dict[int, int] = {}
        self._of_files: dict[int, Question] = {}
        self._again, self._reading = lru_cache(maxsize=8)(self._read), threading.Lock()
        rows = self._source.read(0, len(self._source))
        for item in progress(rows, desc="pairs", total=len(self._source), unit=" pairs", leave=False):
            self._add(item)
        if not self.every:
            raise UserError(f"data.source '{data.source}' gives no pair to look at: `fdpo data check` says why")

    def _add(self, item: Pair | Rejected) -> None:
        if isinstance(item, Rejected):
            self.refused += 1
        elif asked := question(item):
            if not all(isinstance(image, Picture) for image in asked.images):
                raise UserError(f"{asked.place} holds latents, and a person can judge images alone: name their source")
            self.every.append(Asked(asked.id, asked.place, asked.caption, asked.label))
            self._rows[asked.id] = asked.row
            if not any(isinstance(image.content, bytes) for image in asked.images if isinstance(image, Picture)):
                self._of_files[asked.id] = asked

    def _read(self, id: int) -> Question:
        """Read a pair anew: images that lie in a table would fill the memory."""
        row = self._rows[id]
        for item in self._source.read(row, row + 1):
            if isinstance(item, Pair) and item.id == id and (asked := question(item)):
                return asked
        raise UnusableError("its row gives no pair any more: the source has changed")

    def scores(self) -> Mapping[int, Mapping[str, tuple[float, float]]]:
        """Return the scores of image 0 and image 1 that the source has, as one of `fdpo pairs` does."""
        source = self._source.source if isinstance(self._source, Spread) else self._source
        return dict(source.scores()) if isinstance(source, JSONRecords) else {}

    def picture(self, id: int, image: int) -> bytes:
        """Return the stored bytes of image 0 or 1 of a pair.

        Raises UnusableError for what is stored and cannot be used, UnreachableError where it cannot be read now.
        """
        if (asked := self._of_files.get(id)) is None:
            with self._reading:  # a reader goes about in its open files
                asked = self._again(id)
        side = asked.images[image]
        assert isinstance(side, Picture)
        return side.read()
