"""Scorers: every metric by its name, whatever the batches, and what they refuse."""

import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from fmcore.score.estimates import group_sizes
from fmcore.score.extractors import Extractor
from fmcore.score.fidelity import FEATURE_METRICS
from fmcore.score.frechet import frechet_estimate, frechet_infinity, stats
from fmcore.score.reference import Reference
from fmcore.score.scoring import METRICS, ImageScorer, PointScorer


def stub(name="stub", device="cpu"):
    """Features that are the first pixels, and class scores that are the first features."""

    def features(pixels):
        return pixels.to(device).flatten(1)[:, :4].float() / 100

    return Extractor(name, 4, "abc", features, lambda f: 3 * f[:, :3])


def pictures(count, seed=0, device="cpu"):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 1, 3, 3), generator=g, dtype=torch.uint8).to(device)


def reference(count=500):
    found = stub()(pictures(count, 1))
    return Reference(stats(found), found)


def scored(pixels, metrics=(), extractor=None, batch=64):
    scorer = ImageScorer(len(pixels), extractor or stub(), reference(), metrics)
    for part in torch.split(pixels, batch):
        scorer.add(part)
    return scorer


def test_every_metric_by_name():
    pixels = pictures(317)
    found = {score.metric: score for score in scored(pixels, METRICS).scores()}
    f, real = stub()(pixels), reference()
    groups = [stats(part) for part in torch.split(f, group_sizes(317))]
    assert found["fd_stub"].estimate[:3] == pytest.approx(frechet_estimate(groups, real.stats)[:3])
    assert found["fd_stub_inf"].estimate[:3] == pytest.approx(frechet_infinity(groups, real.stats)[:3])
    theirs = isc_features_to_metric(3 * f[:, :3], splits=10, shuffle=False)
    assert found["classifier_score"].estimate.value == pytest.approx(theirs["inception_score_mean"])
    for metric in FEATURE_METRICS.values():
        for key, value in metric(f, real.features, 0).items():
            assert found.pop(key).estimate == value
    assert list(found) == ["fd_stub", "fd_stub_inf", "classifier_score"]
    assert [score.n_reference for score in found.values()] == [500, 500, 0]
    assert {score[3:] for score in found.values()} == {("stub", "abc")}


@pytest.mark.parametrize("batch", [1, 7, 64, 317])
def test_no_metric_depends_on_the_batches(batch):
    for a, b in zip(*(scored(pictures(317), METRICS, batch=size).scores() for size in (317, batch)), strict=True):
        assert a.estimate[:3] == pytest.approx(b.estimate[:3], rel=1e-9)
        assert a.estimate.left_out == pytest.approx(b.estimate.left_out, rel=1e-9)


@pytest.mark.parametrize("name", ["inception", "inception_0123abcd"])
def test_only_inception_s_classes_make_an_inception_score(name):
    names = [score.metric for score in scored(pictures(200), ["inception_score"], stub(name)).scores()]
    assert names == [f"fd_{name}", "inception_score"]


def held(scorer):
    """How many numbers a scorer holds."""
    tensors = [*scorer.kept, scorer.wrong, scorer.first_wrong]
    for sums in (*scorer.groups, *scorer.classes):
        tensors += [part for part in vars(sums).values() if torch.is_tensor(part)]
    return sum(tensor.untyped_storage().size() // tensor.element_size() for tensor in tensors)


def test_memory_does_not_grow_with_the_number_of_images(monkeypatch):
    monkeypatch.setattr("fmcore.score.scoring.KEPT", 50)
    assert held(scored(pictures(100), METRICS)) == held(scored(pictures(10_000), METRICS))
    assert held(scored(pictures(100), METRICS, batch=7)) == held(scored(pictures(100), METRICS))
    assert scored(pictures(100), ["frechet_infinity", "inception_score"]).kept == []


def test_metrics_of_neighbours_look_at_the_first_features(monkeypatch):
    monkeypatch.setattr("fmcore.score.scoring.KEPT", 50)
    found = {score.metric: score.estimate for score in scored(pictures(200), ["kid"]).scores()}
    assert found["kid"] == FEATURE_METRICS["kid"](stub()(pictures(200)[:50]), reference().features, 0)["kid"]


def test_features_that_are_not_finite_are_counted_in_one_line():
    def features(pixels):
        found = stub()(pixels)
        return found.where(pixels[:, 0, 0, :1] != 7, torch.nan)

    pixels = pictures(300).clamp(min=8)
    pixels[[130, 131, 290], 0, 0, 0] = 7
    message = r"^fd_bad: the features of 3 of 300 images are not finite, the first is image 130$"
    for batch in (1, 64, 300):
        with pytest.raises(ValueError, match=message):
            scored(pixels, METRICS, Extractor("bad", 4, "", features, lambda f: f), batch).scores()


def test_a_scorer_refuses_what_it_cannot_score():
    blind = Extractor("rot64", 4, "", stub().features)
    message = r"^metrics: inception_score needs class scores, fd_rot64 has none$"
    with pytest.raises(ValueError, match=message):
        scored(pictures(10), ["inception_score"], blind)
    assert [score.metric for score in scored(pictures(100), (), blind).scores()] == ["fd_rot64"]
    scorer = ImageScorer(100, stub(), reference())
    scorer.add(pictures(90))
    with pytest.raises(ValueError, match=r"^expected 100 images to score, got 90$"):
        scorer.scores()
    with pytest.raises(ValueError, match=r"^expected 100 images to score, got 101 or more$"):
        scorer.add(pictures(11))


def test_points_that_cannot_be_scored_are_one_line():
    with pytest.raises(ValueError, match=r"^metrics: expected any of kid, .* for points, got 'inception_score'$"):
        PointScorer(torch.zeros(100, 2), ["kid", "inception_score"])
    scorer = PointScorer(torch.zeros(100, 2))
    for _ in range(2):
        scorer.add(torch.tensor([[0.0, 1.0], [torch.inf, 0.0]]).repeat(20, 1))
    with pytest.raises(ValueError, match=r"^40 of 80 points are not finite, the first is point 1$"):
        scorer.scores()


@pytest.mark.gpu
def test_adding_images_never_waits_for_the_device():
    found = []
    for device in ("cpu", "cuda"):
        scorer = ImageScorer(300, stub(device=device), reference(), METRICS)
        warm = ImageScorer(300, stub(device=device), reference(), METRICS)
        parts = torch.split(pictures(300, device=device), 64)
        warm.add(parts[0])  # the first matrix product sets up its library
        torch.cuda.set_sync_debug_mode("error")
        try:
            for part in parts:
                scorer.add(part)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found.append(scorer.scores())
    for a, b in zip(*found, strict=True):
        assert a.estimate[:3] == pytest.approx(b.estimate[:3], rel=1e-4, abs=1e-7)
