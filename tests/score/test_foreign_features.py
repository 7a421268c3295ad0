"""Manifests, weights and references made by somebody else: what does not fit is one line."""

import pytest
import torch

from extractor_examples import MEANS, digits, module_writer
from fmcore.disk.files import ArtifactError, read_json, read_tensors, sha256, write_json, write_tensors
from fmcore.score.extractors import adopt, load_extractor
from fmcore.score.frechet import stats
from fmcore.score.reference import Reference, load_reference, save_reference


@pytest.fixture
def module(tmp_path, monkeypatch):
    return module_writer(tmp_path, monkeypatch)


MANIFESTS = {
    "no extractor": ({}, "a manifest of features, got one without 'extractor'"),
    "no shape": ({"extractor": "pixels", "sha256": ""}, "got one without 'image_shape'"),
    "unknown": (
        {"extractor": "clip", "sha256": "", "image_shape": [1, 8, 8]},
        "expected one of classifier, .*'clip'",
    ),
}
WRONG_NUMBERS = [0, -1, 2.0, "10", None, True, 10**9, [1]]
for value in ([1, 8], [1, 8, 8, 8], "188", 8, None, *([1, 8, side] for side in WRONG_NUMBERS)):
    shaped = {"extractor": "pixels", "sha256": "", "image_shape": value}
    MANIFESTS[f"image_shape {value}"] = (shaped, r"expected for image_shape 3 of the numbers 1\.\.100000, got ")


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_foreign_manifest_is_one_line(tmp_path, case):
    manifest, message = MANIFESTS[case]
    write_json(tmp_path / "manifest.json", manifest)
    with pytest.raises(ArtifactError, match=rf"manifest\.json: .*{message}") as caught:
        load_extractor(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", WRONG_NUMBERS)
def test_what_a_foreign_manifest_counts_is_one_line(tmp_path, module, wrong):
    adopt("random", tmp_path / "net", (1, 8, 8), [digits(20)[0]])
    name = f"{module(MEANS)}:means"
    adopt(name, tmp_path / "own", (1, 8, 8), [])
    for folder, key, function in (("net", "classes", None), ("own", "dims", name)):
        path = tmp_path / folder / "manifest.json"
        write_json(path, {**read_json(path), key: wrong})
        with pytest.raises(ArtifactError, match=rf"manifest\.json: expected for {key} 1 of the numbers 1\.\.1"):
            load_extractor(path.parent, function=function)


FOREIGN_NETS = {
    "none of them": ({}, r"'body.0.bias' \(32,\) of torch.float32, got none"),
    "more": ({"more\nof it": torch.zeros(2)}, r"'more\\nof it' none, got \(2,\) of torch.float32"),
    "other shape": ({"head.weight": torch.zeros(9, 64)}, r"'head.weight' \(1, 64\) of .*, got \(9, 64\) of"),
    "other type": ({"scale": torch.tensor(1)}, r"'scale' \(\) of torch.float32, got \(\) of torch.int64"),
}


@pytest.mark.parametrize("case", FOREIGN_NETS)
def test_tensors_of_another_network_are_one_line(tmp_path, case):
    change, message = FOREIGN_NETS[case]
    adopt("random", tmp_path, (1, 8, 8), [digits(20)[0]])
    path = tmp_path / "extractor.safetensors"
    write_tensors(path, {**read_tensors(path), **change} if change else {})
    write_json(tmp_path / "manifest.json", {**read_json(tmp_path / "manifest.json"), "sha256": sha256(path)})
    with pytest.raises(ArtifactError, match=rf"extractor\.safetensors: expected for tensor {message}") as caught:
        load_extractor(tmp_path)
    assert "\n" not in str(caught.value)


NAN = torch.full((4,), torch.nan, dtype=torch.float64)
FOREIGN_REFERENCES = {
    **{f"no {name}": ({name: None}, f"tensor '{name}' ") for name in ("count", "total", "outer", "features")},
    "of points": ({"x1": torch.zeros(9, 2)}, r"tensor 'x1' none, got \(9, 2\) of torch.float32"),
    "counts": ({"count": torch.tensor([30, 30])}, r"'count' \(\) of torch.int64, got \(2,\)"),
    "a count of floats": (
        {"count": torch.tensor(30.0)},
        r"'count' \(\) of torch.int64, got \(\) of torch.float32",
    ),
    "flat features": ({"features": torch.zeros(28)}, r"'features' \(7, 4\) of torch.float32, got \(28,\)"),
    "other features": ({"features": torch.zeros(7, 5)}, r"'features' \(8, 4\) of torch.float32, got \(7, 5\)"),
    "other total": ({"total": torch.zeros(5, dtype=torch.float64)}, r"'total' \(4,\) .* got \(5,\)"),
    "other outer": ({"outer": torch.zeros(4, 5, dtype=torch.float64)}, r"'outer' \(4, 4\) .* got \(4, 5\)"),
    "no rows": ({"features": torch.zeros(0, 4)}, "expected finite features of some or all of the images counted"),
    "fewer counted": ({"count": torch.tensor(6)}, "expected finite features of some or all of the images counted"),
    "not finite": ({"total": NAN}, "expected finite features"),
}


@pytest.mark.parametrize("case", FOREIGN_REFERENCES)
def test_a_foreign_reference_is_one_line(tmp_path, case):
    change, message = FOREIGN_REFERENCES[case]
    path, features = tmp_path / "reference.safetensors", torch.randn(30, 4)
    save_reference(path, Reference(stats(features), features[:7]))
    changed = {**read_tensors(path), **change}
    write_tensors(path, {name: tensor for name, tensor in changed.items() if tensor is not None})
    with pytest.raises(ArtifactError, match=rf"reference\.safetensors: .*{message}") as caught:
        load_reference(path, 4)
    assert "\n" not in str(caught.value)


def test_a_reference_under_another_extractor_is_one_line(tmp_path):
    path, features = tmp_path / "reference.safetensors", torch.randn(30, 4)
    save_reference(path, Reference(stats(features), features[:6]))
    assert load_reference(path, 4).stats.count == 30
    with pytest.raises(ArtifactError, match=r"expected for tensor 'features' \(12, 2\) .* got \(6, 4\)"):
        load_reference(path, 2)
