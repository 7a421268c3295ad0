"""Couplings mixed: each part has its share, in every batch and until it ends."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fmcore.flow.couplings import Flipped, Mixture, Pairs, Slerped, Stored
from fmcore.flow.rng import generator

pytestmark = pytest.mark.numerics


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
