"""The sections of what follows a run, its evaluation and the comparison of several, one pydantic model each."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from fdpo_fast.config.section import Section


def _named(value: Any) -> Any:
    """Take a bare name for a tool without settings."""
    return {"name": value} if isinstance(value, str) else value


class Measure(Section):
    """A scorer or a measure of diversity, by its name."""

    name: str = Field(description="one of ours, see fdpo_fast/evaluate, or a function of yours: 'module:function'")
    model: str | None = Field(None, description="folder, file or hub name of its weights; null: the published ones")
    options: dict[str, Any] = Field({}, description="for a function of yours: its keyword arguments")


Named = Annotated[Measure, BeforeValidator(_named)]


class Evaluate(Section):
    """How `fdpo sample` draws images, and `fdpo evaluate` scores them."""

    prompts: str | list[str] = Field([], description="captions, or a file of them: txt, tsv, csv, json, jsonl, parquet")
    images_per_prompt: int = Field(4, ge=1, description="images of each caption, by each model")
    sampling_steps: int = Field(50, ge=1, description="of each image")
    guidance: float = Field(
        7.5, ge=0, description="classifier-free; a model distilled from guidance is told it while it draws"
    )
    scheduler: str | None = Field(None, description="a scheduler class of diffusers; null: the pipeline's own")
    seed: int = Field(0, ge=0, lt=2**32, description="of the images' own seeds, the same for all models")
    batch: int = Field(4, ge=1, description="images drawn, or scored, at a time")
    scorers: list[Named] = Field([Measure(name="clip")], description="of an image and its caption; a bare name will do")
    diversity: list[Named] = Field([Measure(name="rmse")], description="of a caption's images; a bare name will do")

    @model_validator(mode="after")
    def _once(self) -> Evaluate:
        for key in ("scorers", "diversity"):
            names = [each.name for each in getattr(self, key)]
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"evaluate.{key} has '{twice[0]}' twice: results go by the name")
        return self

    resample: Literal["captions", "images"] = Field(
        "captions", description="what the bootstrap draws anew: captions, or the images of each where captions are all"
    )


class Pairs(Section):
    """How `fdpo pairs` and `fdpo relabel` make labels of the scores of `evaluate.scorers`."""

    combine: Literal["mean", "majority"] = Field(
        "mean",
        description="of several scorers: the weighted mean of their standardised scores, or a vote of each; of one its "
        "own score counts",
    )
    weights: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="of scorers by name, in the mean or of their votes; one that is not named has 1"
    )
    tie_below: float = Field(
        0.0, ge=0, description="gap that still is a tie: of one scorer's scores, of several in standard deviations"
    )
    which: Literal["best_worst", "adjacent", "all"] = Field(
        "best_worst",
        description="pairs of a caption's images that `fdpo pairs` writes: the best and the worst, neighbours in the "
        "ranking, or every two",
    )


class Rounds(Section):
    """Rounds of drawing, ranking and training, for `fdpo rounds`."""

    count: int = Field(3, ge=1, description="rounds, each of train.max_steps steps")
    prompts: str | list[str] = Field(description="captions that pairs are made of, as evaluate.prompts")
    images_per_prompt: int = Field(4, ge=2, description="images of each caption that a round ranks")
    scorers: list[Named] = Field(min_length=1, description="that rank them, combined as the section `pairs` says")
    reference: Literal["previous", "base"] = Field(
        "previous",
        description="of a round: the policy of the round before, which it starts from, or the base",
    )
    keep_pairs: int = Field(0, ge=0, description="earlier rounds whose pairs a round is trained on too")


class Kind(Section):
    """A divergence of a comparison."""

    divergence: str = Field(description="a name of `fdpo_fast.DIVERGENCES`")
    alpha: float | None = Field(None, description="of divergence `alpha`, between 0 and 1")
    loss: dict[str, Any] = Field({}, description="other keys of the section `loss`, as winner_preserving")

    @model_validator(mode="after")
    def _others(self) -> Kind:
        if fixed := self.loss.keys() & {"divergence", "alpha", "beta", "ratio_scale", "type"}:
            raise ValueError(
                f"compare.divergences has loss.{min(fixed)}, which the comparison decides itself: leave it out there"
            )
        return self

    @property
    def name(self) -> str:
        """Return the name in tables and figures, with its parameters."""
        others = (f", {key} {json.dumps(value)}" for key, value in self.loss.items())
        return self.divergence + (f" {self.alpha:g}" if self.alpha is not None else "") + "".join(others)


def _kind(value: Any) -> Any:
    """Take a bare name for a divergence without parameters."""
    return {"divergence": value} if isinstance(value, str) else value


class Compare(Section):
    """A grid of runs from one cached reference, for `fdpo compare`."""

    divergences: list[Annotated[Kind, BeforeValidator(_kind)]] = Field(
        min_length=1, description="of the grid; a bare name will do"
    )
    strengths: list[Annotated[float, Field(gt=0)]] = Field(
        min_length=1, description="of alignment: loss.beta is what `fdpo calibrate` finds, divided by this"
    )
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(
        [0, 1, 2], min_length=1, description="train.seed of the runs; intervals are over these"
    )
    trial_steps: int = Field(20, ge=1, description="of the calibration, as --steps of `fdpo calibrate`")
    median_u: float = Field(1.0, gt=0, description="as `fdpo calibrate` takes it")
    weight: float = Field(0.4, gt=0, lt=0.5, description="as `fdpo calibrate` takes it")
    alignment: str = Field(description="the scorer that has no part in the preferences")
    preference: str = Field(description="the scorer that stands for the preferences; wins are counted by it")
    diversity: str = Field(description="one of evaluate.diversity")
    keep_models: bool = Field(False, description="keep the exported pipeline of every run")

    @property
    def runs(self) -> int:
        """Count the runs of the whole grid."""
        return len(self.divergences) * len(self.strengths) * len(self.seeds)
