"""One geometry for both sides of a pair, and the pixels that come of it."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from fdpo_fast.config.schema import Data
from fdpo_fast.data import reading
from fdpo_fast.data.decode import Unreadable, decode
from fdpo_fast.data.images import Frame, Geometry, cut, frame, to_vae
from fdpo_fast.data.pairs import Pair, Picture, ReadyLatents, Rejected, kind_of
from fdpo_fast.data.reading import UnreachableError, UnusableError
from tests.helpers.pictures import RED, encoded, jpeg, noisy_jpeg

LIMIT = 1
"""Megapixels."""


def geometry(**options):
    return Geometry(Data(source="x", **{"resolution": 64} | options), 0, 8, 1)


def side(stored):
    return Picture("a side", stored) if isinstance(stored, bytes) else stored


def pair(first, second, id=0):
    return Pair(id, "row 0", "a", side(first), side(second), row=7)


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    content = encoded(image, "PNG", exif=exif)
    turned = decode(content, LIMIT)
    assert turned.size == (2, 4)
    assert turned.getpixel((1, 0)) == (255, 255, 255)
    placed, _ = geometry().place(pair(content, RED))
    assert placed.frame.size[:2] == (4, 2)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_over_white(mode):
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    if mode == "P":
        data = encoded(clear.convert("RGB").convert("P"), "PNG", transparency=0)
    else:
        data = encoded(clear.convert(mode), "PNG")
    assert decode(data, LIMIT).getpixel((0, 0)) == (255, 255, 255)


def test_grayscale_of_any_depth():
    deep = Image.fromarray(np.full((2, 2), 32896, np.uint16))
    for image, gray in ((Image.new("L", (2, 2), 128), 128), (deep, 128), (Image.new("1", (2, 2), 1), 255)):
        assert decode(encoded(image, "PNG"), LIMIT).getpixel((0, 0)) == (gray, gray, gray)


def test_cmyk_and_one_pixel():
    red, green, blue = decode(jpeg((0, 255, 255, 0), "CMYK"), LIMIT).getpixel((0, 0))
    assert red > 200
    assert max(green, blue) < 60
    placed, _ = geometry().place(pair(jpeg("red", size=(1, 1)), RED))
    assert placed.pixels(LIMIT).shape == (3, 64, 64)
    assert placed.frame.size[:2] == (1, 1)


@pytest.mark.parametrize("data", [b"", b"GIF? no", b"P6 32b 32 255\n" + bytes(3072)])
def test_bytes_without_a_header_are_rejected_before_they_are_decoded(data):
    with pytest.raises(Unreadable):
        decode(data, LIMIT)
    rejected = geometry().place(pair(RED, data))
    assert (rejected.place, rejected.row) == ("row 0", 7)
    kind, name, words = rejected.reason.split(": ", 2)
    assert (kind, name) == ("an image does not decode", "a side")
    assert words
    assert [picture.read() for picture in rejected.pictures] == [RED, data]


def test_half_an_image_is_found_where_it_is_decoded():
    whole = noisy_jpeg(0)
    _, placed = geometry().place(pair(RED, whole[: len(whole) // 2 + 300]))
    with pytest.raises(UnusableError, match=r"^an image does not decode: a side: \w"):
        placed.pixels(LIMIT)


def test_an_image_over_the_limit_is_rejected_by_its_header():
    over = geometry(max_megapixels=0.001).place(pair(jpeg("red", size=(10, 10)), jpeg("red", size=(100, 11))))
    assert over.reason.startswith("an image does not decode: a side: it has 0.0011 megapixels, the limit is 0.001")


def test_what_cannot_be_reached_now_is_no_fault_of_the_row(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "PAUSES", (0.0, 0.0))
    gone = Picture("no.jpg", tmp_path / "no.jpg")
    with pytest.raises(UnreachableError, match=r"^row 0: .*no\.jpg cannot be read \(No such file"):
        geometry().place(pair(gone, RED))
    (tmp_path / "folder.jpg").mkdir()
    rejected = geometry().place(pair(Picture("folder.jpg", tmp_path / "folder.jpg"), RED))
    assert rejected.reason == "an image does not decode: folder.jpg: it is no regular file"
    (tmp_path / "no.jpg").write_bytes(RED)
    assert not isinstance(geometry().place(pair(gone, RED)), Rejected)


@given(width=st.integers(1, 90), height=st.integers(1, 90), x=st.floats(0, 1), y=st.floats(0, 1), flip=st.booleans())
def test_a_cut_covers_its_target(width, height, x, y, flip):
    image = Image.new("RGB", (width, height), (10, 200, 30))
    found = frame((height, width), (16, 24), (x, y), flip)
    want = torch.tensor([10, 200, 30], dtype=torch.uint8)[:, None, None].expand(3, 16, 24)
    assert torch.equal(cut(image, found), want)
    original_height, original_width, top, left, target_height, target_width = found.size
    assert (original_height, original_width, target_height, target_width) == (height, width, 16, 24)
    scale = max(16 / height, 24 / width)
    assert 0 <= top <= height * scale - 16 + 1
    assert 0 <= left <= width * scale - 24 + 1


@given(
    size=st.tuples(st.integers(1, 9000), st.integers(1, 9000)),
    target=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    centre=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    flip=st.booleans(),
)
def test_the_box_of_a_frame_is_within_its_image_and_of_its_shape(size, target, centre, flip):
    found = frame(size, target, centre, flip)
    left, top, right, bottom = found.box
    assert -1e-6 <= left < right <= size[1] * (1 + 1e-9)
    assert -1e-6 <= top < bottom <= size[0] * (1 + 1e-9)
    # one of both sides is kept whole, but for what rounding to whole pixels of the result leaves
    assert (right - left) / size[1] > 1 - 1e-9 or (bottom - top) / size[0] > 1 - 1e-9
    assert found.flip == flip
    mirrored = frame(size, target, centre, not flip)
    assert mirrored.box == found.box
    assert mirrored.size[:3] + mirrored.size[4:] == found.size[:3] + found.size[4:]


def test_the_middle_is_what_pillow_fits():
    image = decode(noisy_jpeg(0, (120, 64)), LIMIT)
    found = frame((64, 120), (64, 64), (0.5, 0.5), False)
    fitted = ImageOps.fit(image, (64, 64), method=Image.Resampling.BICUBIC)
    assert torch.equal(cut(image, found).permute(1, 2, 0), torch.from_numpy(np.array(fitted)))
    assert found == Frame((64, 120, 0, 28, 64, 64), (28, 0, 92, 64), False)


def test_a_flip_mirrors_pixels_and_crop():
    content = noisy_jpeg(0, (120, 64))
    image = decode(content, LIMIT)
    plain, mirrored = (frame((64, 120), (64, 64), (0.25, 0.5), flip) for flip in (False, True))
    assert torch.equal(cut(image, plain).flip(2), cut(image, mirrored))
    assert plain.size[3] == 14
    assert mirrored.size[3] == 120 - 64 - 14
    (plainly, _), (flipped, _) = (geometry(flip=share).place(pair(content, RED)) for share in (0.0, 1.0))
    assert torch.equal(plainly.pixels(LIMIT).flip(2), flipped.pixels(LIMIT))
    assert plainly.frame.size == flipped.frame.size  # of the middle
    assert plainly.key != flipped.key


def test_both_sides_share_crop_and_flip():
    data = noisy_jpeg(3, (100, 70))
    seen = set()
    for id in range(12):
        one, other = geometry(crop="random", flip=0.5).place(pair(data, data, id))
        assert torch.equal(one.pixels(LIMIT), other.pixels(LIMIT))
        assert (one.frame, one.key) == (other.frame, other.key)
        seen.add(one.key)
        again, _ = geometry(crop="random", flip=0.5).place(pair(data, data, id))
        assert again.key == one.key  # a function of (seed, id)
    assert len(seen) > 6


def test_each_image_keeps_its_own_original_size():
    one, other = geometry().place(pair(noisy_jpeg(0, (100, 50)), noisy_jpeg(1, (80, 160))))
    assert one.frame.size[:2] == (50, 100)
    assert other.frame.size[:2] == (160, 80)
    assert one.frame.size[4:] == other.frame.size[4:] == (64, 64)
    assert one.key != other.key


def test_ready_latents_pass_through():
    values = np.random.default_rng(0).normal(size=(4, 8, 6)).astype(np.float32)
    one, other = geometry().place(pair(ReadyLatents(values, (480, 640), (1, 2)), ReadyLatents(values, None, (0, 0))))
    assert one.side.values is values
    assert one.frame.size == (480, 640, 1, 2, 64, 48)
    assert other.frame.size == (64, 48, 0, 0, 64, 48)
    assert one.key != other.key
    with pytest.raises(TypeError, match="no pixels"):
        one.pixels(LIMIT)
    short = ReadyLatents(values[:, :4], None, (0, 0))
    rejected = geometry().place(pair(ReadyLatents(values, None, (0, 0)), short))
    assert kind_of(rejected.reason).endswith("differ in shape")
    assert rejected.reason.endswith("(4, 8, 6), (4, 4, 6)")
    assert (rejected.place, rejected.row) == ("row 0", 7)


def test_webp_and_png_bytes_decode():
    for kind in ("PNG", "WEBP"):
        assert decode(encoded(Image.open(io.BytesIO(RED)), kind), LIMIT).size == (24, 16)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_what_a_vae_takes_is_one_on_every_device(device):
    """Divided as numpy divides in float32, where a GPU would rather multiply by an inverse."""
    values = np.arange(256, dtype=np.uint8)
    want = values.astype(np.float32) / np.float32(127.5) - np.float32(1)
    assert torch.equal(to_vae(torch.from_numpy(values).to(device)).cpu(), torch.from_numpy(want))
