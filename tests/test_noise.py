"""The counter-based draws: published vectors, the C++ path, statistics, and what they must not depend on."""

import importlib.util
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fdpo_fast import add_noise, draws, pair_draw
from fdpo_fast.noise import normals, philox, uniforms, words
from fdpo_fast.ops import cpp
from fdpo_fast.ops.constants import Stream
from tests.helpers.backends import FUSED

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


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN)
@pytest.mark.parametrize("isa", list(cpp.KERNELS))
def test_philox_known_answers_in_cpp(isa, counter, key, output):
    words = torch.tensor(counter).to(torch.uint32)[:, None].expand(4, 16).contiguous()
    cpp._native.philox(cpp.KERNELS[isa], words.data_ptr(), *key)
    assert words[:, 0].tolist() == words[:, 15].tolist() == list(output)


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN)
def test_philox_known_answers_in_triton(counter, key, output, triton_device):
    probes = pytest.importorskip("tests.helpers.triton_probes")
    # the counter is (block, visit, pair_id low, pair_id high << 8 | stream)
    block, visit, low, high = counter
    seed = key[0] | key[1] << 32
    drawn = draws(seed, torch.tensor([low | high >> 8 << 32]), torch.tensor([visit]), device=triton_device)
    stream = high & 0xFF
    if block == 0:
        assert probes.words(drawn, stream, 1)[0].tolist() == list(output)
    assert words(drawn, stream, 1).tolist() == probes.words(drawn, stream, 1).tolist()


def test_words_are_the_same_in_triton(triton_device):
    probes = pytest.importorskip("tests.helpers.triton_probes")
    drawn = draws(2**64 - 2, torch.tensor([0, 2**56 - 1, 12345678901234]), torch.tensor([1, 0, 2**32 - 1]))
    for stream in (Stream.NOISE, Stream.TIMESTEP, Stream.CAPTION):
        assert torch.equal(probes.words(drawn.to(triton_device), stream, 64).cpu(), words(drawn, stream, 64))


def ulps(got, exact):
    """Distance of float32 numbers from float64 ones in units in the last place of the latter."""
    exponent = torch.frexp(exact.abs().clamp(min=2.0**-126))[1] - 24
    return (got.double() - exact).abs() / torch.ldexp(torch.ones_like(exact), exponent)


def exact_normals(drawn, count):
    x, y = words(drawn, Stream.NOISE, -(-count // 4)).double().unflatten(1, (-1, 2)).unbind(-1)
    radius, angle = (-2 * ((x + 1) / 2**32).log()).sqrt(), y * (2 * math.pi / 2**32)
    return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1).flatten(1)[:, :count]


@pytest.mark.parametrize(("backend", "device"), [*FUSED, ("eager", "cpu")])
@given(
    seed=st.integers(0, 2**64 - 1),
    pairs=st.lists(st.tuples(st.integers(0, 2**56 - 1), st.integers(0, 2**32 - 1)), max_size=3),
    count=st.integers(1, 3000),
)
@settings(max_examples=25)
def test_normals_are_within_two_ulp_of_float64(backend, device, seed, pairs, count):
    ids, visits = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    drawn = draws(seed, ids, visits)
    got = normals(drawn.to(device), count, backend)
    assert got.shape == (len(pairs), count)
    if pairs:
        assert ulps(got.cpu(), exact_normals(drawn, count)).max() <= 2
        assert torch.equal(normals(drawn.to(device), count, backend), got)


def test_triton_normals_of_the_rarest_words(triton_device):
    # the radius near 0 and at its largest, the angle around every eighth of a turn
    edges = torch.tensor([0, 1, 2, 3, 2**31 - 1, 2**31, 3037000499, 3037000500, 2**32 - 2**8, 2**32 - 2, 2**32 - 1])
    angles = torch.tensor([e + d for e in range(0, 2**32, 2**29) for d in (-1, 0, 1) if e + d >= 0])
    x, y = torch.cartesian_prod(edges, angles).T.contiguous()
    radius, turn = (-2 * ((x.double() + 1) / 2**32).log()).sqrt(), y.double() * (2 * math.pi / 2**32)
    probes = pytest.importorskip("tests.helpers.triton_probes")
    normals_of_words = probes.box_muller(x.to(triton_device), y.to(triton_device)).cpu()
    for got, exact in zip(normals_of_words, (radius * turn.cos(), radius * turn.sin()), strict=True):
        # next to a zero of sine or cosine float64 itself has no digits: the angle is rounded
        close = exact.abs() < 1e-7
        assert ulps(got, exact)[~close].max() <= 2
        assert (got.double() - exact)[close].abs().max() < 1e-14


def test_host_normals_depend_on_neither_threads_nor_instruction_set(monkeypatch):
    drawn = draws(3, torch.arange(5), 0)
    threads = torch.get_num_threads()
    results = []
    try:
        for kernels in cpp.KERNELS.values():
            monkeypatch.setattr(cpp, "active", kernels)
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append(normals(drawn, 20_001, "cpp"))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize(("backend", "device"), FUSED)
@pytest.mark.parametrize("layout", ["halves", "interleaved"])
@pytest.mark.parametrize(
    ("dtype", "out"), [(torch.float32, None), (torch.bfloat16, None), (torch.float32, torch.float16)]
)
def test_add_noise(backend, device, layout, dtype, out):
    schedule = torch.linspace(0.99, 0.01, 50)
    signal, sigma = schedule.sqrt(), (1 - schedule).sqrt()
    latents = torch.randn(6, 4, 9, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    ids, visits = torch.tensor([5, 2**40, 7]), torch.tensor([0, 1, 2])
    drawn = draws(11, ids, visits)
    options = {"layout": layout, "dtype": out, "backend": backend}
    arguments = (drawn.to(device), signal.to(device), sigma.to(device))
    noisy, timesteps = add_noise(latents.to(device), *arguments, **options)
    want_timesteps, eps = pair_draw(11, ids, visits, (4, 9, 9), num_train_timesteps=50)
    assert torch.equal(timesteps.cpu(), want_timesteps)
    assert noisy.dtype == (out or dtype)
    rows = {"halves": [0, 1, 2, 0, 1, 2], "interleaved": [0, 0, 1, 1, 2, 2]}[layout]
    a, s = (table[want_timesteps][rows, None, None, None].double() for table in (signal, sigma))
    exact = a * latents.double() + s * eps[rows].double()
    eps_out = torch.finfo(out or dtype).eps
    torch.testing.assert_close(noisy.cpu().double(), exact, rtol=eps_out, atol=4e-7)
    last = latents.to(device, memory_format=torch.channels_last)
    assert torch.equal(add_noise(last, *arguments, **options)[0], noisy)
    eager = add_noise(latents, drawn, signal, sigma, layout=layout, dtype=out, backend="eager")
    torch.testing.assert_close(noisy.cpu(), eager[0], rtol=eps_out, atol=4e-7)
    assert torch.equal(eager[1], want_timesteps)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"latents": torch.zeros(3, 2)}, "draws are"),
        ({"draws": torch.zeros(3, 3, dtype=torch.int64)}, "draws are"),
        ({"signal": torch.zeros(3)}, "signal and sigma"),
        ({"layout": "pairs"}, "unknown layout"),
        ({"backend": "cuda"}, "unknown backend"),
        ({"draws": torch.zeros(3, 2, dtype=torch.int32)}, "draws are torch.int32"),
        ({"draws": torch.zeros(3, 2, dtype=torch.int64, device="meta")}, "draws is on meta"),
        ({"draws": [1]}, "draws must be a tensor"),
        ({"latents": torch.tensor(0.0)}, "draws are"),
        ({"latents": torch.zeros(4, 2, dtype=torch.int64)}, "floating-point"),
        ({"dtype": torch.int32}, "floating-point"),
    ],
)
def test_add_noise_refusals(change, says):
    given = {"latents": torch.zeros(4, 2), "draws": draws(0, torch.arange(2), 0)}
    given |= {"signal": torch.ones(5), "sigma": torch.ones(5)} | change
    with pytest.raises((ValueError, TypeError), match=says):
        add_noise(**given)


def test_normals_are_normal():
    x = normals(draws(11, torch.arange(64), 0), 16_384).double()
    n = x.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean().item() - moment) < 5 * (variance / n) ** 0.5
    between = (x[:-1] * x[1:]).mean().item()
    assert abs(between) < 5 / n**0.5  # neighbouring pairs are independent
    below = torch.special.ndtr(x).flatten().sort().values
    steps = (torch.arange(n, dtype=torch.float64) + 0.5) / n
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
    drawn = draws(0, torch.arange(1000), 0)
    streams = [uniforms(drawn, stream) for stream in (Stream.NOISE, Stream.TIMESTEP, Stream.CAPTION)]
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


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pair_id": 0.5}, "pair_id must be an integer, got float"),
        ({"visit": torch.ones(2, dtype=torch.float32)}, "visit must be an integer, got torch.float32"),
        ({"pair_id": torch.ones(2, dtype=torch.bool)}, "pair_id must be an integer, got torch.bool"),
        ({"seed": torch.tensor(3)}, "seed must be one integer for all pairs"),
        ({"pair_id": torch.zeros(2, 2, dtype=torch.int64)}, "must be \\[B\\] both"),
        ({"pair_id": torch.arange(2), "visit": torch.arange(3)}, "must be \\[B\\] both"),
        ({"num_train_timesteps": 0}, "num_train_timesteps must lie in"),
        ({"num_train_timesteps": 2**40}, "num_train_timesteps must lie in"),
        ({"num_train_timesteps": 2.5}, "num_train_timesteps must be an integer"),
        ({"shape": 4}, "sizes of one sample"),
        ({"shape": (-2,)}, "sizes of one sample"),
        ({"dtype": torch.int32}, "floating-point dtype"),
    ],
)
def test_pair_draw_refusals(change, says):
    with pytest.raises((ValueError, TypeError), match=says):
        pair_draw(**({"seed": 0, "pair_id": 1, "visit": 2, "shape": (3,)} | change))


def test_empty_samples_and_other_integers():
    assert pair_draw(0, torch.arange(3), 0, (0, 2))[1].shape == (3, 0, 2)
    np_like = torch.arange(3).numpy()[1] if importlib.util.find_spec("numpy") else 1
    assert torch.equal(pair_draw(np_like, np_like, 0, (4,))[1], pair_draw(1, 1, 0, (4,))[1])
