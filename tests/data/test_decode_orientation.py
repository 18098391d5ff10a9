"""EXIF in any state: pictures come upright, and size and pixels agree."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fdpo_fast.data.decode import TURNS, decode, size_of
from tests.helpers.encoded import NOISE, STRANGE, TURNED, chunk, tiff
from tests.helpers.pictures import encoded


@settings(max_examples=80)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF", "AVIF"]),
    turn=st.integers(0, 9),
    width=st.integers(1, 20),
    height=st.integers(1, 20),
)
def test_size_and_pixels_agree_under_every_orientation(kind, turn, width, height):
    image = NOISE.convert("RGB").resize((width, height))
    block = Image.Exif()
    block[0x0112] = turn
    content = encoded(image, kind, exif=block)
    upright = decode(content, 1)
    assert size_of(content, 1) == (upright.height, upright.width)
    stored = Image.open(io.BytesIO(encoded(image, kind)))
    if kind != "AVIF":  # which takes 0 and 9 to be 1, and turns in its own way
        assert (
            upright.tobytes() == (stored.transpose(TURNS[turn]) if turn in TURNS else stored).convert("RGB").tobytes()
        )
    assert upright.size == ((height, width) if turn in (5, 6, 7, 8) else (width, height))


def with_block(kind, block):
    image = NOISE.convert("RGB")
    if kind == "PNG eXIf":
        content = encoded(image, "PNG")
        return content[:33] + chunk(b"eXIf", block[6:]) + content[33:]
    if kind == "PNG eXIf at the end":
        content = encoded(image, "PNG")
        return content[:-12] + chunk(b"eXIf", block[6:]) + content[-12:]
    return encoded(image, kind, exif=block)


@pytest.mark.parametrize("kind", ["JPEG", "PNG eXIf", "PNG eXIf at the end", "WEBP"])
@pytest.mark.parametrize("name", [*STRANGE, *TURNED])
def test_exif_in_any_state_hurts_nothing(kind, name):
    content = with_block(kind, (STRANGE | TURNED)[name])
    image = decode(content, 1)
    assert size_of(content, 1) == (image.height, image.width)
    assert image.size == ((9, 14) if name in TURNED else (14, 9))
    plain = Image.open(io.BytesIO(encoded(NOISE.convert("RGB"), kind.split()[0]))).convert("RGB")
    assert image.tobytes() == (plain.transpose(TURNS[6]) if name in TURNED else plain).tobytes()


@pytest.mark.parametrize(
    ("tag", "turned"),
    [
        ((274, 3, 1, 6), True),
        ((274, 4, 1, 8), True),
        ((274, 3, 1, 3), False),
        ((274, 3, 1, 99), False),
        ((274, 2, 2, b"6\0"), False),
        ((274, 7, 1, b"\6"), False),
        ((282, 2, 2, b"x\0"), False),
        ((34665, 4, 1, 10**6), False),
        ((700, 1, 4, b"nope"), False),
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation_of_a_tiff(tag, turned, order):
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    content = tiff(values, [tag], order)
    image = decode(content, 1)
    assert image.size == ((3, 4) if turned else (4, 3))
    assert size_of(content, 1) == (image.height, image.width)


def test_orientation_said_in_xmp_alone_is_the_same_for_size_and_pixels():
    said = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    for kind, options in {"JPEG": {"xmp": said}, "WEBP": {"xmp": said}, "TIFF": {"tiffinfo": {700: said}}}.items():
        content = encoded(NOISE.convert("RGB"), kind, **options)
        image = decode(content, 1)
        assert size_of(content, 1) == (image.height, image.width) == (14, 9), kind
