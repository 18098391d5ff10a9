"""The file of labels that a person's answers go to: whole on the disk before the next question is asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fdpo_fast.config.errors import UserError
from fdpo_fast.data.labels import Label, read_labels
from fdpo_fast.data.pairs import short
from fdpo_fast.files import clear_partial, make_folder, replacing, stamp
from fdpo_fast.label.questions import Asked


class Book:
    """The lines of all judges in a file, of which one person's are added and taken back.

    The file is replaced as a whole, under a temporary name first, so that a kill leaves it as it was before an answer
    or after it. Other judges' lines stay as they are. The last line of the person is the last answer.
    """

    def __init__(self, path: Path, by: str, questions: Iterable[Asked]) -> None:
        """Read the file, where there is one.

        Raises UserError where it is broken, a pair has another caption in it than among the questions, or the
        lines by this name are those of scorers.
        """
        self.path, self.by, self._seen = path, by, stamp(path)
        self.labels = read_labels(path) if path.exists() and path.stat().st_size else []
        self._lines = {(label.id, label.by): label.line() for label in self.labels}
        captions = {question.id: question.caption for question in questions}
        for label in self.labels:
            if captions.get(label.id, label.caption) != label.caption:
                raise UserError(
                    f"{path} is of another source: pair {label.id} has the caption {short(captions[label.id])} "
                    f"here, and {short(label.caption)} there; name another file by --labels"
                )
            if label.by == by and "scores" in label.more:
                raise UserError(f"'{by}' is the name of scorers in {path}: label under another by --as")

    @property
    def own(self) -> dict[int, Label]:
        """Return the person's answers by the pair's id, in the order in which they were given."""
        return {label.id: label for label in self.labels if label.by == self.by}

    def add(self, question: Asked, label: float | None, left: int) -> None:
        """Write an answer, in place of one to the same question before; `left` is the image that was on the left.

        Raises OSError where it cannot be written, UserError where another program has changed the file; the book is
        then as it was.
        """
        new = Label(question.id, question.place, question.caption, label, self.by, {"left": left})
        self._write([*self._without(question.id), new])

    def undo(self) -> int | None:
        """Take the person's last answer out and return the pair's id; None where there is none.

        Raises as `add` does.
        """
        last = next(reversed(self.own), None)
        if last is not None:
            self._write(self._without(last))
        return last

    def _without(self, id: int) -> list[Label]:
        self._lines.pop((id, self.by), None)
        return [label for label in self.labels if label.id != id or label.by != self.by]

    def _write(self, labels: list[Label]) -> None:
        keys = [(label.id, label.by) for label in labels]
        lines = {key: self._lines.get(key) or label.line() for key, label in zip(keys, labels, strict=True)}
        if self.path.exists() and stamp(self.path) != self._seen:
            raise UserError(
                f"{self.path} has been changed by another program: start this command again, to read it anew"
            )
        with replacing(self.path) as partial:
            partial.write_text("".join(lines.values()), encoding="utf-8", newline="\n")
        self.labels, self._lines, self._seen = labels, lines, stamp(self.path)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock on a file of labels until the block or the process ends, its folder being made where it is missing.

    Raises UserError where another process holds it, or the folder cannot be written.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        make_folder(path.parent)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another `fdpo label` is at work on {path}: end it, or name another file by --labels"
        ) from None
    except OSError as error:
        raise UserError(f"{path.parent} cannot be written ({error.strerror}): name another file by --labels") from None
    try:
        clear_partial(path.parent)
        yield
    finally:
        lock.release()
