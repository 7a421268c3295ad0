"""Couplings: what they hand out, that noise and data keep their laws, and that labels stay with their data."""

import warnings
from dataclasses import dataclass, is_dataclass
from itertools import permutations
from math import pi, prod
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import linear_sum_assignment

from fmcore.flow import couplings
from fmcore.flow.couplings import COUPLINGS as COUPLINGS_BY_NAME
from fmcore.flow.couplings import (
    Coupling,
    Flipped,
    Independent,
    LabelDropout,
    MinibatchOT,
    Mixture,
    Pairs,
    Sharded,
    Slerped,
    Stored,
    without_longest,
)
from fmcore.flow.pixels import dequantise
from fmcore.flow.rng import generator, noise
from fmcore.score.straightness import transport_cost

pytestmark = pytest.mark.numerics

COUNT, SHAPE, NULL = 12, (1, 2, 2), 99
PIXELS = torch.arange(COUNT, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(COUNT, *SHAPE).contiguous()
X1 = dequantise(PIXELS)  # each image says which it is
LABEL = torch.arange(COUNT) * 7 % 5


def family(label):
    """Every coupling there is, on the same images."""
    x0 = noise(0, "stored", 0, COUNT, SHAPE)
    independent, pixels = Independent(X1, label), Independent(PIXELS, label)
    stored, halves = Stored(Pairs(x0, X1, label)), Stored(Pairs(x0.half(), X1.half(), label))
    ot = MinibatchOT(independent)
    parts = [Pairs(x0[a:b], X1[a:b], None if label is None else label[a:b]) for a, b in ((0, 5), (5, COUNT))]
    return {
        "independent": independent,
        "independent pixels": pixels,
        "stored": stored,
        "stored halves": halves,
        "sharded": Sharded(tuple(parts)),
        "minibatch OT": ot,
        "minibatch OT of pixels": MinibatchOT(pixels),
        "mixture": Mixture((independent, stored, ot), (0.5, 0.3, 0.2)),
        "mixture that ends": Mixture((halves, pixels), (0.25, 0.75), until=0.5),
        "slerped": Slerped(stored, 0.13),
        "flipped": Flipped(pixels),
        "all at once": Slerped(Flipped(Mixture((ot, Flipped(halves)), (0.5, 0.5))), 0.5),
        **({} if label is None else {"label dropout": LabelDropout(Flipped(independent), 0.5, NULL)}),
    }


COUPLINGS, BARE = family(LABEL), family(None)


def which(x1):
    """The images' numbers."""
    number = ((x1.double() + 1) * 127.5).round().long()
    assert (number == number[:, :1, :1, :1]).all()
    return number[:, 0, 0, 0]


def same(a, b):
    return all((u is v is None) or torch.equal(u, v) for u, v in zip(a, b, strict=True))


def test_the_family_below_is_complete():
    """A coupling added to fmcore belongs into `family`, to be held to what holds for all."""
    there = {
        c for c in vars(couplings).values() if isinstance(c, type) and is_dataclass(c) and c.__name__[0] != "_"
    }
    assert {type(coupling) for coupling in COUPLINGS.values()} == there
    assert all(isinstance(coupling, Coupling) for coupling in COUPLINGS.values())


@pytest.mark.parametrize("name", COUPLINGS)
@given(count=st.integers(1, 30), seed=st.integers(0, 1000), progress=st.floats(0, 1))
def test_pairs_are_images_with_noise_and_their_labels(name, count, seed, progress):
    coupling = COUPLINGS[name]
    pairs = coupling(count, generator(seed, "train"), progress)
    assert pairs.x0.shape == pairs.x1.shape == (count, *SHAPE)
    assert pairs.x0.dtype == pairs.x1.dtype == torch.float32
    assert pairs.label.shape == (count,)
    assert pairs.label.dtype == torch.int64
    dropped = pairs.label == NULL
    assert (pairs.label == LABEL[which(pairs.x1)]).logical_or(dropped).all()
    assert isinstance(coupling, LabelDropout) or not dropped.any()


@pytest.mark.parametrize("name", COUPLINGS)
def test_pairs_are_a_function_of_the_generator_alone(name):
    coupling = COUPLINGS[name]
    first = coupling(20, generator(0, "train", 3))
    torch.manual_seed(1)
    assert same(first, coupling(20, generator(0, "train", 3)))
    for other in (generator(0, "train", 4), generator(1, "train", 3)):
        assert not torch.equal(first.x0, coupling(20, other).x0)


@pytest.mark.parametrize("name", BARE)
def test_labels_are_optional_and_change_nothing_but_who_may_swap_noise(name):
    bare = BARE[name](20, generator(0, "train"))
    assert bare.label is None
    if not COUPLINGS[name].slow:  # optimal transport
        assert same(bare[:2], COUPLINGS[name](20, generator(0, "train"))[:2])


@pytest.mark.parametrize("name", COUPLINGS)
def test_every_image_is_drawn_equally_often(name):
    coupling = COUPLINGS[name]
    drawn = torch.cat([which(coupling(200, generator(0, "train", step)).x1) for step in range(20)])
    assert stats.chisquare(drawn.bincount(minlength=COUNT).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("name", COUPLINGS)
def test_length_is_the_number_of_pairs_behind(name):
    wanted = {"mixture": 3 * COUNT, "mixture that ends": 2 * COUNT, "all at once": 2 * COUNT}
    assert len(COUPLINGS[name]) == wanted.get(name, COUNT)


@pytest.mark.parametrize("name", COUPLINGS)
def test_what_is_behind_is_left_as_it_was(name):
    before = X1.clone(), PIXELS.clone(), LABEL.clone()
    COUPLINGS[name](20, generator(0, "train"))
    assert same(before, (X1, PIXELS, LABEL))


@dataclass(frozen=True)
class Given:
    """A coupling that returns the pairs it was given, and says that it is slow if told so."""

    pairs: Pairs
    slow: bool = False

    def __len__(self):
        return len(self.pairs.x0)

    def __call__(self, count, generator, progress=0.0):
        return Pairs(*(None if part is None else part[:count] for part in self.pairs))


def given_pairs(count, *shape, slow=False, label=None):
    x0, x1 = torch.randn((2, count, *shape), generator=generator(0, "given"))
    return Given(Pairs(x0, x1, label), slow)


WRAPPERS = {
    "slerped": lambda inner: Slerped(inner, 0.1),
    "flipped": Flipped,
    "label dropout": lambda inner: LabelDropout(inner, 0.1, NULL),
    "mixture, first": lambda inner: Mixture((inner, COUPLINGS["stored"]), (0.5, 0.5)),
    "mixture, last": lambda inner: Mixture((COUPLINGS["stored"], inner), (0.5, 0.5)),
}


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("slow", [True, False])
def test_a_wrapper_is_as_slow_as_what_it_wraps(name, slow):
    inner = given_pairs(COUNT, *SHAPE, slow=slow, label=LABEL)
    assert WRAPPERS[name](inner).slow is slow
    assert Flipped(WRAPPERS[name](inner)).slow is slow


def test_what_takes_long_is_drawn_ahead():
    assert {name for name, coupling in COUPLINGS.items() if coupling.slow} == {
        "minibatch OT",
        "sharded",
        "minibatch OT of pixels",
        "mixture",
        "all at once",
    }


# Independent and stored.
def test_pixels_are_trained_on_in_minus_one_to_one():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1, 1)
    x1 = Independent(pixels)(50, generator(0, "train")).x1
    assert x1.unique().tolist() == pytest.approx([-1, -0.6, 1])


def test_independent_noise_is_normal_fresh_and_independent_of_the_data():
    coupling = Independent(torch.linspace(-1, 1, 1000)[:, None])
    first, second = (coupling(20_000, generator(0, "train", step)) for step in (0, 1))
    x0 = first.x0.flatten().numpy()
    assert stats.kstest(x0, "norm").pvalue > 1e-3
    for other in (second.x0, first.x1):
        assert abs(stats.pearsonr(x0, other.flatten().numpy()).statistic) < 5 / 20_000**0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_stored_pairs_stay_together(dtype):
    x0 = noise(0, "stored", 0, COUNT, SHAPE).to(dtype)
    pairs = Stored(Pairs(x0, X1.to(dtype)))(50, generator(0, "train"))
    assert torch.equal(pairs.x0, x0[which(pairs.x1)].float())


# Minibatch OT.
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
def test_minibatch_ot_costs_what_scipy_finds(classes, scale):
    """At the default's size, with images that come twice, within classes, whatever the data's scale."""
    x1 = scale * torch.randn(300, 64, generator=generator(0, "images"))
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


# Mixtures.
def part(value, label=None):
    """A coupling whose every x1 is that value."""
    x = torch.full((1, 1), float(value))
    return Stored(Pairs(x, x, label))


def counts(mixture, count, step, progress=0.0, parts=3):
    return mixture(count, generator(0, "train", step), progress).x1.flatten().long().bincount(minlength=parts)


SHARES = [
    (0.15, 0.25, 0.6),
    (1 / 3, 1 / 3, 1 / 3),
    (0.0, 0.9, 0.1),
    (0.1, 0.2, 0.7),
    (1.0, 0.0, 0.0),
    (0.5, 0.0, 0.5),
]


@pytest.mark.parametrize("shares", SHARES)
@given(count=st.integers(1, 300), step=st.integers(0, 10_000))
def test_a_mixture_s_shares_are_kept_in_every_batch_but_for_one(shares, count, step):
    found = counts(Mixture((part(0), part(1), part(2)), shares), count, step)
    assert found.sum() == count
    assert all(abs(n - share * count) < 1 + 1e-6 for n, share in zip(found.tolist(), shares, strict=True))


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("count", [1, 7])
def test_a_mixture_s_shares_are_right_on_average(shares, count):
    mixture, steps = Mixture((part(0), part(1), part(2)), shares), 600
    mean = torch.stack([counts(mixture, count, step) for step in range(steps)]).double().mean(0) / count
    # A count is one of two neighbours, so its standard deviation is at most 1/2.
    assert mean.tolist() == pytest.approx(shares, abs=4 * 0.5 / count / steps**0.5 + 1e-12)


def test_a_mixture_within_a_mixture_has_its_share():
    inner = Mixture((part(1), part(2)), (0.5, 0.5))
    mixture, steps = Mixture((part(0), inner), (0.5, 0.5)), 600
    mean = torch.stack([counts(mixture, 3, step) for step in range(steps)]).double().mean(0) / 3
    assert mean.tolist() == pytest.approx([0.5, 0.25, 0.25], abs=4 / 3 / steps**0.5)


@pytest.mark.parametrize(
    ("progress", "mixed"), [(0.0, True), (0.29, True), (0.3, False), (0.7, False), (1.0, False)]
)
def test_after_its_end_a_mixture_is_its_first_part(progress, mixed):
    mixture = Mixture((part(0), part(1), part(2)), (0.2, 0.3, 0.5), until=0.3)
    found = counts(mixture, 100, 0, progress).tolist()
    assert found == pytest.approx([20, 30, 50] if mixed else [100, 0, 0], abs=1)
    assert sum(found) == 100


def test_progress_reaches_what_is_inside():
    ending = Mixture((part(0), part(1)), (0.0, 1.0), until=0.5)
    outer = Slerped(Flipped(Mixture((ending, part(2)), (0.5, 0.5))), 0.0)
    assert counts(outer, 10, 0, 0.4).tolist() == pytest.approx([0, 5, 5])
    assert counts(outer, 10, 0, 0.6).tolist() == pytest.approx([5, 0, 5])


def test_a_mixture_until_the_end_mixes_throughout():
    parts, shares = (part(0), part(1)), (0.5, 0.5)
    assert counts(Mixture(parts, shares), 10, 0, 0.999)[1] == 5


@pytest.mark.parametrize("until", [0.0, -1.0, 1.5, float("nan")])
def test_a_mixture_until_no_time_is_refused(until):
    with pytest.raises(ValueError, match=r"needs until in \(0, 1\]"):
        Mixture((part(0), part(1)), (0.5, 0.5), until=until)


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_label_dropout_is_a_probability(p):
    with pytest.raises(ValueError, match=r"needs p in \[0, 1\]"):
        LabelDropout(part(0, torch.tensor([3])), p, 10)


@pytest.mark.parametrize("shares", [(0.5,), (0.5, 0.6), (0.5, 0.4), (1.5, -0.5), (0.2, 0.3, 0.5), (0.0, 0.0), ()])
def test_bad_shares_are_refused(shares):
    with pytest.raises(ValueError, match="a mixture of 2 needs shares that sum to 1") as error:
        Mixture((part(0), part(1)), shares)
    assert str(list(shares)) in str(error.value)


def test_labels_in_some_parts_only_are_refused():
    label = torch.tensor([3])
    with pytest.raises(ValueError, match="labels in all of its parts or in none"):
        Mixture((part(0, label), part(1)), (0.5, 0.5))(10, generator(0, "train"))
    with pytest.raises(ValueError, match="labels in all of its parts or in none"):
        Mixture((part(0), part(1, label)), (0.5, 0.5))(10, generator(0, "train"))


# Slerped.
def angle(a, b):
    return torch.nn.functional.cosine_similarity(a.flatten(1).double(), b.flatten(1).double()).acos()


WIDE = given_pairs(500, 3, 16, 16)


def test_slerp_by_nothing_changes_nothing():
    assert same(Slerped(WIDE, 0.0)(500, generator(0, "train")), WIDE.pairs)


@pytest.mark.parametrize("most", [0.05, 0.13, 0.5, 1.0])
def test_slerp_turns_by_up_to_its_share_and_keeps_lengths(most):
    """In many dimensions fresh noise is at a right angle and of equal length."""
    turned = Slerped(WIDE, most)(500, generator(0, "train"))
    assert torch.equal(turned.x1, WIDE.pairs.x1)
    share = angle(turned.x0, WIDE.pairs.x0) / (pi / 2)
    assert share.max() < most * 1.1
    assert stats.kstest(share.numpy(), "uniform", args=(0, most)).pvalue > 1e-3
    lengths = turned.x0.flatten(1).norm(dim=1) / WIDE.pairs.x0.flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(500), rtol=0, atol=0.15)


@pytest.mark.parametrize("most", [0.13, 0.7])
@pytest.mark.parametrize("dims", [768, 64, 2])
def test_slerp_of_noise_is_noise(dims, most):
    count = 200_000 // dims
    turned = Slerped(given_pairs(count, dims), most)(count, generator(0, "train")).x0
    assert stats.kstest(turned[: 50_000 // dims].flatten().numpy(), "norm").pvalue > 1e-3
    assert float(turned.double().square().mean()) == pytest.approx(1, abs=4 * (2 / turned.numel()) ** 0.5)


def test_slerp_by_all_is_fresh_noise_and_in_a_plane_with_both():
    """A turn of each sample is in the plane of its noise and the fresh: the rest is orthogonal to neither."""
    few = given_pairs(200, 50)
    x0 = few.pairs.x0
    fresh = torch.randn(x0.shape, generator=generator(0, "train"))
    turned = Slerped(few, 1.0)(200, generator(0, "train")).x0
    torch.testing.assert_close(angle(x0, turned) + angle(turned, fresh), angle(x0, fresh), rtol=0, atol=1e-3)


@pytest.mark.parametrize("most", [-0.1, 1.1, float("nan")])
def test_a_turn_beyond_a_right_angle_is_refused(most):
    with pytest.raises(ValueError, match=r"slerp needs most in \[0, 1\]"):
        Slerped(WIDE, most)


# Flipped.
def test_half_the_pairs_are_mirrored_noise_and_image_with_one_coin():
    inner = given_pairs(2000, 3, 2, 4, label=torch.arange(2000))
    x0, x1, label = Flipped(inner)(2000, generator(0, "train"))
    mirrored = (x0 == inner.pairs.x0.flip(3)).flatten(1).all(1)
    assert torch.equal(mirrored, (x1 == inner.pairs.x1.flip(3)).flatten(1).all(1))
    assert torch.equal(x0[~mirrored], inner.pairs.x0[~mirrored])
    assert torch.equal(x1[~mirrored], inner.pairs.x1[~mirrored])
    assert torch.equal(label, torch.arange(2000))
    assert stats.binomtest(int(mirrored.sum()), 2000, 0.5).pvalue > 1e-3


# Label dropout.
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_labels_are_dropped_at_their_rate_and_nothing_else_is(p):
    inner = given_pairs(5000, 1, label=torch.arange(5000) % 7)
    x0, x1, label = LabelDropout(inner, p, null_label=7)(5000, generator(0, "train"))
    dropped = label == 7
    assert same((x0, x1), inner.pairs[:2])
    assert torch.equal(label[~dropped], inner.pairs.label[~dropped])
    assert stats.binomtest(int(dropped.sum()), 5000, p).pvalue > 1e-3
    assert (inner.pairs.label < 7).all()


def test_label_dropout_without_labels_is_refused():
    with pytest.raises(ValueError, match="label dropout needs labels, got none"):
        LabelDropout(BARE["independent"], 0.1, NULL)(3, generator(0, "train"))


# The longest pairs.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.25, 0.5, 0.99])
@pytest.mark.parametrize("labelled", [True, False])
def test_the_longest_pairs_are_left_out_and_the_rest_keep_their_order(share, dtype, labelled):
    x0, x1 = (noise(0, side, 0, 100, (2, 3)).to(dtype) for side in ("x0", "x1"))
    label = torch.arange(100) if labelled else None
    kept = without_longest(Stored(Pairs(x0, x1, label)), share).pairs
    lengths = [float((x1[i].double() - x0[i].double()).square().sum()) for i in range(100)]
    longest = sorted(range(100), key=lengths.__getitem__)[100 - round(share * 100) :]
    rest = [i for i in range(100) if i not in longest]
    assert same(kept, Pairs(x0[rest], x1[rest], label[rest] if labelled else None))
    assert kept.x0.dtype == dtype


def test_leaving_out_none_is_the_identity():
    stored = Stored(WIDE.pairs)
    assert without_longest(stored, 0.0) is stored
    assert same(without_longest(stored, 1e-9).pairs, WIDE.pairs)


def test_of_equally_long_pairs_the_first_stay():
    pairs = Stored(Pairs(torch.zeros(10, 1), torch.ones(10, 1), torch.arange(10)))
    assert without_longest(pairs, 0.5).pairs.label.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, float("nan")])
def test_a_share_outside_0_to_1_is_refused(share):
    with pytest.raises(ValueError, match=r"expected a share in \[0, 1\), got"):
        without_longest(Stored(WIDE.pairs), share)


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


@pytest.mark.parametrize("name", COUPLINGS_BY_NAME)
@pytest.mark.parametrize("conditional", [False, True])
def test_a_coupling_of_params_yaml_pairs_data_with_normal_noise(name, conditional):
    """Whoever is paired with whom: noise is N(0, I), within each class too, and labels stay with their data."""
    label = torch.arange(400) % 2
    x1 = torch.stack([torch.where(label == 0, -3.0, 3.0), torch.arange(400.0)], 1)
    coupling = COUPLINGS_BY_NAME[name](Independent(x1, label if conditional else None))
    assert len(coupling) == 400
    drawn = [coupling(100, generator(0, "train", step), step / 40) for step in range(40)]
    again = coupling(100, generator(0, "train", 3), 3 / 40)
    assert same(again[:2], drawn[3][:2])
    x0, met = (torch.cat([pairs[i] for pairs in drawn]) for i in (0, 1))
    assert stats.kstest(x0.flatten().numpy(), "norm").pvalue > 1e-3
    assert torch.equal(x1[met[:, 1].long()], met)
    assert stats.chisquare(met[:, 1].long().bincount(minlength=400).numpy()).pvalue > 1e-3
    if not conditional:
        assert all(pairs.label is None for pairs in drawn)
        return
    got = torch.cat([pairs.label for pairs in drawn])
    assert torch.equal(got, label[met[:, 1].long()])
    for k in (0, 1):
        assert stats.kstest(x0[got == k].flatten().numpy(), "norm").pvalue > 1e-3
