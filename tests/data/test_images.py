"""Decoding whatever is in the files, and one geometry for both sides of a pair."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from fdpo_fast.config.schema import Data
from fdpo_fast.data.images import UNREADABLE, Geometry, cut, decode, to_vae
from fdpo_fast.data.pairs import Pair, ReadyLatents, Rejected
from tests.helpers.pictures import RED, encoded, jpeg, noisy_jpeg


def geometry(**options):
    return Geometry(Data(source="x", **{"resolution": 64} | options), 0, 8, 1)


def pair(first, second, id=0):
    return Pair(id, "row 0", "a", first, second)


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    turned = decode(encoded(image, "PNG", exif=exif))
    assert turned.size == (2, 4)
    assert turned.getpixel((1, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_over_white(mode):
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    if mode == "P":
        data = encoded(clear.convert("RGB").convert("P"), "PNG", transparency=0)
    else:
        data = encoded(clear.convert(mode), "PNG")
    assert decode(data).getpixel((0, 0)) == (255, 255, 255)


def test_grayscale_of_any_depth():
    assert decode(encoded(Image.new("L", (2, 2), 128), "PNG")).getpixel((0, 0)) == (128, 128, 128)
    deep = Image.fromarray(np.full((2, 2), 32896, np.uint16))
    assert decode(encoded(deep, "PNG")).getpixel((0, 0)) == (128, 128, 128)
    assert decode(encoded(Image.new("1", (2, 2), 1), "PNG")).getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_and_one_pixel():
    red, green, blue = decode(jpeg((0, 255, 255, 0), "CMYK")).getpixel((0, 0))
    assert red > 200
    assert max(green, blue) < 60
    placed, _ = geometry().place(pair(jpeg("red", size=(1, 1)), RED))
    assert placed.pixels.shape == (3, 64, 64)
    assert placed.size[:2] == (1, 1)


@pytest.mark.parametrize("data", [RED[: len(RED) // 2], b"", b"GIF? no"])
def test_broken_bytes_are_rejected(data):
    with pytest.raises(UNREADABLE):
        decode(data)
    assert geometry().place(pair(RED, data)) == Rejected("row 0", "an image does not decode")


def test_missing_file_is_rejected(tmp_path):
    assert geometry().place(pair(tmp_path / "no.jpg", RED)) == Rejected("row 0", "an image is missing")


@given(width=st.integers(1, 90), height=st.integers(1, 90), x=st.floats(0, 1), y=st.floats(0, 1), flip=st.booleans())
def test_a_cut_covers_its_target(width, height, x, y, flip):
    image = Image.new("RGB", (width, height), (10, 200, 30))
    placed = cut(image, (16, 24), (x, y), flip)
    assert torch.equal(placed.pixels, torch.tensor([10, 200, 30], dtype=torch.uint8)[:, None, None].expand(3, 16, 24))
    original_height, original_width, top, left, target_height, target_width = placed.size
    assert (original_height, original_width, target_height, target_width) == (height, width, 16, 24)
    scale = max(16 / height, 24 / width)
    assert 0 <= top <= height * scale - 16 + 1
    assert 0 <= left <= width * scale - 24 + 1


def test_the_middle_is_what_pillow_fits():
    image = decode(noisy_jpeg(0, (120, 64)))
    ours = cut(image, (64, 64), (0.5, 0.5), False)
    fitted = ImageOps.fit(image, (64, 64), method=Image.Resampling.BICUBIC)
    assert torch.equal(ours.pixels.permute(1, 2, 0), torch.from_numpy(np.array(fitted)))
    assert ours.size == (64, 120, 0, 28, 64, 64)


def test_a_flip_mirrors_pixels_and_crop():
    image = decode(noisy_jpeg(0, (120, 64)))
    plain, mirrored = (cut(image, (64, 64), (0.25, 0.5), flip) for flip in (False, True))
    assert torch.equal(plain.pixels.flip(2), mirrored.pixels)
    assert plain.size[3] == 14
    assert mirrored.size[3] == 120 - 64 - 14
    assert plain.key != mirrored.key


def test_both_sides_share_crop_and_flip():
    data = noisy_jpeg(3, (100, 70))
    seen = set()
    for id in range(12):
        one, other = geometry(crop="random", flip=0.5).place(pair(data, data, id))
        assert torch.equal(one.pixels, other.pixels)
        assert one.size == other.size
        seen.add(one.key)
        again, _ = geometry(crop="random", flip=0.5).place(pair(data, data, id))
        assert again.key == one.key  # a function of (seed, id)
    assert len(seen) > 6


def test_each_image_keeps_its_own_original_size():
    one, other = geometry().place(pair(noisy_jpeg(0, (100, 50)), noisy_jpeg(1, (80, 160))))
    assert one.size[:2] == (50, 100)
    assert other.size[:2] == (160, 80)
    assert one.size[4:] == other.size[4:] == (64, 64)


def test_buckets_keep_the_aspect_ratio_of_the_pair():
    buckets = geometry(buckets=True, bucket_step=8)
    assert (64, 64) in buckets.sizes()
    assert all(height * width <= 64 * 64 for height, width in buckets.sizes())
    one, other = buckets.place(pair(noisy_jpeg(0, (160, 80)), noisy_jpeg(1, (80, 80))))
    assert one.size[4:] == other.size[4:]
    height, width = one.size[4:]
    assert width / height == pytest.approx(2, rel=0.2)
    assert height * width > 0.8 * 64 * 64


def test_a_size_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"data.resolution 100 is not a multiple of 64.*take 128"):
        Geometry(Data(source="x", resolution=100), 0, 8, 8)
    with pytest.raises(ValueError, match=r"data.bucket_step 32 is not a multiple of 64"):
        Geometry(Data(source="x", resolution=100, buckets=True, bucket_step=32), 0, 8, 8)


def test_ready_latents_pass_through():
    values = np.random.default_rng(0).normal(size=(4, 8, 6)).astype(np.float32)
    one, other = geometry().place(pair(ReadyLatents(values, (480, 640), (1, 2)), ReadyLatents(values, None, (0, 0))))
    assert torch.equal(one.latents, torch.from_numpy(values))
    assert one.size == (480, 640, 1, 2, 64, 48)
    assert other.size == (64, 48, 0, 0, 64, 48)
    short = ReadyLatents(values[:, :4], None, (0, 0))
    assert geometry().place(pair(ReadyLatents(values, None, (0, 0)), short)).reason.endswith("differ in shape")


def test_webp_and_png_bytes_decode():
    for kind in ("PNG", "WEBP"):
        assert decode(encoded(Image.open(io.BytesIO(RED)), kind)).size == (24, 16)


def test_what_an_image_library_calls_a_wrong_value_refuses_the_row(tmp_path):
    broken = tmp_path / "w.png"
    broken.write_bytes(b"P6 32b 32 255\n" + bytes(3072))
    assert isinstance(geometry().place(pair(broken, RED)), Rejected)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_what_a_vae_takes_is_one_on_every_device(device):
    """Divided as numpy divides in float32, where a GPU would rather multiply by an inverse."""
    values = np.arange(256, dtype=np.uint8)
    want = values.astype(np.float32) / np.float32(127.5) - np.float32(1)
    assert torch.equal(to_vae(torch.from_numpy(values).to(device)).cpu(), torch.from_numpy(want))
