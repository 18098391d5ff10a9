"""The report of a comparison: a page, its pictures as files, points.csv and report.md."""

from __future__ import annotations

import csv
import html
import math
import shlex
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from fdpo_fast.compare.analysis import COLUMNS, FIGURES, Comparison, Spot
from fdpo_fast.compare.grid import Point
from fdpo_fast.evaluate.gallery import PICTURES, ROWS, contact_sheet
from fdpo_fast.evaluate.policies import BASE
from fdpo_fast.evaluate.statistics import Estimate
from fdpo_fast.evaluate.tables import table
from fdpo_fast.files import replacing
from fdpo_fast.report import figures, moved, words
from fdpo_fast.report.pages import Part, Samples, Table, short, strip, write
from fdpo_fast.report.run import Run
from fdpo_fast.report.verdict import sentences
from fdpo_fast.report.words import Word

SHEET = "samples.png"


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write the report of a comparison to `folder/report`: index.html, its pictures, points.csv and report.md."""
    report = folder / "report"
    report.mkdir(exist_ok=True)
    with replacing(report / "points.csv") as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(comparison.rows)
    middle, seed = _middle([point.strength for point in comparison.points]), comparison.points[0].seed
    shown = [p for p in comparison.points if (p.strength, p.seed) == (middle, seed)]
    buffer = BytesIO()
    galleries = {gallery.model: gallery for gallery in comparison.galleries}
    contact_sheet([galleries[name] for name in (BASE, *(point.name for point in shown))]).save(buffer, format="PNG")
    with replacing(report / SHEET) as partial:
        partial.write_bytes(buffer.getvalue())
    parts = [*_results(comparison), *_runs(comparison, folder, shown), _files(), _next(comparison, folder)]
    write(report / "index.html", "Divergences compared", parts)
    with replacing(report / "report.md") as partial:
        partial.write_text("\n".join(_markdown(parts)), encoding="utf-8")


def _results(comparison: Comparison) -> Iterator[Part]:
    compare = comparison.config.comparison
    yield Part("What the data say", tuple(sentences(comparison)))
    yield Part(
        "Alignment against diversity",
        ("Up and to the right is better. Numbers along a curve are strengths, bars a standard error of the mean over "
         "the seeds; the wide line behind them is the Pareto front.",),
        picture=figures.trade_off(comparison),
        file="trade_off.png",
    )  # fmt: skip
    yield Part(
        "What the figures are",
        terms=(
            *(_term(key, getattr(compare, key)) for key in ("alignment", "preference", "diversity")),
            Word("win rate", "share of images with more preference than the base's from the same noise; 0.5 is a draw"),
            Word("strength", "1 is the calibrated beta; at strength s beta is divided by s, so more pulls harder"),
            Word("Pareto front", "the runs that no other, nor the base, beats in both alignment and diversity"),
        ),
    )
    yield Part(
        "Preference against diversity",
        ("Preference is what training was for, so it may rise where alignment falls.",),
        picture=figures.trade_off(comparison, "preference"),
        file="preference.png",
    )
    if comparison.volumes:
        yield _hypervolume(comparison)
    yield from moved.parts(comparison)
    yield Part(
        "All runs",
        ("Means over the seeds, with the standard error of the mean; of all four figures more is better.",),
        table=Table(
            ("divergence", "strength", "alignment", "preference", "diversity", "win rate", "Pareto front"),
            (
                ("base", "", *(f"{comparison.base[key]:.4f}" for key in FIGURES), ""),
                *(_row(spot, comparison) for spot in comparison.spots),
            ),
            "lrrrrrl",
        ),
        folded=f"{len(comparison.spots) + 1} rows",
    )


def _term(key: str, name: str) -> Word:
    word = words.measure(name)
    return Word(key, f"{word.name} (`{name}`): {word.about}; more is better")


def _runs(comparison: Comparison, folder: Path, shown: list[Point]) -> Iterator[Part]:
    about = f"Strength {shown[0].strength:g}, seed {shown[0].seed}"
    yield Part(
        "Where the pull goes",
        ("u is the log-ratio of policy and reference. Arrows: where a step moves the winner's and the loser's u, "
         "longer for a harder pull (by its logarithm). Red: mostly the winner is pulled up; blue: mostly the loser is "
         "pushed down; full colour is a hundredfold.",),
        picture=figures.gradient_fields(comparison),
        file="gradient_fields.png",
    )  # fmt: skip
    runs = [(point.kind.name, Run(folder / "runs" / point.name)) for point in shown]
    if all(run.records for _, run in runs):
        picture = figures.training(comparison, runs)
        yield Part("Training", (f"{about}; means of ten steps.",), picture=picture, file="training.png")
    if all(run.bins for _, run in runs):
        text = f"{about}; means of the second half of training."
        picture = figures.over_timesteps(comparison, runs)
        yield Part("By timesteps", (text,), picture=picture, file="timestep_bins.png")
    galleries = {gallery.model: gallery for gallery in comparison.galleries}
    names = {BASE: BASE} | {point.name: words.divergence(point.kind.name) for point in shown}
    captions = galleries[BASE].prompts[:ROWS]
    yield Part(
        "Samples",
        (f"{about}: the same captions and noise.",),
        samples=tuple(
            Samples(
                short(caption),
                tuple(strip(name, galleries[model].images(row)[:PICTURES]) for model, name in names.items()),
            )
            for row, caption in enumerate(captions)
        ),
        folded=f"{len(captions)} captions",
        file=SHEET,
    )
    yield Part("How it was made", tuple(_how(comparison)))


def _hypervolume(comparison: Comparison) -> Part:
    return Part(
        "Hypervolume",
        ("The area that a divergence's runs dominate, the base among them; all runs together span the unit square. It "
         "depends on the strengths that were run: a curve that reaches less far covers less. Points are means, lines "
         "intervals of 95 %, ticks single seeds.",),
        picture=figures.volumes(comparison),
        table=Table(
            ("divergence", "mean", "95 % over seeds", "seeds"),
            tuple(
                (
                    words.divergence(v.kind),
                    f"{v.area.value:.4f}",
                    _range(v.area),
                    ", ".join(f"{area:.3f}" for area in v.by_seed.values()),
                )
                for v in comparison.volumes
            ),
            "lrlw",
        ),
        file="hypervolume.png",
    )  # fmt: skip


def _how(comparison: Comparison) -> Iterator[str]:
    config, report = comparison.config, comparison.report
    compare, train, runs = config.comparison, config.train, len(comparison.points)
    strengths, seeds = (", ".join(f"{value:g}" for value in values) for values in (compare.strengths, compare.seeds))
    yield (
        f"{runs} of {compare.runs} runs: {len(comparison.kinds)} divergences, strengths {strengths}, seeds {seeds}; "
        f"{train.max_steps} steps of {train.pairs_per_step} pairs each, reference: {config.reference.mode}."
    )
    yield (
        f"Strength 1 is the beta that `fdpo calibrate` finds at median |u| {compare.median_u:g} and gradient weight "
        f"{compare.weight:g}; at strength s it is divided by s."
    )
    low, high = comparison.overlap
    if low <= high:
        yield f"Alignments from {low:.4f} to {high:.4f} lie within the curves of all divergences."
    else:
        yield "No alignment lies within the curves of all divergences: add strengths."
    yield (
        f"{report.captions} captions, {report.images_per_prompt} images each, the same noise for every model (seed "
        f"{report.seed}). Alignment: {compare.alignment}; preference: {compare.preference}; diversity in a caption: "
        f"{compare.diversity}. Win rates by preference, against the base from the same noise."
    )


def _files() -> Part:
    links = (
        ("points.csv", "points.csv: every run"),
        ("report.md", "report.md: this in Markdown"),
        (SHEET, "samples side by side"),
        ("../images", "all images"),
        ("../logs", "logs of the runs"),
    )
    return Part("Files", links=links)


def _next(comparison: Comparison, folder: Path) -> Part:
    whole = shlex.quote(str(folder / "comparison.json"))
    missing = comparison.config.comparison.runs - len(comparison.points)
    commands = (
        [
            (
                f"Make what is missing, {missing} of {comparison.config.comparison.runs} runs:",
                f"fdpo compare --config {whole}",
            )
        ]
        if missing
        else []
    )
    low, high = comparison.overlap
    if low > high:
        reach = _strengths(sorted({*comparison.config.comparison.strengths, *_further(comparison)}))
        commands.append(
            ("Let the curves overlap, with strengths further out:", f"fdpo compare --config {whole} --set {reach}")
        )
    seeds = comparison.config.comparison.seeds
    if not missing and len(seeds) < 5:
        more = shlex.quote(f"compare.seeds={[*seeds, max(seeds) + 1]}")
        commands.append(("Narrow the intervals by another seed:", f"fdpo compare --config {whole} --set {more}"))
    if comparison.front:
        spot = comparison.front[len(comparison.front) // 2]
        point = next(p for p in comparison.points if (p.kind.name, p.strength) == (spot.kind, spot.strength))
        run, kept = (folder / "runs" / f"{point.name}{end}" for end in (".json", "-kept"))
        name = f"{words.divergence(spot.kind)} at {spot.strength:g}"
        what = f"Train one of the front again and keep its model, such as {name}:"
        arguments = f"--config {shlex.quote(str(run))} --set {shlex.quote(f'train.output_dir={kept}')}"
        commands.append((what, f"fdpo train {arguments}"))
    return Part("What next", commands=tuple(commands))


def _strengths(strengths: list[float]) -> str:
    """Return the strengths as an argument of --set."""
    return shlex.quote(f"compare.strengths={[float(f'{strength:g}') for strength in strengths]}")


def _further(comparison: Comparison) -> tuple[float, float]:
    strengths = comparison.config.comparison.strengths
    return min(strengths) / 3, max(strengths) * 3


def _middle(strengths: list[float]) -> float:
    """Return the strength that is nearest to 1, by its logarithm."""
    return min(strengths, key=lambda strength: abs(math.log(strength)))


def _range(estimate: Estimate) -> str:
    return "one seed" if math.isnan(estimate.low) else f"{estimate.low:.4f} to {estimate.high:.4f}"


def _row(spot: Spot, comparison: Comparison) -> tuple[str, ...]:
    errors = {key: "" if math.isnan(error) else f" ± {error:.4f}" for key, error in spot.error.items()}
    cells = (f"{spot.mean[key]:.4f}{errors[key]}" for key in FIGURES)
    return words.divergence(spot.kind), f"{spot.strength:g}", *cells, "yes" if spot in comparison.front else ""


def _markdown(parts: list[Part]) -> Iterator[str]:
    for part in parts:
        yield f"## {part.title}\n"
        for text in part.text:
            yield html.escape(text, quote=False) + "\n"
        for word in part.terms:
            yield f"- **{word.name}**: {html.escape(word.about, quote=False)}"
        if part.terms:
            yield ""
        if part.table:
            yield from table(part.table.header, part.table.rows)
            yield ""
        if part.file:
            yield f"![{part.title}]({part.file})\n"
        for what, command in part.commands:
            yield f"{what}\n\n```console\n{command}\n```\n"
        for path, name in part.links:
            yield f"- [{name}]({path})"
        if part.links:
            yield ""
