"""Bytes of any picture to 8-bit RGB in sRGB, upright, or one line that says why they are no picture."""

from __future__ import annotations

import importlib
import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from logging import NullHandler, getLogger
from typing import NoReturn

import numpy as np
from PIL import Image, ImageCms, ImageFile, PngImagePlugin, UnidentifiedImageError, features
from PIL.TiffImagePlugin import TiffImageFile

FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "AVIF", "HEIF", "JXL", "JPEG2000", "PPM", "QOI"),
    *("DDS", "SGI", "SUN", "TGA"),
)
"""Decoders of raster pictures, as PIL names them; TGA, which has no mark to be known by, is asked last."""

PLUGINS = ("pillow_heif.HeifImagePlugin", "pillow_jxl")
"""Modules of other packages that add a decoder when they are imported."""

SUFFIXES = frozenset(map(".{}".format, [
    *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "gif", "tif", "tiff", "bmp", "dib", "avif", "avifs"),
    *("heic", "heif", "heics", "heifs", "hif", "jxl", "jp2", "j2k", "j2c", "jpc", "jpf", "jpx", "ppm", "pgm", "pbm"),
    *("pnm", "pfm", "qoi", "dds", "sgi", "ras", "tga"),
]))  # fmt: skip
"""Suffixes, in lower case, of the files that are taken for pictures."""

SIGNS = (
    (rb"\Z", "it is empty", ""),
    (rb".{4}ftyp(hei|hev|mif1|msf1)", "it is HEIC, which needs the package pillow-heif", "HEIF"),
    (rb".{4}ftypavi[fs]", "it is AVIF, which needs Pillow 11.3 or newer, built with libavif", "AVIF"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "it is JPEG XL, which needs the package pillow-jxl-plugin", "JXL"),
    (rb".{4}(ftyp(?!hei|hev|mif1|msf1|avi)|moov|mdat)", "it is a film (MP4 or alike), not an image", ""),
    (rb"RIFF.{4}AVI |\x1aE\xdf\xa3|FLV\x01|\0\0\x01[\xb3\xba]", "it is a film, not an image", ""),
    (rb"%PDF|%!PS", "it is a PDF or PostScript, not an image", ""),
    (rb"8BP[SB]", "it is a Photoshop document (PSD), not an image", ""),
    (rb"PK(\x03\x04|\x05\x06)|7z\xbc\xaf|Rar!|.{257}ustar", "it is an archive, not an image", ""),
    (rb"\x1f\x8b|BZh[1-9]|\xfd7zXZ\0|\x28\xb5\x2f\xfd", "it is compressed (gzip or alike), not an image", ""),
    (rb"version https://git-lfs", "it is a Git LFS pointer: fetch the file", ""),
)
"""What bytes that are no picture look like, and the decoder that would read them, where there is one."""
TEXT = re.compile(rb"(\xef\xbb\xbf)?\s*<[!?a-zA-Z]|([\t-\r -~]|[\xc2-\xf4][\x80-\xbf]{1,3})+(\Z|(?<=.{99}))", re.DOTALL)

_HOW = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
TURNS = {turn: Image.Transpose[name] for turn, name in enumerate(_HOW.split(), start=2)}
"""What sets a picture upright by EXIF's orientation."""
GRAY = {"1", "L", "LA", "La"}
SPACES = {"L": "GRAY", "I;16": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # of a profile that fits a mode
LEVELS = {"L": np.uint8, "I;16": np.uint16}
SPANS = {
    "I;12": (4095,),
    "F": (1, 255, 65535, 2**32 - 1),
    **dict.fromkeys(("I;16S", "I;16BS", "I;32S", "I;32BS", "I;32N"), (255, 65535, 2**32 - 1)),
}
"""What white may be, by packing or mode: the first that holds the brightest pixel; 65535 in others."""
KEYS = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}  # PIL scales these pixels to 8 bits, but not the clear colour
QUIET = ("ignore", None, Warning, re.compile(r"PIL\.|pillow_"), 0)

getLogger("PIL").addHandler(NullHandler())  # else what it logs is printed where an application logs nothing


class Unreadable(ValueError):  # noqa: N818 - said of the bytes
    """The bytes are no picture that can be used; one line says why."""


def size_of(content: bytes, megapixels: float) -> tuple[int, int]:
    """Read the height and width of the upright picture from its header, without decoding a pixel."""
    with _about_bytes():
        return _open(content, megapixels)[2]


def decode(content: bytes, megapixels: float) -> Image.Image:
    """Decode a picture, the first where there are several: upright 8-bit RGB in sRGB, clear parts over white."""
    with _about_bytes():
        file, turn, size = _open(content, megapixels)
        packed = file.tile[0][3] if file.tile else ""  # how pixels lie in the file, forgotten once they are decoded
        packing = str(packed[0] if isinstance(packed, tuple) and packed else packed)
        file.load()
        image = _flat(file, packing)
        if turn in TURNS:
            image = image.transpose(TURNS[turn])
        if (image.height, image.width) != size:
            raise Unreadable(f"its header says {size[1]} x {size[0]}, its pixels are {image.width} x {image.height}")
        image.info = {}  # a profile or an orientation left there would be applied once more by whoever saves it
        return image


@contextmanager
def _about_bytes() -> Iterator[None]:
    """Raise as Unreadable what a decoder raises: of bytes in memory, all but a lack of memory is their fault."""
    try:
        yield
    except (Unreadable, MemoryError):
        raise
    except Exception as error:
        words = " ".join(re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "", str(error)).split())
        unclear = not words or isinstance(error, LookupError)
        raise Unreadable(f"{type(error).__name__}: {words}".rstrip(": ") if unclear else words) from error


@cache
def _formats() -> tuple[str, ...]:
    """List the decoders that are installed, those of other packages among them."""
    Image.init()
    for name in PLUGINS:
        with suppress(ImportError, OSError):
            importlib.import_module(name)
    lacking = set() if features.check("avif") else {"AVIF"}
    return tuple(name for name in FORMATS if name in Image.OPEN and name not in lacking)


def _open(content: bytes, megapixels: float) -> tuple[ImageFile.ImageFile, int, tuple[int, int]]:
    """Open a picture of a size within the limit: undecoded, with the turn it needs and its upright height and width."""
    if warnings.filters[:1] != [QUIET]:  # added once and left: to take it back would race with other threads
        warnings.filterwarnings("ignore", module=QUIET[3].pattern)
    # others in the process may have set these; every call sets them to the same
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
    PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = 2**26, 2**28
    try:
        image = Image.open(io.BytesIO(content), formats=_formats())
    except UnidentifiedImageError:
        _refuse(content)
    # PIL has turned the size of a TIFF already or not, depending on its version and on where the turn is said
    width, height = (image.tag_v2[tag] for tag in (256, 257)) if isinstance(image, TiffImageFile) else image.size
    if width * height > megapixels * 1e6:
        raise Unreadable(
            f"it has {width * height / 1e6:.9g} megapixels, the limit is {megapixels:.9g}: raise data.max_megapixels"
        )
    turn = _turn(image, content)
    size = (width, height) if turn in (5, 6, 7, 8) else (height, width)
    return image, 1 if isinstance(image, TiffImageFile) else turn, size  # a TIFF is turned when it is decoded


def _refuse(content: bytes) -> NoReturn:
    """Say what bytes look like that no decoder takes, or what the decoder says whose mark they bear."""
    for pattern, words, decoder in SIGNS:
        if re.match(pattern, content, re.DOTALL) and decoder not in _formats():
            raise Unreadable(words)
    for factory, accept in (Image.OPEN[name] for name in _formats()):
        if accept and accept(content[:16].ljust(16, b"\0")) is True:
            factory(io.BytesIO(content), "")
    raise Unreadable(
        "it is a web page or text, not an image" if TEXT.match(content[:999]) else "cannot identify image file"
    )


def _turn(image: Image.Image, content: bytes) -> int:
    """Read the orientation, whatever state its block is in: 1 where it says nothing that makes sense."""
    if image.format in {"HEIF", "JXL"}:  # their decoders have turned it
        return 1
    with suppress(Exception):
        if image.format == "PNG":
            image = Image.open(io.BytesIO(_words_of_png(content)), formats=["PNG"])
        orientation = Image.Image.getexif(image).get(0x0112)
        return int(orientation) if orientation in TURNS else 1
    return 1


def _words_of_png(content: bytes) -> bytes:
    """Leave out the pixels of a PNG: what stands after them is else read only once they are decoded."""
    kept, at = [content[:8]], 8
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        if content[at + 4 : at + 8] in {b"IHDR", b"eXIf", b"tEXt", b"zTXt", b"iTXt"}:
            kept.append(content[at:end])
        at = end
    return b"".join([*kept, b"\0\0\0\0IEND\xaeB`\x82"])


def _flat(image: Image.Image, packing: str) -> Image.Image:
    """Bring a picture to 8-bit RGB in sRGB, and what is clear in it over white."""
    profile = None if image.mode == "LAB" else image.info.get("icc_profile")
    key, alpha = image.info.get("transparency"), None
    if image.mode.startswith(("I", "F")):
        shares = _shares(image, packing)
        if isinstance(key, int):
            alpha = Image.fromarray(np.where(np.asarray(image) == key, 0, 255).astype(np.uint8))
        if to_srgb := _to_srgb(profile, "I;16"):
            image = to_srgb(Image.fromarray((shares * 65535).round().astype(np.uint16)))
        else:
            image = Image.fromarray((shares * 255).round().astype(np.uint8)).convert("RGB")
    else:
        if key is not None and packing in KEYS:
            scaled = (np.asarray(key) * KEYS[packing]).astype(int).tolist()
            image.info["transparency"] = tuple(scaled) if isinstance(key, tuple) else scaled
        gray = image.mode in GRAY or packing == "LA;16B"
        if image.has_transparency_data:
            image = image.convert("RGBA")
            alpha = image.getchannel("A")
        if gray:
            image = image.convert("L") if alpha is None else image.getchannel(0)
        elif image.mode != "CMYK":
            image = _rgb(image)
        to_srgb = _to_srgb(profile, image.mode)
        image = to_srgb(image) if to_srgb else _rgb(image)
    if alpha is not None:
        image.putalpha(alpha)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image


def _rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB what is not: a copy takes as long as decoding does."""
    return image if image.mode == "RGB" else image.convert("RGB")


def _shares(image: Image.Image, packing: str) -> np.ndarray:
    """Give deep gray values as shares of white, from 0 to 1."""
    values = np.asarray(image)
    if packing == "I;32N":
        values = values.view(np.uint32)  # PIL has no such mode and takes them for signed
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise Unreadable("it has pixels that are not numbers (NaN or infinite)")
    top, spans = values.max(), SPANS.get(packing, SPANS.get(image.mode, (65535,)))
    values /= next((span for span in spans if top <= span), top)
    return values.clip(0, 1, out=values)


@lru_cache(maxsize=64)
def _to_srgb(profile: bytes | None, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    """Build what brings pixels of a mode from an embedded profile to sRGB; None where it is broken or does not fit."""
    with suppress(Exception):
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile or b""))
        if source.profile.xcolor_space.strip() == SPACES[mode]:
            target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
            if mode not in LEVELS:
                return ImageCms.ImageCmsTransform(source, target, mode, "RGB").apply
            # of gray, an optimized transform is off by up to 10 levels, and an exact one is slow: once for each level
            exact = ImageCms.ImageCmsTransform(source, target, mode, "RGB", flags=ImageCms.Flags.NOOPTIMIZE)
            levels = np.arange(np.iinfo(LEVELS[mode]).max + 1, dtype=LEVELS[mode])
            table = np.asarray(exact.apply(Image.fromarray(levels[None])))[0]
            return lambda image: Image.fromarray(table[np.asarray(image)])
    return None
