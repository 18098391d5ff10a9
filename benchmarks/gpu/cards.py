"""What the card at hand can do at most, by its maker's table."""

from __future__ import annotations

from fdpo_fast.memory.cards import CARDS


def peak_tflops(name: str) -> float | None:
    """Of a card by the driver's name; None for one that is not in the table. The longest entry that fits counts."""
    words = f" {name} ".replace("-", " ")
    fits = [card for card in CARDS if f" {card} " in words]
    return float(CARDS[max(fits, key=len)].tflops) if fits else None
