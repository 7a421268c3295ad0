"""What the stages check and features do with extractors, and what is recorded of them."""

import pytest
import torch

from extractor_examples import MEANS, digits, module_writer
from flows import layout
from fmcore.disk.files import read_json, sha256
from fmcore.intake.known import Digits
from fmcore.score.extractors import load_extractor
from fmcore.score.frechet import frechet_floor, stats
from fmcore.score.reference import data_digest, load_reference, reference_parts
from stage_runs import points, run, tiny


@pytest.fixture
def module(tmp_path, monkeypatch):
    return module_writer(tmp_path, monkeypatch)


def test_the_stage_check_tries_a_function_on_images_of_the_data(module, tmp_path):
    name = f"{module('def f(x): return x.reshape(len(x), 100).float()')}:f"
    with pytest.raises(ValueError, match=r"failed on two images of shape \(1, 8, 8\): RuntimeError"):
        list(run(tiny(features__extractor=name), "check"))
    name = f"{module(MEANS)}:means"
    list(run(tiny(features__extractor=name), "check"))
    found = read_json(layout.CHECKED_FEATURES)["extractor_sha256"]
    assert found == sha256(tmp_path / f"{name.partition(':')[0]}.py")


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
