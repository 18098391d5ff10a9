"""Which pairs a person is asked first, by the name of the choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fdpo_fast.config.run import Config
from fdpo_fast.data.labels import read_labels
from fdpo_fast.label.margins import margins, sureness
from fdpo_fast.label.order import Order, by_disagreement, order_by, random_order


@dataclass(frozen=True)
class Choice:
    """What an order of the pairs may follow from."""

    seed: int
    config: Config | None
    scores: Path | None
    """A file of labels with scores; None for the one that the answers go to."""
    policy: Path | None
    """The folder of a finished run, or of an exported pipeline, whose margins are measured."""
    margins: Path | None
    """The file of margins, read where it exists, else written."""
    pairs: int
    """How many pairs margins are measured on, at most."""


def order(name: str, choice: Choice) -> Order:
    """Return the order that a choice stands for."""
    return _ORDERS[name](choice)


def _disagreement(choice: Choice) -> Order:
    return by_disagreement(choice.seed, read_labels(choice.scores.expanduser()) if choice.scores else None)


def _unsure(choice: Choice) -> Order:
    policy, file = (path and path.expanduser() for path in (choice.policy, choice.margins))
    return order_by(sureness(margins(choice.config, policy, choice.pairs, file)), choice.seed)


_ORDERS: dict[str, Callable[[Choice], Order]] = {
    "random": lambda choice: random_order(choice.seed),
    "disagreement": _disagreement,
    "unsure": _unsure,
}
