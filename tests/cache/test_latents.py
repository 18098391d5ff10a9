"""The caches of pairs and latents: each image goes through the VAE once, and what goes wrong has its place."""

import json
import os

import pytest
import torch

from fdpo_fast.cache import dataset
from fdpo_fast.data.pairs import kind_of
from tests.helpers.caches import ROWS, folders
from tests.helpers.pictures import BLUE, RED, as_folders, as_jsonl, as_rankings, files, noisy_jpeg, write

LIVE = ("reference.mode=live", "train.pairs_per_micro_batch=4")


class Encoder:
    """The VAE of a run, watched: the images that it is given, and what is done to some of them."""

    def __init__(self):
        self.pixels, self.spoil, self.stop_after = [], lambda pixels: False, None

    def wrapped(self, original):
        def load(config, family, device):
            encode = original(config, family, device)

            def call(pixels):
                if self.stop_after is not None and len(self.pixels) >= self.stop_after:
                    raise KeyboardInterrupt
                assert pixels.dtype == torch.uint8
                self.pixels += pixels
                mean, std = (values.clone() for values in encode(pixels))
                for image, latent in zip(pixels, mean, strict=True):
                    if self.spoil(image):
                        latent[0, 0, :3] = torch.nan
                return mean, std

            return call

        return load


@pytest.fixture
def encoder(monkeypatch):
    watched = Encoder()
    monkeypatch.setattr(dataset, "image_encoder", watched.wrapped(dataset.image_encoder))
    return watched


def shared_rows():
    """Twelve pairs of seven images: each is in several, far from one another and on both sides."""
    images = [noisy_jpeg(i) for i in range(7)]
    return [(f"caption {i}", images[i % 7], images[(i * 3 + 1) % 7], float(i % 2)) for i in range(12)]


def same_files(folder):
    """Records that name the same files again and again."""
    root = as_jsonl(folder, shared_rows()[:1])
    for i in range(7):
        (root / f"{i}.jpg").write_bytes(noisy_jpeg(i))
    record = {"caption": "x", "prefer_0": 1, "prefer_1": 0}
    lines = [record | {"image_0": f"{i % 7}.jpg", "image_1": f"{(i * 3 + 1) % 7}.jpg"} for i in range(12)]
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def ranked_rows():
    """Five records of three images, of which the first is the same in all."""
    return [("x", noisy_jpeg(i) if i % 2 else RED, noisy_jpeg(i), 1.0) for i in range(10)]


SHARED = {
    "parquet": (lambda folder: write(folder / "a.parquet", shared_rows()), 7, 12),
    "jsonl": (lambda folder: as_jsonl(folder, shared_rows()), 7, 12),
    "the same files": (same_files, 7, 12),
    "rankings": (lambda folder: as_rankings(folder, ranked_rows()), 11, 13),
}


@pytest.mark.parametrize("name", SHARED)
def test_an_image_is_encoded_once_whatever_pairs_and_shards_it_is_in(training_set, encoder, tmp_path, name):
    make, images, pairs = SHARED[name]
    data = training_set(None, "data.shard_rows=2", *LIVE, source=make(tmp_path))
    assert len(data) == pairs
    assert len(encoder.pixels) == images
    assert len({pixels.numpy().tobytes() for pixels in encoder.pixels}) == images
    assert len(data.latents) == len(data.latents.column("image#crc")) == images
    assert len(data.latents.paths) == -(-images // 4) > 1
    for position in range(pairs):
        for side in (0, 1):
            same = (data.pairs.keys == data.pairs.keys[position, side]).all(2)
            assert len(set(data.images[same].tolist())) == 1
    assert data.images.unique().tolist() == list(range(images))


def test_a_sample_belongs_to_its_image(training_set):
    """Whatever pair it is in, on either side, and in whichever file."""
    latents = "data.latents=sample"
    wide = training_set(shared_rows(), latents, *LIVE)
    narrow = training_set(shared_rows(), latents, "data.shard_rows=1", "data.encode_batch=3", *LIVE)
    for position in range(12):
        torch.testing.assert_close(wide.pair_latents(position), narrow.pair_latents(position), rtol=1e-5, atol=1e-5)
    assert torch.equal(wide.pair_latents(0)[0], wide.pair_latents(7)[1])  # image 0, dispreferred in row 7


@pytest.mark.parametrize("at", [0, 1, 3, 6])
def test_a_killed_build_goes_on_to_equal_bytes(training_set, encoder, tmp_path, at):
    training_set(shared_rows(), "data.shard_rows=1", *LIVE)
    wanted = files(tmp_path / "cache")
    (tmp_path / "cache").rename(tmp_path / "whole")
    once = len(encoder.pixels)
    encoder.pixels.clear()
    encoder.stop_after = at
    with pytest.raises(KeyboardInterrupt):
        training_set(None, "data.shard_rows=1", *LIVE)
    before = {path.name: path.stat().st_mtime_ns for path in folders(tmp_path, "latents")[0].glob("*.safetensors")}
    assert len(before) == -(-at // 2)  # two images each
    encoder.stop_after = None
    encoder.pixels.clear()
    again = training_set(None, "data.shard_rows=1", *LIVE)
    assert files(tmp_path / "cache") == wanted
    assert len(encoder.pixels) == once - 2 * len(before)
    kept = {path.name: path.stat().st_mtime_ns for path in again.latents.paths if path.name in before}
    assert kept == before


@pytest.mark.parametrize("suffix", ["", "data.latents=moments"])
def test_a_latent_that_is_not_a_number_names_its_image(training_set, encoder, tmp_path, suffix):
    rows = [*ROWS[:8], ("spoilt", noisy_jpeg(100), RED, 1.0), *ROWS[8:], ("again", RED, noisy_jpeg(100), 1.0)]
    overrides = [*LIVE, "data.shard_rows=2", *([suffix] if suffix else [])]
    spoilt = training_set(rows[8:9], *overrides).pair_latents(0)
    assert spoilt.isfinite().all()
    image = encoder.pixels[0]
    encoder.spoil = lambda pixels: torch.equal(pixels, image)
    of = 8192 if suffix else 4096
    words = rf"^the latent of an image of rows.parquet row 8 is NaN in 3 of {of} numbers, made by the VAE: set data.vae"
    with pytest.raises(ValueError, match=words):
        training_set(rows, *overrides)
    (folder,) = (path for path in folders(tmp_path, "latents") if len(list(path.glob("*.safetensors"))) == 4)
    assert sorted(path.stem for path in folder.glob("*.safetensors")) == [f"{shard:06d}" for shard in range(4)]
    encoder.spoil = lambda pixels: False
    assert len(training_set(rows, *overrides)) == 18


def test_conservative_votes_are_pairs_of_both_orders(training_set, encoder):
    rows = [("a", noisy_jpeg(0), noisy_jpeg(1), 0.7), ("b", noisy_jpeg(2), noisy_jpeg(3), 1.0)]
    data = training_set(rows, "data.votes=conservative", *LIVE)
    assert data.weight.tolist() == pytest.approx([0.7, 0.3, 1.0])
    assert data.images.tolist() == [[0, 1], [1, 0], [2, 3]]
    assert len(encoder.pixels) == 4
    assert torch.equal(data.pair_latents(0), data.pair_latents(1).flip(0))
    assert data.batch(torch.arange(3), torch.zeros(3, dtype=torch.int64)).weight.tolist() == data.weight.tolist()
    weighed = training_set(None, "data.votes=weight", *LIVE)
    assert weighed.weight.tolist() == pytest.approx([0.4, 1.0])
    assert weighed.id.tolist() == [0, 2]


def halved(seed):
    """A JPEG that has its header and half of its pixels."""
    whole = noisy_jpeg(seed)
    return whole[: len(whole) // 2 + 300]


@pytest.mark.parametrize("broken", [b"", halved(0)])
def test_more_refused_rows_than_allowed_stop(training_set, encoder, tmp_path, broken):
    """Of images without a header before anything is encoded."""
    rows = [("a", RED, broken or b"", 1.0)] * 2 + ROWS[:6] + [("tie", RED, BLUE, 0.5)] * 2
    words = r"2 of 10 rows of data.source \(20.0%\) are refused, more than data.max_refused \(19.0%\): 2 x an image"
    with pytest.raises(ValueError, match=words):
        training_set(rows, "data.max_refused=0.19", *LIVE)
    assert bool(encoder.pixels) == bool(broken)
    assert bool(folders(tmp_path, "latents")) == bool(broken)
    assert len(training_set(None, "data.max_refused=0.2", *LIVE)) == 6


def test_an_image_that_does_not_decode_costs_every_pair_it_is_in(training_set):
    half = halved(50)
    rows = [*ROWS[:2], ("c", half, RED, 1.0), *ROWS[2:9], ("d", BLUE, half, 1.0), *ROWS[9:12]]
    data = training_set(rows, "data.shard_rows=3", *LIVE)
    assert data.captions == [row[0] for row in ROWS[:12]]
    assert data.pairs.row.tolist() == [0, 1, *range(3, 10), *range(11, 14)]
    assert [row.row for row in data.pairs.refused] == [2, 10]
    assert [kind_of(row["reason"]) for row in data.report["refused"]] == ["an image does not decode"] * 2
    assert [row["place"] for row in data.report["refused"]] == ["rows.parquet row 2", "rows.parquet row 10"]
    again = training_set(None, "data.shard_rows=3", *LIVE)
    assert again.report == data.report
    assert all(data.pair_latents(position).isfinite().all() for position in range(12))


def test_an_image_that_changed_meanwhile_is_noticed(training_set, encoder, tmp_path):
    """In place, with its size and time of change: between the look at all pairs and its encoding."""
    root = as_folders(tmp_path, ROWS[:4])
    encoder.stop_after = 0
    with pytest.raises(KeyboardInterrupt):
        training_set(None, *LIVE, source=root)
    encoder.stop_after = None
    image = root / "l/002.jpg"
    content, status = image.read_bytes(), image.stat()
    image.write_bytes(content[:-40] + bytes(38) + content[-2:])
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ValueError, match=r"^pair '002' has changed since .*: delete the folder pairs-"):
        training_set(None, *LIVE, source=root)
