"""Randomness depends on (seed, purpose, index) and on nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fmcore.flow import rng

pytestmark = pytest.mark.numerics

SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


@given(start=st.integers(0, 10**9), count=st.integers(1, 20), cut=st.integers(0, 20), shape=SHAPES)
def test_noise_does_not_depend_on_how_the_range_is_split(start, count, cut, shape):
    cut = min(cut, count)
    whole = rng.noise(3, "pairs", start, count, shape)
    parts = [rng.noise(3, "pairs", start, cut, shape), rng.noise(3, "pairs", start + cut, count - cut, shape)]
    assert whole.shape == (count, *shape)
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("count", [0, 1, 2, 7])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_long_rows_are_those_of_numpy_on_any_number_of_threads(monkeypatch, threads, count):
    """A stream of its own for each index: Philox with the index as the highest word of its counter."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    found = rng.noise(3, "pairs", 5, count, (2, rng.LONG))
    key = rng._key(3, "pairs", 2)
    streams = [np.random.Philox(key=key, counter=[0, 0, 0, 5 + row]) for row in range(count)]
    rows = [np.random.Generator(stream).standard_normal((2, rng.LONG), dtype=np.float32) for stream in streams]
    assert found.shape == (count, 2, rng.LONG)
    assert all(np.array_equal(a, b) for a, b in zip(found.numpy(), rows, strict=True))


@given(start=st.integers(0, 10**9), count=st.integers(1, 20), cut=st.integers(0, 20), high=st.integers(1, 1000))
def test_integers_do_not_depend_on_how_the_range_is_split(start, count, cut, high):
    cut = min(cut, count)
    whole = rng.integers(3, "label", start, count, high)
    parts = [rng.integers(3, "label", start, cut, high), rng.integers(3, "label", start + cut, count - cut, high)]
    assert torch.equal(whole, torch.cat(parts))
    assert 0 <= int(whole.min()) <= int(whole.max()) < high


def test_noise_is_the_same_in_every_release():
    """These values are in stored pairs and in every seed's samples: changing them is a breaking change."""
    expected = [-2.165277, 0.08269042, 2.0896552, -2.4721622]
    assert rng.noise(0, "pairs", 7, 1, (4,))[0].tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("seed", [0, 1])
def test_noise_is_standard_normal_within_and_across_indices(seed):
    across = rng.noise(seed, "pairs", 0, 20_000, (1,)).flatten()
    within = rng.noise(seed, "pairs", 5, 1, (20_000,)).flatten()
    for values in (across, within):
        assert stats.kstest(values.numpy(), "norm").pvalue > 1e-3


def test_integers_are_uniform():
    counts = torch.bincount(rng.integers(1, "label", 0, 20_000, 7), minlength=7)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    "other",
    [(0, "pairs", 1), (0, "pairs", 2**32), (1, "pairs", 0), (0, "sample", 0), (0, "pairs/label", 0)],
    ids=["next index", "far index", "seed", "purpose", "longer purpose"],
)
def test_streams_are_uncorrelated_at_every_lag(other):
    n = 2**15
    seed, purpose, index = other
    a = rng.noise(0, "pairs", 0, 1, (n,))[0].double()
    b = rng.noise(seed, purpose, index, 1, (n,))[0].double()
    spectrum = torch.fft.rfft(a) * torch.fft.rfft(b).conj()
    correlation = torch.fft.irfft(spectrum, n) / n
    assert correlation.abs().max() < 6 / n**0.5


def test_generator_repeats_and_its_neighbours_differ():
    def draw(*key):
        return int(torch.randint(2**62, (1,), generator=rng.generator(*key)))

    draws = {draw(0, "train", step) for step in range(3000)}
    assert len(draws) == 3000
    assert draw(0, "train", 17) == draw(0, "train", 17)
    assert draw(1, "train", 17) not in draws
    assert draw(0, "data", 17) not in draws


def test_neighbouring_generators_are_uncorrelated():
    a, b = (torch.randn(20_000, generator=rng.generator(0, "train", step)).double() for step in (10, 11))
    assert abs(float((a * b).mean())) < 5 / 20_000**0.5


def test_global_generators_are_left_alone():
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    rng.noise(0, "pairs", 0, 3, (2,))
    rng.integers(0, "pairs", 0, 3, 5)
    torch.rand(3, generator=rng.generator(0, "train"))
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
