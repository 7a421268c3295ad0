"""The extractor `views`: what it is asked, what it sees that rotations do not, and how it does with few images."""

import math

import pandas as pd
import pytest
import torch

from extractor_examples import digits
from fmcore.disk.files import read_json, write_json
from fmcore.flow.training import TrainConfig, new_state, take_average, train
from fmcore.score.extractors import load_extractor, save_extractor
from fmcore.score.feature_net import DAMAGES, FEW, FEW_DIMS, FIT_DIMS, fitting
from fmcore.score.frechet import frechet_distance, stats
from stage_runs import data_of, notes, run, tiny


@pytest.mark.parametrize(("shape", "turns"), [((3, 12, 12), (0, 1, 2, 3)), ((1, 8, 12), (0, 2))])
def test_every_way_up_and_every_damage_is_shown(shape, turns):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(60, 190, shape, generator=generator).byte()
    pixels = image.repeat(1000, 1, 1, 1)
    found = fitting("views", pixels, None, None, batch_size=240, seed=0)
    x, answers = found.objective.draw(generator, 0.0)
    turned, damaged = (127.5 * (x + 1)).round().chunk(2)
    assert x.shape == (240, *shape)
    assert answers.shape == (120, 2)
    assert set(answers[:, 0].tolist()) == set(range(len(turns)))
    assert set(answers[:, 1].tolist()) == set(range(len(DAMAGES)))
    for shown, way in zip(turned, answers[:, 0].tolist(), strict=True):
        assert torch.equal(shown, image.float().rot90(turns[way], (1, 2)))
    for shown, damage in zip(damaged, answers[:, 1].tolist(), strict=True):
        gap = float((shown - image).abs().mean())
        assert (gap == 0) == (damage == 0)
        if 1 <= damage <= 3:  # noise of a mean absolute deviation of sqrt(2 / pi) times the standard one
            assert gap == pytest.approx(math.sqrt(2 / math.pi) * (4, 10, 25)[damage - 1], rel=0.25)
        if damage in (6, 7):
            assert torch.equal(shown, image + (15.0 if damage == 6 else -15.0))


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    config = TrainConfig(images=15_000, batch_size=64, lr=2e-3, lr_final=0.0, warmup_images=640)
    pixels, folder = digits()[0], tmp_path_factory.mktemp("views")
    made = fitting("views", pixels, None, None, batch_size=config.batch_size, seed=0)
    state = new_state(made.network, config)
    list(train(state, made.objective, config, seed=0))
    take_average(state)
    save_extractor(folder, "views", made, pixels)
    return folder


@pytest.mark.native
def test_views_see_noise(views):
    pixels, extractor = digits()[0], load_extractor(views)
    g = torch.Generator().manual_seed(0)
    noisy = (pixels[1::2] + 15 * torch.randn(pixels[1::2].shape, generator=g)).clamp(0, 255).round().byte()
    assert extractor.metric == "fd_views64"
    assert extractor.logits is None
    assert read_json(views / "manifest.json")["held_out_accuracy"] > 0.4  # of 4 and of 10 answers
    real = stats(extractor(pixels[::2]))
    halves = frechet_distance(stats(extractor(pixels[1::2])), real)
    assert frechet_distance(stats(extractor(noisy)), real) > 5 * halves


def test_an_extractor_of_an_older_version_has_64_features(views, tmp_path):
    manifest = read_json(views / "manifest.json")
    assert manifest.pop("dims") == FIT_DIMS
    write_json(tmp_path / "manifest.json", manifest)
    (tmp_path / "extractor.safetensors").write_bytes((views / "extractor.safetensors").read_bytes())
    pixels, _ = digits(20)
    assert torch.equal(load_extractor(tmp_path)(pixels), load_extractor(views)(pixels))


@pytest.mark.parametrize(("count", "dims"), [(FEW - 1, FEW_DIMS), (FEW, FIT_DIMS)])
def test_few_images_get_few_features(count, dims):
    pixels, label = digits(count)
    for kind in ("classifier", "rotation", "views"):
        found = fitting(kind, pixels, label, 10, batch_size=20, seed=0)
        assert found.network.dims == dims
        assert found.network.features(pixels[:2]).shape == (2, dims)


def test_37_images_go_through_the_stages(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    for i, image in enumerate(digits(37)[0]):
        Image.fromarray(image[0].numpy()).save(tmp_path / "own" / f"{i}.png")
    params = tiny(data=data_of("own"), features__extractor="views", evaluate__samples=100)
    said = notes(run(params, "check", "features", "base", "evaluate_base"))
    assert "features: 37 images are few, so they are compared by 8 features" in said
    scores = pd.read_csv("scores/base/scores.csv")
    found = scores[scores.metric == "fd_views8"]
    assert len(found) == 2
    assert (found.value > 0).all()
    assert (found.n_reference == 37).all()
