"""What became of a source's rows, in figures and in words; and how many may be refused."""

from __future__ import annotations

from typing import Any

from fdpo_fast.cache.pairs import Pairs
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Data
from fdpo_fast.data.found import named, reasons, shapes
from fdpo_fast.data.pairs import BY_CHOICE, TIE, UNLABELLED, PairSource

LOUD = 0.02
"""The share of refused rows that is worth a warning."""


def report(pairs: Pairs, source: PairSource, left: dict[str, dict], data: Data) -> dict:
    """Return what became of the source's rows, for JSON.

    That is rows, pairs, ties and pairs without a label dropped, rows without a pair, each refused row with place and
    reason, the files that are `left` out, by reason, and how much of the images is cut off. Raises UserError where no
    pair is left, or more rows than `data.max_refused` are refused.
    """
    corrupt = [row for row in pairs.refused if row.reason not in BY_CHOICE]
    found: dict[str, Any] = {
        "rows": len(source),
        "pairs": len(pairs),
        "ties_dropped": sum(row.reason == TIE for row in pairs.refused),
        "unlabelled_dropped": sum(row.reason == UNLABELLED for row in pairs.refused),
        "refused_rows": len({row.row for row in corrupt} - set(pairs.row.tolist())),
        "refused": [{"place": row.place, "reason": row.reason} for row in corrupt],
        "split": source.split,
        "left_out": left,
        **shapes(pairs.sizes),
    }
    if not len(pairs):
        raise UserError(f"data.source gives no pair to train on: {describe(found)}")
    share = found["refused_rows"] / found["rows"]
    if share > data.max_refused:
        raise UserError(
            f"{found['refused_rows']} of {found['rows']} rows of data.source ({share:.1%}) are refused, more than "
            f"data.max_refused ({data.max_refused:.1%}): {reasons(found)}; mend them, or raise the key"
        )
    return found


def warnings(found: dict) -> list[str]:
    """List what of a report a person should know before hours of encoding: that many rows give no pair."""
    said = []
    if found["refused_rows"] > LOUD * found["rows"]:
        share = found["refused_rows"] / found["rows"]
        said.append(
            f"{found['refused_rows']} of {found['rows']} rows of data.source ({share:.1%}) are refused: "
            f"{reasons(found)}; `fdpo data check` lists them"
        )
    return said


def describe(found: dict) -> str:
    """Put a `report` into a sentence."""
    words = (
        f"{found['rows']} rows, {found['pairs']} pairs, {found['ties_dropped']} ties dropped, refused: {reasons(found)}"
    )
    if unlabelled := found["unlabelled_dropped"]:
        words += f"; {unlabelled} pairs without a label dropped"
    if found["split"]:
        words += f"; split {found['split']} (data.split chooses)"
    others = (f"{entry['files']} x {reason} ({named(entry)})" for reason, entry in found["left_out"].items())
    if said := ", ".join(others):
        words += f"; files left out: {said}"
    if found["different_shapes"]:
        cut = f"{found['cut_preferred']:.0%} of the preferred and {found['cut_dispreferred']:.0%} of the dispreferred"
        words += f"; {found['different_shapes']} pairs differ in shape, {cut} is cut off on average"
    if over := found.get("over_length"):
        words += f"; {over} captions are longer than the text encoders read, and are cut"
    return words
