"""The page of a comparison: it holds all that it shows, and its sentences follow the data."""

import csv
import re

import pytest

from fdpo_fast.compare.analysis import COLUMNS
from fdpo_fast.config.load import load
from fdpo_fast.report.pages import write_comparison
from tests.helpers.comparison import CONFIG, comparison


@pytest.mark.parametrize(
    ("shift", "words"), [(0.1, "Alignments from 0.6000 to 1.0000 lie"), (2.0, "No alignment lies")]
)
def test_whether_the_curves_can_be_compared(tmp_path, shift, words):
    found = comparison(tmp_path, lambda kind, strength, seed: (strength / 2 + shift * (kind == "reverse_kl"), 0.5))
    write_comparison(found, tmp_path)
    assert words in (tmp_path / "report/report.md").read_text()


def test_the_page_holds_everything_it_shows(tmp_path):
    found = comparison(tmp_path, lambda kind, strength, seed: (0.4 * strength + 0.01 * seed, 0.9 / strength))
    write_comparison(found, tmp_path)
    report = tmp_path / "report"
    page = (report / "index.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # nothing is fetched
    assert page.count("<img") == len(list(report.glob("*.png")))
    with (report / "points.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 2 * 2 * 3
    assert float(rows[0]["win_rate"]) == 1.0
    assert "| base |" in (report / "report.md").read_text()


def test_arrows_follow_the_gradient_of_the_loss():
    """What the field draws, by autograd: the loss falls along (weight h'(u_w), -weight h'(u_l))."""
    import torch

    loss = load(CONFIG).loss
    u = torch.tensor([-1.3, 0.7], dtype=torch.float64, requires_grad=True)
    link = loss.link()
    torch.nn.functional.softplus(-loss.beta * (link(u[:1]) - link(u[1:]))).sum().backward()
    weight = torch.sigmoid(-loss.beta * (link(u[:1]) - link(u[1:]))) * loss.beta
    pulls = torch.cat([weight * link.slope(u[:1]), -weight * link.slope(u[1:])])
    torch.testing.assert_close(pulls.detach(), -u.grad)
