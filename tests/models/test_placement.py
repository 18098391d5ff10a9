"""Where text encoders run: whole, by parts, or some of each, the embeddings are the same; none is left for training."""

import math
import weakref

import pytest
import torch

from fdpo_fast.config.schema import Model
from fdpo_fast.memory.account import GIB
from fdpo_fast.models import family, load_family, placement
from fdpo_fast.models.architecture import read_architecture
from fdpo_fast.models.placement import Held, Size, held, whole
from fdpo_fast.training import policy
from tests.helpers.pictures import as_pickapic, difficult_rows

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CAPTIONS = ["a cat on a table", "", "two dogs"]


@pytest.fixture
def free(monkeypatch):
    """Say how many bytes of the device are free."""
    return lambda size: monkeypatch.setattr(placement, "_free", lambda device: size)


@pytest.fixture
def placed(monkeypatch):
    """The encoders of pipelines that were placed, by component, as weak references."""
    found = []

    def place(components, names, device):
        placement.place(components, names, device)
        found.append({name: weakref.ref(components[name]) for name in names if "encoder" in name})

    monkeypatch.setattr(family, "place", place)
    return found


def by_parts(encoders):
    """Name those whose layers have hooks that send them over."""
    return {name for name, model in encoders.items() if any(hasattr(m, "_diffusers_hook") for m in model().modules())}


def room(base, *names):
    """How much has to be free for these encoders of a pipeline alone to be there whole."""
    sizes = read_architecture(Model(family="sd3", base=str(base))).text_sizes(torch.float32)
    return sum(sizes[name].whole for name in names) / placement.SHARE


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_embeddings_are_the_same_wherever_encoders_run(pipelines, free, placed, name, device):
    made, found = load_family(Model(family=name, base=str(pipelines[name]))), []
    for size in (math.inf, 0):
        free(size)
        encode = made.text_encoder(torch.device(device))
        assert by_parts(placed[-1]) == (set() if size else placed[-1].keys())
        found += [encode(CAPTIONS), encode(CAPTIONS)]
    for other in found[1:]:
        assert all(torch.equal(value, other[key]) for key, value in found[0].items())


@pytest.mark.parametrize("device", DEVICES)
def test_some_are_there_whole_and_the_others_come_by_parts(pipelines, free, placed, device):
    made, device = load_family(Model(family="sd3", base=str(pipelines["sd3"]))), torch.device(device)
    free(math.inf)
    wanted = made.text_encoder(device)(CAPTIONS)
    free(room(pipelines["sd3"], "text_encoder_3") + 1)
    encode = made.text_encoder(device)
    assert by_parts(placed[-1]) == {"text_encoder", "text_encoder_2"}
    assert all(torch.equal(value, wanted[key]) for key, value in encode(CAPTIONS).items())


@pytest.mark.parametrize("device", DEVICES)
def test_pictures_are_the_same_wherever_encoders_run(pipelines, free, device):
    made, drawn = load_family(Model(family="sd3", base=str(pipelines["sd3"]))), []
    for size in (math.inf, 0):
        free(size)
        pipeline = made.sampler(made.denoiser(torch.bfloat16).eval().to(device), torch.device(device))
        options = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "pt"}
        with torch.inference_mode():
            drawn.append(pipeline("a cat", generator=torch.Generator().manual_seed(0), **options).images)
    assert torch.equal(*drawn)
    assert drawn[0].isfinite().all()


def test_the_largest_go_first_while_they_fit():
    sizes = {"small": Size(10, 3), "large": Size(60, 20), "middle": Size(30, 7)}
    for free, names, holds in (
        (150, {"large", "middle", "small"}, Held(100, 0)),
        (148, {"large", "middle"}, Held(96, 10)),
        (105, {"large", "small"}, Held(84, 30)),
        (60, {"middle", "small"}, Held(80, 60)),
        (1, set(), Held(40, 100)),
    ):
        assert whole(sizes, free) == names
        assert held(sizes, free) == holds


def test_the_sizes_of_t5_xxl():
    """The plan's: 16 bits of T5 beside CLIP's 32, T5's table of words its largest part."""
    sizes = read_architecture(Model(family="sd3", base="stabilityai/stable-diffusion-3.5-medium")).text_sizes
    single = sizes(torch.float32)
    assert sum(size.whole for size in single.values()) / GIB == pytest.approx(11.9, abs=0.1)
    assert single["text_encoder_3"] == sizes(torch.bfloat16)["text_encoder_3"]
    assert single["text_encoder_3"].part == 32128 * 4096 * 2
    assert single["text_encoder_2"].whole == 2 * sizes(torch.bfloat16)["text_encoder_2"].whole
    for card, most in ((24, 12), (16, 10), (8, 4), (4, 1.1)):  # all, T5 alone, both of CLIP, the smaller one
        assert 0.8 * most < held(single, (card - 1.7) * GIB).device / GIB < most


@pytest.mark.parametrize("size", [math.inf, 0])
def test_no_encoder_is_left_when_training_begins(tiny_config, launch, tmp_path, monkeypatch, free, placed, size):
    free(size)
    alive, make = [], policy.make

    def making(*words):
        alive.append([name for encoders in placed for name, encoder in encoders.items() if encoder() is not None])
        return make(*words)

    monkeypatch.setattr(policy, "make", making)
    raw = tiny_config("sd3", as_pickapic(tmp_path, difficult_rows()))
    raw["train"]["max_steps"] = 1
    launch(raw)
    assert len(placed) == 1
    assert alive == [[]]
