"""`fdpo data check --config ...`: read every row of the data as caching would, and say what is in it.

Needs no model. Images are decoded; nothing is written but the report.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.run import Config
from fdpo_fast.config.schema import EMBEDDED
from fdpo_fast.data.images import UNREADABLE, decode
from fdpo_fast.data.pairs import TIE, Pair, ReadyLatents, Rejected, Side
from fdpo_fast.data.prefetch import ahead
from fdpo_fast.data.readers.detect import open_source
from fdpo_fast.files import replacing

LONG_CAPTION = 60  # words; CLIP reads 77 tokens, begin and end included


@dataclass
class Findings:
    """What was counted over a source of pairs."""

    rows: int = 0
    pairs: int = 0
    ties: int = 0
    first_preferred: int = 0
    second_preferred: int = 0
    same_image_twice: int = 0
    repeated_pairs: int = 0
    captions: int = 0
    distinct_captions: int = 0
    empty_captions: int = 0
    long_captions: int = 0
    images: int = 0
    distinct_images: int = 0
    smaller_than_resolution: int = 0
    sizes: Counter = field(default_factory=Counter)
    """How many distinct images there are by (width, height)."""
    refused: list[dict[str, str]] = field(default_factory=list)
    """The rows that cannot be used, each with its place and the reason."""


def check(config: Config, json_file: Path | None) -> None:
    """Read a configuration's source, print what is in it, and write it to `json_file` if there is one.

    Raises UserError where no pair is left to train on.
    """
    if config.data.source == EMBEDDED:
        from fdpo_fast.digits.dataset import embedded

        pairs = embedded(config.data.digits, config.data.cache_dir) / "pairs.parquet"
        config = config.replace({"data.source": str(pairs)})
    source = open_source(config.data.replace({"ties": "half"}))
    rows = tqdm(source.read(0, len(source)), desc="reading", unit=" pairs", leave=False)
    found = examine(rows, config.data.resolution, config.data.workers)
    found.rows = len(source)
    print(summary(found, config.data.source, config.data.ties))
    if json_file:
        with replacing(json_file) as partial:
            sizes = {f"{width}x{height}": count for (width, height), count in found.sizes.most_common()}
            partial.write_text(json.dumps(asdict(found) | {"sizes": sizes}, indent=2) + "\n")
    if not found.pairs and not (found.ties and config.data.ties == "half"):
        raise UserError(f"data.source '{config.data.source}' gives no pair to train on")


def examine(rows: Iterable[Pair | Rejected], resolution: int, workers: int = 4) -> Findings:
    """Count over rows read with ties kept both ways. Memory grows with digests of 16 bytes, not with images."""
    found = Findings()
    captions: set[str] = set()
    images: set[bytes] = set()
    pairs: set[bytes] = set()
    for row, sides in ahead(lambda row: (row, _look(row)), rows, workers):
        if isinstance(sides, Rejected):
            refusal = asdict(sides)
            if sides.reason != TIE and refusal not in found.refused[-1:]:
                found.refused.append(refusal)
            continue
        if row.weight < 1:  # half of a tie
            found.ties += row.id % 2
            if row.id % 2:
                continue
        else:
            found.pairs += 1
            found.first_preferred += row.first is True
            found.second_preferred += row.first is False
        found.captions += 1
        captions.add(row.caption)
        found.empty_captions += not row.caption.strip()
        found.long_captions += len(row.caption.split()) > LONG_CAPTION
        (first, size), (second, other) = sides
        found.same_image_twice += first == second
        key = _digest(row.caption.encode() + b"".join(sorted((first, second))))
        found.repeated_pairs += key in pairs
        pairs.add(key)
        for name, (width, height) in ((first, size), (second, other)):
            found.images += 1
            if name not in images:
                images.add(name)
                found.sizes[width, height] += 1
                found.smaller_than_resolution += min(width, height) < resolution
    found.distinct_captions, found.distinct_images = len(captions), len(images)
    return found


def _look(row: Pair | Rejected) -> list[tuple[bytes, tuple[int, int]]] | Rejected:
    """Return the digest and (width, height) of both sides of a pair, or why it has none."""
    if isinstance(row, Rejected):
        return row
    try:
        return [_image(side) for side in (row.preferred, row.dispreferred)]
    except FileNotFoundError:
        return Rejected(row.place, "an image is missing")
    except UNREADABLE:
        return Rejected(row.place, "an image does not decode")


def _image(side: Side) -> tuple[bytes, tuple[int, int]]:
    if isinstance(side, ReadyLatents):
        height, width = side.original_size or side.values.shape[1:]
        return _digest(side.values.tobytes()), (width, height)
    content = side if isinstance(side, bytes) else side.read_bytes()
    image: Image.Image = decode(content)
    return _digest(content), image.size


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def summary(found: Findings, source: str, ties: str) -> str:
    """Write the findings as text: the counts, then the first twenty rows that were refused."""
    judged = max(found.first_preferred + found.second_preferred, 1)
    kept = "kept both ways at half weight" if ties == "half" else "dropped"
    common = ", ".join(f"{w}x{h} ({count})" for (w, h), count in found.sizes.most_common(5))
    balance = f"image 0 preferred in {found.first_preferred} ({found.first_preferred / judged:.1%}), image 1 in "
    balance += f"{found.second_preferred} ({found.second_preferred / judged:.1%})"
    reasons = Counter(row["reason"] for row in found.refused)
    lines = [
        ("source", source),
        ("rows", f"{found.rows:,}"),
        ("pairs", f"{found.pairs:,}"),
        ("ties", f"{found.ties:,}, {kept}"),
        ("labels", balance if found.first_preferred + found.second_preferred else "the format has no order of images"),
        ("duplicates", f"{found.repeated_pairs:,} repeated pairs, {found.same_image_twice:,} of one image twice"),
        ("captions", f"{found.distinct_captions:,} distinct, {found.empty_captions:,} empty, "
                     f"{found.long_captions:,} of more than {LONG_CAPTION} words (CLIP reads 77 tokens)"),
        ("images", f"{found.distinct_images:,} distinct of {found.images:,}, {found.smaller_than_resolution:,} smaller "
                   "than data.resolution"),
        ("sizes", common or "none"),
        ("refused", ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common()) or "none"),
    ]  # fmt: skip
    shown = [f"  {row['place']}: {row['reason']}" for row in found.refused[:20]]
    more = [f"  ... and {len(found.refused) - 20} more: --json FILE lists them"] if len(found.refused) > 20 else []
    return "\n".join([*(f"{name:11} {text}" for name, text in lines), *shown, *more])
