"""Scores equal those of the tools that papers quote, on the same images and the same weights.

torch-fidelity's command line runs as anyone would run it, on folders of PNGs. Inception's weights are random, as
nothing is downloaded here: what is compared is reading, resizing, features and formulas, and those do not know
the weights. They are scaled so that activations neither die out nor blow up on the way.

A Frechet distance on 2048 features needs more than 2048 images a side, half an hour of Inception on one core.
So the two command lines are compared on the 64 features of its first block (their `--feature-layer-fid 64`, here
a MODULE:FUNCTION extractor), and on all 2048 it is the functions behind ours, which do not refuse few images. Then
the distance is one of covariances without full rank, where torch-fidelity's root of a product that is not
symmetric and ours of one that is differ most.

Kernel distance, precision, recall and inception score come out equal to the last digit that is printed, Frechet
distances to 3e-8 on 64 and 3e-6 on 2048 features: theirs averages float32 features in float32.
"""

import csv
import importlib
import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

from fmcore.cli import main
from fmcore.flow.pixels import quantise
from fmcore.intake.scored_folder import Folder, folder_images
from fmcore.score.estimates import group_sizes
from fmcore.score.extractors import adopt
from fmcore.score.fidelity import classes, inception_score, kid, precision_recall
from fmcore.score.frechet import frechet_distance, frechet_floor, stats
from fmcore.score.reference import reference_parts
from fmcore.score.scoring import ImageScorer

COUNTS = {"generated": 90, "real": 80}
FEW = {"generated": 44, "real": 40}  # of them, for all of Inception
EQUAL, ROUNDED = 1e-6, 1e-5  # relative
METRICS = ("frechet_inception_distance", "kernel_inception_distance_mean", "precision", "recall")

LAYER = """
from functools import cache
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

@cache
def network():
    return FeatureExtractorInceptionV3("inception-v3-compat", ["64"], feature_extractor_weights_path="weights.pth")

def first_block(pixels):
    return network()(pixels)[0]
"""


def blobs(count, seed, contrast):
    """8-bit RGB images with structure at several scales."""
    g = torch.Generator().manual_seed(seed)
    sides = (2, 4, 8, 32)
    parts = [torch.randn(count, 3, side, side, generator=g) for side in sides]
    x = sum(torch.nn.functional.interpolate(part, size=(32, 32), mode="bilinear") for part in parts)
    return (128 + contrast * x).clamp(0, 255).to(torch.uint8)


def random_inception(path):
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    g = torch.Generator().manual_seed(0)
    state = network.state_dict()
    for name, value in state.items():
        if name.endswith("conv.weight"):
            state[name] = torch.randn(value.shape, generator=g) * math.sqrt(2 / value[0].numel())
    state["fc.weight"] = torch.randn(1008, 2048, generator=g)
    torch.save(state, path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two folders of PNGs and a file of weights."""
    root = tmp_path_factory.mktemp("standard")
    for (name, count), seed, contrast in zip(COUNTS.items(), (0, 1), (45, 40), strict=True):
        (root / name).mkdir()
        for i, image in enumerate(blobs(count, seed, contrast)):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / name / f"{i:03d}.png")
        # KID's subsets and the groups of an inception score go by the order: theirs is that of names.
        (root / f"{name}-ordered").mkdir()
        for i, path in enumerate(Folder(root / name).files):
            shutil.copy(path, root / f"{name}-ordered" / f"{i:03d}.png")
        (root / f"{name}-few").mkdir()
        for i in range(FEW[name]):
            shutil.copy(root / f"{name}-ordered" / f"{i:03d}.png", root / f"{name}-few")
    random_inception(root / "weights.pth")
    (root / "layer_of_inception.py").write_text(LAYER)
    return root


def torch_fidelity(folder, which, counts, *options):
    """What torch-fidelity's command line says; features of both folders stay in its cache."""
    known = ["--input1", f"generated-{which}", "--input2", f"real-{which}"]
    known += ["--feature-extractor", "inception-v3-compat", "--feature-extractor-weights-path", "weights.pth"]
    known += ["--input1-cache-name", "generated", "--input2-cache-name", "real"]
    known += ["--cache-root", f"cache-{which}", "--kid-subset-size", str(min(counts.values()))]
    known += ["--rng-seed", "0", "--no-samples-shuffle", "--cpu", "--json", "--silent"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "torch_fidelity.fidelity", *known, *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def theirs(folder):
    """All their scores on all 2048 features."""
    return torch_fidelity(folder, "few", FEW, "--fid", "--kid", "--prc", "--isc")


@pytest.mark.slow
def test_the_two_command_lines_agree(folder, monkeypatch, tmp_path):
    layer = [part for metric in ("fid", "kid", "prc") for part in (f"--feature-layer-{metric}", "64")]
    expected = torch_fidelity(folder, "ordered", COUNTS, "--fid", "--kid", "--prc", *layer)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    arguments = ["evaluate", "generated", "--against", "real", "--extractor", "layer_of_inception:first_block"]
    arguments += ["--metrics", "kid,precision_recall", "--out", str(tmp_path / "table.csv")]
    assert main(arguments) == 0
    with (tmp_path / "table.csv").open() as file:
        ours = {row["metric"]: float(row["value"]) for row in csv.DictReader(file)}
    found = [ours[name] for name in ("fd_first_block", "kid", "precision", "recall")]
    assert found == pytest.approx([expected[name] for name in METRICS], rel=EQUAL)
    assert 0 < ours["precision"] < 1
    assert 0 < ours["recall"] < 1


@pytest.mark.slow
def test_all_features_of_inception_give_their_scores(folder, theirs, tmp_path):
    extractor = adopt("inception-v3-compat", tmp_path, (3, 32, 32), [], weights=str(folder / "weights.pth"))
    x, y = (
        torch.cat([extractor(part) for part in folder_images(Folder(folder / name).files[:count], None)])
        for name, count in FEW.items()
    )
    assert x.shape == (44, 2048)
    assert frechet_distance(stats(x), stats(y)) == pytest.approx(theirs[METRICS[0]], rel=ROUNDED)
    ours = [kid(x, y).value, *(e.value for e in precision_recall(x, y))]
    assert ours == pytest.approx([theirs[name] for name in METRICS[1:]], rel=EQUAL)
    assert extractor.logits is not None
    found = inception_score([classes(group) for group in extractor.logits(x).split(group_sizes(len(x)))])
    assert found.value == pytest.approx(theirs["inception_score_mean"], rel=EQUAL)
    assert found.value > 1.01


# --- the formula --------------------------------------------------------------------------------------------


@pytest.fixture
def sqrtm(monkeypatch):
    """SciPy deprecated, for removal, the argument by which both packages ask for an error estimate."""
    root = scipy.linalg.sqrtm
    monkeypatch.setattr(scipy.linalg, "sqrtm", lambda a, disp=True: root(a) if disp else (root(a), 0.0))


@pytest.mark.parametrize(
    "oracle", [("pytorch_fid.fid_score", "calculate_frechet_distance"), ("cleanfid.fid", "frechet_distance")]
)
def test_the_distance_is_that_of_the_other_packages(sqrtm, oracle):
    """On correlated features of different scales, from their own means and covariances as they make them."""
    g = torch.Generator().manual_seed(0)
    mix = torch.randn(24, 24, generator=g, dtype=torch.float64) * torch.logspace(-1, 1, 24, dtype=torch.float64)
    x = torch.randn(300, 24, generator=g, dtype=torch.float64) @ mix
    y = 0.5 + torch.rand(400, 24, generator=g, dtype=torch.float64) @ mix.T
    moments = [m for part in (x.numpy(), y.numpy()) for m in (np.mean(part, axis=0), np.cov(part, rowvar=False))]
    expected = getattr(importlib.import_module(oracle[0]), oracle[1])(*moments)
    assert frechet_distance(stats(x), stats(y)) == pytest.approx(expected, rel=1e-9)


# --- what must not matter, and what does --------------------------------------------------------------------


def tiny_images(count, seed):
    """Samples of a model whose four pixels are independent and uniform over 25 grey levels, as floats."""
    g = torch.Generator().manual_seed(seed)
    return 0.1 * (2 * torch.rand(count, 1, 2, 2, generator=g) - 1)


def test_how_images_come_in_does_not_matter(tmp_path):
    """Reference and samples in batches of any size, statistics added in any order."""
    pixels = quantise(tiny_images(1000, 0))
    extractor = adopt("pixels", tmp_path, (1, 2, 2), [])
    found = []
    for size in (1000, 333, 64, 7):
        first, *others = reference_parts(extractor, pixels[500:].split(size), 500)
        scorer = ImageScorer(500, extractor, sum(others[::-1], start=first), ["frechet_infinity", "kid"])
        for part in pixels[:500].split(size):
            scorer.add(part)
        found.append([score.estimate.value for score in scorer.scores()][:2])
    for scores in found[1:]:
        assert scores == pytest.approx(found[0], rel=1e-6)


def test_truncating_to_8_bits_shows_and_rounding_does_not(tmp_path):
    """The closed form: `floor(255 x)` darkens by half a grey level, so the distance is D (0.5 / 127.5)^2.

    Rounded samples are as far from the data as the data from itself.
    """
    count, samples = 20_000, tiny_images(20_000, 0)
    extractor = adopt("pixels", tmp_path, (1, 2, 2), [])
    (data,) = reference_parts(extractor, [quantise(tiny_images(count, 1))], count)
    floor = frechet_floor(data.parts).value * (2 / count)
    truncated = ((samples + 1) / 2 * 255).to(torch.uint8)
    ours, theirs = (frechet_distance(stats(extractor(x)), data.stats) for x in (quantise(samples), truncated))
    assert theirs == pytest.approx(4 * (0.5 / 127.5) ** 2, rel=0.3)
    assert ours < 3 * floor < 0.2 * theirs
