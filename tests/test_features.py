"""Feature extractors: deterministic, named after their weights, and never unpickled."""

import pickle
from dataclasses import replace

import pytest
import torch

from fmcore.data import Digits
from fmcore.features import (
    FIT_DIMS,
    INCEPTION_DIMS,
    Reference,
    adopt_inception,
    data_digest,
    fitting,
    load_extractor,
    load_reference,
    reference_parts,
    save_extractor,
    save_reference,
)
from fmcore.metrics import frechet_distance, stats
from fmcore.pixels import quantise
from fmcore.store import ArtifactError, read_json, sha256, write_json
from fmcore.training import TrainConfig, averaged, new_state, train

CONFIG = TrainConfig(images=20_000, batch_size=64, lr=2e-3, lr_final=0.0, warmup_images=640)
BRIEF = replace(CONFIG, images=640)


def digits(count=1797):
    data = Digits().load()
    return quantise(data.x1[:count]), data.label[:count]


def fit(kind, pixels, label, classes, config, *, seed, folder):
    """What the features stage does: fit, then save."""
    found = fitting(kind, pixels, label, classes, batch_size=config.batch_size, seed=seed)
    state = new_state(found.network, config)
    yield from train(state, found.objective, config, seed=seed)
    averaged(state)
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


@pytest.mark.parametrize("kept", [5000, 130, 100, 7])
def test_references_of_batches_add_up(good, monkeypatch, kept):
    monkeypatch.setattr("fmcore.features.KEPT", kept)
    *_, extractor = good
    pixels, _ = digits(130)
    parts = list(reference_parts(extractor, torch.split(pixels, 50), 130))
    assert [part.stats.count for part in parts] == [50, 50, 30]
    whole = stats(extractor(pixels))
    total = parts[0] + parts[1] + parts[2]
    torch.testing.assert_close(total.stats.total, whole.total, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(total.stats.outer, whole.outer, rtol=1e-4, atol=1e-2)
    every = -(-130 // kept)
    assert len(total.features) <= kept
    torch.testing.assert_close(total.features, extractor(pixels)[::every], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["classifier", "rotation"])
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
    for _ in range(2):
        with pytest.raises(ArtifactError, match=r"extractor\.safetensors: expected the extractor with SHA-256"):
            load_extractor(tmp_path / "a")
        (tmp_path / "a" / "extractor.safetensors").unlink(missing_ok=True)


def test_a_missing_extractor_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"manifest\.json is missing"):
        load_extractor(tmp_path)


def test_a_classifier_without_classes_points_to_rotation(tmp_path):
    pixels, _ = digits(50)
    with pytest.raises(ValueError, match="needs data with classes; expected rotation"):
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
    assert load_extractor(tmp_path)(pixels[:3]).shape == (3, FIT_DIMS)


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


# --- Inception ----------------------------------------------------------------------------------------------


def test_missing_weights_are_one_clear_line(tmp_path):
    with pytest.raises(
        ValueError, match=r"features\.weights: no file '.*nowhere.pth'; .*never downloaded"
    ) as caught:
        adopt_inception(str(tmp_path / "nowhere.pth"), tmp_path)
    assert "\n" not in str(caught.value)


class Malice:
    """Unpickling it leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_malicious_file_is_refused_and_not_run(tmp_path, writer):
    path, mark = tmp_path / "weights.pth", tmp_path / "mark"
    if writer == "torch":
        torch.save({"weight": torch.zeros(2), "x": Malice(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Malice(mark)))
    with pytest.raises(ValueError, match="is not a file of weights") as caught:
        adopt_inception(str(path), tmp_path / "features")
    assert not mark.exists()
    assert not (tmp_path / "features").exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [[torch.zeros(2)], {"epoch": 3}, torch.zeros(2)], ids=["list", "number", "tensor"]
)
def test_what_is_no_dictionary_of_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="is not a file of weights"):
        adopt_inception(str(tmp_path / "weights.pth"), tmp_path)


def test_weights_swapped_after_adoption_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pth")
    write_json(tmp_path / "manifest.json", {"extractor": "inception", "sha256": "0" * 64})
    with pytest.raises(ArtifactError, match=r"weights\.pth: expected the extractor with SHA-256 0000"):
        load_extractor(tmp_path, weights=str(tmp_path / "weights.pth"))


@pytest.mark.slow
def test_inception_with_unpublished_weights_bears_their_hash(tmp_path, monkeypatch):
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    with monkeypatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        untrained = inception.FeatureExtractorInceptionV3("inception-v3-compat", [str(INCEPTION_DIMS)])
    weights = tmp_path / "weights.pth"
    torch.save(untrained.state_dict(), weights)
    adopt_inception(str(weights), tmp_path / "features")
    extractor = load_extractor(tmp_path / "features", weights=str(weights))
    assert extractor.metric == f"fd_inception_{sha256(weights)[:8]}"
    assert extractor.dims == INCEPTION_DIMS
    colour = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found = extractor(colour)
    assert found.shape == (2, INCEPTION_DIMS)
    torch.testing.assert_close(found, untrained(colour)[0])
    grey = colour[:, :1]
    torch.testing.assert_close(extractor(grey), extractor(grey.expand(-1, 3, -1, -1).contiguous()))
