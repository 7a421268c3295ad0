"""Inception: its weights are found or fetched when asked for, checked, and never unpickled."""

import pickle

import pytest
import torch

from fmcore.disk.files import ArtifactError, sha256, write_json
from fmcore.score.extractors import adopt, dims_of, load_extractor
from fmcore.score.inception import INCEPTION_DIMS, INCEPTION_NAME, INCEPTION_SHA, find_inception

INCEPTION = "inception-v3-compat"


def adopt_inception(weights, folder):
    return adopt(INCEPTION, folder, (3, 32, 32), [], weights=None if weights is None else str(weights))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of torch's."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch/hub/checkpoints" / INCEPTION_NAME


def test_the_published_file_is_that_of_torch_fidelity():
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    assert URL_INCEPTION_V3.endswith(f"/{INCEPTION_NAME}")
    assert INCEPTION_SHA in INCEPTION_NAME


@pytest.mark.parametrize("named", [False, True])
def test_missing_weights_are_one_clear_line(cache, tmp_path, named):
    weights = tmp_path / "nowhere.pth" if named else None
    with pytest.raises(ValueError, match=f"no Inception weights at {weights or cache}: ") as caught:
        adopt_inception(weights, tmp_path / "features")
    said = str(caught.value)
    for part in (
        "https://github.com/toshas/torch-fidelity/",
        INCEPTION_NAME,
        "features.weights",
        "download: true",
    ):
        assert part in said
    assert "\n" not in said


def test_weights_are_fetched_only_when_asked_for(cache, tmp_path, monkeypatch):
    asked = []

    def fetch(url, path, hash_prefix, progress):
        asked.append((url.rpartition("/")[2], path, hash_prefix))
        torch.save({"weight": torch.zeros(2)}, path)

    monkeypatch.setattr("torch.hub.download_url_to_file", fetch)
    monkeypatch.setattr("fmcore.score.inception.sha256", lambda path: f"{INCEPTION_SHA}{'0' * 56}")
    with pytest.raises(ValueError, match="no Inception weights at"):
        find_inception(None)
    with pytest.raises(ValueError, match="no Inception weights at"):
        find_inception(str(tmp_path / "my-own-weights.pth"), download=True)
    assert not asked
    for _ in range(2):
        assert find_inception(None, download=True) == find_inception(None) == cache
    assert asked == [(INCEPTION_NAME, str(cache), INCEPTION_SHA)]


@pytest.mark.parametrize("error", [OSError("unreachable"), RuntimeError("invalid hash value")])
def test_a_failed_fetch_is_one_line(cache, monkeypatch, error):
    def fetch(*args, **kwargs):
        raise error

    monkeypatch.setattr("torch.hub.download_url_to_file", fetch)
    with pytest.raises(ValueError, match=f"could not be fetched from https://.* to {cache}: {error}"):
        find_inception(None, download=True)


@pytest.mark.parametrize("named", [False, True])
def test_a_damaged_file_of_the_published_name_is_refused(cache, tmp_path, named):
    path = tmp_path / INCEPTION_NAME if named else cache
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"SHA-256 beginning 6726825d, got [0-9a-f]{8}: damaged") as caught:
        find_inception(str(path) if named else None)
    assert str(path) in str(caught.value)


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
        adopt_inception(path, tmp_path / "features")
    assert not mark.exists()
    assert not (tmp_path / "features").exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [[torch.zeros(2)], {"epoch": 3}, torch.zeros(2)], ids=["list", "number", "tensor"]
)
def test_what_is_no_dictionary_of_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="is not a file of weights"):
        adopt_inception(tmp_path / "weights.pth", tmp_path)


def test_weights_of_another_network_are_one_line(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth does not hold Inception's weights") as caught:
        adopt_inception(tmp_path / "weights.pth", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_malicious_file_is_not_run_though_a_manifest_vouches_for_it(tmp_path):
    path, mark = tmp_path / "weights.pth", tmp_path / "mark"
    path.write_bytes(pickle.dumps(Malice(mark)))
    manifest = {"extractor": INCEPTION, "sha256": sha256(path), "image_shape": [3, 32, 32]}
    write_json(tmp_path / "manifest.json", manifest)
    with pytest.raises(ValueError, match="is not a file of weights"):
        load_extractor(tmp_path, weights=str(path))
    assert not mark.exists()


def test_weights_swapped_after_adoption_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pth")
    write_json(
        tmp_path / "manifest.json", {"extractor": INCEPTION, "sha256": "0" * 64, "image_shape": [3, 32, 32]}
    )
    message = rf"weights\.pth: expected the extractor with SHA-256 {'0' * 64}, got [0-9a-f]{{64}}$"
    with pytest.raises(ArtifactError, match=message):
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
    adopt_inception(weights, tmp_path / "features")
    extractor = load_extractor(tmp_path / "features", weights=str(weights))
    assert extractor.metric == f"fd_inception_{sha256(weights)[:8]}"
    assert extractor.dims == INCEPTION_DIMS == dims_of(INCEPTION, (3, 32, 32))
    colour = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found = extractor(colour)
    assert found.shape == (2, INCEPTION_DIMS)
    torch.testing.assert_close(found, untrained(colour)[0])
    grey = colour[:, :1]
    torch.testing.assert_close(extractor(grey), extractor(grey.expand(-1, 3, -1, -1).contiguous()))
    with pytest.raises(ValueError, match="takes grey or RGB images, got 4 channels"):
        extractor(colour[:, [0, 0, 1, 2]])
    wanted = inception.FeatureExtractorInceptionV3(
        INCEPTION, ["logits_unbiased"], feature_extractor_weights_path=str(weights)
    )(colour)[0]
    assert extractor.logits is not None
    torch.testing.assert_close(extractor.logits(found), wanted)
