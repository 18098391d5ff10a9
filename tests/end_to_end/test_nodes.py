"""Several nodes: each is a launcher process of its own, here all on the loopback interface of one machine."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.launcher import DEEPSPEED, TORCHRUN, environment, free_port
from tests.helpers import ROOT

OURS = ("data:", "caching", "warning", "train:", "exported")
"""How what the trainer prints begins."""


def command(launcher, node, ranks, hosts, port):
    """The launcher's command line on one node."""
    where = ["--node_rank", str(node), "--master_addr", "127.0.0.1", "--master_port", str(port)]
    if launcher == "torchrun":
        return [*TORCHRUN, "--nnodes", "2", "--nproc_per_node", str(ranks), *where]
    return [*DEEPSPEED, "--hostfile", str(hosts), "--no_ssh", *where]


@pytest.fixture
def two_nodes(tmp_path, write_config):
    """Train on two nodes of `ranks` processes; returns the logs. `second` are arguments of node 1 alone."""

    def run(raw, *arguments, launcher="deepspeed", ranks=1, second=(), fails=False):
        hosts = tmp_path / "hostfile"
        hosts.write_text(f"node0 slots={ranks}\nnode1 slots={ranks}\n")
        port = free_port()
        started, logs = [], [tmp_path / f"node{node}.log" for node in (0, 1)]
        for node, log in enumerate(logs):
            words = [*command(launcher, node, ranks, hosts, port), "fdpo_fast/train.py", "--config"]
            words += [str(write_config(raw)), *arguments, *(second if node else ())]
            with log.open("w") as file:
                started.append(
                    subprocess.Popen(
                        words,
                        cwd=ROOT,
                        env=environment(threads=1),
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        try:
            codes = [process.wait(timeout=240) for process in started]
        finally:
            for process in started:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        said = [log.read_text() for log in logs]
        assert all(codes) if fails else not any(codes), "\n".join(said)
        return said

    return run


def lines(log):
    """A log's lines, each state of a progress bar as one."""
    return log.replace("\r", "\n").splitlines()


def weights(folder):
    return load_file(folder / "export/unet/diffusion_pytorch_model.safetensors")


def agree(raw, alone, read_metrics):
    """Assert that two runs took the same steps, but for rounding: as for two ranks of one node."""
    for ours, theirs in zip(read_metrics(raw), read_metrics(alone), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["margin"] == pytest.approx(theirs["margin"], rel=1e-2, abs=1e-5)


@pytest.fixture
def alone(raw_config, launch, tmp_path):
    """The configuration of a finished run of one process."""
    raw = raw_config | {"train": raw_config["train"] | {"output_dir": str(tmp_path / "alone")}}
    launch(raw)
    return raw


@pytest.fixture
def shared(raw_config):
    """The same run for two nodes: its micro-batch divides by two ranks and by four."""
    return raw_config | {"train": raw_config["train"] | {"pairs_per_micro_batch": 1}}


def test_two_nodes_train_like_one_process(shared, alone, two_nodes, read_metrics):
    first, second = two_nodes(shared)
    agree(shared, alone, read_metrics)
    folder = Path(shared["train"]["output_dir"])
    assert f"exported to {folder / 'export'}" in first
    assert sum(line.startswith("data:") for line in lines(first)) == 1
    assert not [line for line in lines(second) if line.startswith(OURS)]
    assert weights(folder).keys() == weights(folder.parent / "alone").keys()
    assert not list(folder.glob(".*")) + list(Path(shared["data"]["cache_dir"]).glob(".shared*"))


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "ranks"), [("deepspeed", 2), ("torchrun", 1), ("torchrun", 2)])
def test_launchers_and_ranks_of_a_node(shared, alone, two_nodes, read_metrics, launcher, ranks):
    shared["deepspeed"] = {"zero_optimization": {"stage": 2}}
    _, second = two_nodes(shared, launcher=launcher, ranks=ranks)
    agree(shared, alone, read_metrics)
    assert not [line for line in lines(second) if line.startswith(OURS)]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_a_resumed_run_equals_an_uninterrupted_one(shared, two_nodes, read_metrics, tmp_path, stage):
    shared["deepspeed"] = {"zero_optimization": {"stage": stage}}
    two_nodes(shared)
    whole, shared["train"]["output_dir"] = weights(tmp_path / "run"), str(tmp_path / "parts")
    two_nodes(shared, "--set", "train.max_steps=3")
    two_nodes(shared, "--resume")
    assert [record["step"] for record in read_metrics(shared)] == list(range(6))
    resumed = weights(tmp_path / "parts")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["data.cache_dir", "train.output_dir"])
@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_a_folder_of_each_node_is_one_sentence(shared, two_nodes, tmp_path, key, launcher):
    said = two_nodes(shared, launcher=launcher, second=("--set", f"{key}={tmp_path / 'other'}"), fails=True)
    for log in said:
        assert [line.split("'")[0] for line in lines(log) if "fdpo train:" in line] == [f"fdpo train: {key} "]
        assert "is not shared between the nodes" in log
    assert not list((tmp_path / "other").iterdir()) + list(tmp_path.rglob(".shared*"))


@pytest.mark.slow
def test_other_pairs_on_a_node_are_one_sentence(shared, two_nodes, tmp_path, embedded_folder):
    copy = tmp_path / "copy.parquet"
    copy.write_bytes((embedded_folder / "pairs.parquet").read_bytes())
    for log in two_nodes(shared, second=("--set", f"data.source={copy}"), fails=True):
        assert len([line for line in lines(log) if "fdpo train:" in line]) == 1
        assert "the nodes would make another pairs cache each: data.source or model.base" in log
