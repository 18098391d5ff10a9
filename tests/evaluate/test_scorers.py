"""Every scorer on a fixed tiny model of the published architecture, against its formula computed another way."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import gelu, layer_norm, multi_head_attention_forward

from fdpo_fast.evaluate import weights
from fdpo_fast.evaluate.lpips import Distance
from fdpo_fast.evaluate.scorers import CLIP_MEAN, CLIP_STD, SCORERS, Aesthetic, ImageReward, prepared
from fdpo_fast.models.tokenizer import BEGIN, END, clip_tokenizer

transformers = pytest.importorskip("transformers")

SIDE, WIDTH, HEADS, LAYERS, PATCH, LENGTH, JOINT = 32, 24, 2, 2, 8, 20, 16
PROMPTS = ["a photo of a cat", "an oil painting of a house on a table", "cat"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in PROMPTS]


@pytest.fixture(scope="module")
def pixels(images):
    """The same as a CLIP sees them, by hand."""
    found = torch.stack([torch.tensor(np.array(image)).permute(2, 0, 1) for image in images]) / 255
    return (found - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder of a tiny CLIP with random weights, and the model."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(folder / "words", PROMPTS, LENGTH)
    shape = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": HEADS, "hidden_act": "gelu"}
    shape |= {"num_hidden_layers": LAYERS, "projection_dim": JOINT}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, "bos_token_id": BEGIN, "eos_token_id": END}
    config = transformers.CLIPConfig(
        text_config=shape | text, vision_config=shape | {"image_size": SIDE, "patch_size": PATCH}, projection_dim=JOINT
    )
    model = transformers.CLIPModel(config).eval()
    for parameter in model.parameters():  # its own initial weights are close to zero
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        model.logit_scale.fill_(1.7)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


@pytest.fixture(scope="module")
def cosine(clip, pixels):
    """Of each image and its prompt, from the logits of transformers' own forward."""
    _, model, tokenizer = clip
    tokens = tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=tokens.input_ids, pixel_values=pixels).logits_per_image.diagonal()
    return (logits / math.exp(1.7)).double()


def close(found, expected):
    assert found.shape == (len(PROMPTS),)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("clip", lambda cosine: (100 * cosine).clamp(min=0)),
        ("pickscore", lambda cosine: math.exp(1.7) * cosine),
        ("hpsv2.0", lambda cosine: cosine),
        ("hpsv2.1", lambda cosine: cosine),
    ],
)
def test_contrastive_scorers(clip, images, cosine, name, formula):
    close(SCORERS[name](str(clip[0]), CPU)(images, PROMPTS), formula(cosine))


def open_clip_state(model):
    """Weights of transformers' CLIP in open_clip's names, which the release of HPSv2 has."""
    ours = model.state_dict()
    found = {"logit_scale": ours["logit_scale"], "attn_mask": torch.zeros(1)}
    found["visual.proj"], found["text_projection"] = (
        ours[f"{side}_projection.weight"].T for side in ("visual", "text")
    )
    vision, text = "vision_model.", "text_model."
    found["visual.class_embedding"] = ours[vision + "embeddings.class_embedding"]
    found["visual.positional_embedding"] = ours[vision + "embeddings.position_embedding.weight"]
    found["visual.conv1.weight"] = ours[vision + "embeddings.patch_embedding.weight"]
    found["positional_embedding"] = ours[text + "embeddings.position_embedding.weight"]
    found["token_embedding.weight"] = ours[text + "embeddings.token_embedding.weight"]
    for kind in ("weight", "bias"):
        found[f"visual.ln_pre.{kind}"] = ours[f"{vision}pre_layrnorm.{kind}"]
        found[f"visual.ln_post.{kind}"] = ours[f"{vision}post_layernorm.{kind}"]
        found[f"ln_final.{kind}"] = ours[f"{text}final_layer_norm.{kind}"]
        for to, side in (("visual.transformer", vision), ("transformer", text)):
            for n in range(LAYERS):
                new, old = f"{to}.resblocks.{n}.", f"{side}encoder.layers.{n}."
                qkv = [ours[f"{old}self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
                found[f"{new}attn.in_proj_{kind}"] = torch.cat(qkv)
                found[f"{new}attn.out_proj.{kind}"] = ours[f"{old}self_attn.out_proj.{kind}"]
                found[f"{new}mlp.c_fc.{kind}"] = ours[f"{old}mlp.fc1.{kind}"]
                found[f"{new}mlp.c_proj.{kind}"] = ours[f"{old}mlp.fc2.{kind}"]
                found[f"{new}ln_1.{kind}"] = ours[f"{old}layer_norm1.{kind}"]
                found[f"{new}ln_2.{kind}"] = ours[f"{old}layer_norm2.{kind}"]
    return found


def open_clip_forward(state, pixels, ids):
    """cos of open_clip's two towers, written with torch's own attention."""

    def tower(x, prefix, mask):
        for n in range(LAYERS):
            p = f"{prefix}.resblocks.{n}."

            def norm(x, name, p=p):
                return layer_norm(x, (WIDTH,), state[f"{p}{name}.weight"], state[f"{p}{name}.bias"])

            y = norm(x, "ln_1").transpose(0, 1)
            weights = [state[f"{p}attn.{name}"] for name in ("in_proj_weight", "in_proj_bias")]
            out = [state[f"{p}attn.out_proj.{kind}"] for kind in ("weight", "bias")]
            y, _ = multi_head_attention_forward(
                y, y, y, WIDTH, HEADS, *weights, None, None, False, 0.0, *out, attn_mask=mask, need_weights=False
            )
            x = x + y.transpose(0, 1)
            y = gelu(norm(x, "ln_2") @ state[f"{p}mlp.c_fc.weight"].T + state[f"{p}mlp.c_fc.bias"])
            x = x + y @ state[f"{p}mlp.c_proj.weight"].T + state[f"{p}mlp.c_proj.bias"]
        return x

    def norm(x, name):
        return layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"])

    x = torch.nn.functional.conv2d(pixels, state["visual.conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    x = torch.cat([state["visual.class_embedding"].expand(len(x), 1, -1), x], dim=1)
    x = tower(norm(x + state["visual.positional_embedding"], "visual.ln_pre"), "visual.transformer", None)
    image = norm(x[:, 0], "visual.ln_post") @ state["visual.proj"]
    mask = torch.full((LENGTH, LENGTH), -math.inf).triu(1)
    x = norm(
        tower(state["token_embedding.weight"][ids] + state["positional_embedding"], "transformer", mask), "ln_final"
    )
    text = x[range(len(ids)), (ids == END).int().argmax(dim=1)] @ state["text_projection"]
    return torch.cosine_similarity(image, text).double()


def test_hps_reads_the_weights_of_open_clip(clip, images, pixels, tmp_path):
    _, model, tokenizer = clip
    state = {name: tensor.clone() for name, tensor in open_clip_state(model).items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "HPS_v2.1_compressed.pt")
    model.config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    tokens = tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    expected = open_clip_forward(state, pixels, tokens.input_ids)
    close(SCORERS["hpsv2.1"](str(tmp_path), CPU)(images, PROMPTS), expected)
    with pytest.raises(ValueError, match="the weights lack"):
        weights.assign(transformers.CLIPModel(model.config), {})


def test_aesthetic(clip, images, pixels, tmp_path):
    """LAION's head: linear layers with dropout, and nothing else, between them."""
    from safetensors.torch import save_file

    _, model, tokenizer = clip
    sizes = [JOINT, 12, 8, 4, 2, 1]
    head = torch.nn.Sequential()
    for n, (a, b) in enumerate(pairwise(sizes)):
        head.add_module(str(2 * n if n < 3 else n + 3), torch.nn.Linear(a, b))  # 0, 2, 4, 6, 7 as in the release
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    save_file({f"layers.{name}": tensor for name, tensor in head.state_dict().items()}, tmp_path / "head.safetensors")
    with torch.no_grad():
        features = model.get_image_features(pixel_values=pixels)
        features = getattr(features, "pooler_output", features)
        expected = head(features / features.norm(dim=-1, keepdim=True))[:, 0].double()
    close(Aesthetic(str(tmp_path), CPU)(images, PROMPTS), expected)


def blip_authors_names(name):
    """From transformers' names back to BLIP's, which ImageReward's release has."""
    for new, old in (
        ("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
        ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
        ("vision_model.embeddings.patch_embedding", "visual_encoder.patch_embed.proj"),
        ("vision_model.post_layernorm", "visual_encoder.norm"),
        ("vision_model.encoder.layers", "visual_encoder.blocks"),
        ("self_attn.projection", "attn.proj"),
        ("self_attn.qkv", "attn.qkv"),
        ("layer_norm1", "norm1"),
        ("layer_norm2", "norm2"),
    ):
        name = name.replace(new, old)
    return name


def test_image_reward(images, pixels, tmp_path):
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for p in PROMPTS for word in p.split()})]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizer.from_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    shape = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": HEADS}
    config = transformers.BlipConfig(
        text_config=shape
        | {"num_hidden_layers": LAYERS, "vocab_size": len(words), "encoder_hidden_size": WIDTH, "hidden_act": "gelu"},
        vision_config=shape | {"num_hidden_layers": LAYERS, "image_size": SIDE, "patch_size": PATCH},
    )
    blip = transformers.BlipForImageTextRetrieval(config).eval()
    for parameter in blip.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    config.save_pretrained(tmp_path)
    head = torch.nn.Sequential(*[torch.nn.Linear(a, b) for a, b in ((WIDTH, 8), (8, 4), (4, 1))])
    numbers = {"0": "0", "1": "2", "2": "4"}
    state = {f"blip.{blip_authors_names(name)}": tensor for name, tensor in blip.state_dict().items()}
    state |= {f"mlp.layers.{numbers[n[0]]}.{n[2:]}": tensor for n, tensor in head.state_dict().items()}
    torch.save(state, tmp_path / "ImageReward.pt")
    tokens = tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    with torch.no_grad():
        seen = blip.vision_model(pixel_values=pixels)[0]
        text = blip.text_encoder(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2]),
        )[0]
        reward = head(text[:, 0, :])[:, 0]
    expected = ((reward - 0.16717362830052426) / 1.0333394966054072).double()
    close(ImageReward(str(tmp_path), CPU)(images, PROMPTS), expected)
    assert expected.std() > 1e-3  # it depends on the input


def test_lpips(images, tmp_path):
    """Against torchvision's AlexNet and the formula of the paper, written with plain modules."""
    from torch import nn

    torch.manual_seed(0)
    plain = nn.Sequential(
        *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    )
    torch.save({f"features.{name}": t for name, t in plain.state_dict().items()}, tmp_path / "alexnet.pth")
    linear = [torch.rand(1, width, 1, 1) for width in (64, 192, 384, 256, 256)]
    torch.save({f"lin{n}.model.1.weight": weight for n, weight in enumerate(linear)}, tmp_path / "lpips.pth")
    larger = [image.resize((96, 64)) for image in images]
    x = torch.stack([torch.tensor(np.array(image)).permute(2, 0, 1) for image in larger]) / 127.5 - 1
    x = (x - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    total, after = 0, iter(linear)
    with torch.no_grad():
        for layer in plain:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                unit = x / (x.pow(2).sum(dim=1, keepdim=True).sqrt() + 1e-10)
                total = total + ((unit[0] - unit[1]) ** 2 * next(after)[0]).sum(dim=0).mean()
    distance = Distance(str(tmp_path), CPU)
    layers = distance.features(larger)
    found = distance.between(layers, torch.tensor([0, 0]), torch.tensor([1, 0]))
    torch.testing.assert_close(found, torch.stack([total, torch.zeros(())]).double(), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="lpips"):
        Distance("", CPU)


@pytest.mark.parametrize("size", [(224, 224), (300, 224), (100, 171), (640, 480)])
def test_images_are_prepared_as_clip_does(size):
    """The published pre-processing: shorter side by bicubic, middle square, normalised; here from Pillow alone."""
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    found = prepared([image], 224)
    assert found.shape == (1, 3, 224, 224)
    short = min(size)
    scaled = image.resize([round(side * 224 / short) for side in size], Image.Resampling.BICUBIC)
    left, top = ((side - 224) // 2 for side in scaled.size)
    pixels = np.asarray(scaled)[top : top + 224, left : left + 224] / 255
    expected = (pixels - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    np.testing.assert_allclose(found[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_what_cannot_be_loaded(tmp_path):
    with pytest.raises(ValueError, match="no file here"):
        weights.file_of("nowhere")
    (tmp_path / "bad.pt").write_bytes(b"not a pickle")
    with pytest.raises(ValueError, match="no state dict"):
        weights.read(tmp_path / "bad.pt")

    class Evil:
        def __reduce__(self):
            return (print, ("unpickled",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="no state dict"):
        weights.read(tmp_path / "evil.pt")
