"""The pages in Markdown: links resolve, snippets run as they stand, commands parse, files that are named are there."""

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from benchmarks import launcher
from fdpo_fast import fdpo_loss
from fdpo_fast.cli import COMMANDS, parse
from fdpo_fast.cli import main as fdpo
from fdpo_fast.config.load import load
from tests.helpers import ROOT
from tests.helpers.pages import PAGES, blocks

README = (ROOT / "README.md").read_text()
page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def prose(text):
    """A page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S)


# --- links and names --------------------------------------------------------------------------------------------


def anchors(path):
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(path.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@page
def test_links_resolve(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text())):
        place, _, anchor = link.partition("#")
        if place.startswith("http"):
            continue
        target = (path.parent / place).resolve() if place else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@page
def test_files_that_are_named_exist(path):
    for name in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|md|csv|json|cpp|h|html))`", path.read_text()):
        assert any((folder / name).exists() for folder in (ROOT, path.parent)), name


def test_the_tree_names_every_room():
    lines = blocks(README.partition("## Where things are")[2], "")[0].splitlines()
    assert lines[0] == "fdpo_fast/"
    package, listed = ROOT / "fdpo_fast", set()
    for line in (line for line in lines[1:] if line.startswith("  ")):
        head = line.split()[0]
        folder = package / head if head.endswith("/") else package
        names = re.findall(r"[\w/]+\.py\b|\b\w+/(?=[ ,)])", line)
        listed |= {head} | ({name for name in names if "/" not in name} if folder == package else set())
        for name in names:
            assert any((place / name).exists() for place in (folder, package, ROOT)), line
    rooms = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").is_file()}
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    assert listed == rooms | modules


def test_the_readme_stays_short():
    assert len(README.splitlines()) <= 270


# --- Python and JSON --------------------------------------------------------------------------------------------


class UNet(torch.nn.Conv2d):
    """A denoiser as diffusers calls one."""

    def __init__(self):
        super().__init__(4, 4, 1)

    def forward(self, noisy, timesteps, context):
        return SimpleNamespace(sample=super().forward(noisy + 1e-3 * timesteps.view(-1, 1, 1, 1)))


@pytest.fixture
def trainer():
    """The names that a snippet finds in the trainer it is put into: three pairs of 4x8x8 latents."""
    torch.manual_seed(0)
    pred, ref, noisy = (torch.randn(6, 4, 8, 8) for _ in range(3))
    noise = torch.randn(3, 4, 8, 8).repeat(2, 1, 1, 1)
    return {
        "torch": torch, "fdpo_loss": fdpo_loss, "unet": UNet(), "ref_unet": UNet(),
        "noisy": noisy, "timesteps": torch.tensor([3, 50, 700] * 2), "context": torch.zeros(6, 77, 8), "noise": noise,
        "ref": ref, "latents": torch.randn(6, 4, 8, 8), "ref_errors": torch.rand(6), "seed": 0,
        "pair_ids": torch.arange(3), "visits": torch.zeros(3, dtype=torch.int64),
        "schedule": SimpleNamespace(alphas_cumprod=torch.linspace(0.999, 0.01, 1000)),
        "policy_chosen": pred[:3, 0, 0, 0], "policy_rejected": pred[3:, 0, 0, 0],
        "ref_chosen": ref[:3, 0, 0, 0], "ref_rejected": ref[3:, 0, 0, 0],
    }  # fmt: skip


@page
def test_python_runs(path, trainer):
    for code in blocks(path.read_text(), "python"):
        exec(compile(code, str(path), "exec"), trainer)  # noqa: S102
        if "loss" in trainer:
            assert trainer["loss"].isfinite()


def as_reader(path, folder):
    """Put a page's configuration into `folder`, as `my_run.json`, beside what lies beside the page."""
    code = blocks(path.read_text(), "json") or blocks(README, "json")
    beside = path.parent if code != blocks(README, "json") else ROOT
    for item in beside.iterdir():
        if not item.name.startswith("."):
            (folder / item.name).symlink_to(item)
    file = folder / "my_run.json"
    file.write_text(code[0])
    return file


@page
def test_json_is_a_configuration(path, tmp_path):
    assert len(blocks(path.read_text(), "json")) <= 1
    load(as_reader(path, tmp_path))


# --- commands ---------------------------------------------------------------------------------------------------

LEFT_TO_THE_READER = {"git", "cd", ".", "export", "python3", "srun", "pip", "pytest", "python"}


def commands(text):
    """The words of each command of a page: those of its blocks, and those in its sentences that are whole."""
    lines = [line for name in ("console", "bash") for code in blocks(text, name) for line in
             code.replace("\\\n", " ").splitlines() if not line.startswith("#")]  # fmt: skip
    spans = re.findall(r"`([^`]+)`", re.sub(r"\s+", " ", prose(text)))
    lines += [span for span in spans if re.match(r"(fdpo|deepspeed|torchrun|make|python -m|pytest) ", span)]
    for line in lines:
        line = re.sub(r"(srun .* bash -c '(exec )?)|'$", "", line) if line.startswith("srun") else line
        for part in re.split(r" && |; ", re.sub(r"(^|\s)#.*", "", line)):
            if words := shlex.split(part):
                yield words


def check_fdpo(words, run):
    """`fdpo NAME ...` parses, and its configuration loads with the overrides; `...` and FILE are the reader's."""
    assert words[0] in {module.__name__.rpartition(".")[2] for module in COMMANDS}, words
    if words[1:] in ([], ["..."]) or words[2:] in ([], ["..."]):
        return
    _, _, options = parse([run if word in ("my_run.json", "FILE", "...") else word for word in words])
    if config := options.get("config_file"):
        load(config if config == run else ROOT / config, options["overrides"])


def check_launcher(words, run):
    """The launchers' own parsers take the line, and what they would start is a command of ours."""
    launcher, *words = (re.sub(r"^(\$\w+|[KN])$", "1", word) for word in words)  # numbers that are the reader's
    if launcher == "deepspeed":
        from deepspeed.launcher.runner import parse_args

        found = parse_args(words)
        script, rest = found.user_script, found.user_args
    else:
        from torch.distributed.run import get_args_parser

        found = get_args_parser().parse_args(words)
        script, rest = found.training_script, found.training_script_args
    assert found.module == (script == "fdpo_fast.cli"), words
    if script == "fdpo_fast.cli":
        check_fdpo(rest, run)
    else:
        assert (ROOT / script).is_file(), words
        check_fdpo(["train", *rest], run)


def check_module(words):
    """The module is there, and has the options in its source."""
    spec = find_spec(words[0])
    assert spec, words
    place = Path(spec.origin)
    sources = place.parent.glob("*.py") if place.name == "__init__.py" else [place]
    source = "\n".join(file.read_text() for file in sources)
    assert not [word for word in words[1:] if word.startswith("--") and f'"{word}"' not in source], words


@page
def test_commands_are_the_real_ones(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    run = str(as_reader(path, tmp_path))
    for words in commands(path.read_text()):
        if words[0] == "fdpo":
            check_fdpo(words[1:], run)
        elif words[0] in ("deepspeed", "torchrun") and words[1:2] != ["..."]:
            check_launcher(words, run)
        elif words[0] == "make":
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(), words
        elif words[:2] in (["python", "-m"], ["python3", "-m"]) and words[2] != "venv":
            check_module(words[2:])
        else:
            assert words[0] in LEFT_TO_THE_READER, words


def test_extras_that_are_installed_exist():
    text = (ROOT / "pyproject.toml").read_text()
    for extras in re.findall(r"\.\[([\w,]+)\]", README):
        assert not [name for name in extras.split(",") if f"\n{name} = [" not in text]


def my_pairs(folder):
    """The folder of pairs that the README tells of."""
    for side, color in (("w", "red"), ("l", "blue")):
        (folder / side).mkdir(parents=True)
        for row in range(6):
            Image.new("RGB", (96, 64 + row), color).save(folder / side / f"{row}.jpg")
            (folder / side / f"{row}.txt").write_text(f"picture {row}")


def own_pairs():
    """The three commands of `Your own pairs`."""
    code = blocks(README.partition("## Your own pairs")[2], "console")[0]
    return [shlex.split(line.partition("#")[0]) for line in code.splitlines()]


def test_own_pairs_are_checked(tmp_path, monkeypatch, capsys):
    as_reader(ROOT / "README.md", tmp_path)
    my_pairs(tmp_path / "my_pairs")
    monkeypatch.chdir(tmp_path)
    program, *words = own_pairs()[0]
    assert program == "fdpo"
    fdpo(words)
    assert re.search(r"^pairs +6", capsys.readouterr().out, re.M)


@pytest.mark.slow
def test_own_pairs_are_trained_on(tmp_path, pipelines):
    """The README's commands as they stand, with a tiny base in place of SDXL."""
    as_reader(ROOT / "README.md", tmp_path)
    my_pairs(tmp_path / "my_pairs")
    tiny = {"model.base": pipelines["sdxl"], "model.vae": "null", "data.resolution": 64, "train.max_steps": 2,
            "data.cache_dir": tmp_path / "cache", "train.pairs_per_step": 2, "log.samples_every": 0}  # fmt: skip
    sets = [word for key, value in tiny.items() for word in ("--set", f"{key}={value}")]
    for program, *words in own_pairs():
        start = launcher.deepspeed(1) if program == "deepspeed" else [sys.executable, "-m", "fdpo_fast.cli"]
        some = ["--pairs", "4", "--steps", "2"] if words[0] == "calibrate" else []
        subprocess.run([*start, *words, *some, *sets], check=True, cwd=tmp_path, env=launcher.environment(threads=2))
    assert (tmp_path / "runs/mine/export/model_index.json").is_file()


@pytest.mark.slow
def test_the_plan_is_drawn(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (line,) = re.findall(r"^fdpo (plan [^#]+)", README, re.M)
    fdpo(shlex.split(line))
    said = capsys.readouterr().out
    rungs = re.findall(r"^\| ([A-D]): .*?\| ([\d.]+) GiB", README, re.M)
    assert len(rungs) == 4
    for rung, gpu in rungs:
        assert float(re.search(rf"^{rung} +([\d.]+)", said, re.M)[1]) == pytest.approx(float(gpu), abs=0.06), rung
    assert "rung C does" in said
