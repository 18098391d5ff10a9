"""Counts over a source of pairs, in figures and in words: what is left out, what is refused, and how images are cut."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from fdpo_fast.data.pairs import PairSource, kind_of

_NAMED = 100  # files that a report names of those that are left out for one reason
_SAME = 0.02  # the logarithm of the ratio of two aspects that still are one shape


def left_out(source: PairSource) -> dict[str, dict]:
    """Return how many files of a source are left out, by reason, and the first of them by name."""
    files: dict[str, list[str]] = {}
    for file in source.left_out():
        files.setdefault(file.reason, []).append(file.file)
    return {reason: {"files": len(names), "first": names[:_NAMED]} for reason, names in sorted(files.items())}


def shapes(sizes: Tensor) -> dict[str, float]:
    """Return how many pairs [n, 2, 6] differ in shape, and the mean shares of both sides that are cut off."""
    if not len(sizes):
        return {"different_shapes": 0, "cut_preferred": 0.0, "cut_dispreferred": 0.0}
    height, width = sizes[:, :, 0].double(), sizes[:, :, 1].double()
    target = sizes[:, :, 4].double(), sizes[:, :, 5].double()
    scale = torch.maximum(target[0] / height, target[1] / width)
    cut = 1 - target[0] * target[1] / (height * width * scale**2)
    aspect = height / width
    different = (aspect[:, 0] / aspect[:, 1]).log().abs() > _SAME
    preferred, dispreferred = cut.mean(0).tolist()
    return {
        "different_shapes": int(different.sum()),
        "cut_preferred": round(preferred, 4),
        "cut_dispreferred": round(dispreferred, 4),
    }


def reasons(found: dict) -> str:
    """Put the reasons of refused rows into words, by kind, and where the first is."""
    kinds = Counter(kind_of(row["reason"]) for row in found["refused"])
    first = f", first at {found['refused'][0]['place']}" if found["refused"] else ""
    return (", ".join(f"{count} x {kind}" for kind, count in kinds.most_common()) or "none") + first


def named(entry: dict) -> str:
    """Name the first files of a reason why they are left out."""
    return ", ".join(entry["first"][:3]) + (", ..." if entry["files"] > 3 else "")
