"""Of which pairs a policy is least sure: margins from a file, or measured on a trained policy."""

import json

import pytest
import torch

from fdpo_fast.cli import main
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Loss
from fdpo_fast.label.margins import margins, of_drift, read_margins, sureness
from fdpo_fast.loss.divergences import DIVERGENCES
from tests.helpers.labelling import labelling
from tests.helpers.pictures import as_pickapic, difficult_rows


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_margin_is_that_of_the_loss(name):
    """Written from the formula, in float64, by the row of four numbers."""
    delta = 1e-3 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    row, u = DIVERGENCES[name], -700.0 * delta
    h = row.linear * u + row.scale * (row.rate * u).exp() + row.logistic * torch.nn.functional.logsigmoid(u)
    found = of_drift(Loss(divergence=name, alpha=0.5 if name == "alpha" else None, beta=0.3, ratio_scale=700.0), delta)
    torch.testing.assert_close(found, 0.3 * (h[:, 0] - h[:, 1]), rtol=1e-9, atol=1e-12)


def test_a_file_of_margins_is_read_and_orders_the_pairs(tmp_path):
    file = tmp_path / "margins.jsonl"
    file.write_text('{"id": 4, "margin": -0.5}\n\n{"id": 0, "margin": 0.25, "more": 1}\n')
    assert margins(None, None, 1, file) == {4: -0.5, 0: 0.25}
    assert sureness(read_margins(file)) == {4: -0.5, 0: -0.25}


@pytest.mark.parametrize(
    "line", ["x", "[]", "{}", '{"id": 2}', '{"id": "2", "margin": 1}', '{"id": 2, "margin": NaN}', ""]
)
def test_a_broken_file_of_margins_is_named(tmp_path, line):
    file = tmp_path / "margins.jsonl"
    file.write_text(f'{{"id": 4, "margin": -0.5}}\n{line}\n' if line else "")
    with pytest.raises(UserError, match=r"margins\.jsonl (is broken in line 2|holds no margin)"):
        read_margins(file)
    with pytest.raises(UserError, match="--choose unsure measures margins with a --config"):
        margins(None, None, 1, tmp_path / "none.jsonl")


@pytest.mark.slow
def test_the_pairs_that_a_policy_is_least_sure_of_come_first(command, tiny_config, write_config, tmp_path):
    """Measured once on the export of a run, kept, and asked in that order; ties, which have no label, come last."""
    raw = tiny_config("sd", as_pickapic(tmp_path, difficult_rows()))
    command(raw, "train")
    config, file = write_config(raw), tmp_path / "margins.jsonl"
    words = ("--config", config, "--choose", "unsure", "--margins", file, "--policy", raw["train"]["output_dir"])
    with labelling(*words, "--labels", tmp_path / "x.jsonl") as page:
        state, asked = page.ask("state"), []
        while state["question"]:
            asked.append(int(state["question"]["id"]))
            state = page.ask("answer", {"id": str(asked[-1]), "choice": "skip"})
    found = {row["id"]: row["margin"] for row in map(json.loads, file.read_text().splitlines())}
    assert len(found) > 15
    assert len(set(found.values())) > 10
    assert asked[: len(found)] == sorted(found, key=lambda id: abs(found[id]))
    assert set(asked[len(found) :]).isdisjoint(found)
    before = file.stat().st_mtime_ns
    with labelling(*words, "--labels", tmp_path / "y.jsonl") as page:
        assert int(page.ask("state")["question"]["id"]) == asked[0]
    assert file.stat().st_mtime_ns == before
    with pytest.raises(SystemExit, match="--choose unsure takes a --config and the --policy"):
        main(["label", "--config", str(config), "--choose", "unsure", "--as", "ann"])
