"""Couplings: what they hand out, and in which order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fmcore.couplings import Independent, Pairs, Stored
from fmcore.rng import generator

COUNT, SHAPE = 12, (1, 2, 2)
X1 = torch.arange(COUNT, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(COUNT, *SHAPE).contiguous()
LABEL = torch.arange(COUNT) % 5
COUPLINGS = {
    "independent": Independent(X1, LABEL),
    "independent pixels": Independent(X1.to(torch.uint8), LABEL),
    "stored": Stored(Pairs(-X1, X1, LABEL)),
    "stored halves": Stored(Pairs(-X1.half(), X1.half(), LABEL)),
}


@pytest.mark.parametrize("name", COUPLINGS)
@given(index=st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=20), seed=st.integers(0, 1000))
def test_pairs_follow_a_permutation_of_the_index(name, index, seed):
    coupling, index = COUPLINGS[name], torch.tensor(index)
    order = torch.randperm(len(index), generator=torch.Generator().manual_seed(seed))
    pairs, moved = (coupling(i, generator(0, "train")) for i in (index, index[order]))
    assert len(coupling) == COUNT
    assert torch.equal(pairs.x1[order], moved.x1)
    assert torch.equal(pairs.label[order], moved.label)
    assert torch.equal(pairs.label, LABEL[index])
    assert pairs.x0.shape == pairs.x1.shape == (len(index), *SHAPE)
    assert pairs.x0.dtype == pairs.x1.dtype == torch.float32
    if isinstance(coupling, Stored):
        assert torch.equal(pairs.x0, -pairs.x1)


@pytest.mark.parametrize("name", COUPLINGS)
def test_labels_are_optional(name):
    coupling = COUPLINGS[name]
    bare = (
        Stored(coupling.pairs._replace(label=None)) if isinstance(coupling, Stored) else Independent(coupling.x1)
    )
    assert bare(torch.tensor([1, 2]), generator(0, "train")).label is None


def test_pixels_are_trained_on_in_minus_one_to_one():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1, 1)
    x1 = Independent(pixels)(torch.arange(3), generator(0, "train")).x1
    assert x1.flatten().tolist() == pytest.approx([-1, -0.6, 1])


def test_independent_noise_is_normal_fresh_and_independent_of_the_data():
    coupling = Independent(torch.linspace(-1, 1, 20_000)[:, None])
    index = torch.arange(20_000)
    first, second = (coupling(index, generator(0, "train", step)).x0.flatten() for step in (0, 1))
    assert stats.kstest(first.numpy(), "norm").pvalue > 1e-3
    for other in (second, coupling.x1.flatten()):
        assert abs(stats.pearsonr(first.numpy(), other.numpy()).statistic) < 5 / 20_000**0.5
