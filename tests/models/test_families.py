"""The families against diffusers itself: embeddings, noise, targets, conditioning."""

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from fdpo_fast import noise
from fdpo_fast.cache.dataset import Batch
from fdpo_fast.config.schema import LoRA, Model
from fdpo_fast.models import FAMILIES, load_family
from fdpo_fast.models.prediction import errors, predict
from fdpo_fast.models.presets import PRESETS, build, unet_config, vae
from tests.helpers.pictures import LONG

PRESET = {name: f"tiny_{name}" for name in FAMILIES}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    made = {name: build(preset, root / name) for name, preset in PRESET.items()}
    made["v"] = build("tiny_sd", root / "v", prediction="v_prediction")
    return made


@pytest.fixture(params=["sd", "sdxl"])
def model(request, folders):
    return load_family(Model(family=request.param, base=str(folders[request.param])))


def test_embeddings_are_the_pipelines_own(model, folders):
    captions = ["a cat", "", LONG, "größe ✓ 猫"]
    ours = model.text_encoder(torch.device("cpu"))(captions)
    pipeline = DiffusionPipeline.from_pretrained(model.base)
    for row, caption in enumerate(captions):
        theirs = pipeline.encode_prompt(
            caption, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        want = [theirs[0]] if model.text_keys == ("prompt_embeds",) else [theirs[0], theirs[2]]
        for key, tensor in zip(model.text_keys, want, strict=True):
            torch.testing.assert_close(ours[key][row : row + 1], tensor)


def their_latents(model, pixels):
    """The moments by the whole VAE of diffusers in float32, of images in [-1, 1]."""
    autoencoder = AutoencoderKL.from_pretrained(model.base, subfolder="vae")
    with torch.no_grad():
        posterior = autoencoder.encode(pixels.float() / 127.5 - 1).latent_dist
    return posterior.mean * autoencoder.config.scaling_factor, posterior.std * autoencoder.config.scaling_factor


def pixels(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.mark.parametrize("stored", ["planes", "rows"])
def test_latents_are_the_vaes(model, stored):
    """To the bit, in whichever layout the pixels come: a decoded image's channels lie together."""
    images = pixels(2, 3, 64, 48) if stored == "planes" else pixels(2, 64, 48, 3).permute(0, 3, 1, 2)
    for ours, theirs in zip(
        model.image_encoder(torch.device("cpu"))(images), their_latents(model, images), strict=True
    ):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_latents_in_sixteen_bits(model, dtype, rtol):
    """They are near those in float32, not equal to them, and come in float32."""
    images = pixels(2, 3, 64, 64)
    found = model.image_encoder(torch.device("cpu"), dtype)(images)
    for ours, theirs in zip(found, their_latents(model, images), strict=True):
        assert ours.dtype == torch.float32
        assert 0 < (ours - theirs).abs().max() < rtol * theirs.abs().max()


@pytest.mark.slow
def test_latents_by_a_compiled_vae(model):
    """Of one batch, and of a rest of another size."""
    encode = model.image_encoder(torch.device("cpu"), compiled=True)
    for images in (pixels(3, 3, 64, 64), pixels(2, 3, 64, 32)):
        for ours, theirs in zip(encode(images), their_latents(model, images), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 4e-3), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_latents_on_a_gpu(model, dtype, rtol):
    """They come on the GPU, without the host waiting for it; convolutions in float32 run in TF32."""
    encode, images = model.image_encoder(torch.device("cuda"), dtype), pixels(2, 3, 64, 64)
    encode(images)  # the kernels are chosen
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = encode(images)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip(found, their_latents(model, images), strict=True):
        assert (ours.device.type, ours.dtype) == ("cuda", torch.float32)
        assert (ours.cpu() - theirs).abs().max() < rtol * theirs.abs().max()


@pytest.mark.parametrize("name", ["sd", "v"])
def test_noise_and_target_are_the_schedulers(folders, name):
    model = load_family(Model(family="sd", base=str(folders[name])))
    latents, draws = torch.randn(6, 4, 8, 8), noise.draws(3, torch.tensor([5, 6, 7]), torch.tensor([0, 1, 2]))
    timesteps, eps = noise.pair_draw(3, torch.tensor([5, 6, 7]), torch.tensor([0, 1, 2]), (4, 8, 8))
    process = model.process(latents.shape, latents.device)
    noisy, ours = noise.add_noise(latents, draws, process.signal, process.sigma)
    assert torch.equal(ours, timesteps)
    timesteps, eps = timesteps.repeat(2), eps.repeat(2, 1, 1, 1)
    torch.testing.assert_close(noisy, model.schedule.add_noise(latents, eps, timesteps))
    target = process.target(latents, draws, ours)
    pred = torch.randn_like(latents)
    want = eps if name == "sd" else model.schedule.get_velocity(latents, eps, timesteps)
    assert target.draws is draws  # the loss makes the noise again
    torch.testing.assert_close(
        errors(pred, target), (pred - want).double().square().mean(dim=(1, 2, 3)), rtol=1e-5, atol=0
    )


def test_micro_conditioning_is_each_images_own(folders):
    """A change of one image's size reaches its own prediction and no other."""
    model = load_family(Model(family="sdxl", base=str(folders["sdxl"])))
    unet = model.denoiser(torch.float32).eval()
    text = {"prompt_embeds": torch.randn(4, 77, 64), "pooled_prompt_embeds": torch.randn(4, 32)}
    sizes = torch.tensor([[480, 640, 0, 8, 64, 64]] * 4)
    other = sizes.clone()
    other[2, 0] = 1023
    draws = noise.draws(0, torch.tensor([1, 2]), 0)
    latents = torch.randn(4, 4, 32, 32)
    with torch.no_grad():
        one, two = (
            predict(model, unet, Batch(latents, draws, model.condition(text, s, model.model), torch.ones(2), None))[0]
            for s in (sizes, other)
        )
    assert model.condition(text, sizes, model.model)["time_ids"].tolist() == sizes.tolist()
    changed = (one != two).flatten(1).any(dim=1).tolist()
    assert changed == [False, False, True, False]


def test_bf16_does_not_round_the_sizes(folders):
    model = load_family(Model(family="sdxl", base=str(folders["sdxl"])))
    unet, seen = model.denoiser(torch.bfloat16), []
    unet.add_time_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    condition = model.condition(
        {"prompt_embeds": torch.randn(1, 77, 64), "pooled_prompt_embeds": torch.randn(1, 32)},
        torch.tensor([[1023, 1021, 0, 0, 64, 64]]),
        model.model,
    )
    with torch.no_grad():
        model.predict(unet, torch.randn(1, 4, 32, 32), torch.tensor([5]), condition)
    assert seen[0].tolist()[:2] == [1023, 1021]


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_full_size_configurations(name):
    """Parameters as published, counted without memory."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        count = sum(p.numel() for p in UNet2DConditionModel(**unet_config(name)).parameters())
        autoencoder = sum(p.numel() for p in vae(name).parameters())
    assert count == {"sd15": 859_520_964, "sdxl": 2_567_463_684}[name]
    assert autoencoder == 83_653_863


def test_another_vae(folders, tmp_path):
    lone = vae("tiny_sd").eval()
    lone.register_to_config(scaling_factor=0.5)
    lone.save_pretrained(tmp_path / "vae")
    base = load_family(Model(family="sd", base=str(folders["sd"])))
    for place in (tmp_path / "vae", tmp_path):
        model = load_family(Model(family="sd", base=str(folders["sd"]), vae=str(place)))
        assert model.load_vae().config.scaling_factor == 0.5
        assert model.sampler(model.denoiser(torch.float32), torch.device("cpu")).vae.config.scaling_factor == 0.5
        assert model.digest("vae") != base.digest("vae")
        assert model.digest("unet") == base.digest("unet")


def test_channels_last_reaches_the_layers_and_changes_nothing(folders):
    draws = noise.draws(0, torch.tensor([1, 2]), 0)
    batch = Batch(torch.randn(4, 4, 32, 32), draws, {"prompt_embeds": torch.randn(4, 77, 8)}, torch.ones(2), None)
    preds, layouts = [], []
    for channels_last in (False, True):
        model = load_family(Model(family="sd", base=str(folders["sd"]), channels_last=channels_last, attention="sdpa"))
        unet = model.denoiser(torch.float32)
        hook = unet.conv_in.register_forward_hook(lambda module, args, out: layouts.append(out.stride(1)))
        with torch.no_grad():
            preds.append(predict(model, unet, batch)[0])
        hook.remove()
    assert layouts == [32 * 32, 1]
    torch.testing.assert_close(*preds)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"family": "imagen"}, "unknown model.family 'imagen': use one of sd, sdxl"),
        ({"family": "sdxl"}, "is a StableDiffusionPipeline, this model.family takes StableDiffusionXLPipeline"),
        ({"base": "./nowhere"}, "neither a folder nor a hub name"),
        ({"vae": "./nowhere"}, "model.vae './nowhere' is neither a folder"),
        ({"attention": "xformers"}, "model.attention 'xformers' lacks"),
        ({"train": "lora", "lora": LoRA(targets=["to_q", "to_z"])}, "no layer of the denoiser is named 'to_z'"),
    ],
)
def test_what_cannot_be_loaded(folders, changes, says):
    with pytest.raises(ValueError, match=says):
        load_family(Model(**{"family": "sd", "base": str(folders["sd"]), **changes}))


def test_a_unet_has_no_tokens_to_shift_by(tmp_path):
    folder = build("tiny_sd", tmp_path / "flow", prediction="flow")
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).save_pretrained(folder / "scheduler")
    with pytest.raises(ValueError, match="shifts by an image's tokens, and a UNet has none"):
        load_family(Model(family="sd", base=str(folder)))


def test_unknown_preset(tmp_path):
    with pytest.raises(ValueError, match=f"unknown preset 'sd3': use one of {', '.join(PRESETS)}"):
        build("sd3", tmp_path / "x")
