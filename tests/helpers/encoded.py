"""Encoded pictures and colour profiles, made by hand where Pillow writes none, and what they should decode to."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from fdpo_fast.data.decode import Unreadable, decode

P3 = np.array([[0.680, 0.320], [0.265, 0.690], [0.150, 0.060]])
SRGB = np.array([[0.640, 0.330], [0.300, 0.600], [0.150, 0.060]])
D65 = np.array([0.3127, 0.3290])
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
D50_XYZ = np.array([0.9642, 1.0, 0.8249])
RNG = np.random.default_rng(0)
NOISE = Image.fromarray(RNG.integers(0, 256, (9, 14, 4), dtype=np.uint8))
DEEP = Image.fromarray(RNG.integers(0, 65536, (9, 14), dtype=np.uint16))


def xyz(xy):
    return np.array([xy[0] / xy[1], 1, (1 - xy[0] - xy[1]) / xy[1]])


def to_xyz(primaries):
    """The matrix from linear RGB to XYZ under D65."""
    columns = np.stack([xyz(xy) for xy in primaries], axis=1)
    return columns * np.linalg.solve(columns, xyz(D65))


def icc(tags, space, kind=b"mntr", version=2, pcs=b"XYZ "):
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content
    white = struct.pack(">3i", *np.round(D50_XYZ * 65536).astype(int))
    header = b"    " + bytes([version, 0x40 if version == 2 else 0x20, 0, 0]) + kind + space + pcs + bytes(12) + b"acsp"
    header += bytes(28) + white
    return struct.pack(">I", at + len(body)) + header.ljust(124, b"\0") + struct.pack(">I", len(tags)) + table + body


def numbers(values):
    return b"XYZ " + bytes(4) + struct.pack(">3i", *np.round(np.asarray(values) * 65536).astype(int))


def common(version):
    if version == 2:
        text = b"test\0"
        name = b"desc" + bytes(4) + struct.pack(">I", 5) + text + bytes(78)
        said = b"text" + bytes(4) + text
    else:
        name = said = (
            b"mluc" + bytes(4) + struct.pack(">II", 1, 12) + b"enUS" + struct.pack(">II", 8, 28) + b"\0t\0e\0s\0t"
        )
    return {b"desc": name, b"cprt": said, b"wtpt": numbers(D50_XYZ)}


def curve(version, gamma=None):
    """sRGB's curve, as points in version 2 and as parameters in version 4, or a power."""
    if gamma is not None:
        return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    if version == 4:
        values = np.array([2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045])
        return b"para" + bytes(4) + struct.pack(">HH5i", 3, 0, *np.round(values * 65536).astype(int))
    points = np.round(linear(np.linspace(0, 1, 1024)) * 65535).astype(int)
    return b"curv" + bytes(4) + struct.pack(">I1024H", 1024, *points)


def matrix_profile(primaries, version=2, gamma=None):
    """A profile of three primaries under D65, adapted to D50."""
    cones = BRADFORD @ D50_XYZ / (BRADFORD @ xyz(D65))
    adapted = np.linalg.inv(BRADFORD) @ np.diag(cones) @ BRADFORD @ to_xyz(primaries)
    tags = {name: numbers(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), adapted.T, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve(version, gamma))
    return icc(common(version) | tags, b"RGB ", version=version)


def gray_profile(gamma):
    return icc(common(2) | {b"kTRC": curve(2, gamma)}, b"GRAY")


def cmyk_profile():
    """Lab between corners: L is 100 without ink, 60 with all of black, 0 with anything else."""
    corners = [(0 if inks >> 1 else 100 - 40 * (inks & 1)) for inks in range(16)]
    lut = struct.pack(">BBBx9i", 4, 3, 2, *(65536 * int(i % 4 == 0) for i in range(9)))
    ramp = bytes(range(256))
    grid = b"".join(bytes([round(light * 2.55), 128, 128]) for light in corners)
    return icc(
        common(2) | {b"A2B0": b"mft1" + bytes(4) + lut + ramp * 4 + grid + ramp * 3}, b"CMYK", b"prtr", pcs=b"Lab "
    )


def linear(values):
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def srgb(values):
    values = np.clip(values, 0, 1)
    return 255 * np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)


def expected(pixels, primaries, gamma=None):
    light = linear(pixels / 255.0) if gamma is None else (pixels / 255.0) ** gamma
    return srgb(light @ (np.linalg.inv(to_xyz(SRGB)) @ to_xyz(primaries)).T)


def over_white(pixels, alpha):
    share = np.asarray(alpha, dtype=float)[..., None] / 255
    return pixels * share + 255 * (1 - share)


def near(image, values, most=2):
    assert image.mode == "RGB"
    assert abs(np.asarray(image, dtype=float) - values).max() <= most


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, depth, color, rows, before=(), after=()):
    """A PNG of rows of bytes, with chunks (kind, content) before and after the pixels."""
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [(b"IHDR", head), *before, (b"IDAT", pixels), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def tiff(values, tags=(), order="<"):
    """A TIFF of one strip of gray values; `tags` are (tag, type, count, 4 bytes or a number)."""
    values = np.atleast_2d(values)
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    height, width = values.shape
    content = values.astype(values.dtype.newbyteorder(order)).tobytes()
    content += bytes(len(content) % 2)
    given = {tag: (type, count, value) for tag, type, count, value in tags}
    entries = {
        **{256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, values.itemsize * 8), 259: (3, 1, 1), 262: (3, 1, 1)},
        **{273: (4, 1, 8), 277: (3, 1, 1), 278: (4, 1, height), 279: (4, 1, len(content)), 339: (3, 1, kind)},
    } | given
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(content)) + content
    out += struct.pack(order + "H", len(entries))
    for tag, (type, count, value) in sorted(entries.items()):
        form = "HHIHxx" if type == 3 and count == 1 else "HHII"
        packed = value if isinstance(value, bytes) else struct.pack(order + form, tag, type, count, value)[8:]
        out += struct.pack(order + "HHI", tag, type, count) + packed.ljust(4, b"\0")
    return out + bytes(4)


def exif(*entries):
    """An EXIF block of entries (tag, type, count, 4 bytes), then 8 bytes of -1/0 at offset 100."""
    block = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, len(entries))
    block += b"".join(struct.pack(">HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries) + bytes(4)
    return block.ljust(106, b"\0") + struct.pack(">ii", -1, 0) + bytes(8)


def orientation(value):
    return 0x0112, 3, 1, struct.pack(">H", value)


def reason(content, megapixels=256):
    """Why bytes are refused: by both, or by decoding alone."""
    with pytest.raises(Unreadable) as caught:
        decode(content, megapixels)
    words = str(caught.value)
    assert words
    assert "\n" not in words
    assert "0x" not in words
    return words


STRANGE = {
    "orientation 0": exif(orientation(0)),
    "orientation 9": exif(orientation(9)),
    "orientation in words": exif((0x0112, 2, 2, b"6\0")),
    "orientation as bytes": exif((0x0112, 7, 1, b"\6")),
    "no orientation": exif((0x0112, 3, 0, b"")),
    "orientation far away": exif((0x0112, 3, 9, b"\xff\xff\xff\xf0")),
    "orientation -1/0": exif((0x0112, 10, 1, struct.pack(">I", 100))),
    "resolution of another type": exif((0x011A, 2, 2, b"x\0")),
    "a pointer into nowhere": exif((0x8769, 4, 1, b"\xff\xff\xff\xf0"), (0x8825, 2, 2, b"x\0")),
    "a type that is none": exif((0x0100, 99, 1, b"")),
    "nothing": b"Exif\0\0",
    "half a header": b"Exif\0\0MM\0",
    "no block": b"Exif\0\0garbage, garbage",
    "cut": exif(orientation(9))[:20],
    "a table of 65535": b"Exif\0\0MM\0*\0\0\0\10\xff\xff",
}
TURNED = {
    "resolution -1/0": exif(orientation(6), (0x011A, 10, 1, struct.pack(">I", 100))),
    "resolution 0/0": exif(orientation(6), (0x011A, 5, 1, struct.pack(">I", 108))),
    "a wrong type beside it": exif((0x0100, 2, 2, b"x\0"), orientation(6), (0x9286, 1, 1, b"\1")),
    "twice": exif((0x0112, 3, 2, b"\0\6\0\6")),
    "as a long": exif((0x0112, 4, 1, struct.pack(">I", 6))),
}


MODES = {
    "JPEG": ["L", "RGB", "CMYK"],
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA"],
    "WEBP": ["RGB", "RGBA"],
    "GIF": ["L", "P", "RGBA"],
    "TIFF": ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"],
    "BMP": ["1", "L", "P", "RGB", "RGBA"],
    "AVIF": ["RGB", "RGBA"],
    "JPEG2000": ["L", "LA", "RGB", "RGBA"],
    "PPM": ["1", "L", "RGB"],
    "QOI": ["RGB", "RGBA"],
    "SGI": ["L", "RGB", "RGBA"],
    "DDS": ["L", "RGB", "RGBA"],
    "TGA": ["L", "LA", "P", "RGB", "RGBA"],
}


def in_mode(mode):
    opaque = NOISE.convert("RGB")
    return {"PA": opaque.convert("P").convert("PA"), "P": opaque.convert("P")}.get(mode) or (
        opaque.convert(mode) if mode in ("YCbCr", "LAB", "1", "CMYK") else NOISE.convert(mode)
    )


def plain(content):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")
