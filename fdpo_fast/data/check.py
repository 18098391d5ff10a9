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

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.run import Config
from fdpo_fast.config.schema import EMBEDDED
from fdpo_fast.data.images import UNREADABLE, decode
from fdpo_fast.data.pairs import TIE, Pair, ReadyLatents, Rejected, Side
from fdpo_fast.data.prefetch import ahead
from fdpo_fast.data.readers.detect import open_source
from fdpo_fast.files import replacing
from fdpo_fast.progress import progress

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
    rows = progress(source.read(0, len(source)), desc="reading", unit=" pairs", leave=False)
    findings = examine(rows, config.data.resolution, config.data.workers)
    findings.rows = len(source)
    print(summary(findings, config.data.source, config.data.ties))
    if json_file:
        with replacing(json_file) as partial:
            sizes = {f"{width}x{height}": count for (width, height), count in findings.sizes.most_common()}
            partial.write_text(json.dumps(asdict(findings) | {"sizes": sizes}, indent=2) + "\n")
    if not findings.pairs and not (findings.ties and config.data.ties == "half"):
        raise UserError(f"data.source '{config.data.source}' gives no pair to train on")


def examine(rows: Iterable[Pair | Rejected], resolution: int, workers: int = 4) -> Findings:
    """Count over rows read with ties kept both ways. Memory grows with digests of 16 bytes, not with images."""
    findings = Findings()
    captions: set[str] = set()
    images: set[bytes] = set()
    pairs: set[bytes] = set()
    for row, sides in ahead(lambda row: (row, _look(row)), rows, workers):
        if isinstance(sides, Rejected):
            refusal = asdict(sides)
            if sides.reason != TIE and refusal not in findings.refused[-1:]:
                findings.refused.append(refusal)
            continue
        if row.weight < 1:  # half of a tie
            findings.ties += row.id % 2
            if row.id % 2:
                continue
        else:
            findings.pairs += 1
            findings.first_preferred += row.first is True
            findings.second_preferred += row.first is False
        findings.captions += 1
        captions.add(row.caption)
        findings.empty_captions += not row.caption.strip()
        findings.long_captions += len(row.caption.split()) > LONG_CAPTION
        (first, size), (second, other) = sides
        findings.same_image_twice += first == second
        key = _digest(row.caption.encode() + b"".join(sorted((first, second))))
        findings.repeated_pairs += key in pairs
        pairs.add(key)
        for name, (width, height) in ((first, size), (second, other)):
            findings.images += 1
            if name not in images:
                images.add(name)
                findings.sizes[width, height] += 1
                findings.smaller_than_resolution += min(width, height) < resolution
    findings.distinct_captions, findings.distinct_images = len(captions), len(images)
    return findings


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


def summary(findings: Findings, source: str, ties: str) -> str:
    """Write the findings as text: the counts, then the first twenty rows that were refused."""
    judged = findings.first_preferred + findings.second_preferred
    kept = "kept both ways at half weight" if ties == "half" else "dropped"
    common = ", ".join(f"{w}x{h} ({count})" for (w, h), count in findings.sizes.most_common(5))
    first, second = (
        f"{count} ({count / max(judged, 1):.1%})" for count in (findings.first_preferred, findings.second_preferred)
    )
    balance = f"image 0 preferred in {first}, image 1 in {second}"
    reasons = Counter(row["reason"] for row in findings.refused)
    lines = [
        ("source", source),
        ("rows", f"{findings.rows:,}"),
        ("pairs", f"{findings.pairs:,}"),
        ("ties", f"{findings.ties:,}, {kept}"),
        ("labels", balance if judged else "the format has no order of images"),
        ("duplicates", f"{findings.repeated_pairs:,} repeated pairs, {findings.same_image_twice:,} of one image twice"),
        ("captions", f"{findings.distinct_captions:,} distinct, {findings.empty_captions:,} empty, "
                     f"{findings.long_captions:,} of more than {LONG_CAPTION} words (CLIP reads 77 tokens)"),
        ("images", f"{findings.distinct_images:,} distinct of {findings.images:,}, "
                   f"{findings.smaller_than_resolution:,} smaller than data.resolution"),
        ("sizes", common or "none"),
        ("refused", ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common()) or "none"),
    ]  # fmt: skip
    shown = [f"  {row['place']}: {row['reason']}" for row in findings.refused[:20]]
    hidden = len(findings.refused) - len(shown)
    more = [f"  ... and {hidden} more: --json FILE lists them"] if hidden else []
    return "\n".join([*(f"{name:11} {text}" for name, text in lines), *shown, *more])
