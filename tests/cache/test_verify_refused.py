"""`fdpo cache verify` looks again at the rows that were refused."""

import os

import pytest

from tests.helpers.pictures import BLUE, RED, as_folders, as_pickapic, as_rankings, noisy_jpeg


def in_place(path, content):
    """Write a file anew with the time of change that it had, so that nothing but its bytes tells."""
    status = path.stat()
    path.write_bytes(content.ljust(status.st_size, b"\0")[: status.st_size])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture
def raw(tiny_config):
    def make(source):
        raw = tiny_config("sd", source)
        raw["data"]["shard_rows"] = 2
        return raw | {"reference": {"mode": "live"}}

    return make


@pytest.mark.parametrize("kept", [0, 1200])
def test_a_mended_image_is_found(command, raw, tmp_path, kept):
    """Whether its header was broken, or only its pixels."""
    root = as_folders(tmp_path, [(f"caption {i}", noisy_jpeg(2 * i), noisy_jpeg(2 * i + 1), 1.0) for i in range(6)])
    whole = (root / "w/003.jpg").read_bytes()
    assert len(whole) > 2000
    in_place(root / "w/003.jpg", whole[:kept])
    in_place(root / "l/005.jpg", b"gone for good")
    settings = raw(root)
    assert "6 rows, 4 pairs" in command(settings, "cache")
    said = command(settings, "cache", "verify")
    assert "2 refused rows were looked at again: none can be used" in said
    assert "the caches hold what is computed now" in said
    in_place(root / "w/003.jpg", whole)
    words = (
        r"fdpo cache verify: 1 of 2 rows that the cache refused can be used now, first pair '003' "
        r"\(an image does not decode: w/003.jpg: .*\): delete \S*/pairs-\w+ and \S*/latents-\w+, and run `fdpo cache`"
    )
    with pytest.raises(SystemExit, match=words) as refused:
        command(settings, "cache", "verify")
    for word in str(refused.value.code).split():
        if word.strip(",").startswith(str(tmp_path / "cache")):
            for path in os.scandir(word.strip(",")):
                os.unlink(path)
    assert "6 rows, 5 pairs" in command(settings, "cache")
    assert "1 refused rows were looked at again: none can be used" in command(settings, "cache", "verify")


def test_pairs_of_a_ranking_are_told_from_one_another(command, raw, tmp_path):
    """A record of which some pairs are kept and some are not."""
    root = as_rankings(tmp_path, [("x", noisy_jpeg(i), noisy_jpeg(10 + i), 1.0) for i in range(4)])
    image = root / "images/000-1.jpg"
    whole = image.read_bytes()
    in_place(image, whole[:1200])
    settings = raw(root)
    assert "2 rows, 3 pairs, 1 ties dropped" in command(settings, "cache")
    assert "1 refused rows were looked at again: none can be used" in command(settings, "cache", "verify")
    in_place(image, whole)
    with pytest.raises(SystemExit, match=r"1 of 1 rows that the cache refused can be used now, first metadata"):
        command(settings, "cache", "verify")


def test_ties_are_not_looked_at(command, raw, tmp_path):
    rows = [("a", RED, BLUE, 0.5), ("b", RED, noisy_jpeg(0), 1.0)]
    settings = raw(as_pickapic(tmp_path, rows))
    command(settings, "cache")
    assert "refused" not in command(settings, "cache", "verify")
