"""The caches: what they hold, what a batch depends on, what is refused, and that damage is noticed."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from fdpo_fast import noise
from fdpo_fast.cache.report import describe
from fdpo_fast.cache.text import EMPTY
from fdpo_fast.data.readers.detect import open_source
from fdpo_fast.models.prediction import errors, predict
from fdpo_fast.ops.constants import Stream
from tests.helpers.caches import folders
from tests.helpers.pictures import BLUE, FORMATS, RED, as_latents, difficult_rows, files, noisy_jpeg


def test_refused_rows_are_counted_and_named(training_set):
    rows = [("a", RED, BLUE, 1.0), ("b", RED[:50], BLUE, 1.0), ("c", RED, BLUE, 0.5), ("d", BLUE, RED, 0.0)] * 6
    data = training_set(rows)
    assert len(data) == 12
    assert (data.report["rows"], data.report["pairs"], data.report["ties_dropped"]) == (24, 12, 6)
    assert data.report["refused"][0]["place"] == "rows.parquet row 1"
    assert data.report["refused"][0]["reason"].startswith("an image does not decode: jpg_0: ")
    assert "refused: 6 x an image does not decode, first at rows.parquet row 1" in describe(data.report)


def test_a_broken_tie_is_refused_once(training_set):
    data = training_set([("a", RED[:50], BLUE, 0.5), ("b", RED, BLUE, 0.5)], "data.ties=half")
    assert len(data.report["refused"]) == 1
    assert data.weight.tolist() == [0.5, 0.5]


def test_no_pair_left_is_an_error(training_set):
    with pytest.raises(ValueError, match=r"no pair to train on: 2 rows, 0 pairs, 1 ties dropped, refused: 1 x"):
        training_set([("a", RED, BLUE, 0.5), ("b", b"", BLUE, 1.0)])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_every_format_under_every_family(training_set, tmp_path, name, family):
    data = training_set(source=FORMATS[name](tmp_path, difficult_rows()), family=family)
    batch = data.batch(torch.arange(len(data))[:6], torch.tensor([0, 1, 0, 1, 0, 1]))
    assert batch.latents.shape == (12, 4, 32, 32)
    assert batch.condition["prompt_embeds"].shape == (12, 77, {"sd": 8, "sdxl": 64}[family])
    assert batch.ref_error.isfinite().all()
    if family == "sdxl" and name == "pickapic":
        assert batch.condition["time_ids"][[0, 6]].tolist() == [[96, 64, 16, 0, 64, 64], [80, 96, 0, 6, 64, 64]]
    if family == "sdxl" and name == "latents":
        sizes = batch.condition["time_ids"][:, :2].tolist()
        assert [480, 640] in sizes
        assert [64, 64] in sizes  # the side that came without one


def test_an_image_is_encoded_once(training_set):
    shared = noisy_jpeg(0)
    data = training_set([("a", shared, noisy_jpeg(1), 1.0), ("b", noisy_jpeg(2), shared, 1.0), ("c", shared, RED, 0.0)])
    assert len(data.latents.column("image#crc")) == 4
    assert torch.equal(data.pair_latents(0)[0], data.pair_latents(1)[1])


def test_both_sides_share_timestep_noise_and_caption(training_set):
    data = training_set()
    batch = data.batch(torch.tensor([3, 0, 15]), torch.tensor([0, 1, 0]))
    assert batch.draws.shape == (3, 3)
    preferred, dispreferred = batch.condition["prompt_embeds"].chunk(2)
    assert torch.equal(preferred, dispreferred)
    preferred, dispreferred = batch.latents.chunk(2)
    assert not torch.equal(preferred, dispreferred)


@pytest.mark.parametrize("latents", ["mode", "sample", "moments"])
def test_a_visit_looks_the_same_in_any_batch(training_set, latents):
    data = training_set(None, f"data.latents={latents}")
    many = data.batch(torch.arange(8), torch.tensor([0, 1] * 4))
    alone = data.batch(torch.tensor([5]), torch.tensor([1]))
    assert torch.equal(alone.draws[:, 0], many.draws[:, 5])
    assert torch.equal(alone.latents, many.latents[[5, 13]])
    assert torch.equal(alone.condition["prompt_embeds"], many.condition["prompt_embeds"][[5, 13]])
    again = data.batch(torch.tensor([5]), torch.tensor([0]))
    assert torch.equal(alone.latents, again.latents) == (latents != "moments")


def test_samples_are_the_posteriors(training_set, tmp_path):
    """Over many images (sample - mean) / deviation is standard normal, and moments hold mean and deviation."""
    moments = training_set(None, "data.latents=moments")
    stored = torch.stack([moments.pair_latents(i) for i in range(16)])  # [16, 2, 2, 4, 32, 32]
    mean, std = stored.unbind(2)
    for drawn in (
        torch.stack([training_set(None, "data.latents=sample").pair_latents(i) for i in range(16)]),
        moments.batch(torch.arange(16), torch.zeros(16, dtype=torch.int64))
        .latents.unflatten(0, (2, 16))
        .transpose(0, 1),
    ):
        normal = (drawn - mean) / std
        assert abs(normal.mean().item()) < 0.01
        assert normal.std().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_on_disk(training_set, dtype):
    exact, half = training_set(), training_set(None, f"data.cache_dtype={dtype}")
    tolerance = {"fp16": 1e-3, "bf16": 1e-2}[dtype]
    torch.testing.assert_close(half.pair_latents(3), exact.pair_latents(3), rtol=tolerance, atol=tolerance)
    assert half.latents.item(0, "image", 0).dtype.itemsize == 2
    assert half.text.entry("prompt_embeds", 0).dtype.itemsize == 2


def test_captions_drop_at_the_rate_asked_for(training_set):
    data = training_set(None, "data.caption_dropout=0.5")
    empty = data.text.entry("prompt_embeds", data.entries[EMPTY])
    dropped = []
    for visit in range(40):
        embeds = data.batch(torch.arange(16), torch.full((16,), visit % 2)).condition["prompt_embeds"][:16]
        dropped.append((embeds == empty).flatten(1).all(1))
        draws = noise.draws(0, data.id, visit % 2)
        assert torch.equal(dropped[-1], noise.uniforms(draws, Stream.CAPTION) < 0.5)
    assert 0.2 < torch.cat(dropped).float().mean().item() < 0.8


def test_reference_errors_are_those_of_the_draws(training_set):
    data = training_set()
    positions, visits = torch.tensor([2, 10, 15]), torch.tensor([1, 0, 1])
    batch = data.batch(positions, visits)
    with torch.no_grad():
        pred, target, _ = predict(data.family, data.family.denoiser(torch.float32).eval(), batch)
    assert batch.ref_error.dtype == torch.float64
    torch.testing.assert_close(batch.ref_error, errors(pred, target), rtol=1e-6, atol=0)


def test_buckets_have_batches_of_one_shape(training_set):
    sizes = [(96, 96), (128, 64), (64, 128)]
    rows = [(f"{i}", noisy_jpeg(2 * i, sizes[i % 3]), noisy_jpeg(2 * i + 1, sizes[i % 3]), 1.0) for i in range(15)]
    data = training_set(rows, "data.buckets=true", "data.bucket_step=8")
    assert len(torch.unique(data.shapes, dim=0)) == 3
    assert data.reference.isfinite().all()
    wide = data.batch(torch.tensor([1, 4]), torch.tensor([0, 1]))
    assert wide.latents.shape[3] > wide.latents.shape[2]


def test_embeddings_of_the_source_are_used(training_set, tmp_path):
    rows = difficult_rows()
    source = as_latents(tmp_path, rows, {"prompt_embeds": (77, 64), "pooled_prompt_embeds": (32,)})
    data = training_set(source=source, family="sdxl")
    found = {caption: values for _, caption, values in open_source(data.config.data).embeddings(0, len(rows))}
    assert {caption for caption, _ in data.entries} >= {"picture 2", "größe ✓ 猫", ""}
    for (caption, _), entry in data.entries.items():
        for key in ("prompt_embeds", "pooled_prompt_embeds"):
            assert data.text.entry(key, entry).tolist() == found[caption][key].tolist()
    half = as_latents(tmp_path, rows, {"prompt_embeds": (77, 64)})
    with pytest.raises(ValueError, match="has the column prompt_embeds but not pooled_prompt_embeds: give all or none"):
        training_set(source=half, family="sdxl")


@pytest.mark.parametrize("override", ["reference.seed=1", "data.caption_dropout=0.3", "reference.visits=3"])
def test_another_draw_is_another_reference_cache(training_set, tmp_path, override):
    for overrides in (
        (),
        (override,),
        ("loss.beta=9.0", "loss.divergence=jeffreys", "optimizer.lr=1.0", "train.seed=5"),
    ):
        training_set(None, *overrides)
    assert [len(folders(tmp_path, kind)) for kind in ("reference", "latents", "text", "pairs")] == [2, 1, 1, 1]


def test_other_labels_are_another_reference_cache(training_set, tmp_path):
    for label in (1.0, 0.0):
        training_set([("a", RED, BLUE, label)] * 3)
    assert len(folders(tmp_path, "reference")) == 2


def test_a_requested_cache_that_does_not_match_is_refused(training_set, tmp_path):
    training_set(requested=True)
    training_set()  # matches
    with pytest.raises(ValueError, match=r"the reference cache made by `fdpo cache`.* 'visits' is 2 there and 3 here"):
        training_set(None, "reference.visits=3")
    with pytest.raises(ValueError, match=r"the pairs cache.*'geometry.flip' is 0.0 there and 0.5 here"):
        training_set(None, "data.flip=0.5")
    training_set(None, "reference.visits=3", requested=True)
    training_set(None, "reference.visits=3")
    assert len(folders(tmp_path, "reference")) == 2


def test_a_changed_manifest_is_refused(training_set, tmp_path):
    training_set()
    (folder,) = folders(tmp_path, "reference")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"unet": "0" * 64}))
    with pytest.raises(ValueError, match=r"the manifest of the cache .* does not match: 'unet' is \"0000"):
        training_set()


@pytest.mark.parametrize("kind", ["pairs", "latents", "text", "reference"])
def test_a_flipped_bit_is_noticed(training_set, tmp_path, kind):
    training_set()
    path = next(folders(tmp_path, kind)[0].glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)

    def touch_everything():
        for store in training_set().stores:
            store.check_all()

    with pytest.raises(ValueError, match=r"safetensors is damaged \('.*' does not match its checksum\): delete this"):
        touch_everything()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"safetensors is damaged .*: delete this file and run again"):
        touch_everything()
    path.unlink()
    touch_everything()


def test_equal_caches_have_equal_bytes(training_set, tmp_path):
    training_set()
    first = files(tmp_path / "cache")
    for name in ("pairs", "latents", "text", "reference"):
        folder = folders(tmp_path, name)[0]
        for path in folder.iterdir():
            path.unlink()
        for left in (".000000.safetensors.123.partial", ".tmpAbCdE1"):
            (folder / left).write_bytes(b"left by a kill")
    training_set()
    assert files(tmp_path / "cache") == first


def test_too_small_a_disk_is_refused_at_once(training_set, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10_000}))
    with pytest.raises(
        ValueError, match=r"the latents cache needs about .* KiB and .* has 9.8 KiB: set data.cache_dir"
    ):
        training_set()


def test_labels_changed_in_place_are_noticed(training_set, tmp_path):
    """Same name, same size, same footer: only some values are others."""
    path = tmp_path / "rows.parquet"
    names = []
    for label in (1.0, 0.0):
        names.append(training_set([("a", RED, BLUE, label), ("b", RED, BLUE, 1 - label)]).latents.folder.name)
    assert names[0] != names[1]
    assert path.exists()


def test_embeddings_that_are_not_numbers_cost_their_row_alone(training_set, tmp_path):
    import pyarrow.parquet as pq

    source = as_latents(tmp_path, difficult_rows(), {"prompt_embeds": (77, 8)})
    table = pq.read_table(source).to_pydict()
    table["prompt_embeds"][4] = (np.array(table["prompt_embeds"][4]) * np.nan).tolist()
    table["prompt_embeds"][7] = table["prompt_embeds"][7][:50]
    pq.write_table(pa.table(table), source)
    refused = training_set(source=source).report["refused"]
    assert [row["place"] for row in refused] == ["latents.parquet row 4", "latents.parquet row 7"]
    assert [row["reason"].split(":")[0] for row in refused] == [
        "not all numbers are finite",
        "an embedding is of another shape",
    ]


def test_latents_of_another_vae_are_refused(training_set, tmp_path):
    source = of_shapes(tmp_path / "x.parquet", (16, 8, 8))
    with pytest.raises(ValueError, match=r"gives no pair.*1 x latents have 16 channels, model.base takes 4, first at"):
        training_set(source=source)


@pytest.mark.parametrize("first", [0, 1])
def test_latents_that_the_denoiser_does_not_take_cost_their_row_alone(training_set, tmp_path, first):
    """Whichever row is first, so all that is left can be trained on."""
    shapes = [(16, 8, 8), (4, 8, 8), (4, 9, 8), (4, 8, 11), (1, 8, 8), (4, 16, 8)]
    data = training_set(None, "data.max_refused=1", source=of_shapes(tmp_path / "x.parquet", *shapes[first:]))
    assert len(data) == 2
    assert data.reference.isfinite().all()
    assert [row["reason"] for row in data.report["refused"]][1 - first :] == [
        "a side of latents is no multiple of 2, by which model.base divides it: they are [4, 9, 8]",
        "a side of latents is no multiple of 2, by which model.base divides it: they are [4, 8, 11]",
        "latents have 1 channels, model.base takes 4: they are [1, 8, 8]",
    ]


def of_shapes(path, *shapes):
    """Ready latents of one shape each row."""
    import pyarrow.parquet as pq

    columns = {f"latents_{side}": [np.full(shape, side / 2).tolist() for shape in shapes] for side in (0, 1)}
    columns |= {"caption": ["a"] * len(shapes), "label_0": [1.0] * len(shapes), "label_1": [0.0] * len(shapes)}
    pq.write_table(pa.table(columns), path)
    return path
