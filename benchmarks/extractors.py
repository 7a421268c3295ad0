"""What extractors see: distances of damaged images, in multiples of that between two real halves.

    python benchmarks/extractors.py FOLDER [--size 32] [--images 100000] [--extractors views,rotation] [--out FILE]

FOLDER holds images, at least 20,000, best in class folders. An extractor that must be fitted is fitted on all of
them, by the recipe of the preset images but for `--images` images. Then 5,000 of them are compared with 5,000
others, damaged.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import machine
from flows.params.preset import overlaid
from flows.params.reading import validate
from fmcore.disk.dataset import Dataset
from fmcore.flow.training import TrainConfig, new_state, take_average, train
from fmcore.intake.images import Images
from fmcore.progress import Progress
from fmcore.score.extractors import FITTED, Extractor, adopt, load_extractor, save_extractor
from fmcore.score.feature_net import fitting
from fmcore.score.frechet import frechet_distance, stats

PART = 5000
DISTINCT = 500
Damage = Callable[[Tensor, Generator], Tensor]


def noisy(deviation: float) -> Damage:
    """Noise, in grey levels."""
    return lambda x, g: (x + deviation * torch.randn(x.shape, generator=g)).clamp(0, 255).round()


def blurred(x: Tensor, g: Generator) -> Tensor:
    """The mean of 3x3 pixels."""
    return nn.functional.avg_pool2d(nn.functional.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1).round()


def repeated(x: Tensor, g: Generator) -> Tensor:
    """As many images, of which few are distinct."""
    return x[:DISTINCT][torch.randint(DISTINCT, (len(x),), generator=g)]


def a_fifth_upside_down(x: Tensor, g: Generator) -> Tensor:
    """Every fifth image is turned by half a turn."""
    found = x.clone()
    found[::5] = found[::5].flip((2, 3))
    return found


DAMAGES: dict[str, Damage] = {
    "noise of sd 5 of 255": noisy(5),
    "noise of sd 15": noisy(15),
    "3x3 blur": blurred,
    f"{DISTINCT} distinct images": repeated,
    "10 levels brighter": lambda x, g: (x + 10).clamp(max=255),
    "a fifth upside down": a_fifth_upside_down,
}


def fitted(kind: str, data: Dataset, config: TrainConfig) -> Extractor:
    """The extractor as the pipeline fits or adopts it."""
    if kind not in FITTED:
        with tempfile.TemporaryDirectory() as folder:
            return adopt(kind, Path(folder), tuple(data.shape), torch.split(data.x1, 500))
    made = fitting(kind, data.x1, data.label, data.num_classes, batch_size=config.batch_size, seed=0)
    state, bar = new_state(made.network, config), Progress(f"fit {kind}", config.images, "images")
    for record in train(state, made.objective, config, seed=0, every=50):
        bar.to(record.images)
    bar.close()
    take_average(state)
    with tempfile.TemporaryDirectory() as folder:
        accuracy = save_extractor(Path(folder), kind, made, data.x1)
        print(f"{kind}: held-out accuracy {accuracy:.3f}", file=sys.stderr)
        return load_extractor(Path(folder))


def seen(extractor: Extractor, data: Dataset) -> dict[str, float]:
    """The distance of each damage, in multiples of that between two real halves."""
    order = torch.randperm(len(data.x1), generator=torch.Generator().manual_seed(0))

    def features(pixels: Tensor) -> Tensor:
        return torch.cat([extractor(part) for part in pixels.byte().split(500)])

    real = stats(features(data.x1[order[:PART]]))
    other = data.x1[order[PART : 2 * PART]].float()

    def distance(pixels: Tensor) -> float:
        return frechet_distance(stats(features(pixels)), real)

    unit, found = distance(other), {}
    for name, damage in DAMAGES.items():
        found[name] = distance(damage(other, torch.Generator().manual_seed(1))) / unit
    if data.label is not None:
        rest = order[PART:][data.label[order[PART:]] != 0][:PART]
        found["one class missing"] = distance(data.x1[rest].float()) / unit
    return found


def main() -> None:
    """Prints the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--extractors", default="classifier,rotation,views,efficientnet-lite0")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    data = Images(args.folder, size=args.size).load()
    whole = overlaid("images")
    whole["features"]["train"]["images"] = args.images
    config = validate(whole, "presets/images.yaml").features.train
    kinds = args.extractors.split(",")
    columns = {kind: seen(fitted(kind, data, config), data) for kind in kinds}
    lines = [f"| damage | {' | '.join(kinds)} |", "| --- " * (len(kinds) + 1) + "|"]
    for name in columns[kinds[0]]:
        lines.append(f"| {name} | {' | '.join(f'{columns[kind][name]:.3g}' for kind in kinds)} |")
    text = "\n".join(
        [*lines, "", f"{len(data.x1)} images of {data.shape}, {args.images} to fit. {machine.kind()}"]
    )
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
