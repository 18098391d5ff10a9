"""An export draws what was trained, as diffusers loads it; where its dtype cannot hold that, it says by how much."""

import copy
import json
import resource
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fdpo_fast import checksums
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import LoRA, Model
from fdpo_fast.files import read_json
from fdpo_fast.models import load_family
from fdpo_fast.models.export import _write, export, sort_metadata, trained_on
from fdpo_fast.models.family import ADAPTER
from fdpo_fast.models.precision import DTYPES
from fdpo_fast.models.presets import build, vae
from fdpo_fast.models.trainable import prepare
from tests.helpers.predictions import output, share, unet_of

PRESET = {"sd": "tiny_sd", "sdxl": "tiny_sdxl"}
RANK, ALPHA = 4, 10.0


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Tiny pipelines by family and the dtype of their files."""
    root = tmp_path_factory.mktemp("bases")
    made = {}
    for family, preset in PRESET.items():
        made[family, "fp32"] = build(preset, root / family / "fp32")
        for dtype in ("bf16", "fp16"):
            pipeline = DiffusionPipeline.from_pretrained(made[family, "fp32"], torch_dtype=DTYPES[dtype])
            pipeline.save_pretrained(root / family / dtype)
            made[family, dtype] = root / family / dtype
    return made


def trained_policy(base, family, train, moved, dtype="bf16"):
    """A family, and its denoiser moved from where it started; how far: of each weight, as a share of it."""
    model = Model(family=family, base=str(base), train=train, dtype=dtype, lora=LoRA(rank=RANK, alpha=ALPHA))
    made = load_family(model)
    unet = made.denoiser(DTYPES[dtype])
    draw = torch.Generator().manual_seed(1)
    for parameter in prepare(unet, model):
        noise = torch.randn(parameter.shape, generator=draw)
        scale = 1.0 if train == "lora" and not parameter.any() else parameter.detach().float().std().nan_to_num(1.0)
        parameter.data.copy_(parameter + moved * scale * noise)
    return made, unet


def named(unet):
    return [(name, parameter.detach()) for name, parameter in unet.named_parameters() if parameter.requires_grad]


def moved_by_rounding(export, base, policy):
    """How far an export lies from a policy with its adapter, beside how far that lies from its base."""
    merged = copy.deepcopy(policy)
    merged.fuse_lora()
    merged.unload_lora()
    exported, policy, start = (
        torch.cat([value.double().flatten() for value in unet.state_dict().values()])
        for unet in (unet_of(export), merged, unet_of(base))
    )
    return ((exported - policy).norm() / (policy - start).norm()).item()


@pytest.mark.parametrize(("family", "moved"), [("sd", 3e-4), ("sdxl", 1e-2)])
@pytest.mark.parametrize("of_base", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("dtype", [None, "fp32"])
def test_an_adapter_is_merged_without_loss_or_with_a_figure(bases, tmp_path, family, of_base, dtype, moved):
    made, unet = trained_policy(bases[family, of_base], family, "lora", moved)
    rounding = export(made, iter(named(unet)), dtype and DTYPES[dtype], tmp_path / "out")
    _, exact = trained_policy(bases[family, of_base], family, "lora", moved, "fp32")
    exact.load_state_dict({name: value.float() for name, value in named(unet)}, strict=False)
    found = share(unet_of(tmp_path / "out"), exact, unet_of(bases[family, of_base]))
    if (dtype or of_base) == "fp32":
        assert found > 0.99
        assert rounding.sentence() is None
    else:
        ratio = moved_by_rounding(tmp_path / "out", bases[family, of_base], exact)
        assert rounding.ratio == pytest.approx(ratio, rel=1e-3)
        words = f"moved them {ratio:.2g} times as far as training: use {ADAPTER}"
        assert rounding.ratio <= 0.01 if rounding.sentence() is None else words in rounding.sentence()
        assert rounding.sentence() or (of_base, moved) == ("fp16", 1e-2)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("of_base", ["fp32", "bf16"])
@pytest.mark.parametrize("averaged", [False, True])
def test_full_tuning_is_exported_without_loss_or_with_a_figure(bases, tmp_path, family, of_base, averaged):
    """bf16 weights fit both dtypes; an average of them in float32 does not fit bf16."""
    made, unet = trained_policy(bases[family, of_base], family, "full", 1e-2)
    start = made.denoiser(torch.bfloat16)
    values = named(unet)
    if averaged:
        values = [(name, value.float() * (1 + 1e-3)) for name, value in values]
    rounding = export(made, iter(values), None, tmp_path / "out")
    policy = copy.deepcopy(unet).float()
    policy.load_state_dict(dict(values))
    found = share(unet_of(tmp_path / "out"), policy, start)
    if averaged and of_base == "bf16":
        assert found < 0.99
        assert 'set train.export_dtype to "fp32"; --resume writes the export anew' in rounding.sentence()
        assert ADAPTER not in rounding.sentence()
    else:
        assert found > 0.99
        assert rounding.sentence() is None


@pytest.mark.parametrize(
    ("of_base", "dtype", "train"),
    [("fp32", None, "full"), ("fp32", "bf16", "lora"), ("bf16", None, "lora"), ("bf16", "fp16", "full")],
)
def test_one_dtype_throughout_which_diffusers_loads_and_draws(bases, tmp_path, of_base, dtype, train):
    """Also where the base's text encoders ask to be loaded in another dtype than the UNet, as those of SDXL do."""
    made, unet = trained_policy(bases["sdxl", of_base], "sdxl", train, 1e-2)
    export(made, iter(named(unet)), dtype and DTYPES[dtype], tmp_path / "out")
    want = dtype or of_base
    files = set((tmp_path / "out").glob("*/*.safetensors"))
    assert {file.parent.name for file in files} == {"unet", "vae", "text_encoder", "text_encoder_2"}
    for file in files:
        kinds = {tensor.dtype for tensor in load_file(file).values()}
        assert {kind for kind in kinds if kind.is_floating_point} == {DTYPES[want]}
    for options in ({}, {"torch_dtype": torch.bfloat16}):
        pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out", **options)
        pipeline.set_progress_bar_config(disable=True)
        assert pipeline("a cat", height=32, width=32, num_inference_steps=1).images[0].size == (32, 32)


def test_components_that_are_in_the_dtype_are_the_bases_bit_for_bit(bases, tmp_path):
    made, unet = trained_policy(bases["sdxl", "fp32"], "sdxl", "full", 1e-2)
    export(made, iter(named(unet)), None, tmp_path / "out")
    for file in bases["sdxl", "fp32"].rglob("*"):
        if file.is_file() and file.parent.name != "unet":
            other = tmp_path / "out" / file.relative_to(bases["sdxl", "fp32"])
            assert other.suffix == ".json" or other.read_bytes() == file.read_bytes()
            assert other.suffix != ".json" or read_json(other) == read_json(file)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_the_adapters_file_is_the_policy_for_every_reader(bases, tmp_path, family):
    """With alpha beside rank: a reader that finds no alpha takes it for the rank."""
    base = bases[family, "fp32"]
    made, unet = trained_policy(base, family, "lora", 1e-2, "fp32")
    export(made, iter(named(unet)), None, tmp_path / "out")
    start, want = output(unet_of(base)), output(unet)
    pipeline = DiffusionPipeline.from_pretrained(base)
    pipeline.load_lora_weights(tmp_path / "out", weight_name=ADAPTER)
    assert ((output(pipeline.unet) - want).norm() / (want - start).norm()) < 1e-3
    assert ((output(made.denoiser(torch.float32, tmp_path / "out")) - want).norm() / (want - start).norm()) < 1e-3
    assert trained_on(tmp_path / "out") == str(base)
    # without what the file says of itself
    save_file(load_file(tmp_path / "out" / ADAPTER), tmp_path / ADAPTER)
    assert trained_on(tmp_path) is None
    pipeline = DiffusionPipeline.from_pretrained(base)
    pipeline.load_lora_weights(tmp_path, weight_name=ADAPTER)
    assert ((output(pipeline.unet) - want).norm() / (want - start).norm()) < 1e-3


def test_convolutions_are_merged_too(bases, tmp_path):
    base = bases["sd", "fp32"]
    lora = LoRA(rank=RANK, alpha=ALPHA, targets=["conv1", "to_q", "conv_in", "conv_shortcut"])
    model = Model(family="sd", base=str(base), train="lora", lora=lora)
    made = load_family(model)
    unet = made.denoiser(torch.float32)
    for parameter in prepare(unet, model):
        parameter.data.copy_(torch.randn_like(parameter) * 1e-2)
    export(made, iter(named(unet)), None, tmp_path / "out")
    assert share(unet_of(tmp_path / "out"), unet, unet_of(base)) > 0.99
    pipeline = DiffusionPipeline.from_pretrained(base)
    pipeline.load_lora_weights(tmp_path / "out", weight_name=ADAPTER)
    assert share(pipeline.unet, unet, unet_of(base)) > 0.99


@pytest.mark.parametrize("train", ["full", "lora"])
def test_an_export_leaves_the_trained_weights_as_they_are(bases, tmp_path, train):
    """They are written from where they lie, also where an adapter is merged into them."""
    made, unet = trained_policy(bases["sd", "bf16"], "sd", train, 1e-2)
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    export(made, iter(named(unet)), None, tmp_path / "out")
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


def test_another_vae_is_exported(bases, tmp_path):
    lone = vae("tiny_sd").eval()
    lone.register_to_config(scaling_factor=0.5)
    lone.save_pretrained(tmp_path / "vae")
    made = load_family(Model(family="sd", base=str(bases["sd", "fp32"]), vae=str(tmp_path / "vae")))
    export(made, iter(named(made.denoiser(torch.float32))), None, tmp_path / "out")
    assert DiffusionPipeline.from_pretrained(tmp_path / "out").vae.config.scaling_factor == 0.5


def test_a_weight_beyond_float16_is_refused_and_nothing_is_left(bases, tmp_path):
    made, unet = trained_policy(bases["sd", "fp32"], "sd", "full", 1e-2)
    unet.conv_in.weight.data[0] = 1e5
    with pytest.raises(ValueError, match=r"conv_in.weight is too large for float16: set train.export_dtype"):
        export(made, iter(named(unet)), torch.float16, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_a_sentence_and_leaves_nothing(bases, tmp_path):
    made, unet = trained_policy(bases["sdxl", "fp32"], "sdxl", "full", 1e-2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(UserError, match=r"out cannot be written: .*; --resume writes it from the last checkpoint"):
            export(made, iter(named(unet)), None, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_what_no_pipeline_loads_is_not_exported(bases, tmp_path):
    base = shutil.copytree(bases["sd", "fp32"], tmp_path / "base")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key.json").write_text("{}")
    for name in ("pytorch_model.bin", "setup.py", "diffusion_pytorch_model.fp16.safetensors"):
        (base / "vae" / name).write_text("x")
    index = base / "model_index.json"
    index.write_text(json.dumps(read_json(index) | {name: [None, None] for name in ("../secret", "..", "", "keys")}))
    (base / "keys").mkdir()
    (base / "keys/private.txt").write_text("x")
    (base / "top.json").write_text("{}")
    made, unet = trained_policy(base, "sd", "full", 1e-2)
    export(made, iter(named(unet)), None, tmp_path / "out")
    left = {file.relative_to(base) for file in base.rglob("*") if file.is_file()}
    written = {file.relative_to(tmp_path / "out") for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert {path.name for path in left - written} == {
        "pytorch_model.bin", "setup.py", "diffusion_pytorch_model.fp16.safetensors", "private.txt", "top.json"
    }  # fmt: skip
    assert written - left == {(tmp_path / checksums.NAME).relative_to(tmp_path)}


DTYPE = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8])
SHAPE = st.lists(st.integers(0, 5), max_size=3).map(tuple)
NAME = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda name: name != "__metadata__")


@settings(max_examples=50)
@given(parts=st.dictionaries(NAME, st.tuples(DTYPE, SHAPE), max_size=6))
def test_files_are_the_librarys_byte_for_byte(tmp_path_factory, parts):
    folder = tmp_path_factory.mktemp("files")
    state = {name: torch.randint(0, 2, shape).to(dtype) for name, (dtype, shape) in parts.items()}
    _write(folder / "ours", state, (), torch.float32)
    cast = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    save_file(cast, folder / "theirs", {"format": "pt"})
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()


def test_metadata_are_in_order_whatever_order_the_library_writes(tmp_path):
    tensors = {"größe": torch.arange(6.0).view(2, 3), "b": torch.ones(1, dtype=torch.bfloat16)}
    about = {name: f'{name} "é\n\\/' for name in "zyxwvutsrq"}
    found = set()
    for number in range(8):
        file = tmp_path / f"{number}.safetensors"
        save_file(tensors, file, about)
        sort_metadata(file)
        found.add(file.read_bytes())
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == about
        for name, tensor in load_file(file).items():
            assert torch.equal(tensor, tensors[name])
    assert len(found) == 1
