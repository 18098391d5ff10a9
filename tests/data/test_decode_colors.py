"""Profiles, transparency and depth, against formulas."""

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from fdpo_fast.data import decode as module
from fdpo_fast.data.decode import decode, size_of
from tests.helpers.encoded import (
    DEEP,
    NOISE,
    P3,
    RNG,
    cmyk_profile,
    common,
    expected,
    gray_profile,
    icc,
    in_mode,
    matrix_profile,
    near,
    over_white,
    plain,
    png,
    reason,
    srgb,
    tiff,
)
from tests.helpers.pictures import encoded


@pytest.mark.parametrize("version", [2, 4])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "AVIF", "JPEG"])
def test_display_p3_becomes_srgb(kind, version):
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    content = encoded(NOISE.convert("RGB"), kind, icc_profile=matrix_profile(P3, version), **options)
    stored = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    wanted = expected(stored, P3)
    assert abs(wanted - stored).max() > 20
    near(decode(content, 1), wanted)


def test_a_profile_beside_transparency_and_palettes():
    profile, pixels = matrix_profile(P3), np.asarray(NOISE)
    clear = decode(encoded(NOISE, "PNG", icc_profile=profile), 1)
    near(clear, over_white(expected(pixels[..., :3], P3), pixels[..., 3]))
    palette = NOISE.convert("RGB").quantize(16)
    colors = np.asarray(palette.convert("RGB"))
    near(decode(encoded(palette, "PNG", icc_profile=profile), 1), expected(colors, P3))
    alphas = bytes(RNG.integers(0, 256, 16, dtype=np.uint8))
    partly = decode(encoded(palette, "PNG", icc_profile=profile, transparency=alphas), 1)
    near(partly, over_white(expected(colors, P3), np.frombuffer(alphas, np.uint8)[np.asarray(palette)]))
    key = tuple(int(value) for value in pixels[0, 0, :3])
    keyed = decode(encoded(NOISE.convert("RGB"), "PNG", icc_profile=profile, transparency=key), 1)
    near(keyed, over_white(expected(pixels[..., :3], P3), np.where((pixels[..., :3] == key).all(-1), 0, 255)))


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2])
def test_profiles_of_gray(gamma):
    profile = gray_profile(gamma)
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    wanted = srgb((levels / 255.0) ** gamma)
    near(decode(encoded(Image.fromarray(levels), "PNG", icc_profile=profile), 1), wanted[..., None])
    alpha = Image.fromarray(RNG.integers(0, 256, (16, 16), dtype=np.uint8))
    both = Image.merge("LA", (Image.fromarray(levels), alpha))
    near(decode(encoded(both, "PNG", icc_profile=profile), 1), over_white(wanted[..., None], alpha))
    keyed = encoded(Image.fromarray(levels), "PNG", icc_profile=profile, transparency=7)
    near(decode(keyed, 1), over_white(wanted[..., None], np.where(levels == 7, 0, 255)))
    deep = np.arange(0, 65536, 257 // 2, dtype=np.uint16)[:512].reshape(16, 32)
    for content in (
        encoded(Image.fromarray(deep), "PNG", icc_profile=profile),
        encoded(Image.fromarray(deep), "TIFF", icc_profile=profile),
    ):
        near(decode(content, 1), srgb((deep / 65535.0) ** gamma)[..., None])
    pair = np.stack([deep, np.full_like(deep, 65535)], -1).astype(">u2")
    rows = [row.tobytes() for row in pair]
    content = png(32, 16, 16, 4, rows, [(b"iCCP", b"x\0\0" + zlib.compress(profile))])
    near(decode(content, 1), srgb(((deep >> 8) / 255.0) ** gamma)[..., None])


def test_a_profile_of_four_inks():
    image = Image.merge(
        "CMYK", [Image.new("L", (256, 1))] * 3 + [Image.fromarray(np.arange(256, dtype=np.uint8)[None])]
    )
    light = (116.0**-1) * (100 - 40 * np.arange(256) / 255 + 16)
    wanted = srgb(light**3)[None, :, None]
    content = encoded(image, "TIFF", icc_profile=cmyk_profile())
    near(decode(content, 1), wanted)
    assert abs(np.asarray(plain(content), dtype=float) - wanted).max() > 100
    jpeg = encoded(image.resize((256, 8)), "JPEG", icc_profile=cmyk_profile(), quality=100)
    near(decode(jpeg, 1), wanted, 4)


@pytest.mark.parametrize(
    ("mode", "profile"),
    [
        *((mode, content) for mode in ("L", "RGB", "RGBA", "P") for content in (b"", b"no profile", bytes(500))),
        *((mode, matrix_profile(P3)[:n]) for mode in ("RGB", "RGBA") for n in (100, 128, 200, 400)),
        *((mode, matrix_profile(P3)) for mode in ("1", "L", "LA", "CMYK", "I;16")),
        *((mode, gray_profile(1.8)) for mode in ("RGB", "RGBA", "P", "CMYK")),
        *((mode, cmyk_profile()) for mode in ("1", "L", "RGB", "RGBA", "P", "I;16", "LAB", "YCbCr")),
        ("LAB", matrix_profile(P3)),
        ("RGB", icc(common(2), b"RGB ")),
        ("RGB", icc(common(2), b"RGB ", b"nmcl")),
    ],
)
def test_a_profile_that_is_broken_or_does_not_fit_is_none(mode, profile):
    image = DEEP if mode == "I;16" else in_mode(mode)
    with_it, without = (encoded(image, "TIFF", **options) for options in ({"icc_profile": profile}, {}))
    assert decode(with_it, 1).tobytes() == decode(without, 1).tobytes()


def test_threads_share_transforms():
    contents = [encoded(NOISE.convert("RGB"), "PNG", icc_profile=matrix_profile(P3, v)) for v in (2, 4)] * 20
    module._to_srgb.cache_clear()
    alone = [decode(content, 1).tobytes() for content in contents[:2]]
    assert module._to_srgb.cache_info().misses == 2
    with ThreadPoolExecutor(4) as pool:
        assert [image.tobytes() for image in pool.map(lambda content: decode(content, 1), contents)] == alone * 20
    assert module._to_srgb.cache_info().misses == 2


def test_clear_colours_of_every_depth_lie_over_white():
    def pixels(content):
        return np.asarray(decode(content, 1))[0].tolist()

    white, one = [255] * 3, (b"tRNS", b"\0\1")
    assert pixels(png(2, 1, 1, 0, [b"\x80"], [(b"tRNS", b"\0\0")])) == [white, white]
    assert pixels(png(2, 1, 1, 0, [b"\x40"], [one])) == [[0] * 3, white]
    assert pixels(png(4, 1, 2, 0, [bytes([0b00011011])], [one])) == [[0] * 3, white, [170] * 3, white]
    assert pixels(png(4, 1, 4, 0, [b"\x01\x2f"], [one])) == [[0] * 3, white, [34] * 3, white]
    assert pixels(png(3, 1, 8, 0, [b"\0\1\2"], [one])) == [[0] * 3, white, [2] * 3]
    deep = struct.pack(">3H", 0x1234, 0x8080, 0x1235)
    assert pixels(png(3, 1, 16, 0, [deep], [(b"tRNS", b"\x12\x34")])) == [white, [128] * 3, [18] * 3]
    assert pixels(png(2, 1, 8, 2, [b"\1\2\3\4\5\6"], [(b"tRNS", b"\0\1\0\2\0\3")])) == [white, [4, 5, 6]]
    assert pixels(png(2, 1, 16, 2, [deep + b"\x99\0" * 3], [(b"tRNS", deep)])) == [white, [0x99] * 3]
    assert pixels(png(2, 1, 16, 4, [struct.pack(">4H", 0, 0, 0x4000, 65535)])) == [white, [64] * 3]
    palette = [(b"PLTE", b"\1\2\3\4\5\6"), (b"tRNS", b"\0\xff")]
    assert pixels(png(2, 1, 8, 3, [b"\0\1"], palette)) == [white, [4, 5, 6]]


def gray(content):
    values = np.asarray(decode(content, 1))
    assert (values[..., :1] == values).all()
    return values[0, :, 0].tolist()


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_span_sixteen_bits(order):
    values = np.array([0, 255, 257, 32896, 65535], np.uint16)
    assert gray(tiff(values, order=order)) == [0, 1, 1, 128, 255]
    rows = [values.astype(">u2").tobytes()]
    assert gray(png(5, 1, 16, 0, rows)) == gray(b"P5 5 1 65535\n" + rows[0]) == [0, 1, 1, 128, 255]
    assert gray(b"P5 2 1 65535\n\0\0\0\xff") == [0, 1]  # dark, and no 8 bits
    twelve = tiff(np.array([0, 0, 0], np.uint8), [(258, 3, 1, 12), (256, 4, 1, 2), (279, 4, 1, 3)])
    assert gray(twelve[:8] + b"\x80\x0f\xff" + twelve[11:]) == [128, 255]
    wide = DEEP.resize((64, 64))
    for kind in ("PNG", "TIFF", "JPEG2000"):
        near(decode(encoded(wide, kind), 1), np.asarray(wide)[..., None] / 257.0, 0.51)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.array([0, 128, 255], np.int32), [0, 128, 255]),
        (np.array([-7, 0, 200], np.int32), [0, 0, 200]),
        (np.array([0, 256, 65535], np.int32), [0, 1, 255]),
        (np.array([0, 65536, 2**31 - 1], np.int32), [0, 0, 127]),
        (np.array([0, 3, 200], np.int16), [0, 3, 200]),
        (np.array([0, 2**31, 2**32 - 1], np.uint32), [0, 128, 255]),
        (np.array([0, 0.5, 1], np.float32), [0, 128, 255]),
        (np.array([0, 0.2, 0.5], np.float32), [0, 51, 128]),
        (np.array([-1, 128, 255], np.float32), [0, 128, 255]),
        (np.array([0, 32896, 60000], np.float32), [0, 128, 233]),
        (np.array([0, 2**31, 2**32 - 1], np.float32), [0, 128, 255]),
        (np.array([0, 1e30], np.float32), [0, 255]),
        (np.array([-5, -2], np.float32), [0, 0]),
        (np.array([0, 0], np.int32), [0, 0]),
    ],
)
def test_deep_values_span_what_holds_them(values, wanted):
    assert gray(tiff(values)) == wanted
    if values.dtype != np.uint32:  # which Pillow does not read in this order
        assert gray(tiff(values, order=">")) == wanted


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_no_picture(value):
    content = tiff(np.array([0, value, 1], np.float32))
    assert reason(content) == "it has pixels that are not numbers (NaN or infinite)"
    assert size_of(content, 1) == (1, 3)
