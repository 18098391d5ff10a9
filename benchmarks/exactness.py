"""How often the arithmetic of the loss turns a pair round, at beta_dpo = 5000: `python -m benchmarks.exactness`.

Fine-tuning starts at the reference, where pred and ref differ by little and the logit is a small difference of large
errors. Predictions at distance eps of the reference are rounded to the dtype under test; the truth is the float64
logit of these rounded inputs. So nothing is held against a loss but its own arithmetic. Prints GitHub-flavoured
markdown and writes results/exactness.csv.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.common.arguments import help_if_asked
from benchmarks.common.tables import write_csv
from benchmarks.published import published_margins
from fdpo_fast import fdpo_loss
from fdpo_fast.evaluate import tables
from fdpo_fast.ops import cpp
from fdpo_fast.scales import ratio_scale

RESULTS = Path(__file__).parent / "results" / "exactness.csv"
LATENTS = {"SD1.5": (4, 64, 64), "SDXL": (4, 128, 128)}
EPS = (1e-5, 1e-4, 1e-3, 1e-2, 3e-2)
BETA_DPO = 5000.0
REF_ERROR = 0.3
"""Root mean square of ref - target: a plausible denoising error, 0.09 as a mean of squares."""
PAIRS, CHUNK, SEED = 256, 16, 0
BACKEND = "eager" if cpp.missing else "cpp"


def published(pred: Tensor, ref: Tensor, target: Tensor) -> Tensor:
    """The logits of Diffusion-DPO's training script, in whatever dtype the inputs bring along."""
    return published_margins(pred, ref, target, ratio_scale=BETA_DPO / 2, casts=False)


def published_pred_cast(pred: Tensor, ref: Tensor, target: Tensor) -> Tensor:
    """As that script runs under mixed precision: accelerate hands the policy's output back in float32, no other."""
    return published(pred.float(), ref, target)


def published_all_cast(pred: Tensor, ref: Tensor, target: Tensor) -> Tensor:
    """With the casts of the diffusers scripts."""
    return published_margins(pred, ref, target, ratio_scale=BETA_DPO / 2)


def ours(pred: Tensor, ref: Tensor, target: Tensor) -> Tensor:
    scale = ratio_scale(BETA_DPO, "diffusion_dpo")
    _, stats = fdpo_loss(pred, ref, target, divergence="reverse_kl", beta=1.0, ratio_scale=scale, backend=BACKEND)
    return stats.margin


def true_logits(pred: Tensor, ref: Tensor, target: Tensor) -> Tensor:
    """In float64, by the product form, which has no cancellation."""
    pred, ref, target = pred.double(), ref.double(), target.double()
    delta_w, delta_l = ((pred - ref) * ((pred - target) + (ref - target))).mean(dim=(1, 2, 3)).chunk(2)
    return -0.5 * BETA_DPO * (delta_w - delta_l)


class Method(NamedTuple):
    """A way to the logits [B] of pred, ref and target [2B, ...] in `dtype`."""

    dtype: torch.dtype
    name: str
    logits: Callable[[Tensor, Tensor, Tensor], Tensor]

    @property
    def inputs(self) -> str:
        return str(self.dtype).removeprefix("torch.")


METHODS = [
    *(
        Method(dtype, name, logits)
        for dtype in (torch.bfloat16, torch.float16)
        for name, logits in (
            (f"published, all in {str(dtype).removeprefix('torch.')}", published),
            ("published, pred cast to float32", published_pred_cast),
            ("published, all cast to float32", published_all_cast),
            ("ours", ours),
        )
    ),
    Method(torch.float32, "published", published),
    Method(torch.float32, "ours", ours),
]


def near_reference(shape: tuple[int, ...]) -> Iterator[tuple[float, Tensor, Tensor, Tensor]]:
    """(eps, pred, ref, target) in float64, in chunks; every eps sees the same targets, references and directions."""
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(PAIRS // CHUNK):
        target, error, direction = torch.randn(3, 2 * CHUNK, *shape, generator=generator, dtype=torch.float64)
        ref = target + REF_ERROR * error
        for eps in EPS:
            yield eps, ref + eps * direction, ref, target


def measure(latents: str) -> Iterator[dict]:
    """A row per method and eps."""
    truths, results = {}, {}
    for eps, *exact in near_reference(LATENTS[latents]):
        for dtype in dict.fromkeys(method.dtype for method in METHODS):
            inputs = [x.to(dtype) for x in exact]
            truths.setdefault((dtype, eps), []).append(true_logits(*inputs))
            for method in METHODS:
                if method.dtype == dtype:
                    results.setdefault((method, eps), []).append(method.logits(*inputs).double())
    for (method, eps), logits in results.items():
        truth, got = torch.cat(truths[method.dtype, eps]), torch.cat(logits)
        truth, got = truth[truth != 0], got[truth != 0]  # a pair without a sign has none to lose
        error = (got - truth).abs()
        yield {
            "latents": latents,
            "inputs": method.inputs,
            "loss": method.name,
            "eps": eps,
            "pairs": len(truth),
            "wrong_sign": (got * truth < 0).double().mean().item(),
            "zero": (got == 0).double().mean().item(),
            "median_abs_error": error.median().item(),
            "max_abs_error": error.max().item(),
            "median_abs_logit": truth.abs().median().item(),
        }


def markdown(rows: list[dict]) -> Iterator[str]:
    """Two tables of a column per eps: signs, errors."""

    def table(cell: Callable[[dict], str]) -> Iterator[str]:
        lines: dict[tuple[str, str, str], list[str]] = {}
        for row in rows:
            lines.setdefault((row["latents"], row["inputs"], row["loss"]), []).append(cell(row))
        columns = ["latents", "inputs", "loss", *(f"eps {eps:g}" for eps in EPS)]
        yield from tables.table(columns, ((*head, *cells) for head, cells in lines.items()), len(EPS))

    yield f"Share of pairs whose logit has the wrong sign, and in brackets of those where it is exactly zero; {PAIRS}"
    yield f"pairs a cell, beta_dpo = {BETA_DPO:g}, ours on backend '{BACKEND}', torch {torch.__version__}."
    yield ""
    yield from table(lambda row: f"{row['wrong_sign']:.1%} ({row['zero']:.1%})")
    yield ""
    yield "Absolute error of the logit, median / maximum, and in brackets the median of the true logit's size."
    yield ""
    yield from table(
        lambda row: f"{row['median_abs_error']:.1e} / {row['max_abs_error']:.1e} ({row['median_abs_logit']:.1e})"
    )


def main() -> None:
    rows = [row for latents in LATENTS for row in measure(latents)]
    print("\n".join(markdown(rows)))
    # more digits than four depend on the processor
    cells = [[f"{x:.4g}" if isinstance(x, float) else x for x in row.values()] for row in rows]
    write_csv(RESULTS, list(rows[0]), cells)


if __name__ == "__main__":
    help_if_asked(__doc__)
    main()
