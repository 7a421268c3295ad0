"""What is done to pairs before training: noise turned, both mirrored, labels dropped, the longest left out."""

from math import pi

import pytest
import torch
from scipy import stats

from coupling_examples import BARE, NULL, WIDE, given_pairs, same
from fmcore.flow.couplings import Flipped, LabelDropout, Pairs, Slerped, Stored, without_longest
from fmcore.flow.rng import generator, noise

pytestmark = pytest.mark.numerics


# Slerped.
def angle(a, b):
    return torch.nn.functional.cosine_similarity(a.flatten(1).double(), b.flatten(1).double()).acos()


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


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_label_dropout_is_a_probability(p):
    with pytest.raises(ValueError, match=r"needs p in \[0, 1\]"):
        LabelDropout(given_pairs(1, 1, label=torch.tensor([3])), p, 10)


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
