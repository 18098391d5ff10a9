"""`fdpo calibrate --config ...`: how far the policy's errors move from the reference's, and the strengths that suit it.

A policy that has not moved has delta = 0 everywhere, so a short trial of `--steps` optimizer steps moves it (or
`--policy FOLDER` brings one that was trained). On pairs the trial has not seen, u = -ratio_scale * delta: `ratio_scale`
is set for the median |u| asked for, then `beta` for the median gradient weight sigmoid(-|z|), where
z = beta (h(u_w) - h(u_l)); with a target margin m, for the median sigmoid(m - |z|).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fdpo_fast import noise, scales
from fdpo_fast.cache.build import Builder
from fdpo_fast.cache.dataset import TrainingSet
from fdpo_fast.cache.open import cache_root, resolve_embedded
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.run import Config
from fdpo_fast.data.readers.detect import Spread, open_source
from fdpo_fast.distributed import single_process
from fdpo_fast.files import replacing
from fdpo_fast.loss.divergences import Divergence
from fdpo_fast.loss.function import evaluate
from fdpo_fast.models import load_family, quiet_libraries, trainable
from fdpo_fast.models.denoiser import Denoiser
from fdpo_fast.models.export import trained_on
from fdpo_fast.models.family import Family, has_adapter
from fdpo_fast.models.hub import pipeline_folder
from fdpo_fast.models.precision import DTYPES
from fdpo_fast.models.prediction import predict
from fdpo_fast.ops.pairs import to_rows
from fdpo_fast.optim import build
from fdpo_fast.progress import progress
from fdpo_fast.training.order import PairOrder


@dataclass(frozen=True)
class Aim:
    """What a calibration measures on, and the medians that it sets the strengths for."""

    pairs: int
    steps: int
    """Optimizer steps of the trial."""
    policy: Path | None
    """The folder of an exported pipeline that takes the place of the trial."""
    median_u: float
    weight: float
    """The median gradient weight sigmoid(m - |z|), m the target margin; between 0 and 0.5."""


def calibrate(config: Config, aim: Aim, json_file: Path | None) -> dict:
    """Measure the drift, print what suits it, write the figures to `json_file` if there is one, and return them.

    Raises UserError where nothing has moved, or there are too few pairs.
    """
    measured = drift(config, aim.pairs, aim.steps, aim.policy)
    figures = fit(config.loss.link(), config.loss.margin, measured.delta, aim.median_u, aim.weight)
    figures["elements"] = measured.elements
    figures["bins"] = by_timestep(measured.delta, measured.timesteps, config.log.timestep_bins, measured.steps)
    print(text(config, figures, aim))
    if json_file:
        with replacing(json_file) as partial:
            partial.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


class Drift(NamedTuple):
    """How far a policy's errors have moved from the reference's, on pairs that it has not been trained on."""

    delta: Tensor
    """The error less the reference error, [n, 2] float64: preferred, dispreferred."""
    id: Tensor
    """The ids of the pairs, [n] int64."""
    timesteps: Tensor
    """The timesteps of the draws as the denoiser is told them, [n]."""
    steps: int
    """The number of timesteps of the noise schedule."""
    elements: int
    """The number of elements of a sample's latents."""


def drift(config: Config, pairs: int, steps: int, policy: Path | None = None) -> Drift:
    """Measure the drift on up to `pairs` pairs, after a trial of `steps` optimizer steps or with the exported `policy`.

    Raises UserError where nothing has moved, or there are too few pairs.
    """
    if config.reference.model:
        raise UserError("calibration measures how far model.base is moved: leave out reference.model")
    rank = single_process()
    quiet_libraries()
    config = resolve_embedded(config, rank)
    family, source = load_family(config.model), open_source(config.data)
    if policy and (policy / "export").is_dir():
        policy /= "export"
    if policy and has_adapter(policy):
        if (base := trained_on(policy)) not in (None, config.model.base):
            raise UserError(f"--policy {policy} was trained on '{base}', and model.base is '{config.model.base}'")
    elif policy:
        pipeline_folder(str(policy), family.pipelines, family.components, "--policy")
    needed = 2 * (pairs + (0 if policy else steps * config.train.pairs_per_micro_batch))
    root = cache_root(config)
    if len(source) > 2 * needed:
        source, root = Spread(source, needed), root / "calibration"
    data = TrainingSet(config, family, source, Builder(root, rank))
    if len(data) < 4:
        raise UserError(f"data.source gives {len(data)} pairs: calibration takes at least 4")
    positions = torch.randperm(
        len(data), generator=torch.Generator().manual_seed(config.train.seed), dtype=torch.int64, device="cpu"
    )
    measured = positions[: min(pairs, len(data) - (0 if policy else len(data) // 4))]
    delta = _delta(config, family, data, measured, positions[len(measured) :], steps, policy)
    if not delta.any():
        what = "it is the reference" if policy else "raise --steps or optimizer.lr"
        raise UserError(f"the policy did not move: {what}")
    draws, density = noise.draws(config.reference.seed, data.id[measured], 0), data.timesteps.table(family.steps)
    drawn = noise.timesteps(draws, family.steps, density)
    shapes = [data.pair_latents(position).shape for position in measured.tolist()]
    fed = torch.stack([family.process(shape, draws.device).fed[t] for shape, t in zip(shapes, drawn, strict=True)])
    return Drift(delta, data.id[measured], fed, family.steps, math.prod(shapes[0][-3:]))


def _delta(
    config: Config, family: Family, data: TrainingSet, measured: Tensor, trial: Tensor, steps: int, policy: Path | None
) -> Tensor:
    """Move the policy; return the error less the reference error of the pairs at `measured`, [n, 2] float64."""
    # where training has an fp32 master, bf16 weights alone would hardly move
    dtype = torch.float32 if config.master else DTYPES[config.model.dtype]
    denoiser = family.denoiser(dtype).to(data.device)
    model = config.model.replace({"cuda_graphs": False})  # one denoiser is measured and trained here
    trained = trainable.ready(denoiser, model)
    before = _errors(data, denoiser, measured, "reference")
    if policy:
        denoiser = family.denoiser(dtype, policy).to(data.device)
        trainable.ready(denoiser, model)
    else:
        move(config, family, data, denoiser, trained, trial, steps)
    return _errors(data, denoiser, measured, "policy") - before


def _errors(data: TrainingSet, denoiser: Denoiser, positions: Tensor, name: str) -> Tensor:
    parts = positions.split(data.micro) if len(torch.unique(data.shapes, dim=0)) == 1 else positions
    errors = [
        data.reference_errors(denoiser, part.view(-1), torch.zeros_like(part.view(-1)))
        for part in progress(parts, desc=f"errors of the {name}", leave=False)
    ]
    return torch.cat(errors)


def move(
    config: Config,
    family: Family,
    data: TrainingSet,
    denoiser: Denoiser,
    trained: list[nn.Parameter],
    pairs: Tensor,
    steps: int,
) -> None:
    """Take `steps` steps of the configuration's loss, optimizer and rate (no warm-up), a micro-batch each."""
    optimizer = build.optimizer(config.optimizer, trained, config.train.seed)
    loss, micro = config.loss.options(), config.train.pairs_per_micro_batch
    walk = PairOrder(data.shapes[pairs], micro, config.train.seed)
    chosen = [pairs[walk.step(step)[0]] for step in range(steps)]
    visits = torch.zeros(micro, dtype=torch.int64, device="cpu")
    ref_errors = [
        to_rows(data.reference_errors(denoiser, at, visits)).to(data.device)
        for at in progress(chosen, desc="errors of the trial's reference", leave=False)
    ]
    for at, ref_error in progress(list(zip(chosen, ref_errors, strict=True)), desc="trial", leave=False):
        batch = data.batch(at, visits)
        pred, target, _ = predict(family, denoiser, batch)
        losses, _ = evaluate(loss, pred, ref_error, target, batch.weight)
        losses.mean().backward()
        if config.optimizer.max_grad_norm:
            nn.utils.clip_grad_norm_(trained, config.optimizer.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()


def fit(link: Divergence, target: float, delta: Tensor, median_u: float, weight: float) -> dict:
    """Find ratio_scale and beta for delta [n, 2] (preferred, dispreferred), and say what they lead to.

    target: the target margin. Raises UserError where nothing has moved.
    """
    middle = delta.abs().median().item()
    if not 0 < middle < math.inf:
        raise UserError(f"the median |delta| is {middle}: no strength follows from it")
    ratio_scale = median_u / middle
    u = -ratio_scale * delta
    margin = link(u[:, 0]) - link(u[:, 1])
    typical = margin.abs().median().item()
    beta = (target + math.log((1 - weight) / weight)) / typical
    slope = link.slope(torch.zeros(1, dtype=torch.float64, device="cpu")).item()
    return {
        "ratio_scale": ratio_scale,
        "beta": beta,
        "median_abs_delta": middle,
        "median_abs_u": u.abs().median().item(),
        "median_weight": torch.sigmoid(target - beta * margin.abs()).quantile(0.5, interpolation="higher").item(),
        "strength": beta * ratio_scale * slope,
        "clipped": link.clipped(u).double().mean().item(),
        "accuracy": ((margin > 0).double() + 0.5 * (margin == 0).double()).mean().item(),
    }


def by_timestep(delta: Tensor, timesteps: Tensor, bins: int, total: int) -> list[dict]:
    """List the quantiles of |delta| [n, 2] in each bin of timesteps [n]; bins without a pair are left out."""
    rows = []
    edges = [total * i // bins for i in range(bins + 1)]
    for low, high in pairwise(edges):
        last = high == total  # which a flow's largest timestep is
        part = delta[(timesteps >= low) & ((timesteps < high) | last)].abs().flatten()
        if len(part):
            quantiles = part.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=part.dtype, device="cpu")).tolist()
            rows.append({"timesteps": [low, high], "pairs": len(part) // 2, "q10_50_90": quantiles})
    return rows


def ordered(accuracy: float, pairs: int, aim: Aim) -> str:
    """Say what the share of the pairs that were ordered right means, beside what chance gives in 95 % of cases."""
    chance = 1.96 * math.sqrt(0.25 / pairs)
    if abs(accuracy - 0.5) <= chance:
        means = "no better than chance" if aim.policy else "to be expected of so few steps; strengths rest on |delta|"
    elif accuracy > 0.5:
        means = "it has learnt what is preferred"
    else:
        means = "worse than chance: see by `fdpo data check` whether the preferred images are those that you prefer"
    which = f"{pairs}" if aim.policy else f"{pairs} not trained on"
    return f"{accuracy:.1%} of {which}; chance gives 50 % +- {chance:.0%}: {means}"


def text(config: Config, figures: dict, aim: Aim) -> str:
    """Write the figures as a table, and the lines for the configuration below it."""
    at_reference = 1 / (1 + math.exp(-config.loss.margin))
    how = f"of {aim.policy}" if aim.policy else f"after {aim.steps} steps at lr {config.optimizer.lr:g}"
    lines = [
        f"|delta| = |error - reference error| {how}: how far that moves the mean squared error of an image",
        "timesteps      pairs       10 %      median       90 %",
    ]
    for row in figures["bins"]:
        low, high = row["timesteps"]
        lines.append(f"{low:4d} .. {high:4d} {row['pairs']:9d}" + "".join(f"  {q:10.3e}" for q in row["q10_50_90"]))
    lines += [
        "",
        f"for median |u| {aim.median_u:g} and median gradient weight {aim.weight:g} under {config.loss.link().name}:",
        "  (u = -ratio_scale * delta, the log-ratio: at 1 the divergences differ;",
        f"  the weight is {at_reference:.2g} at the reference, and falls to 0 as a pair is learnt)",
        f'  "loss": {{"divergence": "{config.loss.divergence}", "beta": {figures["beta"]:.4g}, '
        f'"ratio_scale": {figures["ratio_scale"]:.4g}}}',
        f"  where the divergence goes on as a tangent: {figures['clipped']:.1%}",
        f"  pairs ordered right: {ordered(figures['accuracy'], sum(row['pairs'] for row in figures['bins']), aim)}",
        f"  now configured: beta {config.loss.beta:g}, ratio_scale {config.loss.ratio_scale:g}, median |u| "
        f"{config.loss.ratio_scale * figures['median_abs_delta']:.3g}",
        "",
        "the same strength near the reference, beta in other trainers:",
    ]
    for name in scales.CONVENTIONS:
        beta = scales.convert(figures["strength"], "fdpo_fast", name, elements=figures["elements"])
        lines.append(f"  {name:15} {beta:.4g}")
    if not aim.policy:
        lines.append("The drift grows with the steps: measure again on the export of a first run by --policy.")
    return "\n".join(lines)
