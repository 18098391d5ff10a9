"""The pages: they hold all that they show, run nothing of it, and their words follow the data."""

import csv
import re
import shlex
from urllib.parse import unquote

import pytest
import torch
from PIL import Image

from fdpo_fast.cli import main
from fdpo_fast.compare.analysis import COLUMNS, Comparison
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.load import load
from fdpo_fast.digits.dataset import from_pil
from fdpo_fast.report import curves
from fdpo_fast.report.comparison import write_comparison
from fdpo_fast.report.pages import prose
from fdpo_fast.report.pictures import Panel, Picture
from fdpo_fast.report.run import Run
from fdpo_fast.report.show import parts, report
from fdpo_fast.report.words import FIGURES
from fdpo_fast.training.samples import Layout, side_by_side
from tests.helpers.comparison import CONFIG, comparison
from tests.helpers.elements import Elements, holds_itself
from tests.helpers.run import written


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
    holds_itself(page)
    pictures = {path.name for path in report.glob("*.png")}
    assert pictures == {"trade_off.png", "preference.png", "hypervolume.png", "gradient_fields.png", "samples.png"}
    assert pictures == set(re.findall(r"\]\((\S+\.png)\)", (report / "report.md").read_text()))
    with (report / "points.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 2 * 2 * 3
    assert float(rows[0]["win_rate"]) == 1.0
    assert "| base |" in (report / "report.md").read_text()


def test_arrows_follow_the_gradient_of_the_loss():
    """What the field draws, by autograd: the loss falls along (weight h'(u_w), -weight h'(u_l))."""
    loss = load(CONFIG).loss
    u = torch.tensor([-1.3, 0.7], dtype=torch.float64, requires_grad=True)
    link = loss.link()
    torch.nn.functional.softplus(-loss.beta * (link(u[:1]) - link(u[1:]))).sum().backward()
    weight = torch.sigmoid(-loss.beta * (link(u[:1]) - link(u[1:]))) * loss.beta
    pulls = torch.cat([weight * link.slope(u[:1]), -weight * link.slope(u[1:])])
    torch.testing.assert_close(pulls.detach(), -u.grad)


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'`]]>--><b>"


def test_nothing_of_a_users_words_runs(tmp_path):
    run = written(tmp_path / HOSTILE.replace("/", ""), captions=(HOSTILE, "javascript:alert(1)"))
    report(run)
    found = comparison(tmp_path / "grid", lambda kind, strength, seed: (0.5, 0.5), captions=(HOSTILE, "b"))
    write_comparison(found, tmp_path / "grid")
    for page in ((run / "report.html").read_text(), (tmp_path / "grid/report/index.html").read_text()):
        holds_itself(page)
        assert HOSTILE in "".join(Elements(page).letters)  # it is there, as letters


def test_words_are_letters():
    assert prose("<b> `<i>` $x$") == "&lt;b&gt; <code>&lt;i&gt;</code> $x$"
    panel = Panel(lambda axes: axes.set_title("<b> $x_1$"), "<i>")
    svg = Picture((panel,)).svgs(panel)["any"]
    assert "&lt;b&gt; $x_1$" in svg
    assert not re.search("<[bi]>", svg)


def test_long_words_cost_little(tmp_path):
    run = written(tmp_path / "run", captions=("b" * 20_000, "many words " * 2_000))
    report(run)
    found = comparison(tmp_path / "grid", lambda kind, strength, seed: (0.5, 0.5), captions=("b" * 20_000, "b"))
    write_comparison(found, tmp_path / "grid")
    for page in (run / "report.html", tmp_path / "grid/report/index.html"):
        assert max(map(len, Elements(page.read_text()).letters)) < 20_000  # the style sheet
        assert "b" * 400 not in page.read_text()
    for sheet in (run / "samples/step-000040.png", tmp_path / "grid/report/samples.png"):
        assert Image.open(sheet).width < 1000


def test_a_run_says_where_it_stands(tmp_path):
    run = written(tmp_path / "my run", steps=24)
    page = {part.title: part for part in parts(Run(run))}
    assert page["Where it stands"].text[0] == "Step 24 of 40, not finished."
    assert "steps 15 to 24" in page["Where it stands"].text[2]
    latest = {word.name: value for word, value in page["Where it stands"].table.rows}
    assert latest[FIGURES["margin"].name] == f"{sum(0.1 * step for step in range(14, 24)) / 10:.4g}"
    assert latest[FIGURES["lr"].name] == "1e-05"  # as it is: a mean of what is set would be nobody's
    assert page["Warnings"].text == ("After step 20: the error on preferred images has risen",)
    assert page["What next"].commands[0][1] == f"fdpo train --config '{run}/config.json' --resume"
    assert len(page["Samples after step 40"].samples[1].strips) == 2
    keys = {word.name: value for word, value in page["Configuration"].table.rows}
    assert keys["train.max_steps"] == "40"
    assert "log.every" not in keys
    assert "log.every" in {word.name for word, _ in page["Defaults"].table.rows}


def test_a_finished_run_leads_on(tmp_path):
    run = written(tmp_path / "run")
    page = {part.title: part for part in parts(Run(run))}
    assert "from_pretrained" in page["What next"].commands[0][1]
    assert [cells[1] for cells in page["Evaluation"].table.rows] == ["base", "policy"] * 2
    (run / "evaluation/evaluation.json").unlink()
    commands = [command for _, command in {part.title: part for part in parts(Run(run))}["What next"].commands]
    assert [command.split()[1] for command in commands] == ["sample", "evaluate"]
    report(run)
    links = [a["href"] for tag, a in Elements((run / "report.html").read_text()).found if tag == "a"]
    assert all((run / unquote(link)).exists() for link in links if not link.startswith("#"))


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    run = written(tmp_path / "run", steps=0)
    report(run)
    assert "Nothing is written yet" in (run / "report.html").read_text()


def test_a_sheet_gives_its_images_back(tmp_path):
    images = torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    sheet = side_by_side(["one", "two " * 30], {"base": images, "step 1": 1 - images})
    layout = Layout.of(["one", "two " * 30], [48, 48], 16)
    assert layout.size == sheet.size
    for column, block in enumerate((images, 1 - images)):
        for row in range(2):
            cut = torch.stack([from_pil([image])[0] for image in layout.images(sheet, column, row, 3)])
            torch.testing.assert_close(cut, (block[row] * 255).round() / 255)


def test_a_comparison_leads_on(tmp_path):
    """Its commands are taken as they stand: by a shell, and by what reads the settings."""
    found = comparison(tmp_path / "a grid", lambda kind, strength, seed: (strength + 5 * (kind == "reverse_kl"), 0.5))
    write_comparison(found, tmp_path / "a grid")
    markdown = (tmp_path / "a grid/report/report.md").read_text()
    commands = [shlex.split(line) for line in markdown.splitlines() if line.startswith("fdpo ")]
    assert [words[:2] for words in commands] == [["fdpo", "compare"], ["fdpo", "compare"], ["fdpo", "train"]]
    further, seeds, train = (load(CONFIG, words[words.index("--set") + 1 :]) for words in commands)
    assert further.comparison.strengths == [pytest.approx(1 / 3, rel=1e-4), 1, 2, 6]
    assert seeds.comparison.seeds == [0, 1, 2, 3]
    assert train.train.output_dir == str(tmp_path / "a grid/runs/reverse_kl-strength2-seed0-kept")
    part = Comparison(found.config, found.points[:-1], found.report, found.galleries)
    write_comparison(part, tmp_path / "a grid")
    assert "Make what is missing, 1 of 12 runs" in (tmp_path / "a grid/report/report.md").read_text()


def test_a_run_whose_records_are_broken_in_the_middle_has_a_page(tmp_path):
    file = written(tmp_path / "run") / "metrics.jsonl"
    lines = file.read_bytes().splitlines()
    half = lines[7][: len(lines[7]) // 2]
    junk = [b'{"step": "x"}', b'{"step": 40}']
    file.write_bytes(b"\n".join([*lines[:7], half, b"\x80\xff\0", *lines[8:20], *junk, *lines[19:], b""]))
    report(tmp_path / "run")
    page = (tmp_path / "run/report.html").read_text()
    assert "Left out: 5 lines of metrics.jsonl" in page
    assert "Step 40 of 40, finished." in page


def test_a_folder_in_the_place_of_the_page_stays(tmp_path):
    run = written(tmp_path / "run")
    (run / "report.html").mkdir()
    (run / "report.html/mine.txt").write_text("a user's own")
    with pytest.raises(SystemExit, match=r"Is a directory: \S+/run/report\.html; move what has that name"):
        main(["report", str(run)])
    assert (run / "report.html/mine.txt").read_text() == "a user's own"


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", "{", r"config\.json is not valid JSON"),
        ("data.json", "[1]", r"data\.json is not valid JSON \(no object in braces\)"),
        ("evaluation/evaluation.json", '{"captions": 2}', "is not what `fdpo evaluate` writes: delete it"),
        ("evaluation/evaluation.json", "", r"evaluation\.json is not valid JSON"),
        ("samples/step-000040.png", "half", "is no picture that can be read"),
    ],
)
def test_a_broken_file_of_a_run_is_named(tmp_path, file, content, says):
    run = written(tmp_path / "run")
    (run / "samples/step-mine.png").write_text("a user's own")
    (run / file).write_text(content)
    with pytest.raises(UserError, match=says):
        report(run)


def test_a_slip_on_a_page_is_not_called_a_broken_file(tmp_path, monkeypatch):
    """What is raised on purpose has a class of its own: any other ValueError is ours."""

    def slip(*_):
        return [*zip([1], [], strict=True)]

    monkeypatch.setattr(curves, "sheet", slip)
    with pytest.raises(ValueError, match="zip") as error:
        report(written(tmp_path / "run"))
    assert not isinstance(error.value, UserError)
