"""How fast scores are: features and Frechet distances against the standard tools, and the sweep over NFE.

    python benchmarks/scores.py [--quick] [--out FILE]

Everything runs in one process on the same images and weights (Inception's are random: time does not depend on
them), interleaved, and medians are shown. Compare ratios; seconds depend on the machine.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import machine
from flows import layout
from flows.params.reading import load_yaml, validate
from flows.params.schema import Params
from flows.stages.evaluate import evaluate
from flows.stages.features import features
from flows.stages.intake import intake
from flows.workshop.entry import Stage
from fmcore.disk.files import write_json
from fmcore.models.folder import save_model
from fmcore.score.estimates import group_sizes
from fmcore.score.extractors import Extractor
from fmcore.score.frechet import frechet_distance, frechet_estimate, stats
from fmcore.score.inception import INCEPTION_DIMS, load_inception
from fmcore.score.reference import Reference
from fmcore.score.scoring import ImageScorer

ROOT = Path(__file__).parents[1]


def timed(work: Callable[[], object]) -> float:
    """Seconds that some work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved(repeats: int, **candidates: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each candidate, taken in turns."""
    for work in candidates.values():
        work()  # warm
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, work in candidates.items():
            seconds[name].append(timed(work))
    return {name: statistics.median(times) for name, times in seconds.items()}


def random_weights(folder: Path) -> Path:
    """An Inception file with random weights."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    kept = module.load_state_dict_from_url, module.FeatureExtractorInceptionV3.load_state_dict
    module.load_state_dict_from_url = lambda *args, **kwargs: {}
    module.FeatureExtractorInceptionV3.load_state_dict = lambda self, state: None
    try:
        torch.manual_seed(0)
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", [str(INCEPTION_DIMS)])
    finally:
        module.load_state_dict_from_url, module.FeatureExtractorInceptionV3.load_state_dict = kept
    torch.save(network.state_dict(), folder / "weights.pth")
    return folder / "weights.pth"


class Images(Dataset[Tensor]):
    """What torch-fidelity reads images from."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def extraction(weights: Path, count: int, repeats: int) -> list[str]:
    """Images a second through Inception: each tool's own way from 8-bit images to what a distance needs."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.utils import get_featuresdict_from_dataset
    from torchmetrics.image.fid import FrechetInceptionDistance

    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    ours = Extractor("inception", INCEPTION_DIMS, "", *load_inception(weights, "cpu"), distance="fid")
    empty = Reference(stats(torch.zeros(2, INCEPTION_DIMS)), torch.zeros(2, INCEPTION_DIMS))
    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat", [str(INCEPTION_DIMS)], feature_extractor_weights_path=str(weights)
    ).eval()
    metric = FrechetInceptionDistance(feature=INCEPTION_DIMS, feature_extractor_weights_path=str(weights))

    def fmcore() -> None:
        scorer = ImageScorer(count, ours, empty)
        for part in torch.split(images, 64):
            scorer.add(part)

    def fidelity() -> None:
        get_featuresdict_from_dataset(Images(images), theirs, 64, False, False, verbose=False)

    def metrics() -> None:
        metric.reset()
        for part in torch.split(images, 64):
            metric.update(part, real=False)

    found = interleaved(repeats, fmcore=fmcore, fidelity=fidelity, metrics=metrics)
    return rows("Inception features, images/s", {name: count / s for name, s in found.items()}, higher=True)


class Given(nn.Module):
    """An extractor for torchmetrics that hands out features made before."""

    num_features = INCEPTION_DIMS

    def forward(self, x: Tensor) -> Tensor:
        return x


def distance(count: int, repeats: int) -> list[str]:
    """Seconds from features on both sides to a Frechet distance, ours with its standard error."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    g = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(count, INCEPTION_DIMS, generator=g).relu() for _ in range(2))
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=Given())
    values: dict[str, float] = {}

    def fmcore() -> None:
        values["fmcore"] = frechet_distance(stats(fake), stats(real))

    def with_error() -> None:
        groups = [stats(part) for part in torch.split(fake, group_sizes(count))]
        values["with_error"] = frechet_estimate(groups, stats(real)).value

    def fidelity() -> None:
        both = [fid_features_to_statistics(part) for part in (fake, real)]
        (values["fidelity"],) = fid_statistics_to_metric(*both, False).values()

    def metrics() -> None:
        metric.reset()
        for part, is_real in ((real, True), (fake, False)):
            metric.update(part, real=is_real)
        values["metrics"] = float(metric.compute())

    found = interleaved(repeats, fmcore=fmcore, with_error=with_error, fidelity=fidelity, metrics=metrics)
    assert max(values.values()) - min(values.values()) < 1e-3 * values["fmcore"], values
    what = f"FID of {count} features of 2,048, s"
    plain, error = found.pop("fmcore"), found.pop("with_error")
    return [
        *rows(what, {"fmcore": plain, **found}, higher=False),
        *rows(f"{what}, ours with its error bar", {"fmcore": error, **found}, higher=False),
    ]


def rows(what: str, found: dict[str, float], *, higher: bool) -> list[str]:
    """A line of the table."""
    ours = found["fmcore"]
    ratio = {n: (ours / v if higher else v / ours) for n, v in found.items()}
    cells = [f"{found['fmcore']:.3g}"]
    cells += [f"{found[name]:.3g} ({ratio[name]:.2f}x)" for name in ("fidelity", "metrics")]
    return [f"| {what} | {' | '.join(cells)} |"]


def sweep(models: int) -> str:
    """Seconds that five digits models take on 1, 2, 4, 8, 16 and 64 Euler steps, 10,000 samples each."""
    raw = load_yaml(ROOT / "presets/digits.yaml")
    raw["features"]["train"]["images"] = 2000  # the extractor's quality does not matter here
    raw["evaluate"]["solvers"] = {"euler": [1, 2, 4, 8, 16, 64]}
    params: Params = validate(raw, "benchmark")
    write_json(layout.CHECKED, {})
    list(intake(params, Stage("intake", "")))
    list(features(params, Stage("features", "")))
    network = params.network.build(params.data.shape, None)
    names = [f"m{i}" for i in range(models)]
    for name in names:
        save_model(
            layout.model(name),
            network,
            network_config=params.network,
            shape=params.data.shape,
            num_classes=None,
            manifest={"rounds": 0},
        )
    seconds = timed(lambda: [list(evaluate(params, Stage(f"evaluate@{name}", name))) for name in names])
    samples = models * 6 * params.evaluate.samples
    return (
        f"Sweep 1/2/4/8/16/64 of {models} digits models, {params.evaluate.samples} samples each: {seconds:.1f} s "
        f"({samples / seconds:,.0f} scored samples/s), probes and pictures' tensors included."
    )


def main() -> int:
    """Runs all and prints the table."""
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a fraction of the work, to see that all runs")
    parser.add_argument("--out", type=Path, help="where to write the table")
    args = parser.parse_args()
    images, count, repeats, models = (32, 2304, 1, 1) if args.quick else (256, 2400, 3, 5)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        weights = random_weights(Path(folder))
        lines = [
            "| what | fmcore | torch-fidelity (ours over it) | torchmetrics (ours over it) |",
            "| --- | --- | --- | --- |",
            *extraction(weights, images, repeats),
            *distance(count, repeats),
        ]
        swept = sweep(models)
        os.chdir(ROOT)
    about = f"{machine.kind()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    text = "\n".join([f"`python benchmarks/scores.py` on {about}:", "", *lines, "", swept, ""])
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
