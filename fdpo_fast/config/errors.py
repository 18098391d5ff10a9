"""The one error that is raised on purpose where the input is wrong, and what may have been meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake in what a user has given: one sentence of what is wrong, where, and what to do.

    The command line shows it as it is; any other error comes with its traceback.
    """


def near(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known word that is nearest; None where none is near."""
    return next(iter(get_close_matches(word, list(known), n=1, cutoff=cutoff)), None)


def did_you_mean(word: str, known: Iterable[str], before: str = "", cutoff: float = 0.6) -> str:
    """Return ", did you mean ...?" with the known word that is nearest; nothing where none is near."""
    found = near(word, known, cutoff)
    return f", did you mean '{before}{found}'?" if found else ""
