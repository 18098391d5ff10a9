"""Train on pairs of the policy's own, again and again: `fdpo rounds --config configs/digits_rounds.json`.

Everything is made with the public commands. In `train.output_dir`, for round N of `rounds.count`:

    pairs/round-N/        `fdpo pairs`: rounds.prompts drawn by the policy of round N - 1, at first the base, and ranked
    pairs/round-N.jsonl   those pairs, and those of the `rounds.keep_pairs` rounds before: the data.source of the round
    runs/round-N/         `fdpo train`: from the export of round N - 1, which is its reference, too, unless
                          rounds.reference is "base"
    images/round-N/       `fdpo sample`: evaluate.prompts from the same noise as the base's in images/base/

Then all rounds are evaluated together. Each stage is skipped where what it makes is there, and goes on where it was
stopped, so a kill loses nothing.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fdpo_fast.cache.open import cache_root
from fdpo_fast.compare.drift import drift
from fdpo_fast.compare.jobs import Crew
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.evaluation import Rounds
from fdpo_fast.config.load import load
from fdpo_fast.config.run import Config
from fdpo_fast.config.schema import VISITS
from fdpo_fast.data.readers.jsonl import METADATA
from fdpo_fast.evaluate import gallery, score
from fdpo_fast.evaluate.feedback.make import READ_AS
from fdpo_fast.evaluate.gallery import Gallery
from fdpo_fast.evaluate.judging import judges, try_out
from fdpo_fast.evaluate.policies import BASE
from fdpo_fast.evaluate.prompts import read_prompts
from fdpo_fast.evaluate.score import Report
from fdpo_fast.evaluate.statistics import Estimate
from fdpo_fast.files import clear_partial, digest, made, read_json, replacing
from fdpo_fast.progress import Bar, progress, say
from fdpo_fast.training.lock import at_work

FIRST = "round-01.jsonl"
"""The pairs of the first round: before they are there, nothing is lost by another configuration."""


class Inputs(NamedTuple):
    """What decides about rounds and is not in the configuration itself."""

    captions: dict[str, str]
    """Digests of the captions, by the key that gives them."""
    scorers: dict[str, str]
    """Digests of what ranks, by name: of a function its file as it is, not what it says."""


class Made(NamedTuple):
    """What came of all rounds: the galleries, the base first, their figures, and how far each is from the base."""

    galleries: list[Gallery]
    report: Report
    drift: dict[str, Estimate]
    """How far each is from the base, by model; empty where it could not be measured, see `compare.drift`."""


def rounds(config: Config, settings: Rounds) -> Made:
    """Run what is missing of all rounds, and evaluate them.

    Raises UserError for what would only show after hours, where a command fails, or the folder holds other rounds.
    """
    inputs = check(config, settings)
    folder = made(Path(config.train.output_dir).expanduser(), "train.output_dir")
    for own in ("pairs", "runs", "images", "configs"):
        made(folder / own, "train.output_dir")
    with at_work(folder):
        claim(folder, config, inputs)
        crew = Crew(folder / "logs", 1)
        numbers = range(1, settings.count + 1)
        done = sum(_is_drawn(folder, number) for number in numbers)
        bar = progress(total=settings.count, initial=done, desc="rounds", unit=" rounds")
        with bar:
            shared = ["--config", str(folder / "rounds.json"), "--output", str(folder / "images")]
            if not (folder / "images" / BASE / gallery.NAME).is_file():
                crew.run(bar, BASE, ("sample", [*shared, "--no-policy"]))
            for number in numbers:
                if not _is_drawn(folder, number):
                    _round(config, settings, folder, number, crew, bar)
                    bar.update()
        models = [gallery.gallery(folder / "images" / name) for name in (BASE, *map(_name, numbers))]
        exports = {_name(number): folder / "runs" / _name(number) / "export" for number in numbers}
        return Made(models, score.measure(config, models), drift(config, models[0], exports))


def check(config: Config, settings: Rounds) -> Inputs:
    """Raise UserError for mistakes that would only show after hours; return what else decides about the rounds."""
    captions = {
        key: digest(read_prompts(prompts, key))
        for key, prompts in (("evaluate.prompts", config.evaluate.prompts), ("rounds.prompts", settings.prompts))
    }
    score.check(config.evaluate)
    score.check_images(config.evaluate)
    cache_root(config)
    ranking = judges(settings.scorers, torch.device("cpu"), "rounds.scorers")
    if not (Path(config.train.output_dir).expanduser() / "pairs" / FIRST).is_file():
        try_out(ranking, "rounds.scorers")
        if config.evaluate.scorers:
            try_out(judges(config.evaluate.scorers, torch.device("cpu")))
    return Inputs(captions, {one.name: digest(one.identity) for one in ranking})


def _round(config: Config, settings: Rounds, folder: Path, number: int, crew: Crew, bar: Bar) -> None:
    """Make a round: its pairs, its run, and its images."""
    name, before = _name(number), folder / "runs" / _name(number - 1)
    source = folder / "pairs" / f"{name}.jsonl"
    if not source.is_file():
        own = _written(folder / "configs" / f"{name}-pairs.json", drawing(config, settings, number))
        policy = [] if number == 1 else ["--no-base", "--policy", f"{before.name}={before}"]
        crew.run(bar, f"{name}-pairs", ("pairs", ["--config", own, "--output", str(folder / "pairs" / name), *policy]))
        join(folder / "pairs", number, settings.keep_pairs)
    run = training(config, settings, folder, number)
    sampling = ["--config", str(folder / "rounds.json"), "--output", str(folder / "images"), "--no-base"]
    sampling += ["--checkpoint", f"{name}={run.train.output_dir}"]
    own = _written(folder / "configs" / f"{name}.json", run)
    crew.run(bar, name, ("train", ["--config", own, "--resume"]), ("sample", sampling))


def drawing(config: Config, settings: Rounds, number: int) -> Config:
    """Return the configuration that draws and ranks a round's pairs: by seeds of its own, none that of evaluation."""
    return config.replace(
        {
            "evaluate.prompts": settings.prompts,
            "evaluate.images_per_prompt": settings.images_per_prompt,
            "evaluate.scorers": [one.model_dump() for one in settings.scorers],
            "evaluate.seed": (config.evaluate.seed + number) % 2**32,
        }
    )


def training(config: Config, settings: Rounds, folder: Path, number: int) -> Config:
    """Return the configuration that a round is trained by."""
    changes: dict[str, Any] = READ_AS | {
        "data.source": str(folder / "pairs" / f"{_name(number)}.jsonl"),
        "train.output_dir": str(folder / "runs" / _name(number)),
    }
    if number > 1:
        changes["model.base"] = str(folder / "runs" / _name(number - 1) / "export")
        changes["reference.model"] = None
    if number > 1 and settings.reference == "base":
        changes["reference.model"] = config.reference.model or config.model.base
        if config.reference.mode == "adapter":  # without which the policy is that of the round before
            changes |= {"reference.mode": "cached", "reference.visits": config.reference.visits or VISITS}
    return config.replace(changes)


def join(folder: Path, number: int, keep: int) -> None:
    """Write the records of a round and of the `keep` rounds before it into one file beside their folders."""
    lines = []
    for one in range(max(1, number - keep), number + 1):
        for line in (folder / _name(one) / METADATA).read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            record["images"] = [f"{_name(one)}/{image}" for image in record["images"]]
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    with replacing(folder / f"{_name(number)}.jsonl") as partial:
        partial.write_text("".join(lines), encoding="utf-8")


_FREE = re.compile(
    r"log\.|evaluate\.(scorers|diversity|resample|batch):|rounds\.count:|data\.(cache_dir|workers|encode_batch):"
    r"|train\.(output_dir|checkpoint_every|keep_checkpoints):"
)
"""Keys that no finished round depends on."""


def claim(folder: Path, config: Config, inputs: Inputs) -> None:
    """Refuse a folder whose rounds are of another configuration or other captions, and warn of scorers that changed.

    Measures of them, and how they are computed, may change; a number may grow. While no pairs are there, all may.
    """
    for own in (folder, folder / "pairs", folder / "configs"):
        clear_partial(own)
    file, other = folder / "rounds.json", folder / "inputs.json"
    if (folder / "pairs" / FIRST).is_file() and file.is_file():
        changes = [change for change in load(file).differences(config) if not _FREE.match(change)]
        before = Inputs(**read_json(other)) if other.is_file() else inputs
        changes += [f"content of {key}" for key in inputs.captions if inputs.captions[key] != before.captions[key]]
        if changes:
            raise UserError(f"{folder} holds rounds with another {changes[0]}: name another train.output_dir")
        assert config.rounds is not None
        if config.rounds.count < (there := len(list(folder.glob("pairs/round-*.jsonl")))):
            raise UserError(f"{folder} holds {there} rounds: set rounds.count to {there} or more")
        if changed := [name for name, own in inputs.scorers.items() if before.scorers[name] != own]:
            say(f"warning: {changed[0]} is another file than it was when earlier rounds were ranked")
    _written(file, config)
    with replacing(other) as partial:
        partial.write_text(json.dumps(inputs._asdict(), indent=2) + "\n")


def _written(file: Path, config: Config) -> str:
    with replacing(file) as partial:
        partial.write_text(config.dumps())
    return str(file)


def _name(number: int) -> str:
    return f"round-{number:02d}"


def _is_drawn(folder: Path, number: int) -> bool:
    return (folder / "images" / _name(number) / gallery.NAME).is_file()
