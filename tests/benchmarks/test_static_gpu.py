"""The static report of the GPU kernels, in processes of their own: Triton's interpreter must be off there."""

import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT


def run(*command, **environment):
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=clean | environment, capture_output=True, text=True)


@pytest.fixture(autouse=True)
def needs_triton():
    pytest.importorskip("triton")


def test_a_kernel_of_each_kind_is_clean():
    done = run("-c", "from benchmarks.static_gpu import *\n"
               "mixed = next(case for case in CASES if case.drawn and case.data)\n"
               "for what in (forward, backward, add_noise, noise): print(*check(what, CASES[1], 90))\n"
               "for what in (forward, backward): print(*check(what, mixed, 90))\n"
               "for case in (CASES[1], mixed): print(*check(forward, replace(case, preserving=True), 90))")  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()
    assert [row.split("|")[1].strip() for row in rows] == [
        *("forward", "backward", "add_noise", "noise"),
        *("forward", "backward", "forward", "forward"),
    ]
    assert all(row.endswith("[]") for row in rows), rows


def test_faults_are_found(tmp_path):
    # too few registers; the odd number of elements that forbids vectors
    script = (
        "from benchmarks.static_gpu import *\n"
        "launch.OPTIONS['maxnreg'] = 24\n"
        "print(check(forward, CASES[0], 90)[1])\n"
        "launch.OPTIONS['maxnreg'] = 128\n"
        "print(check(backward, Case('odd', F32, F32, shape=(3, 1021)), 90)[1])\n"
    )
    done = run("-c", script, TRITON_CACHE_DIR=str(tmp_path))
    spills, narrow = done.stdout.splitlines()
    assert "spills" in spills
    assert "accesses below 128 bits" in narrow


@pytest.mark.slow
def test_every_kernel_on_every_target():
    done = run("-m", "benchmarks.static_gpu")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    for capability in (80, 86, 89, 90, 100, 120):
        assert f"sm_{capability}" in done.stdout


def test_nothing_is_compiled_anew_for_an_option_or_a_number_of_pairs():
    script = (
        "from benchmarks.static_gpu import *\n"
        "pred = torch.empty(32, 4, 64, 64)\n"
        "with compiling(90) as launches:\n"
        "    for name, kind, beta, pairs in (('reverse_kl', 'sigmoid', 1.0, 2), ('jeffreys', 'hinge', 0.1, 1),\n"
        "                                    ('alpha', 'ipo', 2500.0, 16), (torch.tanh, 'sigmoid', 1.0, 3)):\n"
        "        x = pred[: 2 * pairs]\n"
        "        for mu in (None, 0, 0.5, 0.9):\n"
        "            for w, m, c in ((0.0, 0.0, None), (1, 1, 1), (0.5, 0.5, 0.5)):\n"
        "                options = LossOptions(divergence=name, loss_type=kind, beta=beta, ratio_scale=1.0,\n"
        "                    winner_preserving=mu, sft_weight=w, margin=m, clip_log_ratio=c)\n"
        "                launch.loss_forward(x, x, Target(data=x), None, options.call, None)\n"
        "print(len({id(launch.kernel) for launch in launches}), len(launches))\n"
    )
    done = run("-c", script)
    assert done.stdout.split() == ["2", "48"], done.stderr


def test_the_optimizer_is_clean():
    done = run("-c", "from benchmarks.static_optimizer import *\nfor case in CASES: print(*check(case, 90))")
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()
    assert len(rows) == 14
    assert all(row.endswith("[]") for row in rows), rows


def test_the_bytes_of_the_optimizer_are_counted(tmp_path):
    # weights of two bytes and two codes both ways, a gradient of two bytes, two absmax of four bytes to 256 elements
    script = (
        "import benchmarks.static_optimizer as own\n"
        "def again(cubin, bits):\n"
        "    sass = read(cubin)\n"
        "    sass.loads[bits] += 1\n"
        "    return sass\n"
        "def narrow(cubin):\n"
        "    sass = read(cubin)\n"
        "    sass.stores.update({64: -1, 32: 2})\n"
        "    return sass\n"
        "read, case = own.disassemble, next(case for case in own.CASES if case.name == 'bf16, stochastic')\n"
        "print(own.check(case, 90)[0])\n"
        "own.disassemble = lambda cubin: again(cubin, 128)\n"
        "print(own.check(case, 90)[1])\n"
        "own.disassemble = narrow\n"
        "print(own.check(case, 90)[1])\n"
    )
    done = run("-c", script, TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    fine, twice, narrow = done.stdout.splitlines()
    least = 2 * (2 + 1 + 1) + 2 + 2 * 2 * 4 / 256
    assert [cell.strip() for cell in fine.split("|")[-3:-1]] == [f"{least:.2f}", "1.0000"]
    assert f"{(least + 2) / least:.4f} times the least bytes" in twice
    assert f"{(least - 1) / least:.4f} times the least bytes, so some by less than 64 bits" in narrow


@pytest.mark.slow
def test_the_optimizer_on_every_target():
    done = run("-m", "benchmarks.static_optimizer")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
