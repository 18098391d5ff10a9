"""What the answers have shown so far, in words: how far judges agree, and of two models who is preferred."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import combinations

from fdpo_fast.data.labels import Agreement, agreement
from fdpo_fast.evaluate.sequential import Verdict, verdict, win_rate
from fdpo_fast.evaluate.statistics import Estimate
from fdpo_fast.label.book import Book
from fdpo_fast.label.questions import Questions
from fdpo_fast.label.session import CHOICES

SOURCE = "the source"
"""What the source's own labels are called among the judges."""
_MOST = 10  # judges of a file whose every two are compared


def heading(book: Book, questions: Questions) -> str:
    """Say how far a person is."""
    return f"{book.by}: {len(_answers(book, questions).get(book.by, {}))} of {len(questions.every)} answered"


def words(book: Book, questions: Questions) -> list[str]:
    """Return a sentence for each thing that the answers have shown."""
    return [*_own(book, questions), *_agreements(book, questions)]


def preferred(book: Book, by: str, questions: Questions) -> Estimate:
    """Estimate how often a judge prefers the second model's image, in the order in which the answers were given."""
    given = _answers(book, questions).get(by, {})
    return win_rate([1 - share for share in given.values() if share is not None])


def note(book: Book, questions: Questions) -> str:
    """Say that a comparison may be stopped, but not what has come out: the person goes on blindly, or stops."""
    if not questions.models or verdict(preferred(book, book.by, questions)) is Verdict.OPEN:
        return ""
    return "These answers suffice for a result, however often it is looked at: you may stop here, or go on."


def _answers(book: Book, questions: Questions) -> dict[str, dict[int, float | None]]:
    """Return the labels of the questions by judge and pair's id, in the order of the file."""
    asked = {question.id for question in questions.every}
    found: dict[str, dict[int, float | None]] = {}
    for label in book.labels:
        if label.id in asked:
            found.setdefault(label.by, {})[label.id] = label.label
    return found


def _own(book: Book, questions: Questions) -> Iterator[str]:
    """Yield what a person's own answers are, with how often each side was chosen: as often, by chance."""
    asked = {question.id for question in questions.every}
    mine = [label for label in book.own.values() if label.id in asked]
    ties = sum(label.label == CHOICES["tie"] for label in mine)
    skipped = sum(label.label is None for label in mine)
    chosen = [label for label in mine if label.label in (0, 1)]
    on_left = sum((label.label == 1) == (label.more.get("left") == 0) for label in chosen)
    yield (
        f"Preferred: {len(chosen)} (on the left {on_left}, on the right {len(chosen) - on_left}); ties: {ties}; "
        f"skipped: {skipped}."
    )
    if questions.models:
        for by in _answers(book, questions):
            yield _compared(preferred(book, by, questions), by, questions.models)


def _compared(rate: Estimate, by: str, models: tuple[str, str]) -> str:
    first, second = models
    if math.isnan(rate.value):
        return f"{by}: no answer yet."
    shown = {Verdict.FIRST: f"{first} is preferred", Verdict.SECOND: f"{second} is preferred"}
    found = verdict(rate)
    return (
        f"{by} prefers {second} to {first} in {rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}], ties as halves: "
        f"{shown.get(found, found.value)}. The interval holds with 95 % at all times, so one may stop at any."
    )


def _agreements(book: Book, questions: Questions) -> Iterator[str]:
    """Yield how far every two judges agree, the source's own labels being one."""
    said = _answers(book, questions)
    known = {question.id: question.known for question in questions.every if question.known is not None}
    judges: dict[str, Mapping[int, float | None]] = {
        **({book.by: said[book.by]} if book.by in said else {}),
        **dict(list(said.items())[:_MOST]),
        **({SOURCE: known} if known else {}),
    }
    for (one, ours), (other, theirs) in combinations(judges.items(), 2):
        both = [(label, theirs[id]) for id, label in ours.items() if label is not None and theirs.get(id) is not None]
        if both:
            left, right = zip(*both, strict=True)
            yield f"{one} and {other} {_in_words(agreement(left, right))}"


def _in_words(found: Agreement) -> str:
    kappa = "not defined, as both say always the same" if found.kappa is None else f"{found.kappa:.2f}"
    return f"agree on {found.share:.1%} of {found.pairs} pairs; Cohen's kappa is {kappa}."
