"""A person at work: what is asked next, which image stands where, and what becomes of a key."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from fdpo_fast.label.book import Book
from fdpo_fast.label.order import left_image
from fdpo_fast.label.questions import Asked, Questions

CHOICES: dict[str, float | None] = {"left": 1.0, "tie": 0.5, "right": 0.0, "skip": None}
"""The answers, each with the share in favour of the image on the left; None for no judgement."""
SIDES = ("left", "right")


class UnknownError(ValueError):
    """A request names what there is not: one sentence of what it is."""


class Session:
    """The questions of a person in their order, and the book that the answers go to. Any thread may call it.

    An answer is on the disk when the call returns, and only then is the next question known.
    """

    def __init__(
        self, questions: Questions, order: Iterable[Asked], book: Book, seed: int, note: Callable[[], str]
    ) -> None:
        """Begin behind the answers that the book has. `note` is what the page says beside a question."""
        self.questions, self.book, self.seed, self.note = questions, book, seed, note
        answered = book.own
        self._by_id = {question.id: question for question in questions.every}
        self._open = deque(question.id for question in order if question.id not in answered)
        self._at_work = threading.Lock()

    def left(self, id: int) -> int:
        """Return which image of a question, 0 or 1, is on the left for this person."""
        return left_image(self.seed, self.book.by, id)

    def state(self) -> dict[str, Any]:
        """Return what the page shows: how far it is, the question, and the one after it, so that it can be fetched."""
        with self._at_work:
            return self._state()

    def _state(self) -> dict[str, Any]:
        now, after = (self._shown(self._open[at]) if at < len(self._open) else None for at in (0, 1))
        total = len(self._by_id)
        return {
            "title": self.questions.name,
            "by": self.book.by,
            "done": total - len(self._open),
            "total": total,
            "undo": bool(self.book.own),
            "note": self.note(),
            "question": now,
            "next": after,
        }

    def _shown(self, id: int) -> dict[str, str]:
        return {"id": str(id), "caption": self._by_id[id].caption}  # an id may have more bits than a number of the page

    def answer(self, id: int, choice: str) -> dict[str, Any]:
        """Write an answer down and return the new state.

        The answer takes the place of one that the person has given to this question before. Raises UnknownError for a
        question or a choice that there is not, OSError where the answer cannot be written.
        """
        question = self._question(id)
        if choice not in CHOICES:
            raise UnknownError(f"there is no answer '{choice}': it is one of {', '.join(CHOICES)}")
        share, left = CHOICES[choice], self.left(id)
        with self._at_work:
            label = share if share is None or left == 0 else 1 - share
            self.book.add(question, label, left)
            if id in self._open:
                self._open.remove(id)
            return self._state()

    def undo(self) -> dict[str, Any]:
        """Take the person's last answer back, which becomes the next question, and return the new state."""
        with self._at_work:
            id = self.book.undo()
            if id in self._by_id:
                self._open.appendleft(id)
            return self._state()

    def picture(self, id: int, side: str) -> bytes:
        """Return the stored bytes of the image that is on a side, as `Questions.picture` does.

        Raises UnknownError for a question or a side that there is not.
        """
        question = self._question(id)
        if side not in SIDES:
            raise UnknownError(f"there is no side '{side}': it is one of {', '.join(SIDES)}")
        return self.questions.picture(question.id, self.left(id) ^ SIDES.index(side))

    def _question(self, id: int) -> Asked:
        if id not in self._by_id:
            raise UnknownError(f"there is no pair {id}")
        return self._by_id[id]
