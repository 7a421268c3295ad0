"""Couplings: what all hand out, that noise and data keep their laws, and that labels stay with their data."""

from dataclasses import is_dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from coupling_examples import BARE, COUNT, COUPLINGS, LABEL, NULL, PIXELS, SHAPE, X1, given_pairs, same, which
from fmcore.flow import couplings
from fmcore.flow.couplings import COUPLINGS as COUPLINGS_BY_NAME
from fmcore.flow.couplings import Coupling, Flipped, Independent, LabelDropout, Mixture, Pairs, Slerped, Stored
from fmcore.flow.rng import generator, noise

pytestmark = pytest.mark.numerics


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
        "items",
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
