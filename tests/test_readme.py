"""The pages in Markdown: links resolve, snippets run as they stand, commands parse, files that are named are there."""

import os
import re
import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fdpo_fast import fdpo_loss
from fdpo_fast.cli import COMMANDS, parse
from fdpo_fast.cli import main as fdpo
from fdpo_fast.config.load import load
from fdpo_fast.config.schema import Model
from fdpo_fast.models import load_family
from fdpo_fast.models.export import export
from fdpo_fast.models.trainable import prepare
from tests.helpers import ROOT
from tests.helpers.pages import PAGES, README, as_reader, blocks

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


def test_the_first_snippet_runs_when_pasted():
    names: dict = {}
    exec(blocks(README, "python")[0], names)  # noqa: S102
    assert names["loss"].isfinite()


@pytest.fixture
def finished(tmp_path, monkeypatch, pipelines):
    """A working folder with a base, by the name that it has on the hub, and the export of a run with LoRA."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stabilityai").mkdir()
    (tmp_path / "stabilityai/stable-diffusion-xl-base-1.0").symlink_to(pipelines["sdxl"])
    model = Model(family="sdxl", base=str(pipelines["sdxl"]), train="lora")
    family = load_family(model)
    unet = family.denoiser(torch.float32)
    prepare(unet, model)
    export(family, [(name, part) for name, part in unet.named_parameters() if part.requires_grad], None,
           tmp_path / "runs/my_run/export")  # fmt: skip


@page
@pytest.mark.usefixtures("finished")
def test_python_runs(path, trainer):
    for code in blocks(path.read_text(), "python"):
        exec(compile(code, str(path), "exec"), trainer)  # noqa: S102
        if "loss" in trainer:
            assert trainer["loss"].isfinite()


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
    modules = {"fdpo_fast.cli": rest, "fdpo_fast.train": ["train", *rest]}
    assert found.module == (script in modules), words
    assert found.module or (ROOT / script).is_file(), words
    check_fdpo(modules.get(script, ["train", *rest]), run)


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


@pytest.mark.slow
def test_the_plan_is_drawn(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    rungs = re.findall(r"^\| ([A-D]): .*?\| ([\d.]+), ([\d.]+) GiB .*\| ([\d.]+) GiB \| `(\S+)`", README, re.M)
    assert len(rungs) == 4
    for rung, *sizes, config in rungs:  # tensors, all in all, host
        fdpo(["plan", "--config", config])
        drawn = re.search(rf"^{rung} +([\d.]+) +([\d.]+) +([\d.]+)", capsys.readouterr().out, re.M).groups()
        assert [float(size) for size in drawn] == pytest.approx([float(size) for size in sizes], abs=0.06), rung


@pytest.mark.parametrize(
    ("config", "commands"),
    [
        ("digits_js", ["fdpo_fast/train.py --config {} --resume", "fdpo demo --config {}"]),
        ("digits_rounds", ["fdpo rounds --config {}"]),
    ],
)
def test_the_demo_is_a_run_or_rounds(config, commands):
    words = ["make", "-n", "-o", ".venv/.installed", "demo", f"CONFIG=configs/{config}.json"]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of `make test`
    done = subprocess.run(words, cwd=ROOT, env=outside, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(commands)
    for line, command in zip(lines, commands, strict=True):
        assert line.endswith(command.format(f"configs/{config}.json"))
