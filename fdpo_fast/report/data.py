"""`fdpo data check`: what is in a source of pairs, in words, as JSON, and on a page.

Needs no model; where the tokenizers of `model.base` are at hand, captions are counted by them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from fdpo_fast.config.embedded import EMBEDDED
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.run import Config
from fdpo_fast.data.check import SHOWN, Findings, Sheet, Shown, examine
from fdpo_fast.data.pairs import kind_of
from fdpo_fast.data.readers.detect import open_source
from fdpo_fast.files import replacing
from fdpo_fast.models import family_class
from fdpo_fast.models.hub import here
from fdpo_fast.models.tokenizer import excess
from fdpo_fast.progress import progress
from fdpo_fast.report.pages import Part, Samples, Table, short, strip, write
from fdpo_fast.training.lock import DATA_PAGE

_LISTED = 20
_ROWS = 500  # of a table on the page


def check(config: Config, json_file: Path | None, page: Path | None) -> None:
    """Read a configuration's source, print what is in it, write a page about it, and its figures to `json_file`.

    Raises UserError where no pair is left to train on.
    """
    if config.data.source in EMBEDDED:
        from fdpo_fast.digits.dataset import resolved

        config = resolved(config)
    data = config.data
    source = open_source(data.replace({"ties": "half", "votes": "decide"}))
    pipeline = here(config.model.base, ("tokenizer*/*",))
    over = excess(pipeline, family_class(config.model).tokens(config.model) or None) if pipeline else None
    rows = progress(source.read(0, len(source)), desc="reading", total=len(source), unit=" pairs", leave=False)
    findings, sheet = examine(rows, data, len(source), over)
    findings.split = source.split
    findings.left_out = [{"file": file, "reason": reason} for file, reason in source.left_out()]
    print(summary(findings, data.source, data.ties))
    if json_file:
        with replacing(json_file) as partial:
            partial.write_text(json.dumps(asdict(findings), indent=2) + "\n")
    page = page or Path(config.train.output_dir).expanduser() / DATA_PAGE
    write(page, f"Data of {short(Path(data.source).name)}", parts(findings, sheet, data.source, data.ties))
    print(f"{'page':11} {page}")
    if not findings.pairs and not (findings.ties and data.ties == "half"):
        raise UserError(f"data.source '{data.source}' gives no pair to train on")


def lines(findings: Findings, source: str, ties: str) -> list[tuple[str, str]]:
    """Return the counts in words, each with its name."""
    judged = findings.first_preferred + findings.second_preferred
    kept = "kept both ways at half weight" if ties == "half" else "dropped"
    common = ", ".join(f"{size} ({count})" for size, count in [*findings.sizes.items()][:5])
    first, second = (
        f"{count} ({count / max(judged, 1):.1%})" for count in (findings.first_preferred, findings.second_preferred)
    )
    balance = f"image 0 preferred in {first}, image 1 in {second}"
    kinds = Counter(kind_of(row["reason"]) for row in findings.refused)
    left = Counter(file["reason"] for file in findings.left_out)
    over = findings.over_length
    long = "tokens not counted, as model.base is not here" if over is None else f"{over:,} of more tokens than are read"
    unlike = (
        f"{findings.different_shapes:,} pairs differ; cut off: {findings.cut_preferred:.1%} of the preferred images, "
        f"{findings.cut_dispreferred:.1%} of the others"
    )
    without = f"; {findings.unlabelled:,} have none in data.labels and are dropped" if findings.unlabelled else ""
    return [
        ("source", source + (f", split {findings.split} (data.split chooses)" if findings.split else "")),
        ("rows", f"{findings.rows:,}"),
        ("pairs", f"{findings.pairs:,}"),
        ("ties", f"{findings.ties:,}, {kept}"),
        ("labels", (balance if judged else "the format has no order of images") + without),
        ("duplicates", f"{findings.repeated_pairs:,} repeated pairs, {findings.same_image_twice:,} of one image twice"),
        ("captions", f"{findings.distinct_captions:,} distinct, {findings.empty_captions:,} empty, {long}"),
        ("images", f"{findings.distinct_images:,} distinct of {findings.images:,}, "
                   f"{findings.smaller_than_resolution:,} smaller than data.resolution"),
        ("sizes", common or "none"),
        ("shapes", unlike),
        ("refused", ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common()) or "none"),
        ("left out", ", ".join(f"{count} x {reason}" for reason, count in left.most_common()) or "none"),
    ]  # fmt: skip


def summary(findings: Findings, source: str, ties: str) -> str:
    """Write the findings as text: the counts, then the first refused rows, and the first files that are left out."""
    refused = [f"{row['place']}: {row['reason']}" for row in findings.refused]
    left = [f"{file['file']}: {file['reason']}" for file in findings.left_out]
    counts = (f"{name:11} {text}" for name, text in lines(findings, source, ties))
    return "\n".join([*counts, *_first("refused", refused), *_first("left out", left)])


def _first(what: str, said: list[str]) -> Iterator[str]:
    if said:
        yield f"{what}:"
        yield from (f"  {words}" for words in said[:_LISTED])
    if len(said) > _LISTED:
        yield f"  ... and {len(said) - _LISTED} more: --json FILE lists them"


def parts(findings: Findings, sheet: Sheet, source: str, ties: str) -> Iterator[Part]:
    """Yield the parts of a page about a source, of which `data.ties` are kept."""
    counts = lines(findings, source, ties)
    yield Part(
        "What is there", table=Table(("figure", "value"), tuple((name, short(text)) for name, text in counts), "lw")
    )
    if sheet.pairs:
        about = f"Up to {SHOWN} pairs drawn at random, cut as they are going to be trained on."
        yield Part("Pairs", (about,), samples=tuple(map(_shown, sheet.pairs)), sheet=True)
    if findings.sizes:
        rows = tuple((size, f"{count:,}") for size, count in [*findings.sizes.items()][:_ROWS])
        yield Part(
            "Sizes", table=Table(("width x height", "images"), rows, "lr"), folded=f"{len(findings.sizes)} sizes"
        )
    if sheet.refused:
        about = f"The first {len(sheet.refused)} of {len(findings.refused)}, with what of their images can be shown."
        yield Part("Refused", (about,), samples=tuple(map(_shown, sheet.refused)), sheet=True)
    for title, found, key in (("All refused", findings.refused, "place"), ("Left out", findings.left_out, "file")):
        if found:
            rows = tuple((short(entry[key]), short(entry["reason"])) for entry in found[:_ROWS])
            folded = f"{len(found)} entries" + (f", the first {_ROWS} here" if len(found) > _ROWS else "")
            yield Part(title, table=Table((key, "reason"), rows, "ww"), folded=folded)


def _shown(shown: Shown) -> Samples:
    return Samples(short(shown.words), tuple(strip(short(name), [image]) for name, image in shown.images))
