"""What is within the files: odd tags, damaged pages, labels of many votes, embeddings that do not fit."""

from __future__ import annotations

import base64
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.helpers.others_pairs_case import Case, folders, pair, parquet, rows
from tests.helpers.pictures import as_latents, encoded, noisy_jpeg

TURNED = (0x0112, 3, 1, struct.pack("<HH", 6, 0))
"""EXIF's orientation, so that the tags are written anew when the picture is turned."""
TEXT = "masterpiece, best quality, " * 120_000
TOKENS, WIDTH, POOLED = 77, 64, 32
"""Of the tiny SDXL's text embeddings."""


def tagged(jpeg: bytes, *entries: tuple[int, int, int, bytes]) -> bytes:
    """Put EXIF into a JPEG: entries of (tag, type, count, value), written as they are."""
    at, values = 8 + 2 + 12 * len(entries) + 4, b""
    table = struct.pack("<H", len(entries))
    for tag, kind, count, value in entries:
        table += struct.pack("<HHI", tag, kind, count)
        table += value if len(value) == 4 else struct.pack("<I", at + len(values))
        values += b"" if len(value) == 4 else value
    body = b"Exif\0\0II*\0" + struct.pack("<I", 8) + table + bytes(4) + values
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def columns(count: int = 4, **changed: Any) -> dict[str, Any]:
    """Columns of Pick-a-Pic that count, of which some are changed."""
    captions, first, second, labels = (list(column) for column in zip(*rows(count), strict=True))
    made = {"caption": captions, "jpg_0": first, "jpg_1": second, "label_0": labels, "label_1": [0.0] * count}
    return made | changed


def table(folder: Path, **changed: Any) -> Path:
    pq.write_table(pa.table(columns(**changed)), folder / "a.parquet")
    return folder / "a.parquet"


def odd_exif(folder: Path) -> Path:
    """Tags of a wrong type, and a resolution of -1/0; the pixels are whole."""
    resolution = struct.pack("<ii", -1, 0)
    odd = [(0x011A, 2, 4, b"abc\0"), (0x011A, 10, 1, resolution), (0x0100, 2, 4, b"abc\0"), (0x011A, 5, 1, resolution)]
    first = [tagged(noisy_jpeg(2 * row), TURNED, entry) for row, entry in enumerate(odd)]
    return table(folder, jpg_0=first)


def long_texts(folder: Path) -> Path:
    """Three megabytes of text in a PNG, as workflows of image generators are kept."""
    first = []
    for row in range(4):
        info = PngInfo()
        (info.add_itxt if row % 2 else info.add_text)("workflow", TEXT, zip=True)
        first.append(encoded(Image.new("RGB", (64, 64), (60 * row, 0, 0)), "PNG", pnginfo=info))
    return table(folder, jpg_0=first)


def caption_not_utf8(folder: Path) -> Path:
    texts = [b"picture 0", b"gr\xf6\xdfe", b"picture 2", b"picture 3"]
    binary = pa.array(texts, pa.binary())
    return table(folder, caption=pa.Array.from_buffers(pa.string(), len(texts), binary.buffers()))


def damaged_page(folder: Path) -> Path:
    """Three shards of two row groups each; a page of the second group of the second is not what it was."""
    for number, name in enumerate("abc"):
        pq.write_table(pq.read_table(parquet(folder / f"set/{name}.parquet", 6, 10 * number)),
                       folder / f"set/{name}.parquet", row_group_size=3)  # fmt: skip
    path = folder / "set/b.parquet"
    group = pq.ParquetFile(path).metadata.row_group(1)
    chunk = next(group.column(at) for at in range(group.num_columns) if group.column(at).path_in_schema == "jpg_1")
    at = chunk.dictionary_page_offset or chunk.data_page_offset
    content = bytearray(path.read_bytes())
    content[at : at + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)
    return path.parent


def embedded(folder: Path, tokens: int, width: int) -> Path:
    return as_latents(folder, rows(4), {"prompt_embeds": (tokens, width), "pooled_prompt_embeds": (POOLED,)})


def fitting_embeddings(folder: Path) -> Path:
    return embedded(folder, TOKENS, WIDTH)


def embeddings_of_more_tokens(folder: Path) -> Path:
    return embedded(folder, 2 * TOKENS, WIDTH)


def embeddings_of_another_width(folder: Path) -> Path:
    return embedded(folder, TOKENS, 48)


def column_lacks(folder: Path) -> Path:
    (folder / "set").mkdir()
    made = columns(2)
    pq.write_table(pa.table(made), folder / "set/a.parquet")
    pq.write_table(pa.table({name: made[name] for name in made if name != "jpg_1"}), folder / "set/b.parquet")
    return folder / "set"


def optional_column_lacks(folder: Path) -> Path:
    (folder / "set").mkdir()
    made = as_latents(folder / "set", rows(2))
    shutil.copy(made, folder / "set/a.parquet")
    pq.write_table(pq.read_table(made).drop_columns(["original_size_0"]), folder / "set/b.parquet")
    made.unlink()
    return folder / "set"


def embeddings_lack(folder: Path) -> Path:
    (folder / "set").mkdir()
    made = embedded(folder / "set", TOKENS, WIDTH)
    shutil.copy(made, folder / "set/a.parquet")
    pq.write_table(pq.read_table(made).drop_columns(["prompt_embeds"]), folder / "set/b.parquet")
    made.unlink()
    return folder / "set"


def names_that_are_no_text(folder: Path) -> Path:
    """Names in Latin-1, one of a pair and one of a row that is refused; beside a plain pair."""
    root = folders(folder / "set", 1)
    pair(root, os.fsdecode(b"\xe9"), 3)
    pair(root, os.fsdecode(b"\xe8"), 4)
    (root / "l" / os.fsdecode(b"\xe8.jpg")).unlink()
    return root


def votes(folder: Path) -> Path:
    return table(folder, label_0=[0.71, 0.29, 0.71, 0.71], label_1=[0.29, 0.71, 0.29, 0.29])


def labels_as_text(folder: Path) -> Path:
    return table(folder, label_0=["1", "0", "1", "1"], label_1=["0", "1", "0", "0"])


def images_as_text(folder: Path) -> Path:
    """Base64, half of it as data: URLs."""
    made = columns()
    sides = {name: [base64.b64encode(one).decode() for one in made[name]] for name in ("jpg_0", "jpg_1")}
    sides["jpg_1"] = [f"data:image/jpeg;base64,{text}" for text in sides["jpg_1"]]
    return table(folder, **sides)


def path_alone(folder: Path) -> Path:
    """As `datasets` stores images that were not embedded: a path on the machine of whoever made it."""
    wrapped = [{"bytes": content, "path": f"{row}.jpg"} for row, content in enumerate(columns()["jpg_0"])]
    wrapped[2] = {"bytes": None, "path": "holiday.jpg"}
    return table(folder, jpg_0=wrapped)


def half_an_image(folder: Path) -> Path:
    made = columns()["jpg_0"]
    return table(folder, jpg_0=[*made[:2], made[2][:900], made[3]])


ROW = ("a.parquet row 2",)
BOTH = ("data check", "cache")
CASES = (
    Case("odd EXIF in images that are turned", odd_exif, 4),
    Case("three megabytes of text in a PNG", long_texts, 4),
    Case("a caption in parquet that is not UTF-8", caption_not_utf8, 3, 1, says=("a.parquet row 1", "UTF-8")),
    Case("a damaged page in one shard of three", damaged_page, 15, None, says=("b.parquet",)),
    Case("embeddings that fit", fitting_embeddings, 4, settings={"caption_dropout": 0.1}),
    Case("embeddings of twice the tokens", embeddings_of_more_tokens, 4, settings={"caption_dropout": 0.1},
         says=("prompt_embeds", "154", "77"), stops=("cache",)),
    Case("embeddings of another width", embeddings_of_another_width, 4, says=("prompt_embeds", "48", "64"),
         stops=("cache",)),
    Case("a column that one shard lacks", column_lacks, None, says=("b.parquet", "jpg_1"), stops=BOTH),
    Case("latents whose sizes one shard lacks", optional_column_lacks, None, says=("b.parquet", "original_size_0"),
         stops=BOTH),
    Case("embeddings that one shard lacks", embeddings_lack, None, says=("b.parquet", "prompt_embeds"),
         stops=("cache",)),
    Case("names that are no text, on a plain console", names_that_are_no_text, 2, 1,
         environment={"PYTHONIOENCODING": "ascii:strict"}),
    Case("labels of many votes", votes, 4, counts={"first_preferred": 3, "second_preferred": 1}, weights=(1.0,)),
    Case("labels of many votes: weight", votes, 4, settings={"votes": "weight"}, weights=(0.42,)),
    Case("labels of many votes: conservative", votes, None, None, settings={"votes": "conservative"}, cached=8,
         weights=(0.29, 0.71)),
    Case("labels as text in parquet", labels_as_text, 4, counts={"first_preferred": 3}),
    Case("images as base64 in parquet", images_as_text, 4),
    Case("a path in place of an image's bytes", path_alone, 3, 1, says=(*ROW, "holiday.jpg")),
    Case("half an image in parquet", half_an_image, 3, 1,
         says=(*ROW, "an image does not decode: ", "jpg_0", "truncated")),
)  # fmt: skip
