"""Feature extractors and references: deterministic, named after their weights, and what they see."""

from dataclasses import replace

import pytest
import torch

from extractor_examples import digits
from fmcore.disk.files import ArtifactError, read_json, read_tensors, sha256
from fmcore.flow.pixels import dequantise
from fmcore.flow.training import TrainConfig, new_state, take_average, train
from fmcore.score.extractors import FITTED, Extractor, adopt, dims_of, load_extractor, save_extractor
from fmcore.score.feature_net import FEW_DIMS, FIT_DIMS, FeatureNet, fitting
from fmcore.score.frechet import frechet_distance, frechet_floor, stats
from fmcore.score.reference import PARTS, Reference, data_digest, load_reference, reference_parts, save_reference

CONFIG = TrainConfig(images=20_000, batch_size=64, lr=2e-3, lr_final=0.0, warmup_images=640)
BRIEF = replace(CONFIG, images=640)


def fit(kind, pixels, label, classes, config, *, seed, folder):
    """What the features stage does: fit, then save."""
    found = fitting(kind, pixels, label, classes, batch_size=config.batch_size, seed=seed)
    state = new_state(found.network, config)
    yield from train(state, found.objective, config, seed=seed)
    take_average(state)
    save_extractor(folder, kind, found, pixels)


def fitted(folder, kind="classifier", config=BRIEF, seed=0, count=600):
    pixels, label = digits(count)
    known = kind == "classifier"
    records = list(
        fit(kind, pixels, label if known else None, 10 if known else None, config, seed=seed, folder=folder)
    )
    return records, load_extractor(folder)


@pytest.fixture(scope="module", params=["classifier", "rotation"])
def good(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, *fitted(folder, request.param, CONFIG, count=1797)


def test_the_task_is_learned(good):
    kind, folder, records, extractor = good
    manifest = read_json(folder / "manifest.json")
    assert records[-1].loss < 0.5 * records[0].loss
    assert manifest["held_out_accuracy"] > (0.93 if kind == "classifier" else 0.8)
    assert manifest["held_out_images"] == 1797 // 5
    assert extractor.metric == {"classifier": "fd_cnn64", "rotation": "fd_rot64"}[kind]
    assert extractor.digest == manifest["sha256"] == sha256(folder / "extractor.safetensors")


def test_a_classifier_says_its_classes_from_its_features(good):
    kind, folder, _, extractor = good
    if kind == "rotation":
        assert extractor.logits is None
        return
    pixels, label = digits(200)
    assert extractor.logits is not None
    scores = extractor.logits(extractor(pixels))
    network = FeatureNet((1, 8, 8), 10)
    network.load_state_dict(read_tensors(folder / "extractor.safetensors"))
    torch.testing.assert_close(scores, network(dequantise(pixels)).detach(), rtol=1e-4, atol=1e-4)
    assert (scores.argmax(1) == label).float().mean() > 0.95


def test_features_have_the_documented_shape_and_spread(good):
    *_, extractor = good
    pixels, _ = digits()
    found = extractor(pixels)
    assert found.shape == (1797, FIT_DIMS) == (1797, extractor.dims)
    assert found.dtype == torch.float32
    assert float(found.double().var(0).mean()) == pytest.approx(1, rel=0.02)


def test_features_see_a_class_that_is_dropped(good):
    """What the distance is for: half the data is close to the other half, eight classes out of ten are not."""
    *_, extractor = good
    pixels, label = digits()
    f = extractor(pixels)
    halves = frechet_distance(stats(f[::2]), stats(f[1::2]))
    dropped = frechet_distance(stats(f[label < 8]), stats(f))
    assert dropped > 1.5 * halves
    assert frechet_distance(stats(f), stats(f)) < 1e-3


@pytest.mark.parametrize(("fit", "kept"), [(5000, 5000), (130, 50), (100, 100), (7, 5000)])
def test_references_of_batches_add_up(good, monkeypatch, fit, kept):
    monkeypatch.setattr("fmcore.score.reference.KEPT", kept)
    monkeypatch.setattr("fmcore.score.reference.FEATURE_BYTES", fit * FIT_DIMS * 4)
    *_, extractor = good
    pixels, _ = digits(130)
    parts = list(reference_parts(extractor, torch.split(pixels, 50), 130))
    assert [part.stats.count for part in parts] == [50, 50, 30]
    whole = stats(extractor(pixels))
    total = parts[0] + parts[1] + parts[2]
    torch.testing.assert_close(total.stats.total, whole.total, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(total.stats.outer, whole.outer, rtol=1e-4, atol=1e-2)
    every = -(-130 // fit)
    assert len(total.features) <= fit
    assert total.complete == (fit >= 130)
    assert len(total.kept) <= min(kept, len(total.features))
    torch.testing.assert_close(total.features, extractor(pixels)[::every], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["classifier", "views"])
def test_fitting_twice_gives_the_same_bytes(tmp_path, kind):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(ord(name))
        fitted(tmp_path / name, kind, seed=seed)
    a, b, c = ((tmp_path / name / "extractor.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    assert (tmp_path / "a" / "manifest.json").read_bytes() == (tmp_path / "b" / "manifest.json").read_bytes()


def test_another_file_than_the_manifest_names_is_refused(tmp_path):
    fitted(tmp_path / "a")
    fitted(tmp_path / "b", seed=1)
    (tmp_path / "b" / "extractor.safetensors").replace(tmp_path / "a" / "extractor.safetensors")
    a, b = (read_json(tmp_path / name / "manifest.json")["sha256"] for name in "ab")
    for came in (b, "no file"):
        message = rf"extractor\.safetensors: expected the extractor with SHA-256 {a}, got {came}$"
        with pytest.raises(ArtifactError, match=message):
            load_extractor(tmp_path / "a")
        (tmp_path / "a" / "extractor.safetensors").unlink(missing_ok=True)


def test_a_missing_extractor_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"manifest\.json is missing"):
        load_extractor(tmp_path)


def test_a_classifier_without_classes_points_to_views(tmp_path):
    pixels, _ = digits(50)
    with pytest.raises(ValueError, match="needs data with classes; expected views"):
        list(fit("classifier", pixels, None, None, BRIEF, seed=0, folder=tmp_path))


def test_rotation_needs_squares(tmp_path):
    with pytest.raises(ValueError, match="square images, got 8x4"):
        list(
            fit(
                "rotation", torch.zeros(50, 1, 8, 4, dtype=torch.uint8), None, None, BRIEF, seed=0, folder=tmp_path
            )
        )


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 5, 5), (1, 4, 4)])
def test_other_image_sizes(tmp_path, shape):
    pixels = torch.randint(256, (40, *shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    list(fit("rotation", pixels, None, None, replace(BRIEF, images=128), seed=0, folder=tmp_path))
    assert load_extractor(tmp_path)(pixels[:3]).shape == (3, FEW_DIMS)


def test_a_reference_comes_back(tmp_path):
    features = torch.randn(30, 4)
    value = Reference(stats(features), features[:7])
    save_reference(tmp_path / "reference.safetensors", value)
    again = load_reference(tmp_path / "reference.safetensors")
    assert again.stats.count == 30
    assert torch.equal(again.stats.total, value.stats.total)
    assert torch.equal(again.stats.outer, value.stats.outer)
    assert torch.equal(again.features, features[:7])


def test_data_digest_is_of_the_values():
    x = torch.arange(12.0).reshape(3, 4)
    assert data_digest(x) == data_digest(x.clone()) == data_digest(x.T.contiguous().T)
    assert data_digest(x) != data_digest(x + 1)


# --- references ---------------------------------------------------------------------------------------------


def test_the_data_is_dealt_into_equal_random_parts():
    pixels, _ = digits(1000)
    extractor = Extractor("pixels64", 64, "", lambda x: dequantise(x).flatten(1))
    first, *others = reference_parts(extractor, torch.split(pixels, 300), 1000)
    total = sum(others, start=first)
    assert [part.count for part in total.parts] == [1000 // PARTS] * PARTS
    whole = stats(extractor(pixels))
    torch.testing.assert_close(sum(part.total for part in total.parts), whole.total)
    torch.testing.assert_close(sum(part.outer for part in total.parts), whole.outer)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(total.parts[0].total, stats(extractor(pixels[::PARTS])).total)


def test_the_floor_of_gaussian_features_is_that_of_fresh_samples():
    """What the parts are for: their floor foretells the distance of samples that the reference never saw."""
    g = torch.Generator().manual_seed(0)
    pixels = torch.randn(24_000, 1, 2, 4, generator=g).mul(30).add(128).clamp(0, 255).to(torch.uint8)
    extractor = Extractor("pixels8", 8, "", lambda x: dequantise(x).flatten(1))
    (total,) = reference_parts(extractor, [pixels[:4000]], 4000)
    c = frechet_floor(total.parts)
    fresh = [frechet_distance(stats(extractor(x)), total.stats) for x in torch.split(pixels[4000:], 1000)]
    expected = c.value * (1 / 1000 + 1 / 4000)
    assert sum(fresh) / len(fresh) == pytest.approx(expected, rel=0.3)


def test_features_of_the_data_that_are_not_finite_are_named():
    pixels = torch.zeros(9, 1, 2, 2, dtype=torch.uint8)
    pixels[7] = 1

    def features(x):
        return torch.where(x.flatten(1) > 0, torch.nan, 1.0)

    parts = reference_parts(Extractor("mine", 4, "", features), torch.split(pixels, 5), 9)
    with pytest.raises(ValueError, match=r"features of 1 of 4 images .* not finite, the first is image 7"):
        list(parts)


# --- extractors that need no fitting ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pixels", "random"])
def test_what_is_adopted_is_loaded_again(tmp_path, kind):
    pixels, _ = digits(600)
    made = adopt(kind, tmp_path, (1, 8, 8), torch.split(pixels, 100))
    again = load_extractor(tmp_path)
    assert (made.metric, made.dims, made.digest) == (again.metric, again.dims, again.digest)
    assert made.metric == {"pixels": "fd_pixels64", "random": "fd_random64"}[kind]
    assert made(pixels).shape == (600, made.dims) == (600, dims_of(kind, (1, 8, 8)))
    assert torch.equal(made(pixels), again(pixels))
    assert made.logits is None
    if kind == "random":
        assert float(made(pixels).double().var(0).mean()) == pytest.approx(1, rel=1e-4)
        assert made.digest == sha256(tmp_path / "extractor.safetensors")


def test_shifted_pixels_are_as_far_as_the_shift(tmp_path):
    """The closed form: a shift by 10 levels moves each of the 64 means by 20/255 and changes no covariance."""
    pixels, _ = digits()
    pixels = pixels // 2
    extractor = adopt("pixels", tmp_path, (1, 8, 8), [])
    found = frechet_distance(stats(extractor(pixels + 10)), stats(extractor(pixels)))
    assert found == pytest.approx(64 * (20 / 255) ** 2, rel=1e-4)


def test_random_features_do_not_depend_on_the_state_of_the_generator(tmp_path):
    pixels, _ = digits(100)
    digests = set()
    for name in "ab":
        torch.manual_seed(ord(name))
        digests.add(adopt("random", tmp_path / name, (1, 8, 8), [pixels]).digest)
    assert len(digests) == 1


def test_what_must_be_fitted_cannot_be_adopted(tmp_path):
    for kind in (*FITTED, "inception", "none"):
        with pytest.raises(ValueError, match=f"expected one of .*pixels, random or MODULE:FUNCTION, got '{kind}'"):
            adopt(kind, tmp_path, (1, 8, 8), [])
