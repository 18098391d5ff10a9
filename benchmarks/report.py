"""What a run of `benchmarks.loss` says, as tables, CSV and one plot: `python -m benchmarks.report [JSON]`.

Prints GitHub-flavoured markdown; writes the CSV and the plot beside the JSON, under its name. A run with a failed
test, or one that was broken off, is refused: no speed-up is reported on a red test.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from statistics import geometric_mean

from benchmarks.common.arguments import help_if_asked
from benchmarks.common.tables import write_csv
from benchmarks.plot import bars
from benchmarks.providers import RIVALS
from benchmarks.published import DIVERGENCES
from fdpo_fast.evaluate.tables import table
from fdpo_fast.files import replacing

RESULTS = Path(__file__).parent / "results" / "loss.json"

TITLES = {
    ("predictions", "fwd"): "Forward",
    ("predictions", "bwd"): "Backward",
    ("predictions", "fwd+bwd"): "Forward and backward",
    ("predictions", "fwd+bwd/2"): "Forward and backward, upstream gradient 1/2",
    ("errors", "fwd+bwd"): "Forward and backward, against stored reference errors",
    ("draws", "fwd+bwd"): "Forward and backward, against stored reference errors and regenerated noise",
    ("flow", "fwd+bwd"): "Forward and backward, a flow: regenerated noise minus latents",
    ("flow_errors", "fwd+bwd"): "Forward and backward, a flow against stored reference errors",
}
FWD_BWD = ("predictions", "fwd+bwd")
SUMMED_UP = ("SD1.5", "SDXL")
NEAR_THE_COPY = ("SDXL", 16, "float32")
"""Size, pairs and dtype whose share of the copy limit is quoted: memory alone decides there."""

SHORT = dict(zip(RIVALS, ("published", "compiled", "no casts", "no casts, compiled", "eager", "stored"), strict=True))
COLUMNS = ("latents", "pairs", "dtype", *(f"{name} us" for name in SHORT.values()), "ours us")
COLUMNS += (*(f"{name} / ours" for name in SHORT.values()), "ours GB/s", "share of copy")
COLUMNS += ("peak MB: published", "compiled", "eager", "ours")

Row = dict
"""`extra_info` of a case."""


def load(path: Path) -> dict:
    """The run; SystemExit with a sentence for one that is not good."""
    if not path.is_file():
        sys.exit(f"there is no {path.name}: run pytest benchmarks/ --benchmark-json {path.name} first")
    run = json.loads(path.read_text() or "{}")
    if run.get("exit_status") != 0:
        sys.exit(
            f"{path.name} comes from a run with failed tests, or one that was broken off: there is no report on it"
        )
    run["rows"] = [b["extra_info"] for b in run["benchmarks"] if "providers" in b["extra_info"]]
    run["preserving"] = [b["extra_info"] for b in run["benchmarks"] if "preserving" in b["extra_info"]]
    if not run["rows"]:
        sys.exit(f"{path.name} holds no benchmark of the loss")
    return run


def markdown(run: dict) -> Iterator[str]:
    """The lines of the report."""
    machine = ", ".join(f"{key} {value}" for key, value in run["machine_info"].items() if value is not None)
    yield f"Machine: {machine}. Backend of ours: {', '.join(sorted({row['backend'] for row in run['rows']}))}."
    yield ""
    yield f"Medians; us = microseconds per call. {'; '.join(f'{SHORT[key]}: {text}' for key, text in RIVALS.items())}."
    yield "published / ours: how many times faster ours is. Casts change nothing in float32. GB/s: what must be read"
    yield "and written at least, by the time; share of copy: by the speed of a memory copy of as many bytes, timed in"
    yield "the same rounds. Peak: what a call allocates; on the host ours keeps the memory of its last gradient above"
    yield "1 MiB for the next one."
    if run["quick"]:
        yield "A quick look with few rounds, not a measurement."
    if disturbed := ["-".join(map(str, row["case"].values())) for row in run["rows"] if row["disturbed"]]:
        yield "Other programs took the cores during these cases, of which no speed-up is reported:"
        yield f"{', '.join(disturbed)}."
    for kind, rows in groupby(sorted(run["rows"], key=lambda row: _place(row)), _place):
        rows = list(rows)
        _, title, divergence = kind
        yield from ("", f"### {title}, {divergence}", "")
        rows.sort(key=lambda row: row["case"]["dtype"], reverse=True)
        yield from table(COLUMNS, map(_cells, rows), figures=len(COLUMNS) - 3)
        if any(row["gradient_formed_ahead"] for row in rows):
            yield from (
                "",
                "On the host ours has formed the gradient in the forward pass: only handing it over is left.",
            )
    yield from ("", *speed_ups(run["rows"]))
    if run["preserving"]:
        yield from ("", "### Forward and backward with `winner_preserving`, and without it", "")
        columns = ("latents", "pairs", "dtype", "form", "us", "us without", "more")
        yield from table(columns, map(_preserving, run["preserving"]), figures=3)


def speed_ups(rows: Iterable[Row]) -> Iterator[str]:
    """The figures to quote: forward and backward of SD1.5 and SDXL latents, all pairs and dtypes of the run."""
    rows = [row for row in rows if row["case"]["size"] in SUMMED_UP and _kind(row) == FWD_BWD]
    total, rows = len(rows), _fwd_bwd(rows)
    yield f"### How many times faster ours is, forward and backward, SD1.5 and SDXL: {len(rows)} of {total} cases"
    yield ""
    columns = ("geometric mean over", "both", *DIVERGENCES, "least", "most", "cases")
    yield from table(columns, (cells for rival in RIVALS if (cells := _summed_up(rival, rows))), len(columns) - 1)
    for row in rows:
        case = row["case"]
        if (case["size"], case["pairs"], case["dtype"]) == NEAR_THE_COPY:
            size, pairs, dtype = NEAR_THE_COPY
            share = row["providers"]["ours"]["share_of_copy"]
            yield ""
            yield f"Share of the copy limit, {size}, {pairs} pairs, {dtype}, {case['divergence']}: **{share:.0%}**."


def _summed_up(rival: str, rows: Iterable[Row]) -> list[str]:
    """A line of the table of speed-ups; empty without a case of that rival."""
    by_divergence: dict[str, list[float]] = {name: [] for name in DIVERGENCES}
    for row in rows:
        if times := row["providers"]["ours"].get(f"times_faster_than_{rival}"):
            by_divergence[row["case"]["divergence"]].append(times)
    every = [times for some in by_divergence.values() for times in some]
    if not every:
        return []
    means = (f"{geometric_mean(times):.2f}" if times else "" for times in (every, *by_divergence.values()))
    return [RIVALS[rival], *means, f"{min(every):.2f}", f"{max(every):.2f}", str(len(every))]


def _place(row: Row) -> tuple[int, str, str]:
    """Where a case stands in the report: the number and title of its kind, and its divergence."""
    return list(TITLES).index(_kind(row)), TITLES[_kind(row)], row["case"]["divergence"]


def _kind(row: Row) -> tuple[str, str]:
    return row["case"]["form"], row["case"]["passes"]


def _fwd_bwd(rows: Iterable[Row]) -> list[Row]:
    """What the speed-ups stand on."""
    return [row for row in rows if _kind(row) == FWD_BWD and not row["disturbed"]]


def _cells(row: Row) -> list[str]:
    case, providers, ours = row["case"], row["providers"], row["providers"]["ours"]

    def of(name: str, key: str, form: str, scale: float = 1.0) -> str:
        value = providers.get(name, {}).get(key)
        return "" if value is None else format(value * scale, form)

    speeds = (f"{ours['gb_per_s']:.1f}", f"{ours['share_of_copy']:.0%}")
    return [
        *(case["size"], str(case["pairs"]), case["dtype"]),
        *(of(name, "median_us", ",.0f") for name in (*RIVALS, "ours")),
        *("" if row["disturbed"] else of("ours", f"times_faster_than_{rival}", ".2f") for rival in RIVALS),
        *("" if row["disturbed"] or row["gradient_formed_ahead"] else text for text in speeds),
        *(of(name, "peak_bytes", ".2f", 1e-6) for name in ("published", "published_compiled", "eager", "ours")),
    ]


def _preserving(row: Row) -> list[str]:
    case, found = row["case"], row["preserving"]
    times = (f"{found['us']:,.0f}", f"{found['us_without']:,.0f}", "" if row["disturbed"] else f"{found['more']:+.1%}")
    return [case["size"], str(case["pairs"]), case["dtype"], case["form"], *times]


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write one line for each case and provider."""
    flat = [
        {
            **row["case"],
            "provider": name,
            **{
                key: row[key]
                for key in (
                    "device",
                    "calls_per_round",
                    "rounds",
                    "quiet_rounds",
                    "disturbed",
                    "minimal_bytes",
                    "copy_us",
                )
            },
            **{key: value for key, value in measured.items() if key != "quartiles_us"},
            **dict(zip(("q1_us", "q3_us"), measured["quartiles_us"], strict=True)),
        }
        for row in rows
        for name, measured in row["providers"].items()
    ]
    columns = list(dict.fromkeys(key for line in flat for key in line))
    write_csv(path, columns, [[line.get(key, "") for key in columns] for line in flat])


def main(path: Path = RESULTS) -> None:
    run = load(path)
    print("\n".join(markdown(run)))
    write_rows(run["rows"], path.with_suffix(".csv"))
    if rows := _fwd_bwd(run["rows"]):
        with replacing(path.with_suffix(".png")) as partial:
            partial.write_bytes(bars(rows))


if __name__ == "__main__":
    help_if_asked(__doc__)
    main(*map(Path, sys.argv[1:2]))
