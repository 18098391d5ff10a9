"""Buckets: one size for both images of a pair, chosen without regard to which of them is preferred."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdpo_fast.config.schema import Data
from fdpo_fast.data.images import Geometry, frame, sizes_of, target_size
from fdpo_fast.data.pairs import Pair, Picture
from tests.helpers.pictures import noisy_jpeg

BUCKETS = Data(source="x", resolution=512, buckets=True, bucket_step=64)
SQUARE = Data(source="x", resolution=512)
SIDES = st.integers(1, 6000)
SIZES = st.tuples(SIDES, SIDES)
ASPECTS = sorted(math.log(height / width) for height, width in sizes_of(BUCKETS))
COARSEST = max(b - a for a, b in pairwise(ASPECTS))


def kept(size, target):
    """The share of an image that a cut to `target` keeps."""
    aspect, wanted = size[0] / size[1], target[0] / target[1]
    return min(aspect / wanted, wanted / aspect)


def test_the_sizes_of_images():
    sizes = sizes_of(BUCKETS)
    assert (512, 512) in sizes
    assert len(set(sizes)) == len(sizes) >= 5
    assert {(width, height) for height, width in sizes} == set(sizes)
    assert all(height % 64 == width % 64 == 0 for height, width in sizes)
    assert all(0.5 <= height / width <= 2 and 0.7 * 512**2 < height * width <= 512**2 for height, width in sizes)
    assert sizes_of(SQUARE) == [(512, 512)]


@given(first=SIZES, second=SIZES)
def test_never_is_the_worse_kept_side_kept_less_than_under_another_bucket(first, second):
    chosen = target_size(BUCKETS, (first, second))
    worst = min(kept(first, chosen), kept(second, chosen))
    for other in sizes_of(BUCKETS):
        assert min(kept(first, other), kept(second, other)) <= worst * (1 + 1e-9)


@given(first=SIZES, second=SIZES, id=st.integers(0, 10**6), crop=st.sampled_from(["center", "random"]))
def test_swapped_sides_swap_their_frames(first, second, id, crop):
    geometry = Geometry(BUCKETS.replace({"crop": crop, "flip": 0.5}), 3, 8, 8)
    one, other = geometry.frames(id, (first, second))
    assert geometry.frames(id, (second, first)) == [other, one]
    assert one.size[4:] == other.size[4:] == target_size(BUCKETS, (first, second))
    assert (one.size[:2], other.size[:2], one.flip) == (first, second, other.flip)


@given(first=SIZES, second=SIZES)
def test_both_sides_keep_the_same_share_up_to_the_grid(first, second):
    """Between the shapes of two images lies one that cuts as much of both; the bucket next to it is half a step off."""
    chosen = target_size(BUCKETS, (first, second))
    middle = sum(math.log(height / width) for height, width in (first, second)) / 2
    apart = abs(math.log(kept(first, chosen)) - math.log(kept(second, chosen)))
    outside = max(ASPECTS[0] - middle, middle - ASPECTS[-1], 0)
    assert apart <= COARSEST + 2 * outside + 1e-9


@given(size=SIZES, at=st.floats(0, 1))
def test_the_share_is_what_a_frame_keeps(size, at):
    chosen = target_size(BUCKETS, (size, size))
    left, top, right, bottom = frame(size, chosen, (at, at), False).box
    found = (right - left) * (bottom - top) / (size[0] * size[1])
    assert found == pytest.approx(kept(size, chosen), rel=2 / 256)  # the resized image has whole pixels


def test_buckets_keep_the_aspect_ratio_of_the_pair():
    data = Data(source="x", resolution=64, buckets=True, bucket_step=8)
    first, second = (Picture(name, noisy_jpeg(seed, (160, 80))) for seed, name in enumerate("ab"))
    one, other = Geometry(data, 0, 8, 1).place(Pair(0, "row 0", "a", first, second))
    height, width = one.frame.size[4:]
    assert other.frame.size[4:] == (height, width) == tuple(one.pixels(1).shape[1:])
    assert width / height == pytest.approx(2, rel=0.2)
    assert height * width > 0.8 * 64 * 64


def test_a_pair_of_two_shapes_is_cut_between_them():
    """Whichever of them is preferred."""
    data = Data(source="x", resolution=64, buckets=True, bucket_step=8)
    wide, square = Picture("wide", noisy_jpeg(0, (160, 80))), Picture("square", noisy_jpeg(1, (80, 80)))
    for sides in ((wide, square), (square, wide)):
        placed = Geometry(data, 0, 8, 1).place(Pair(0, "row 0", "a", *sides))
        (height, width), *_ = {one.frame.size[4:] for one in placed}
        assert width / height == pytest.approx(math.sqrt(2), rel=0.15)


def test_a_size_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"data.resolution 100 is not a multiple of 64.*take 128"):
        Geometry(Data(source="x", resolution=100), 0, 8, 8)
    with pytest.raises(ValueError, match=r"data.bucket_step 32 is not a multiple of 64"):
        Geometry(Data(source="x", resolution=100, buckets=True, bucket_step=32), 0, 8, 8)
