"""The extractor `views`: what it is asked, what it sees that rotations do not, and how it does with few images."""

import math

import pandas as pd
import pytest
import torch

from extractor_examples import digits
from fmcore.disk.files import read_json, write_json
from fmcore.flow.pixels import dequantise
from fmcore.flow.training import TrainConfig, new_state, take_average, train
from fmcore.score.extractors import load_extractor, save_extractor
from fmcore.score.feature_net import DAMAGES, FEW, FEW_DIMS, FIT_DIMS, fitting
from fmcore.score.frechet import frechet_distance, stats
from stage_runs import folder, notes, run, tiny


def asked(pixels, count=120):
    """What a batch of `views` shows of the first of the pixels, and the right answers."""
    found = fitting("views", pixels[:5].repeat(200, 1, 1, 1), None, None, batch_size=count, seed=0)
    x, answers = found.objective.draw(torch.Generator().manual_seed(0), 0.0)
    return (127.5 * (x + 1)).round(), answers


@pytest.mark.parametrize(("shape", "ways"), [((3, 12, 12), 4), ((1, 8, 12), 2)])
def test_every_damage_is_shown_every_way_up(shape, ways):
    pixels = (
        torch.randint(60, 190, (1, *shape), generator=torch.Generator().manual_seed(0)).byte().repeat(5, 1, 1, 1)
    )
    x, answers = asked(pixels)
    assert x.shape == (120, *shape)
    pairs = {tuple(pair) for pair in answers.tolist()}
    assert pairs == {(way, damage) for way in range(ways) for damage in range(len(DAMAGES))}
    image, turns = pixels[0].float(), 4 // ways
    plain = [shown for shown, (way, damage) in zip(x, answers.tolist(), strict=True) if damage == 0 and way == 1]
    assert plain
    assert all(torch.equal(shown, image.rot90(turns, (1, 2))) for shown in plain)
    for shown, (way, damage) in zip(x, answers.tolist(), strict=True):
        upright = shown.rot90(-turns * way, (1, 2))
        gap = float((upright - image).abs().mean())
        assert (gap == 0) == (damage == 0)
        if 1 <= damage <= 3:  # noise of a mean absolute deviation of sqrt(2 / pi) times the standard one
            assert gap == pytest.approx(math.sqrt(2 / math.pi) * (4, 10, 25)[damage - 1], rel=0.25)
        if damage in (6, 7):
            assert torch.equal(upright, image + (15 if damage == 6 else -15))


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
        x, _ = found.objective.draw(torch.Generator().manual_seed(0), 0.0)
        assert found.network.body(x).shape[1] == dims
        assert found.network.body(dequantise(pixels[:2])).shape == (2, dims)


def test_37_images_go_through_the_stages(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    for i, image in enumerate(digits(37)[0]):
        Image.fromarray(image[0].numpy()).save(tmp_path / "own" / f"{i}.png")
    params = tiny(data=folder("own"), features__extractor="views", evaluate__samples=100)
    said = notes(run(params, "check", "features", "base", "evaluate_base"))
    assert "features: 37 images are few, so they are compared by 8 features" in said
    scores = pd.read_csv("scores/base/scores.csv")
    found = scores[scores.metric == "fd_views8"]
    assert len(found) == 2
    assert (found.value > 0).all()
    assert (found.n_reference == 37).all()
