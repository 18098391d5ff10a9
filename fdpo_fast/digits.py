"""The embedded default: captions, a tiny but genuine diffusers pipeline, and preference pairs, made on the spot.

No network and no weights are needed. scikit-learn's handwritten digits (8x8 scans, here 32x32) train a VAE, a text
encoder and a UNet in minutes on two cores; pairs are sampled from that base model and ranked by the rule of
`config.DigitsRecipe`. Everything lands in one folder named by the recipe's digest and is made once; a kill costs at
most the last `CHECKPOINT` steps or the last batch of images.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate, mse_loss
from tqdm import tqdm

from fdpo_fast.config import DigitsRecipe
from fdpo_fast.data.files import digest, replacing
from fdpo_fast.data.pickapic import write_pairs

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTIONS = tuple(f"a handwritten {word}" for word in WORDS)
SIZE = 32
CHECKPOINT = 100


def embedded(recipe: DigitsRecipe, cache_dir: str | Path) -> Path:
    """The folder with `pipeline/` (diffusers format) and `pairs.parquet`, made now if it is not there yet."""
    folder = Path(cache_dir).expanduser() / f"digits-{digest(recipe.model_dump())[:12]}"
    if not (folder / "pairs.parquet").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.json").write_text(json.dumps(recipe.model_dump(), indent=2))
        build_pipeline(recipe, folder)
        build_pairs(recipe, folder)
    return folder


# --- the real images and what judges them -----------------------------------------------------------------------


@cache
def scans() -> tuple[Tensor, Tensor]:
    """All 1797 scans as (images [n, 1, 32, 32] in [0, 1], labels [n])."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.tensor(raw.images, dtype=torch.float32)[:, None] / 16
    images = interpolate(images, size=(SIZE, SIZE), mode="bicubic", align_corners=False).clamp(0, 1)
    return images, torch.tensor(raw.target)


@cache
def classifier(name: str):
    """A classifier of real scans: "judge" (an SVM on one half, part of the rule) or "unseen" (an MLP on the other)."""
    from sklearn.neural_network import MLPClassifier
    from sklearn.svm import SVC

    images, labels = scans()
    # Writers change along the data set, so the halves are blocks of it, not alternate rows.
    half = {"judge": slice(0, 900), "unseen": slice(900, None)}[name]
    model = {"judge": SVC(gamma=0.02), "unseen": MLPClassifier((128,), max_iter=300, random_state=0)}[name]
    return model.fit(_features(images[half]), labels[half].numpy())


def _features(images: Tensor) -> np.ndarray:
    """[n, c, 32, 32] in [0, 1] -> [n, 64]: gray 8x8 scans, as the digits were recorded."""
    gray = images.mean(dim=1, keepdim=True)
    return interpolate(gray, size=(8, 8), mode="area").flatten(1).numpy() * 4


def read_digits(images: Tensor, judge: str = "judge") -> Tensor:
    """What the named classifier reads in images [n, c, 32, 32] of [0, 1]: labels [n]."""
    return torch.from_numpy(classifier(judge).predict(_features(images)))


def ink(images: Tensor) -> Tensor:
    """Stroke weight: mean brightness per image, [n] in [0, 1]."""
    return images.flatten(1).mean(dim=1)


def score(images: Tensor, labels: Tensor, recipe: DigitsRecipe) -> Tensor:
    """The noise-free preference score of the rule, [n]."""
    correct = (read_digits(images) == labels).float()
    return recipe.correct_weight * correct + recipe.stroke_weight * ink(images)


# --- the base pipeline ------------------------------------------------------------------------------------------


def build_pipeline(recipe: DigitsRecipe, folder: Path) -> None:
    """Train the VAE, then text encoder and UNet, and save `folder/pipeline`, a StableDiffusionPipeline."""
    if (folder / "pipeline").exists():
        return
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    torch.manual_seed(recipe.seed)  # the initial weights
    vae, text_encoder, unet = _vae(), _text_encoder(), _unet()
    tokenizer = _tokenizer(folder / "tokenizer")
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    images, labels = scans()
    images = images.expand(-1, 3, -1, -1) * 2 - 1

    def vae_loss(generator: torch.Generator) -> Tensor:
        batch = images[torch.randint(len(images), (recipe.batch,), generator=generator)]
        posterior = vae.encode(batch).latent_dist
        return mse_loss(vae.decode(posterior.sample(generator)).sample, batch) + 1e-4 * posterior.kl().mean() / 256

    _fit("vae", folder, nn.ModuleList([vae]), vae_loss, recipe.vae_steps, 2e-3, recipe.seed)

    vae.requires_grad_(False).eval()
    with torch.no_grad():
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(256)])
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    latents *= vae.config.scaling_factor
    tokens = tokenizer([*CAPTIONS, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids

    def unet_loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(latents), (recipe.batch,), generator=generator)
        noise = torch.randn(latents[rows].shape, generator=generator)
        steps = torch.randint(1000, (recipe.batch,), generator=generator)
        dropped = torch.rand(recipe.batch, generator=generator) < 0.1  # for classifier-free guidance
        context = text_encoder(tokens).last_hidden_state[labels[rows].masked_fill(dropped, len(CAPTIONS))]
        noisy = scheduler.add_noise(latents[rows], noise, steps)
        return mse_loss(unet(noisy, steps, context).sample, noise)

    _fit("unet", folder, nn.ModuleList([unet, text_encoder]), unet_loss, recipe.unet_steps, 2e-3, recipe.seed + 1)

    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with replacing(folder / "pipeline") as partial:
        pipeline.save_pretrained(partial)


def _vae() -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
    )


def _unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def _text_encoder() -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=1000,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=16,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


def _tokenizer(folder: Path):
    """A CLIP tokenizer whose merges are learnt from the captions; any other word still encodes, byte by byte."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner.train_from_iterator(
        CAPTIONS, trainers.BpeTrainer(initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False)
    )
    model = json.loads(learner.to_str())["model"]
    pieces = sorted(alphabet) + [f"{byte}</w>" for byte in sorted(alphabet)]
    pieces += sorted(set(model["vocab"]) - set(pieces))
    words = ["<|startoftext|>", "<|endoftext|>", *pieces]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    merges = [" ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=16)


def _fit(
    name: str,
    folder: Path,
    model: nn.Module,
    loss_of: Callable[[torch.Generator], Tensor],
    steps: int,
    lr: float,
    seed: int,
) -> None:
    """AdamW with a one-cycle rate; goes on from `folder/name.pt`. Step i draws from a generator seeded by (seed, i)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    saved, first = folder / f"{name}.pt", 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first = state["step"]
    model.train()
    bar = tqdm(range(first, steps), initial=first, total=steps, desc=f"base pipeline: {name}")
    for step in bar:
        loss = loss_of(torch.Generator().manual_seed(seed * 1_000_003 + step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % CHECKPOINT == 0 or step + 1 == steps:
            bar.set_postfix(loss=f"{loss.item():.4f}")
            with replacing(saved) as partial:
                parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
                torch.save({"step": step + 1, **{key: part.state_dict() for key, part in parts.items()}}, partial)


# --- sampling and pairs -----------------------------------------------------------------------------------------


def draw(pipeline, labels: Tensor, seed: int, *, steps: int, guidance: float, unet: nn.Module | None = None) -> Tensor:
    """Images [n, 3, 32, 32] in [0, 1] for the captions of `labels`; one seed gives any model the same start latents."""
    if unet is not None:
        pipeline.unet = unet
    shape = (len(labels), pipeline.unet.config.in_channels, SIZE // 4, SIZE // 4)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        [CAPTIONS[label] for label in labels.tolist()],
        latents=latents,
        num_inference_steps=steps,
        guidance_scale=guidance,
        output_type="pt",
    ).images
    return images.float().cpu()


def build_pairs(recipe: DigitsRecipe, folder: Path, batch: int = 128) -> None:
    """Sample pairs from the base pipeline, rank them by the rule and write `folder/pairs.parquet`."""
    from diffusers import StableDiffusionPipeline
    from safetensors.torch import load_file, save_file

    pipeline = StableDiffusionPipeline.from_pretrained(folder / "pipeline", safety_checker=None)
    labels = torch.arange(recipe.pairs) % len(CAPTIONS)
    sides: list[list[Tensor]] = [[], []]
    work = [(side, part) for part in range(-(-recipe.pairs // batch)) for side in (0, 1)]
    for side, part in tqdm(work, desc="base pipeline: pairs"):
        saved = folder / f"images-{part:04d}-{side}.safetensors"
        if not saved.exists():
            seed = recipe.seed * 1_000_003 + 2 * part + side
            wanted = labels[part * batch : (part + 1) * batch]
            images = draw(pipeline, wanted, seed, steps=recipe.sampling_steps, guidance=recipe.guidance)
            with replacing(saved) as partial:
                save_file({"images": images}, partial)
        sides[side].append(load_file(saved)["images"])
    images_0, images_1 = (torch.cat(side) for side in sides)
    noise = torch.randn(recipe.pairs, generator=torch.Generator().manual_seed(recipe.seed))
    gap = score(images_0, labels, recipe) - score(images_1, labels, recipe) + recipe.noise * noise
    write_pairs(
        folder / "pairs.parquet",
        captions=[CAPTIONS[label] for label in labels.tolist()],
        jpg_0=[jpeg(image) for image in images_0],
        jpg_1=[jpeg(image) for image in images_1],
        label_0=torch.where(gap.abs() < recipe.tie_below, 0.5, (gap > 0).float()).tolist(),
    )
    for saved in folder.glob("images-*.safetensors"):
        saved.unlink()


def to_pil(image: Tensor) -> Image.Image:
    """[3, h, w] in [0, 1] -> PIL."""
    return Image.fromarray((image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def jpeg(image: Tensor) -> bytes:
    """[3, h, w] in [0, 1] -> JPEG bytes."""
    buffer = io.BytesIO()
    to_pil(image).save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()
