"""The loss's benchmark without its clock: who is timed, who must agree, and what the report makes of the times."""

import json

import pytest
import torch

from benchmarks import overhead, report
from benchmarks.cases import DTYPES, FLOWS, Case, cases, make_inputs, preserving_cases
from benchmarks.providers import RIVALS, check_agreement, make_preserving, make_providers
from benchmarks.published import DIVERGENCES
from fdpo_fast.ops import cpp

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("form", ["predictions", "errors", *FLOWS])
def test_every_rival_is_timed_and_agrees(form, divergence, dtype):
    case = Case("SD1.5", 1, dtype, form, "fwd+bwd", divergence)
    providers = make_providers(case)
    uncast = {"uncast", "uncast_compiled"} if dtype == "float32" else set()
    stored = set() if form in FLOWS else {"stored"}
    assert providers.keys() == {*RIVALS, "ours"} - uncast - stored
    check_agreement(
        case, {name: of for name, of in providers.items() if "compiled" not in name}, make_inputs(case, CPU)
    )


@pytest.mark.parametrize("case", list(preserving_cases()), ids=str)
def test_the_variant_that_preserves_scales_gradients_and_keeps_the_loss(case):
    inputs = make_inputs(case._replace(size="SD1.5", pairs=4), CPU)
    losses = {name: loss(*inputs) for name, loss in make_preserving(case).items()}
    assert torch.equal(losses["ours"][0], losses["without"][0])
    assert losses["ours"][1].loser_scale.min() < 1


@pytest.mark.parametrize("form", FLOWS)
def test_rivals_of_a_flow_form_its_target_of_noise_and_latents(form):
    case = Case("SD1.5", 1, "bfloat16", form, "fwd+bwd", "reverse_kl")
    providers, inputs = make_providers(case), make_inputs(case, CPU)
    stored = inputs.target.noise - inputs.target.latents
    pair = make_providers(case._replace(form="predictions"))
    for name, same in (("published", "published"), ("uncast", "uncast"), ("stored", "ours")):
        loss, _ = providers[name](*inputs)
        want, _ = pair[same](inputs.pred, inputs.ref, stored)
        assert torch.equal(loss, want)
    without = inputs._replace(target=inputs.target._replace(noise=None))
    assert torch.equal(providers["ours"](*without)[0], providers["ours"](*inputs)[0])


def test_what_is_summed_up_is_timed_under_both_divergences():
    timed = [case[:3] for case in cases() if (case.form, case.passes) == report.FWD_BWD]
    assert len(timed) == 2 * len(set(timed))
    assert report.NEAR_THE_COPY in timed


def run_of(*rows):
    """A run of 16 SDXL pairs in float32: ours in 10 us, each rival in as many times as its row says."""
    about = {"device": "cpu", "backend": "cpp", "gradient_formed_ahead": False, "disturbed": False}
    about |= {"calls_per_round": 1, "rounds": 7, "quiet_rounds": 7, "minimal_bytes": 1, "copy_us": 8.0}
    benchmarks = []
    for divergence, times in rows:
        case = Case("SDXL", 16, "float32", "predictions", "fwd+bwd", divergence)
        measured = {
            name: {
                "peak_bytes": 1, "median_us": 10.0 * own, "gb_per_s": 1.0, "share_of_copy": 0.8 / own,
                "quartiles_us": [1.0, 2.0], **{f"times_faster_than_{r}": of / own for r, of in times.items()},
            }
            for name, own in {"ours": 1.0, **times}.items()
        }  # fmt: skip
        benchmarks.append({"extra_info": {**about, "case": case._asdict(), "providers": measured}})
    return {"exit_status": 0, "quick": False, "machine_info": {"cores": 2}, "benchmarks": benchmarks}


def test_the_report_gives_means_over_both_divergences(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    run = run_of(
        ("jensen_shannon", {"published": 4.0, "published_compiled": 2.0, "eager": 9.0}),
        ("reverse_kl", {"published": 1.0, "published_compiled": 2.0, "eager": 4.0}),
    )
    case, found = next(preserving_cases())._asdict(), {"us": 1030.0, "us_without": 1000.0, "more": 0.03}
    rows = [{"case": case, "preserving": found, "disturbed": disturbed} for disturbed in (False, True)]
    run["benchmarks"] += [{"extra_info": row} for row in rows]
    file = tmp_path / "loss.json"
    file.write_text(json.dumps(run))
    report.main(file)
    text = capsys.readouterr().out
    assert "| the published expression | 2.00 | 1.00 | 4.00 | 1.00 | 4.00 | 2 |" in text
    assert "| our own eager backend | 6.00 | 4.00 | 9.00 | 4.00 | 9.00 | 2 |" in text
    assert "without casts |" not in text
    assert "Share of the copy limit, SDXL, 16 pairs, float32, reverse_kl: **80%**." in text
    assert "### Forward and backward, jensen_shannon" in text
    assert "| SDXL | 16 | float32 | predictions | 1,030 | 1,000 | +3.0% |" in text
    assert "| SDXL | 16 | float32 | predictions | 1,030 | 1,000 |  |" in text
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "loss.csv").read_text().splitlines()) == 1 + 2 * 4


@pytest.mark.skipif(bool(cpp.missing), reason=f"needs {cpp.missing}")
def test_the_parts_of_a_small_loss_are_its_whole():
    threads = torch.get_num_threads()
    try:
        spent = overhead.measure(rounds=2)
    finally:
        torch.set_num_threads(threads)
    whole, *parts = (spent[name] for name in overhead.PARTS)
    assert sum(parts) == pytest.approx(whole)
    assert min(whole, *parts[:2], spent["published"], spent["eager"]) > 0
