"""The memory plan: traced activations against torch's own tracker, the account, the ladder, the command."""

import json

import psutil
import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from fdpo_fast.config.load import load
from fdpo_fast.memory import ladder
from fdpo_fast.memory.account import GIB, step_account
from fdpo_fast.memory.needs import needs, shortage
from fdpo_fast.memory.trace import _Rehearsal, flops, trace
from fdpo_fast.models.architecture import read_architecture
from fdpo_fast.models.presets import build, unet_config
from tests.helpers import ROOT

CONFIGS = ROOT / "configs"
CHOICES = ("full", "per_block", "off")


@pytest.mark.parametrize("checkpointing", ["full", "off"])
def test_the_trace_agrees_with_torchs_tracker(tiny, checkpointing):
    settings = tiny(f"model.gradient_checkpointing={checkpointing}", "model.dtype=bf16")
    architecture = read_architecture(settings.model)
    ours, rehearsal, theirs = trace(settings, architecture), _Rehearsal(settings, architecture), MemTracker()
    with rehearsal.mode:
        theirs.track_external(rehearsal.denoiser)
        with theirs:
            loss = rehearsal.loss()
            (forward,) = theirs.get_tracker_snapshot("current").values()
            loss.backward()
    (peak,) = theirs.get_tracker_snapshot("peak").values()
    weights = sum(p.numel() * p.element_size() for p in rehearsal.denoiser.parameters())
    buffers = sum(b.numel() * b.element_size() for b in rehearsal.denoiser.buffers())
    assert ours.saved == forward["Total"] - weights - buffers
    assert max(ours.forward, ours.backward_with_gradients) == peak["Total"] - weights - buffers
    assert ours.backward <= ours.backward_with_bucket <= ours.backward_with_gradients


@pytest.mark.parametrize("checkpointing", CHOICES)
def test_the_flops_are_those_of_torchs_counter(tiny, checkpointing):
    """Which asks every operator again."""
    settings = tiny(f"model.gradient_checkpointing={checkpointing}", "model.dtype=bf16", "reference.mode=live")
    architecture = read_architecture(settings.model)
    rehearsal = _Rehearsal(settings, architecture)
    own = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
        ),
    }
    with rehearsal.mode, FlopCounterMode(display=False, custom_mapping=own) as counter:
        rehearsal.loss().backward()
        with torch.no_grad():
            rehearsal.predict()
    assert flops(settings, architecture) == counter.get_total_flops()


def test_fake_tensors_take_the_path_of_real_ones(tiny):
    """A real forward saves for backward what the trace says."""
    settings = tiny()
    saved = {}

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    architecture = read_architecture(settings.model)
    rehearsal = _Rehearsal(settings, architecture)
    real = type(architecture.denoiser(torch.float32)).from_pretrained(settings.model.base, subfolder="unet").train()
    weights = {p.untyped_storage().data_ptr() for p in real.parameters()}

    def filled(tensor):
        return torch.rand(tensor.shape) if tensor.is_floating_point() else torch.zeros(tensor.shape, dtype=tensor.dtype)

    condition = {key: filled(value) for key, value in rehearsal.condition.items()}
    noisy, timesteps = filled(rehearsal.noisy), filled(rehearsal.timesteps)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        architecture.family.predict(real, noisy, timesteps, condition)
    found = sum(size for pointer, size in saved.items() if pointer not in weights)
    assert found == pytest.approx(trace(settings, architecture).saved, rel=0.02)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_checkpointing_changes_memory_and_not_the_gradient(tiny, family):
    from diffusers import UNet2DConditionModel

    from fdpo_fast.models import trainable

    gradients, traces, work = {}, {}, {}
    for choice in CHOICES:
        settings = tiny(f"model.gradient_checkpointing={choice}", family=family)
        architecture = read_architecture(settings.model)
        traces[choice], work[choice] = trace(settings, architecture), flops(settings, architecture)
        unet = UNet2DConditionModel.from_pretrained(settings.model.base, subfolder="unet").train()
        trainable.prepare(unet, settings.model)
        torch.manual_seed(0)
        text = {key: torch.randn(2, *shape) for key, shape in architecture.text_shapes().items()}
        condition = architecture.family.condition(text, torch.full((2, 6), 64), settings.model)
        architecture.family.predict(
            unet, torch.randn(2, 4, 16, 16), torch.tensor([3, 3]), condition
        ).square().sum().backward()
        gradients[choice] = [p.grad for p in unet.parameters()]
    assert traces["full"].saved < traces["per_block"].saved < traces["off"].saved
    assert work["full"] > work["per_block"] > work["off"]
    for choice in ("full", "per_block"):
        for ours, plain in zip(gradients[choice], gradients["off"], strict=True):
            torch.testing.assert_close(ours, plain)


def test_true_and_false_of_older_files(tiny):
    assert tiny("model.gradient_checkpointing=true").model.gradient_checkpointing == "full"
    assert tiny("model.gradient_checkpointing=false").model.gradient_checkpointing == "off"


@pytest.fixture(scope="module")
def sdxl():
    settings = load(CONFIGS / "sdxl_js.json")
    architecture = read_architecture(settings.model)
    return settings, architecture, trace(settings, architecture)


def test_full_sdxl_on_every_rung(sdxl):
    """One pair of 1024 x 1024; GiB of GPU tensors that the ladder promises."""
    settings, architecture, traced = sdxl
    assert traced.trained == 2_567_463_684
    for name, most in {"A": 16, "B": 12, "C": 7.5, "D": 4}.items():
        found = needs(ladder.on_rung(settings, name, 1), architecture, traced, 1)
        assert 0.5 * most < found.gpu_tensors / GIB <= most
        assert found.beside.get("starting", 0) <= 2 * 2 * max(traced.shapes)  # one weight at a time
    assert found.fullest[1] <= 4 * GIB  # D: its start, its caches and its sample grids too
    parts = step_account(settings, traced, 1, gpu=True).parts("backward", "gpu")
    assert parts["weights"] == parts["gradients"] == 2 * traced.trained
    assert parts["optimizer states"] == pytest.approx(2.03 * traced.trained, rel=1e-3)


def test_more_gpus_take_less_each(sdxl):
    _, architecture, traced = sdxl
    eight = load(CONFIGS / "sdxl_js_8gpu.json")
    sizes = [needs(eight, architecture, traced, ranks).gpu_tensors for ranks in (1, 2, 8)]
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize(
    ("file", "rung"),
    [("sdxl_js", "A"), ("sdxl_js_16gb", "B"), ("sdxl_js_12gb", "C"), ("sdxl_js_8gb", "D"), ("digits_js", None)],
)
def test_each_rung_is_a_file(file, rung):
    assert ladder.current(load(CONFIGS / f"{file}.json")) == rung


def test_a_name_of_the_hub_needs_no_network():
    architecture = read_architecture(load(CONFIGS / "sd15_js.json").model)
    assert "published" in architecture.source
    assert unet_config("sd15").items() <= architecture.denoiser_config.items()


def test_the_command(tiny_config, plan, tmp_path, capsys):
    raw = tiny_config("sdxl", tmp_path / "pairs")
    raw["data"]["max_rows"] = 100
    raw["model"]["dtype"] = "bf16"
    figures = json.loads(plan(raw, "--json"))
    assert {"gpu_tensors_gib", "gpu_total_gib", "host_gib", "disk_gib", "parts", "rungs"} <= figures.keys()
    assert figures["rungs"].keys() == {"A", "B", "C", "D"}
    assert all(r.keys() == {"gpu_tensors_gib", "gpu_total_gib", "host_gib"} for r in figures["rungs"].values())
    file = tmp_path / "plan.json"
    text = plan(raw, "--json", str(file), "--gpu", "24GB", "--host", "32", "--tflops", "50")
    step = figures["step"]
    assert step["seconds"] is None  # nothing to derive it from
    assert step["tflop_a_gpu"] > 0
    step["seconds"] = round(step["tflop_a_gpu"] / 50, 3)
    assert json.loads(file.read_text()) == figures
    assert "this configuration fits" in text
    text = plan(raw, "--gpu", "0.1GB")
    assert "no rung does" in text


def test_what_the_advice_says_fits(plan, tmp_path):
    """The lines to change are taken word for word, and then the plan says that it fits."""
    raw = json.loads((CONFIGS / "sdxl_js.json").read_text())
    base = build("tiny_sdxl", tmp_path / "base")
    unet = json.loads((base / "unet/config.json").read_text())
    unet |= {"block_out_channels": [128, 256], "norm_num_groups": 32}  # a plan reads no weights
    (base / "unet/config.json").write_text(json.dumps(unet))
    raw["model"]["base"], raw["data"]["resolution"], raw["data"]["max_rows"] = str(base), 64, 4
    plan(raw, "--json", str(tmp_path / "plan.json"))
    rungs = json.loads((tmp_path / "plan.json").read_text())["rungs"]
    assert rungs["C"]["gpu_total_gib"] < rungs["A"]["gpu_total_gib"] - 0.01
    limits = ["--gpu", f"{rungs['C']['gpu_total_gib'] + 0.002:.3f}GB", "--host", "24GB"]
    text = plan(raw, *limits)
    assert "this configuration does not fit" in text
    advice = text[text.index(" does; change\n") :].splitlines()[1:]
    changes = [line.strip().split(": ", 1) for line in advice if " -> " in line]
    overrides = [word for key, change in changes for word in ("--set", f"{key}={change.split(' -> ')[1]}")]
    assert overrides
    assert "\nthis configuration fits" in plan(raw, *limits, *overrides)


@pytest.mark.parametrize("options", [["--gpu", "24MB"], ["--gpus", "0"], ["--gpus", "two"], ["--host", "0"]])
def test_bad_options(plan, tiny_config, tmp_path, capsys, options):
    with pytest.raises(SystemExit):
        plan(tiny_config("sdxl", tmp_path), *options)
    assert options[1] in capsys.readouterr().err


def test_bad_input(plan, tiny_config, tmp_path, capsys):
    raw = tiny_config("sdxl", tmp_path)
    raw["model"]["base"] = str(tmp_path)
    with pytest.raises(SystemExit, match=r"unet.config\.json does not exist: model\.base"):
        plan(raw)
    with pytest.raises(SystemExit, match="not a multiple"):
        plan(tiny_config("sdxl", tmp_path), "--gpus", "3")


def test_the_trainer_warns_where_memory_is_short(tiny, monkeypatch):
    settings, free = tiny(), psutil.virtual_memory()
    assert shortage(settings, 1, 1, torch.device("cpu")) is None
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free._replace(available=2**20))
    assert "fdpo plan" in shortage(settings, 1, 1, torch.device("cpu"))


def test_the_trainer_warns_where_a_gpu_is_short(tiny, monkeypatch):
    settings, cuda = tiny(), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**30))
    assert shortage(settings, 1, 1, cuda) is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**10, 2**30))
    assert "GPU memory" in shortage(settings, 1, 1, cuda)


def test_the_keys_of_deepspeed_that_are_no_rungs_stay():
    made = load(CONFIGS / "sdxl_js.json", ["deepspeed.wall_clock_breakdown=true", "deepspeed.zero_optimization={}"])
    assert ladder.current(made) == "A"
    assert ladder.on_rung(made, "C", 1).deepspeed["wall_clock_breakdown"] is True
