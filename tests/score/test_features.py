"""Feature extractors: deterministic, named after their weights, never unpickled, imported only if asked for."""

import pickle
import sys
from dataclasses import replace
from itertools import count

import pytest
import torch

from flows import layout
from fmcore.disk.files import ArtifactError, read_json, read_tensors, sha256, write_json, write_tensors
from fmcore.flow.pixels import dequantise, quantise
from fmcore.flow.training import TrainConfig, new_state, take_average, train
from fmcore.intake.known import Digits
from fmcore.score.extractors import FITTED, Extractor, adopt, digest_of, dims_of, load_extractor, save_extractor
from fmcore.score.feature_net import FIT_DIMS, FeatureNet, fitting
from fmcore.score.frechet import frechet_distance, frechet_floor, stats
from fmcore.score.inception import INCEPTION_DIMS, INCEPTION_NAME, INCEPTION_SHA, find_inception
from fmcore.score.reference import PARTS, Reference, data_digest, load_reference, reference_parts, save_reference
from stage_runs import points, run, tiny

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
    a, b = (read_json(tmp_path / name / "manifest.json")["sha256"] for name in "ab")
    for came in (b, "no file"):
        message = rf"extractor\.safetensors: expected the extractor with SHA-256 {a}, got {came}$"
        with pytest.raises(ArtifactError, match=message):
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


# --- functions of the user ----------------------------------------------------------------------------------

NAMES = (f"nets_of_a_user_{i}" for i in count())
ADVICE = "after a change run: dvc repro -f -s check, then dvc repro"
MEANS = "def means(pixels):\n    return pixels.float().mean((2, 3))\n"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module into the current folder and returns its name, each time another."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(text):
        name = next(NAMES)
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def test_a_function_of_the_user_is_an_extractor(module, tmp_path):
    name = f"{module(MEANS)}:means"
    made = adopt(name, tmp_path / "features", (3, 8, 8), [])
    source = tmp_path / f"{name.partition(':')[0]}.py"
    assert (made.metric, made.dims, made.digest) == ("fd_means", 3, sha256(source))
    assert made.digest == digest_of(name, None, False, (3, 8, 8))
    again = load_extractor(tmp_path / "features", function=name)
    pixels = torch.randint(256, (5, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert torch.equal(again(pixels), pixels.float().mean((2, 3)))
    assert (again.metric, again.dims, again.digest) == (made.metric, made.dims, made.digest)
    assert dims_of(name, (3, 8, 8)) is None


def test_a_function_in_a_package(tmp_path, module):
    package = tmp_path / f"package_{module(MEANS)}"
    package.mkdir()
    (package / "nets.py").write_text(MEANS)
    assert adopt(f"{package.name}.nets:means", tmp_path / "features", (1, 8, 8), []).metric == "fd_means"


def test_a_changed_function_is_refused(module, tmp_path):
    name = f"{module(MEANS)}:means"
    adopt(name, tmp_path / "features", (1, 8, 8), [])
    source = tmp_path / f"{name.partition(':')[0]}.py"
    before = sha256(source)
    source.write_text(MEANS + "# changed\n")
    message = f"{source.name}: expected the extractor with SHA-256 {before}, got {sha256(source)}; {ADVICE}"
    with pytest.raises(ArtifactError, match=f"{message}$"):
        load_extractor(tmp_path / "features", function=name)


def test_nothing_is_imported_because_a_folder_says_so(module, tmp_path):
    mark = tmp_path / "mark"
    name = f"{module(f'open({str(mark)!r}, chr(119)).close()')}:means"
    features = tmp_path / "features"
    write_json(
        features / "manifest.json", {"extractor": name, "sha256": "0" * 64, "image_shape": [1, 8, 8], "dims": 1}
    )
    for function, message in (
        (None, f"made with {name}, never run unasked; expected --extractor {name}"),
        ("my_own:features", f"expected features of my_own:features, got those of {name}"),
    ):
        with pytest.raises(ArtifactError, match=message):
            load_extractor(features, function=function)
    assert not mark.exists()
    with pytest.raises(ValueError, match="expected a function 'means'"):
        load_extractor(features, function=name)
    assert mark.exists(), "it was importable"


FUNCTIONS = {
    "no function": ("", "expected a function 'f' in .*py, got none of that name"),
    "no function but a number": ("f = 3", "expected a function 'f' in .*py, got a int"),
    "not Python": ("def f(:", "cannot be imported: SyntaxError"),
    "missing dependency": ("import no_such_dependency", "needs no_such_dependency, which is not there"),
    "raises": ("def f(x):\n    raise KeyError('weights\\nlost')", "failed on two images of shape .*: KeyError"),
    "a list": ("def f(x): return [1.0, 2.0]", r"expected a tensor of floats, \(2, D\) for 2 images, got list"),
    "integers": ("def f(x): return x.flatten(1)", r"got \(2, 64\) of torch.uint8"),
    "feature maps": ("def f(x): return x.float()", r"got \(2, 1, 8, 8\) of torch.float32"),
    "one for all": ("def f(x): return x.float().flatten(1)[:1]", r"\(2, 64\) for 2 images, got \(1, 64\)"),
    "no features": ("def f(x): return x.float().flatten(1)[:, :0]", r"\(2, D\) for 2 images, got \(2, 0\)"),
    "nan": ("def f(x): return x.float().flatten(1) * float('nan')", r"expected finite features, got \[nan, nan"),
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_a_function_that_is_none_is_one_line(module, tmp_path, case):
    text, message = FUNCTIONS[case]
    name = f"{module(text)}:f"
    with pytest.raises(ValueError, match=f"extractor {name}: .*{message}") as caught:
        adopt(name, tmp_path / "features", (1, 8, 8), [])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "features").exists()
    with pytest.raises(ValueError, match=f"extractor {name}: .*{message}"):
        digest_of(name, None, False, (1, 8, 8))


def test_the_stage_check_tries_a_function_on_images_of_the_data(module, tmp_path):
    name = f"{module('def f(x): return x.reshape(len(x), 100).float()')}:f"
    with pytest.raises(ValueError, match=r"failed on two images of shape \(1, 8, 8\): RuntimeError"):
        list(run(tiny(features__extractor=name), "check"))
    name = f"{module(MEANS)}:means"
    list(run(tiny(features__extractor=name), "check"))
    assert read_json(layout.CHECKED)["extractor_sha256"] == sha256(tmp_path / f"{name.partition(':')[0]}.py")


@pytest.mark.parametrize("name", ["no_such_module:f", "fmcore.no_such_module:f"])
def test_a_missing_module_is_one_line(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(ValueError, match=f"extractor {name}: no module '{name[:-2]}', in .* or installed"):
        adopt(name, tmp_path, (1, 8, 8), [])


def test_features_that_change_their_size_are_refused(module, tmp_path):
    name = f"{module('def f(x): return x.float().flatten(1)[:, : 2 * len(x)]')}:f"
    made = adopt(name, tmp_path / "features", (1, 8, 8), [])
    with pytest.raises(ValueError, match=r"expected a tensor of floats, \(3, 4\) for 3 images, got \(3, 6\)"):
        made(torch.zeros(3, 1, 8, 8, dtype=torch.uint8))


# --- Inception ----------------------------------------------------------------------------------------------

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
    message = rf"weights\.pth: expected the extractor with SHA-256 {'0' * 64}, got [0-9a-f]{{64}}; {ADVICE}$"
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


# --- the stage ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classifier", "pixels", "random", "function"])
def test_the_stage_records_what_the_reference_is_of(module, tmp_path, kind):
    kind = f"{module(MEANS)}:means" if kind == "function" else kind
    list(run(tiny(features__extractor=kind), "check", "features"))
    manifest, floor = (read_json(tmp_path / "features" / name) for name in ("manifest.json", "floor.json"))
    wanted = {"extractor": kind, "data": "digits", "split": "train", "image_shape": [1, 8, 8]}
    assert wanted.items() <= manifest.items()
    assert manifest["preprocessing"] == "8 bits, round half up, no resizing"
    pixels, _ = digits()
    assert manifest["reference_sha256"] == data_digest(pixels)
    extractor = load_extractor(tmp_path / "features", function=kind)
    reference = load_reference(tmp_path / "features/reference.safetensors")
    assert extractor.digest == manifest["sha256"]
    torch.testing.assert_close(reference.stats.total, stats(extractor(pixels)).total, rtol=1e-5, atol=1e-3)
    (whole,) = reference_parts(extractor, [pixels], len(pixels))
    c = frechet_floor(whole.parts)
    assert floor == {"coefficient": pytest.approx(c.value, rel=1e-3), "std": pytest.approx(c.std, rel=0.02)}
    assert floor["std"] < floor["coefficient"]


def test_the_stage_leaves_no_floor_for_points_or_few_images(module, tmp_path, monkeypatch):
    list(run(points(), "check", "features"))
    assert read_json(tmp_path / "features/floor.json") == {}
    assert read_json(tmp_path / "features/manifest.json")["split"] == "held out"
    few = Digits.load(Digits())
    monkeypatch.setattr(Digits, "load", lambda self: few._replace(x1=few.x1[:100], reference=few.reference[:100]))
    list(run(tiny(features__extractor="pixels"), "check", "features"))
    assert read_json(tmp_path / "features/floor.json") == {}
