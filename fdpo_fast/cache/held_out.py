"""Pairs that are held out of training: a share of them, with captions that occur nowhere else."""

from __future__ import annotations

import hashlib
from collections import Counter

import torch
from torch import Tensor

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.run import Config


def held_out(captions: list[str], share: float, seed: int) -> Tensor:
    """Say which pairs are held out, [n] bool: those of the first captions, in an order drawn by `seed`, up to `share`.

    At least one caption is, however many pairs it has, and one is not. The order is a digest of seed and caption, so
    neither rows nor other captions decide about a caption's place. Raises UserError where all pairs have one caption.
    """
    counts = Counter(captions)
    if len(counts) < 2:
        raise UserError(
            f"data.validation holds out captions, and all {len(captions)} pairs have the same one: give validation a "
            "source of its own, or set it to null"
        )
    drawn = sorted(counts, key=lambda caption: hashlib.sha256(f"{seed}:{caption}".encode()).digest())
    chosen, pairs = {drawn[0]}, counts[drawn[0]]
    for caption in drawn[1:-1]:
        if pairs + counts[caption] > share * len(captions):
            break
        chosen.add(caption)
        pairs += counts[caption]
    return torch.tensor([caption in chosen for caption in captions], dtype=torch.bool, device="cpu")


def for_validation(config: Config) -> Config:
    """Return the configuration that held-out pairs are cached and looked at by.

    Their reference errors are always cached, on draws of their own, and no caption is dropped.
    """
    changes = {
        "reference.mode": "cached",
        "reference.visits": config.train.validation_visits,
        "data.caption_dropout": 0.0,
        "data.flip": 0.0,
    }
    if isinstance(config.data.validation, str):
        changes |= {"data.source": config.data.validation, "data.format": "auto", "data.split": "all"}
        changes |= {"data.max_rows": None, "data.labels": None, "data.unlabelled": "keep"}
    return config.replace(changes)
