"""Minibatch optimal transport against POT, torchcfm, scipy and all permutations."""

import warnings
from itertools import permutations
from math import prod
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import linear_sum_assignment

from coupling_examples import COUPLINGS
from fmcore.flow.couplings import Independent, MinibatchOT
from fmcore.flow.rng import generator
from fmcore.score.straightness import transport_cost

pytestmark = pytest.mark.numerics


@pytest.fixture(scope="module")
def theirs():
    """torchcfm's sampler and POT; what they warn of on import is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torchcfm")
        pot = pytest.importorskip("ot")
        from torchcfm.optimal_transport import OTPlanSampler

        return OTPlanSampler("exact"), pot


POINTS = 2 * torch.randn((200_000, 16), generator=generator(0, "data")) + 1  # so many that none is drawn twice


def ot_and_independent(count, dims, seed=0):
    """The same batch, paired and not."""
    fresh = Independent(POINTS[:, :dims])
    return (coupling(count, generator(seed, "train")) for coupling in (MinibatchOT(fresh), fresh))


def total(x0, x1):
    return float((x1 - x0).flatten(1).double().square().sum())


def sorted_rows(x):
    return x[torch.from_numpy(np.lexsort(x.numpy().T))]


@given(count=st.integers(1, 40), dims=st.integers(1, 5), seed=st.integers(0, 100))
def test_minibatch_ot_uses_each_noise_and_each_image_once(count, dims, seed):
    paired, free = ot_and_independent(count, dims, seed)
    assert torch.equal(sorted_rows(paired.x0), sorted_rows(free.x0))
    assert torch.equal(sorted_rows(paired.x1), sorted_rows(free.x1))
    assert total(*paired[:2]) <= total(*free[:2]) * (1 + 1e-6)


@given(count=st.integers(1, 6), dims=st.integers(1, 4), seed=st.integers(0, 100))
def test_minibatch_ot_is_the_best_of_all_permutations(count, dims, seed):
    paired, free = ot_and_independent(count, dims, seed)
    best = min(total(free.x0[list(order)], free.x1) for order in permutations(range(count)))
    assert total(*paired[:2]) == pytest.approx(best, rel=1e-6)


def test_minibatch_ot_on_a_line_sorts():
    paired, _ = ot_and_independent(100, 1)
    order = paired.x1.flatten().argsort(stable=True)
    assert (paired.x0.flatten()[order].diff() >= 0).all()


def test_minibatch_ot_is_cheaper_where_it_can_be():
    paired, free = ot_and_independent(256, 2)
    assert transport_cost(*paired[:2]).mean() < 0.6 * transport_cost(*free[:2]).mean()


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)])
@pytest.mark.parametrize("count", [2, 17, 128])
def test_minibatch_ot_costs_what_pot_and_torchcfm_find(theirs, shape, count):
    sampler, pot = theirs
    fresh = Independent(POINTS[:, : prod(shape)].reshape(-1, *shape))
    paired, free = (coupling(count, generator(0, "train")) for coupling in (MinibatchOT(fresh), fresh))
    cost = torch.cdist(free.x0.flatten(1).double(), free.x1.flatten(1).double()).square().numpy()
    ours = total(*paired[:2]) / count
    assert ours == pytest.approx(pot.emd2(pot.unif(count), pot.unif(count), cost), rel=1e-5)
    assert ours == pytest.approx((sampler.get_map(free.x0, free.x1) * cost).sum(), rel=1e-5)


@pytest.mark.parametrize("classes", [1, 10, 256])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("dims", [2, 64])
def test_minibatch_ot_costs_what_scipy_finds(classes, scale, dims):
    """At the default's size, with samples that come twice, within classes, whatever the data's scale."""
    x1 = scale * torch.randn(300, dims, generator=generator(0, "images"))
    fresh = Independent(x1, torch.arange(300) % classes)
    paired, free = (coupling(256, generator(0, "train")) for coupling in (MinibatchOT(fresh), fresh))
    assert len(free.x1.unique(dim=0)) < 256
    assert torch.equal(paired.x1, free.x1)
    assert torch.equal(paired.label, free.label)
    cost = -(free.x1.double() @ free.x0.double().T).numpy()
    cost[free.label[:, None] != free.label] = np.inf
    rows, columns = linear_sum_assignment(cost)
    ours = -float((paired.x0.double() * paired.x1.double()).sum())
    assert ours == pytest.approx(cost[rows, columns].sum(), rel=1e-6)
    order = (paired.x0[:, None] == free.x0).all(2).double().argmax(1)
    assert sorted(order.tolist()) == list(range(256))
    assert torch.equal(free.label[order], free.label)


def test_torchcfm_repeats_points_where_we_use_each_once(theirs):
    """Its plan is our permutation, but it *samples* pairs from the plan, with replacement: a third is left out."""
    sampler, _ = theirs
    paired, free = ot_and_independent(128, 2)
    plan = sampler.get_map(free.x0, free.x1)
    np.random.seed(0)
    i, j = sampler.sample_map(plan, 128)
    assert len(set(i)) == len(set(j)) < 0.75 * 128
    matched = plan.argmax(0)
    assert set(matched) == set(range(128))
    assert torch.equal(paired.x0, free.x0[torch.from_numpy(matched)])


def test_minibatch_ot_leaves_the_noise_normal():
    coupling = MinibatchOT(Independent(torch.linspace(0, 5, 100)[:, None]))
    x0 = torch.cat([coupling(100, generator(0, "train", step)).x0 for step in range(100)])
    assert stats.kstest(x0.flatten().numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("name", [n for n, c in COUPLINGS.items() if not isinstance(c, Independent)])
def test_minibatch_ot_of_pairs_already_made_is_refused(name):
    """The annotation alone refuses them under beartype, so the check for everyone else is called by itself."""
    made = COUPLINGS[name]
    with pytest.raises(ValueError, match=f"needs fresh noise, got pairs already made: {type(made).__name__}"):
        MinibatchOT.__post_init__(SimpleNamespace(fresh=made))
    with pytest.raises((ValueError, TypeError)):
        MinibatchOT(made)


def test_optimal_transport_keeps_each_class_its_noise():
    """Unrestricted, the noise of a class lies near it, and a conditional sampler starts where none was seen."""
    label = torch.arange(2000) % 2
    x1 = torch.where(label == 0, -3.0, 3.0)[:, None].repeat(1, 2)
    fresh = Independent(x1, label)
    drawn = [MinibatchOT(fresh)(256, generator(0, "train", step)) for step in range(20)]
    x0, got = (torch.cat([pairs[i] for pairs in drawn]) for i in (0, 2))
    for k in (0, 1):
        assert stats.kstest(x0[got == k][:, 0].numpy(), "norm").pvalue > 1e-3
    blind = torch.cat([MinibatchOT(Independent(x1))(256, generator(0, "train", step)).x0 for step in range(20)])
    assert blind[got == 0].mean() < -0.3, "what happens without labels"
    for step, pairs in enumerate(drawn):
        plain = fresh(256, generator(0, "train", step))
        for k in (0, 1):
            mine, theirs = (p.x0[p.label == k].sort(0).values for p in (pairs, plain))
            assert torch.equal(mine, theirs)
        cost = [(p.x1 - p.x0).square().sum() for p in (pairs, plain)]
        assert cost[0] <= cost[1] * (1 + 1e-5)
