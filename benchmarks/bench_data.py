"""Pairs per second from parquet and from the caches, and memory by their number: `python -m benchmarks.bench_data`.

Generated pairs in Pick-a-Pic's schema: JPEG images of 128 x 128, cut out of one texture so that no two are equal. The
caches are made by the package itself, by a VAE and text encoders that are small (encoding is not what is measured):
latents 4 x 16 x 16, embeddings 77 x 2048 as SDXL's, in fp16. A process for each row; memory is the peak of the reading
alone, less what the process held before. Writes results/data.csv.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from benchmarks.common.device import status
from benchmarks.common.tables import write_csv
from fdpo_fast.config.run import Config
from fdpo_fast.data.images import Geometry
from fdpo_fast.data.pairs import Pair
from fdpo_fast.data.prefetch import ahead
from fdpo_fast.data.readers.detect import open_source
from fdpo_fast.data.readers.pickapic import write_pairs

RESULTS = Path(__file__).parent / "results"
COLUMNS = ("what", "pairs", "pairs_per_second", "peak_rss_mib", "on_disk_mib")
SIZE, CAPTIONS, MICRO = 128, 500, 4
_ENCODER = {
    "hidden_size": 1024,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "projection_dim": 1024,
    "vocab_size": 1000,
}
SHAPED = {
    "pipeline": "StableDiffusionXLPipeline",
    "unet": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (4, 8),
        "layers_per_block": 1,
        "attention_head_dim": (2, 4),
        "norm_num_groups": 1,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 48 + 1024,
        "cross_attention_dim": 2048,
        "sample_size": 32,
    },
    "vae": {"block_out_channels": (4, 4, 4, 4), "layers_per_block": 1, "norm_num_groups": 1, "scaling_factor": 0.13},
    "text_encoder": _ENCODER,
    "text_encoder_2": _ENCODER,
}


def config(folder: Path, pairs: int) -> Config:
    """A run over the generated pairs; its caches are in the folder."""
    return Config.model_validate(
        {
            "model": {"family": "sdxl", "base": str(folder / "pipeline"), "dtype": "fp32"},
            "data": {
                "source": str(folder / f"{pairs}.parquet"),
                "resolution": SIZE,
                "cache_dir": str(folder / f"cache-{pairs}"),
                "cache_dtype": "fp16",
                "caption_dropout": 0.2,
                "workers": 2,
            },
            "reference": {"visits": 1},
            "loss": {"beta": 1.0, "ratio_scale": 2500.0},
            "optimizer": {"lr": 1e-6},
            "train": {"output_dir": "unused", "max_steps": 1, "pairs_per_step": MICRO, "pairs_per_micro_batch": MICRO},
        }
    )


def generate(folder: Path, pairs: int) -> None:
    """Write the parquet file, and the pipeline once."""
    from fdpo_fast.models import presets, quiet_libraries

    quiet_libraries()
    presets.PRESETS["shaped"] = SHAPED
    presets.build("shaped", folder / "pipeline")
    rng = np.random.default_rng(0)
    texture = Image.fromarray(rng.integers(0, 255, (256, 256, 3)).astype(np.uint8)).resize((2048, 2048))

    def jpeg(number: int) -> bytes:
        left, top = number * 7 % 1789, number * 13 % 1787
        buffer = io.BytesIO()
        texture.crop((left, top, left + SIZE, top + SIZE)).save(buffer, format="JPEG", quality=90)
        return buffer.getvalue()

    write_pairs(
        folder / f"{pairs}.parquet",
        captions=[f"picture {i % CAPTIONS}" for i in range(pairs)],
        jpg_0=[jpeg(2 * i) for i in range(pairs)],
        jpg_1=[jpeg(2 * i + 1) for i in range(pairs)],
        label_0=[float(i % 2) for i in range(pairs)],
    )


def fill(folder: Path, pairs: int) -> None:
    """Build the caches, untimed."""
    _training_set(folder, pairs)


def _training_set(folder: Path, pairs: int):
    from fdpo_fast.cache.open import caches_of
    from fdpo_fast.distributed import Rank

    return caches_of(config(folder, pairs), Rank(0, 1, torch.device("cpu"), lambda: None)).data


def rows(folder: Path, pairs: int) -> Callable[[], int]:
    """Rows of the parquet file, images not decoded."""
    source = open_source(config(folder, pairs).data)
    return lambda: sum(isinstance(row, Pair) for row in source.read(0, pairs))


def images(folder: Path, pairs: int) -> Callable[[], int]:
    """Decoded, resized and cropped, by two threads: what the VAE is fed with."""
    settings = config(folder, pairs).data
    source, geometry = open_source(settings), Geometry(settings, 0, 8, 2)

    def pixels(pair: Pair) -> list[torch.Tensor]:
        return [side.pixels(settings.max_megapixels) for side in geometry.place(pair)]

    return lambda: sum(1 for _ in ahead(pixels, source.read(0, pairs), settings.workers))


def batches(folder: Path, pairs: int) -> Callable[[], int]:
    """Training batches from the caches, in shuffled order: latents, embeddings, sizes, reference errors, checksums."""
    data = _training_set(folder, pairs)
    order = torch.randperm(pairs, generator=torch.Generator().manual_seed(0))

    def read() -> int:
        return sum(len(data.batch(part, torch.zeros_like(part)).weight) for part in order.split(MICRO))

    return read


READERS = {"parquet, rows": rows, "parquet, decoded": images, "cache, batches": batches}


def measure(name: str, folder: Path, pairs: int) -> tuple[float, float]:
    """Pairs per second, and MiB of peak resident memory over what was held before the first pair."""
    torch.set_num_threads(2)
    read = READERS[name](folder, pairs)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = status("VmRSS")
    start = time.perf_counter()
    assert read() == pairs
    return pairs / (time.perf_counter() - start), (status("VmHWM") - before) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[1000, 10_000])
    spawn, table = multiprocessing.get_context("spawn"), []
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for pairs in parser.parse_args().pairs:
            for work in (generate, fill):
                with spawn.Pool(1) as pool:
                    pool.apply(work, (folder, pairs))
            sizes = {"parquet": (folder / f"{pairs}.parquet").stat().st_size}
            sizes["cache"] = sum(path.stat().st_size for path in (folder / f"cache-{pairs}").rglob("*"))
            for name in READERS:
                with spawn.Pool(1) as pool:
                    speed, memory = pool.apply(measure, (name, folder, pairs))
                disk = sizes[name.split(",")[0]] / 2**20
                table.append((name, pairs, f"{speed:.0f}", f"{memory:.1f}", f"{disk:.0f}"))
                print(", ".join(f"{key} {value}" for key, value in zip(COLUMNS, table[-1], strict=True)), flush=True)
    write_csv(RESULTS / "data.csv", COLUMNS, table)


if __name__ == "__main__":
    main()
