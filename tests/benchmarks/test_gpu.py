"""`python -m benchmarks.gpu`, rehearsed on the CPU: its stages, boxes of time, lines, report and pack."""

import json
import os
import subprocess
import sys
import time
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from benchmarks import optimizer
from benchmarks.cases import READS
from benchmarks.common.device import machine
from benchmarks.gpu import __main__ as command
from benchmarks.gpu.cards import peak_tflops
from benchmarks.gpu.pack import keep_one_cuda, lacking, pinned
from benchmarks.gpu.report import read, report
from benchmarks.gpu.runner import Runner, kill
from benchmarks.gpu.stages import STAGES, Stage, chosen
from tests.helpers import ROOT


def rehearse(out, *words):
    """Lines of a rehearsal."""
    line = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--out", str(out), *words]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return read(out / "results.jsonl")


def ends(lines):
    return {line["stage"]: line.get("status") or "skipped" for line in lines if line["what"] == "end"}


def trained_as_planned(line):
    assert line["first_margin"] == 0
    assert line["first_loss"] == pytest.approx(0.693147, abs=1e-5)
    assert line["seconds_per_step"] > 0
    assert line["tflops"] * line["seconds_per_step"] == pytest.approx(line["tflop_per_step"], rel=1e-3)
    assert line["plan_gib"] > 0


def test_a_rehearsal_and_its_report(tmp_path):
    lines = rehearse(tmp_path, "--only", "probe,optimizers,loss,train-A", "--seconds", "240")
    assert ends(lines) == dict.fromkeys(["probe", "train-A", "optimizers", "loss"], "done")
    assert all(line["rehearsal"] for line in lines)
    (ceilings,) = (line for line in lines if line["what"] == "ceilings")
    assert ceilings["copy_gb_per_s"] > 0
    assert ceilings["matmul_tflops"] > 0
    (trained,) = (line for line in lines if line["what"] == "train")
    trained_as_planned(trained)
    timed = {line["optimizer"] for line in lines if line["what"] == "optimizer" and "ms" in line}
    assert timed == {"fdpo_fast", "fdpo_fast, 24 bits", "fdpo_fast, to nearest", "torch fused", "bitsandbytes"}
    assert {line["form"] for line in lines if line["what"] == "loss"} == set(READS)

    report(tmp_path / "results.jsonl", tmp_path / "report")
    (table,), (picture,) = (list((tmp_path / "report").glob(f"*.{kind}")) for kind in ("md", "png"))
    text = table.read_text()
    assert "measure nothing" in text
    assert "| train-A |" in text
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_whole_rehearsal(tmp_path):
    lines = rehearse(tmp_path, "--seconds", "800")
    assert ends(lines) == {stage.name: "done" if stage.rehearsed else "skipped" for stage in STAGES}
    for line in lines:
        if line["what"] == "train":
            trained_as_planned(line)
    assert {line["kind"] for line in lines if line["what"] == "rival"} == {"lean", "published"}


def test_stages_are_chosen_by_name():
    assert [stage.name for stage in chosen("loss,probe")] == ["probe", "loss"]
    assert chosen(None) == list(STAGES)
    with pytest.raises(ValueError, match="there is no stage nosuch: the stages are probe, tests, train-A"):
        chosen("probe,nosuch")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--only", "nosuch"], "there is no stage nosuch: the stages are probe,"),
        (["--report", "nowhere.jsonl"], "there are no results in nowhere.jsonl"),
        pytest.param([], "no CUDA device", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="here is one")),
    ],
)
def test_a_mistake_is_one_sentence(words, says, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu", *words])
    with pytest.raises(SystemExit, match=says) as ended:
        command.main()
    assert "\n" not in str(ended.value)


class Script(Stage):
    """A stage that is a few lines of Python."""

    @property
    def command(self):
        return [sys.executable, "-c", self.module]


@pytest.fixture
def take(tmp_path):
    """Run stages in a runner; returns the lines of their ends."""

    def run(*stages, seconds=60.0):
        Runner(tmp_path, tmp_path, "a card", rehearse=False).take(list(stages), time.monotonic() + seconds)
        return [line for line in read(tmp_path / "results.jsonl") if line["what"] == "end"]

    return run


def test_a_stage_that_hangs_is_stopped_with_all_it_has_started(take, tmp_path):
    hangs = (
        "import subprocess, sys, time; sys.stdin.readline()\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid)); time.sleep(600)"
    )
    first, second = take(Script("hangs", "", hangs, 3), Script("goes on", "", "input()", 30))
    assert (first["status"], first["why"]) == ("stopped", "it had 3 s")
    assert second["status"] == "done"
    child = Path(f"/proc/{(tmp_path / 'child').read_text()}/stat")
    end = time.monotonic() + 10  # it was killed, and dies when it is its turn
    while child.exists() and child.read_text().split()[2] != "Z":
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_stage_waits_for_its_turn(take, tmp_path):
    mark = tmp_path / "mark"
    first = f"input(); import pathlib, time; time.sleep(2); pathlib.Path({str(mark)!r}).touch()"
    second = f"input(); import pathlib; assert pathlib.Path({str(mark)!r}).exists()"
    assert [line["status"] for line in take(Script("one", "", first, 30), Script("two", "", second, 30))] == [
        "done"
    ] * 2


def test_failures_and_lacks_are_sentences(take):
    lacks = Stage("lacks", "", "loss", 30, needs=("no_such_package",))
    found = take(lacks, Script("fails", "", "input(); raise ValueError('so it is')", 30))
    assert found[0]["skipped"] == "needs the package no_such_package, not installed"
    assert (found[1]["status"], found[1]["why"]) == ("failed", "ValueError: so it is")


def test_without_time_a_stage_is_not_begun(take):
    (end,) = take(Script("late", "", "input()", 30), seconds=5)
    assert "s are left" in end["skipped"]


def test_kill_takes_a_process_that_has_ended():
    process = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE, start_new_session=True)
    process.wait()
    kill(process)


def test_names_that_the_trainer_no_longer_calls_are_an_error():
    from benchmarks.gpu.patches import without_disks

    with (
        pytest.raises(RuntimeError, match=r"the trainer no longer calls Family\.denoiser, .*patches.py must follow"),
        without_disks(None, None),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A1000", None),
    ],
)
def test_cards_are_known_by_the_drivers_names(name, tflops):
    assert peak_tflops(name) == tflops


def test_a_report_takes_the_last_of_each_and_no_half_lines(tmp_path, capsys):
    about = {"device": "NVIDIA H100 PCIe", "rehearsal": False, "at": 0.0}
    rows = [
        {"stage": "train-A", "what": "train", "tflops": 378.0, "seconds_per_pair": 0.2, "tflop_per_step": 52.0},
        {"stage": "train-A", "what": "train", "tflops": 189.0, "seconds_per_pair": 0.1, "tflop_per_step": 52.0},
        {"stage": "torchao", "what": "end", "skipped": "needs the package torchao, not installed"},
        {"stage": "train-B", "what": "end", "status": "stopped", "why": "it had 60 s"},
    ]
    file = tmp_path / "results.jsonl"
    file.write_text("".join(json.dumps(row | about) + "\n" for row in rows) + '{"stage": "tr')
    report(file, tmp_path)
    text = (tmp_path / "nvidia-h100-pcie.md").read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    assert text.count("| train-A |") == 1
    assert "| train-A | 0.1 | 189 | 25.0% |" in text
    assert "- torchao: skipped, needs the package torchao, not installed" in text
    assert "- train-B: stopped, it had 60 s" in text
    assert "measure nothing" not in text


def test_a_pack_holds_what_is_not_there():
    every = lacking({})
    assert {"deepspeed", "diffusers", "pydantic", "numpy", "pytest"} <= set(every)
    assert not {"torch", "triton"} & set(every)
    assert not [name for name in every if name.startswith("nvidia")]
    assert set(every) - set(lacking({"diffusers": "0.1", "numpy": version("numpy"), "peft": ""})) == {"numpy", "peft"}
    assert pinned("deepspeed") in (ROOT / "constraints.txt").read_text().splitlines()


def test_of_bitsandbytes_one_library_is_enough(tmp_path):
    wheel = tmp_path / "bitsandbytes-0-py3-none-any.whl"
    libraries = [f"bitsandbytes/libbitsandbytes_{kind}.so" for kind in ("cpu", "cuda126", "cuda130")]
    record = "bitsandbytes-0.dist-info/RECORD"
    with zipfile.ZipFile(wheel, "w") as file:
        for name in libraries:
            file.writestr(name, name)
        file.writestr(record, "".join(f"{name},sha256=x,1\n" for name in [*libraries, record]))
    keep_one_cuda(wheel, "130")
    with zipfile.ZipFile(wheel) as file:
        assert file.namelist() == [libraries[0], libraries[2], record]
        assert [line.split(",")[0] for line in file.read(record).decode().splitlines()] == file.namelist()
    with pytest.raises(ValueError, match="has no library for CUDA 999"):
        keep_one_cuda(wheel, "999")


def test_an_optimizer_that_is_not_adamw_is_not_timed():
    plain = lambda parameters: torch.optim.SGD(parameters, lr=1.0)  # noqa: E731
    with pytest.raises(ValueError, match="sgd is not AdamW"):
        optimizer.check("sgd", plain, torch.float32, torch.device("cpu"))


def test_states_are_counted_as_they_lie():
    p = torch.nn.Parameter(torch.zeros(4096, dtype=torch.bfloat16))
    p.grad = torch.ones_like(p)
    ours = optimizer.OURS[torch.bfloat16]
    sizes = {"fdpo_fast": 2 + 8 / 256, "fdpo_fast, 24 bits": 3 + 8 / 256}
    for make, size in (*((ours[name], size) for name, size in sizes.items()), (torch.optim.AdamW, 4 + 4 / 4096)):
        (found := make([p])).step()
        assert optimizer.state_bytes(found) == pytest.approx(size)


def test_the_launcher_is_a_module_of_this_interpreter():
    from benchmarks import launcher

    assert launcher.deepspeed(2)[:3] == [sys.executable, "-m", "deepspeed.launcher.runner"]
    assert launcher.environment(3)["OMP_NUM_THREADS"] == "3"
    assert launcher.environment(3)["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


@pytest.mark.slow
def test_the_training_step_beside_its_rivals_names_the_device():
    before = sorted((ROOT / "benchmarks/results").iterdir())
    line = [sys.executable, "-m", "benchmarks.bench_step", "--tiny", "--rounds", "1"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(machine())
    assert "| fdpo_fast, live reference |" in done.stdout
    assert sorted((ROOT / "benchmarks/results").iterdir()) == before
