"""Images and pairs in every format, made from nothing."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fdpo_fast.data.readers.pickapic import write_pairs

LONG = "word " * 400
CAPTIONS = ["a cat", "", LONG, "größe ✓ 猫"]


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def jpeg(color, mode="RGB", size=(24, 16)):
    """A plain JPEG; `size` is (width, height)."""
    return encoded(Image.new(mode, size, color))


RED, BLUE = jpeg("red"), jpeg("blue")


def noisy_jpeg(seed, size=(96, 80), mode="RGB"):
    """A JPEG with something in it; `size` is (width, height)."""
    coarse = np.random.default_rng(seed).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    return encoded(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode), quality=95)


def write(path, rows):
    """Pick-a-Pic rows of (caption, jpg_0, jpg_1, label_0)."""
    captions, jpg_0, jpg_1, label_0 = (list(column) for column in zip(*rows, strict=True))
    write_pairs(path, captions=captions, jpg_0=jpg_0, jpg_1=jpg_1, label_0=label_0)
    return path


def difficult_rows(count=24):
    """Pairs of which some are hard: a truncated JPEG, CMYK, 1x1, ties, long, non-ASCII and empty captions."""
    rows = []
    for i in range(count):
        caption = CAPTIONS[i // 2 % 4] if i % 2 else f"picture {i}"
        rows.append([caption, noisy_jpeg(2 * i), noisy_jpeg(2 * i + 1, (64, 96)), float(i % 2)])
    rows[3][1] = rows[3][1][:200]
    rows[4][1] = noisy_jpeg(4, mode="CMYK")
    rows[5][2] = noisy_jpeg(5, (1, 1))
    rows[6][3] = rows[9][3] = 0.5
    return [tuple(row) for row in rows]


def as_pickapic(folder, rows):
    return write(folder / "pairs.parquet", rows)


def as_folders(folder, rows):
    """Without ties, which the format has no place for."""
    root = folder / "folders"
    for side in "wl":
        (root / side).mkdir(parents=True)
    for i, (caption, first, second, label) in enumerate(rows):
        if label == 0.5:
            continue
        for side, content in zip("wl", (first, second) if label else (second, first), strict=True):
            (root / side / f"{i:03d}.jpg").write_bytes(content)
        (root / "w" / f"{i:03d}.txt").write_text(caption, encoding="utf-8")
    return root


def as_jsonl(folder, rows):
    root = folder / "jsonl"
    root.mkdir()
    lines = []
    for i, (caption, first, second, label) in enumerate(rows):
        names = [f"{i:03d}-{side}.jpg" for side in (0, 1)]
        for name, content in zip(names, (first, second), strict=True):
            (root / name).write_bytes(content)
        record = {"image_0": names[0], "image_1": names[1], "caption": caption, "prefer_0": label}
        lines.append(json.dumps(record | {"prefer_1": 1 - label}, ensure_ascii=False))
    (root / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def as_rankings(folder, rows):
    """Three images to a record: those of two rows, the third shared."""
    root = folder / "rankings"
    (root / "images").mkdir(parents=True)
    records = []
    for i in range(0, len(rows) - 1, 2):
        contents = [rows[i][1], rows[i][2], rows[i + 1][1]]
        names = [f"{i:03d}-{k}.jpg" for k in range(3)]
        for name, content in zip(names, contents, strict=True):
            (root / "images" / name).write_bytes(content)
        records.append({"images": names, "caption": rows[i][0], "rank": [2, 1, 2 if i % 4 else 3]})
    (root / "metadata.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return root


def as_latents(folder, rows, embeddings=None):
    """Random latents [4, 32, 32] in place of the images, and `embeddings`: name -> shape."""
    rng = np.random.default_rng(0)
    columns = {
        "caption": [caption for caption, *_ in rows],
        "latents_0": [rng.normal(size=(4, 32, 32)).tolist() for _ in rows],
        "latents_1": [rng.normal(size=(4, 32, 32)).tolist() for _ in rows],
        "label_0": [row[3] for row in rows],
        "label_1": [1 - row[3] for row in rows],
        "original_size_0": [[480, 640] for _ in rows],
    }
    by_caption = {}
    for name, shape in (embeddings or {}).items():
        made = [by_caption.setdefault((name, c), rng.normal(size=shape).tolist()) for c in columns["caption"]]
        columns[name] = made
    path = folder / "latents.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=5)
    return path


FORMATS = {
    "pickapic": as_pickapic,
    "folders": as_folders,
    "jsonl": as_jsonl,
    "rankings": as_rankings,
    "latents": as_latents,
}


def files(folder: Path) -> dict[str, bytes]:
    """Every file under a folder by its relative name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def noisy_pairs(folder, preferred):
    """JSON records of pairs of 64 x 64 noise, with 1 where the first image is preferred and 0 where it is not."""
    rng, rows = np.random.default_rng(0), []
    for row, first in enumerate(preferred):
        for side in (0, 1):
            Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{row}_{side}.png")
        images = {f"image_{side}": f"{row}_{side}.png" for side in (0, 1)}
        rows.append(images | {"caption": f"a {row}", "prefer_0": first, "prefer_1": 1 - first})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "pairs.jsonl"
