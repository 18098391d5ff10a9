"""Bytes of every kind: what is decoded as Pillow does, within which limits, and what is said of the rest."""

import contextlib
import gzip
import logging
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from fdpo_fast.data import decode as module
from fdpo_fast.data.decode import SUFFIXES, Unreadable, decode, size_of
from tests.helpers.encoded import (
    MODES,
    NOISE,
    P3,
    STRANGE,
    exif,
    in_mode,
    matrix_profile,
    orientation,
    plain,
    png,
    reason,
    tiff,
)
from tests.helpers.pictures import RED, encoded


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_without_a_profile_pixels_are_those_of_pillow(kind, mode):
    content = encoded(in_mode(mode), kind)
    image = decode(content, 1)
    assert image.mode == "RGB"
    assert image.tobytes() == plain(content).tobytes()
    assert size_of(content, 1) == (9, 14)
    for cut in {*range(0, len(content), max(1, len(content) // 40)), len(content) - 1}:
        with contextlib.suppress(Unreadable):
            assert decode(content[:cut], 1).tobytes() == image.tobytes()  # all that is missing is an end mark


@pytest.mark.parametrize("kind", MODES)
def test_half_a_picture_is_none(kind):
    content = encoded(in_mode("RGB"), kind)
    assert reason(content[: len(content) // 2])


def test_one_pixel_and_the_first_frame():
    assert decode(encoded(Image.new("RGB", (1, 1), "red"), "PNG"), 1).getpixel((0, 0)) == (255, 0, 0)
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "lime", "blue")]
    for kind, lossless in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
        assert decode(content, 1).getcolors() == [(48, (255, 0, 0))], kind
        assert size_of(content, 1) == (6, 8)


def test_nothing_is_left_to_be_applied_twice():
    content = encoded(NOISE.convert("RGB"), "JPEG", exif=exif(orientation(6)), icc_profile=matrix_profile(P3))
    again = encoded(image := decode(content, 1), "PNG")
    assert decode(again, 1).tobytes() == image.tobytes()


def test_the_limit_names_its_key_before_a_pixel_is_decoded():
    huge = png(20000, 20000, 8, 2, [b""])
    for read in (decode, size_of):
        with pytest.raises(Unreadable) as caught:
            read(huge, 256)
        assert str(caught.value) == "it has 400 megapixels, the limit is 256: raise data.max_megapixels"
    assert size_of(png(14000, 14000, 8, 2, [b""]), 256) == (14000, 14000)
    assert size_of(huge, 400) == (20000, 20000)
    content = encoded(NOISE, "PNG")
    assert decode(content, 126e-6).size == (14, 9)
    assert "0.000126 megapixels, the limit is 0.000125:" in reason(content, 125e-6)


def test_settings_of_others_do_not_matter(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode(encoded(NOISE, "PNG"), 1).size == (14, 9)
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    assert reason(encoded(NOISE.convert("RGB"), "JPEG")[:-20])
    monkeypatch.setattr("PIL.PngImagePlugin.MAX_TEXT_CHUNK", 10)
    assert decode(png(1, 1, 8, 0, [b"\7"], [(b"zTXt", b"a\0\0" + zlib.compress(bytes(100)))]), 1)


@pytest.mark.parametrize("size", [2**20 + 1, 2**26])
def test_long_words_in_a_png(size):
    words = zlib.compress(b"x" * size)
    chunks = [(b"zTXt", b"a\0\0" + words), (b"iTXt", b"b\0\1\0\0\0" + words), (b"iCCP", b"c\0\0" + words)]
    for where in ({"before": chunks}, {"after": chunks[:2]}):
        content = png(1, 1, 8, 0, [b"\7"], **where)
        assert decode(content, 1).getpixel((0, 0)) == (7, 7, 7)
        assert size_of(content, 1) == (1, 1)


def test_a_lack_of_memory_is_no_fault_of_the_bytes(monkeypatch):
    def load(self):
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(MemoryError):
        decode(encoded(NOISE, "PNG"), 1)


@pytest.mark.parametrize("error", [ZeroDivisionError, AttributeError("a"), KeyError(5), OSError("b <io at 0xAF> c\nd")])
def test_whatever_a_decoder_raises_is_said_in_one_line(monkeypatch, error):
    def load(self):
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    said = reason(encoded(NOISE, "PNG"))
    assert said in {"ZeroDivisionError", "a", "KeyError: 5", "b c d"}


def test_nothing_is_printed_and_filters_stay(capfd, recwarn):
    noisy = [
        encoded(in_mode("P"), "PNG", transparency=3),
        encoded(in_mode("P"), "PNG", transparency=bytes(range(256))),
        encoded(NOISE.convert("RGB"), "JPEG", exif=STRANGE["orientation far away"]),
        encoded(NOISE.convert("RGB"), "JPEG")[:300],
        tiff(np.zeros((2, 2), np.uint8), [(282, 5, 9, 10**6), (277, 3, 1, 9)]),
        png(14000, 14000, 8, 2, [b""]),
        *(encoded(NOISE.convert("RGB"), "JPEG", exif=block) for block in STRANGE.values()),
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error")
        before = None
        for content in noisy:
            with contextlib.suppress(Unreadable):
                decode(content, 256 if len(content) > 200 else 100)
            before = before or list(warnings.filters)
        assert warnings.filters == before
        with pytest.raises(UserWarning):
            warnings.warn("ours", stacklevel=1)
    assert not caught
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("PIL").handlers)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html></html>", "it is a web page or text"),
        (b"\n <?xml version='1.0'?><svg/>", "it is a web page or text"),
        (b"\xef\xbb\xbf<html>", "it is a web page or text"),
        (b'{"error": "not found"}', "it is a web page or text"),
        ("größe ✓ 猫\n".encode() * 100, "it is a web page or text"),
        (b"404", "it is a web page or text"),
        (b"%PDF-1.7\n\x80", "it is a PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "it is a PDF or PostScript"),
        (b"8BPS\0\1" + bytes(40), "it is a Photoshop document"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "it is a film (MP4 or alike)"),
        (b"\x1aE\xdf\xa3\1\0\0", "it is a film"),
        (gzip.compress(RED), "it is compressed"),
        (b"PK\3\4" + bytes(40), "it is an archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a Git LFS pointer: fetch the file"),
        (bytes(100), "cannot identify image file"),
        (b"\x80\x81\x82\x83" * 9, "cannot identify image file"),
        (b"\x89PNG\r\n\x1a\n" + b"\xff" * 40, "broken PNG file"),
        (b"\xff\xd8\xff", ""),
        (b"GIF89a", ""),
        (b"P6 32b 32 255\n" + bytes(3072), "invalid literal"),
        (png(0, 5, 8, 0, [b""]), ""),
        (png(5, 0, 8, 0, [b""]), ""),
        (b"P5 0 4 255\n", ""),
        (tiff(np.zeros((2, 2), np.uint8), [(256, 4, 1, 0)]), ""),
    ],
)
def test_bytes_that_are_no_picture(content, said):
    assert reason(content).startswith(said)
    with pytest.raises(Unreadable):
        size_of(content, 1)


@pytest.fixture
def alone(monkeypatch):
    """Pillow without the decoders that other packages, or its own build, may lack."""
    Image.init()
    for name in ("pillow_heif", "pillow_heif.HeifImagePlugin", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("HEIF", "JXL"):
        monkeypatch.delitem(Image.OPEN, name, raising=False)
    monkeypatch.setattr("PIL.features.check", lambda feature: False)
    module._formats.cache_clear()
    yield
    module._formats.cache_clear()


@pytest.mark.parametrize("brand", ["heic", "heix", "mif1", "hevc"])
def test_heic_names_its_package(alone, brand):
    content = b"\0\0\0\x18ftyp" + brand.encode() + bytes(8)
    assert reason(content) == "it is HEIC, which needs the package pillow-heif"


@pytest.mark.parametrize("content", [b"\xff\x0a\xfa", b"\0\0\0\x0cJXL \r\n\x87\n"])
def test_jpeg_xl_names_its_package(alone, content):
    assert reason(content) == "it is JPEG XL, which needs the package pillow-jxl-plugin"


def test_avif_names_what_reads_it(alone, monkeypatch):
    content = encoded(NOISE, "PNG")
    assert decode(content, 1)
    assert reason(b"\0\0\0\x1cftypavif\0\0\0\0").startswith("it is AVIF, which needs Pillow 11.3")


@pytest.mark.parametrize(("package", "kind"), [("pillow_heif", "HEIF"), ("pillow_jxl", "JXL")])
def test_packages_that_are_there_are_used(package, kind):
    pytest.importorskip(package)
    module._formats.cache_clear()
    decode(RED, 1)  # registers what is there
    content = encoded(NOISE.convert("RGB").resize((64, 48)), kind)
    assert decode(content, 1).size == (64, 48)
    assert size_of(content, 1) == (48, 64)
    assert "needs" not in reason(content[: len(content) // 2])


def test_suffixes_are_those_of_raster_pictures():
    assert {".jpg", ".jpeg", ".png", ".webp", ".heic", ".jxl", ".avif", ".tif", ".qoi"} <= SUFFIXES
    assert not {".pdf", ".psd", ".eps", ".svg", ".nef", ".cr2", ".dng", ".mp4", ".txt", ".json", ".npz"} & SUFFIXES
    Image.init()
    kinds = {Image.EXTENSION.get(suffix) for suffix in SUFFIXES}
    assert kinds <= {*module.FORMATS, "MPO", None}
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in SUFFIXES)
