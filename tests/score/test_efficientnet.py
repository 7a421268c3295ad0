"""ImageNet features: the network is the published one, and images are compared along the data's directions."""

import re

import pytest
import torch
from sklearn.datasets import load_sample_images

from fmcore.disk.files import ArtifactError, read_json, read_tensors, sha256, write_json, write_tensors
from fmcore.score import efficientnet
from fmcore.score.efficientnet import EFFICIENTNET, EFFICIENTNET_DIMS, directions, find_efficientnet, projected
from fmcore.score.extractors import adopt, digest_of, dims_of, load_extractor
from fmcore.score.frechet import frechet_distance, stats

timm = pytest.importorskip("timm", reason="the extra imagenet is not installed")
SHAPE = (3, 16, 16)


@pytest.fixture(scope="module")
def photos():
    """(400, 3, 16, 16) uint8: pieces of two photographs."""
    scenes = [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images]
    pieces = [scene.unfold(1, 16, 16).unfold(2, 16, 16).flatten(1, 2).movedim(1, 0) for scene in scenes]
    rows = torch.randperm(len(pieces[0]), generator=torch.Generator().manual_seed(0))[:200]
    return torch.cat([piece[rows] for piece in pieces]).contiguous()


@pytest.fixture(scope="module")
def made(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    return folder, adopt(EFFICIENTNET, folder, SHAPE, torch.split(photos, 100))


def test_the_network_knows_what_is_on_photographs(monkeypatch):
    """Which shows that weights and layers belong together, and that pixels are scaled as they were in training."""
    monkeypatch.setattr(efficientnet, "SIDE", 224)
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    weights = torch.load(find_efficientnet(), weights_only=True)
    whole.load_state_dict(dict(zip(whole.state_dict(), weights.values(), strict=True)))
    features = efficientnet.load_efficientnet()
    temple, flower = (
        torch.from_numpy(image[:, 106:533].copy()).permute(2, 0, 1)[None] for image in load_sample_images().images
    )
    with torch.inference_mode():
        first, second = (
            whole.classifier(features(image)).topk(3).indices[0].tolist() for image in (temple, flower)
        )
    assert {698, 442} & set(first), "a palace or a bell cote"
    assert 985 in second, "a daisy"


def test_the_directions_are_those_of_a_principal_component_analysis():
    from sklearn.decomposition import PCA

    g = torch.Generator().manual_seed(0)
    x = torch.randn(500, 60, generator=g) * torch.linspace(3, 0.1, 60) + 5
    along = directions(lambda part: part, torch.split(x, 90))
    found = projected(lambda part: part, along, "cpu")(x)
    theirs = torch.from_numpy(PCA(EFFICIENTNET_DIMS).fit_transform(x.numpy()))
    scale = theirs.var(0).mean().sqrt()
    torch.testing.assert_close(found.abs(), (theirs / scale).abs().float(), rtol=1e-3, atol=1e-3)
    assert float(found.var(0).mean()) == pytest.approx(1, rel=1e-3)


def test_a_folder_gives_it_back(made, photos):
    folder, extractor = made
    again = load_extractor(folder)
    assert (again.name, again.metric, again.dims) == ("efficientnet32", "fd_efficientnet32", EFFICIENTNET_DIMS)
    assert dims_of(EFFICIENTNET, SHAPE) == again(photos[:5]).shape[1]
    assert torch.equal(again(photos[:5]), extractor(photos[:5]))
    assert again.digest == extractor.digest != digest_of(EFFICIENTNET, None, False, SHAPE)


def test_it_sees_noise_and_a_scene_that_is_missing(made, photos):
    """In multiples of the distance between two halves of the same photographs."""
    _, extractor = made
    rows = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    one, other = photos[rows[:200]], photos[rows[200:]]
    noisy = (one + 15 * torch.randn(one.shape, generator=torch.Generator().manual_seed(2))).clamp(0, 255).byte()
    there = stats(extractor(other))
    floor = frechet_distance(stats(extractor(one)), there)
    assert frechet_distance(stats(extractor(noisy)), there) > 1.5 * floor
    assert frechet_distance(stats(extractor(photos[:200])), there) > 1.5 * floor


def test_grey_images_are_taken_and_other_channels_are_not(made, photos):
    _, extractor = made
    grey = photos[:3, :1]
    assert torch.equal(extractor(grey), extractor(grey.expand(-1, 3, -1, -1)))
    with pytest.raises(ValueError, match="takes images of 1 or 3 channels, got 2"):
        extractor(photos[:3, :2])


def test_few_images_and_changed_files_are_refused(made, photos, tmp_path):
    with pytest.raises(ValueError, match="needs more than 32 images, got 32"):
        adopt(EFFICIENTNET, tmp_path, SHAPE, [photos[:32]])
    for path in made[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "projection.safetensors").write_bytes(b"other")
    with pytest.raises(ArtifactError, match="expected the extractor with SHA-256"):
        load_extractor(tmp_path)


def test_images_that_are_all_the_same_are_refused(photos, tmp_path):
    same = photos[:1].expand(40, -1, -1, -1)
    with pytest.raises(ValueError, match="images that differ: the features of all 40 are the same") as caught:
        adopt(EFFICIENTNET, tmp_path, SHAPE, torch.split(same, 15))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="images that differ"):
        directions(lambda part: torch.zeros(len(part), 40), [same])
    two = torch.cat([same, photos[1:2]])
    assert directions(lambda part: part.float().flatten(1), [two])["basis"].isfinite().all()


SPOILT = {
    "not finite": (lambda along: along["basis"].fill_(float("nan")), SHAPE, "expected finite directions"),
    "infinite": (lambda along: along["mean"][0].fill_(float("inf")), SHAPE, "expected finite directions"),
    "zero": (lambda along: along["basis"].zero_(), SHAPE, "expected finite directions that are not all 0"),
    "channels": (lambda along: along, (2, 16, 16), "takes images of 1 or 3 channels, got 2"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_folder_that_cannot_have_been_made_is_refused(made, tmp_path, case):
    spoil, shape, message = SPOILT[case]
    along = read_tensors(made[0] / "projection.safetensors")
    spoil(along)
    write_tensors(tmp_path / "projection.safetensors", along)
    manifest = read_json(made[0] / "manifest.json") | {"image_shape": list(shape)}
    write_json(tmp_path / "manifest.json", manifest | {"sha256": sha256(tmp_path / "projection.safetensors")})
    with pytest.raises(ArtifactError, match=message) as caught:
        load_extractor(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_missing_or_damaged_is_said(monkeypatch):
    monkeypatch.setattr(efficientnet, "sha256", lambda path: "0" * 64)
    with pytest.raises(ValueError, match="damaged or of another version"):
        find_efficientnet()
    monkeypatch.setattr(efficientnet, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=re.escape('pip install "fmcore[imagenet]"')):
        find_efficientnet()
