"""The counter-based draws: published vectors, the C++ path, statistics, and what they must not depend on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fdpo_fast import noise, pair_draw
from fdpo_fast.noise import eager_normals, normals, philox, uniforms
from fdpo_fast.ops import host

# Random123's kat_vectors for philox4x32 with 10 rounds: counter, key, output.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN)
def test_philox_known_answers(counter, key, output):
    got = philox(tuple(torch.tensor(word) for word in counter), key)
    assert tuple(int(word) for word in got) == output


@pytest.mark.skipif(not host.available, reason="the package runs without its compiled part")
@given(
    seed=st.integers(0, 2**64 - 1),
    pairs=st.lists(st.tuples(st.integers(0, 2**56 - 1), st.integers(0, 2**32 - 1)), max_size=5),
    count=st.integers(0, 40),
)
@settings(max_examples=50, deadline=None)
def test_host_normals_follow_eager(seed, pairs, count):
    ids, visits = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    got, want = normals(seed, ids, visits, count), eager_normals(seed, ids, visits, count)
    # both round one float64 value: at most one unit in the last place apart
    torch.testing.assert_close(got, want, rtol=2**-23, atol=0)


def test_host_normals_do_not_depend_on_threads():
    ids, visits = torch.arange(5), torch.zeros(5, dtype=torch.int64)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(normals(3, ids, visits, 20_001))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_normals_are_normal():
    x = normals(11, torch.arange(64), torch.zeros(64, dtype=torch.int64), 16_384).double()
    n = x.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean().item() - moment) < 5 * (variance / n) ** 0.5
    between = (x[:-1] * x[1:]).mean().item()
    assert abs(between) < 5 / n**0.5  # neighbouring pairs are independent
    below = torch.special.ndtr(x).flatten().sort().values
    steps = (torch.arange(n) + 0.5) / n
    assert (below - steps).abs().max().item() < 1.95 / n**0.5  # Kolmogorov-Smirnov, p = 0.001


def test_a_draw_belongs_to_its_pair():
    shape = (4, 3, 5)
    ids, visits = torch.tensor([7, 2**40 + 7, 7]), torch.tensor([0, 0, 1])
    timesteps, eps = pair_draw(5, ids, visits, shape, num_train_timesteps=1000)
    assert eps.shape == (3, *shape)
    assert len({tuple(row.tolist()) for row in eps.flatten(1)}) == 3  # id, its high bits and the visit all count
    for i in range(3):
        timestep, one = pair_draw(5, int(ids[i]), int(visits[i]), shape, num_train_timesteps=1000)
        assert timestep == timesteps[i]
        assert torch.equal(one, eps[i])
    assert not torch.equal(pair_draw(6, 7, 0, shape)[1], eps[0])


def test_streams_are_apart():
    ids, visits = torch.arange(1000), torch.zeros(1000, dtype=torch.int64)
    streams = [uniforms(0, ids, visits, stream) for stream in (noise.NOISE, noise.TIMESTEP, noise.CAPTION)]
    correlations = torch.corrcoef(torch.stack(streams)) - torch.eye(3)
    assert correlations.abs().max() < 0.15


def test_timesteps_are_uniform():
    timesteps, _ = pair_draw(1, torch.arange(20_000), 0, (1,), num_train_timesteps=10)
    counts = timesteps.bincount(minlength=10).double()
    assert len(counts) == 10
    assert ((counts - 2000) ** 2 / 2000).sum() < 27.9  # chi-square with 9 degrees of freedom, p = 0.001


def test_dtype_and_scalar_shape():
    timestep, eps = pair_draw(1, 2, 3, (), num_train_timesteps=10, dtype=torch.bfloat16)
    assert eps.dtype == torch.bfloat16
    assert eps.shape == timestep.shape == ()
    assert timestep.dtype == torch.int64


@pytest.mark.parametrize(("seed", "pair", "visit"), [(-1, 0, 0), (2**64, 0, 0), (0, -1, 0), (0, 2**56, 0), (0, 0, -1)])
def test_out_of_range(seed, pair, visit):
    with pytest.raises(ValueError, match="must lie in"):
        pair_draw(seed, pair, visit, (4,))
