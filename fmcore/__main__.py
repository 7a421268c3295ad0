"""`python -m fmcore sample MODEL` and `python -m fmcore evaluate MODEL_OR_FOLDER`: models from the shell."""

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from fmcore.features import Extractor, Reference
    from fmcore.scoring import Score
    from fmcore.store import Model


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m fmcore", description="Use and score trained models.")
    verbs = top.add_subparsers(dest="verb", required=True)
    sample = verbs.add_parser(
        "sample", help="draw samples into a PNG grid (images), a scatter plot (points) or tensors"
    )
    sample.add_argument("model", type=Path, help="a model folder, e.g. models/student")
    _add_sampling(sample, count=64)
    sample.add_argument(
        "--out", type=Path, required=True, help="a .png picture, or .safetensors with the tensor x1"
    )
    sample.add_argument("--label", type=int, help="the class of all samples, for a conditional model")
    evaluate = verbs.add_parser("evaluate", help="score a model, or a folder of anyone's images, against data")
    evaluate.add_argument("target", type=Path, help="a model folder, or a folder of PNG, JPEG, WebP or BMP images")
    evaluate.add_argument(
        "--against",
        type=Path,
        required=True,
        help="the folder `features` that the pipeline made of its data, or a folder of images",
    )
    evaluate.add_argument(
        "--extractor",
        help="what images are compared by: inception-v3-compat (default), pixels, random, or a function of yours, "
        "MODULE:FUNCTION; a folder `features` says so itself, but a function's name must be repeated here",
    )
    evaluate.add_argument("--weights", help="file of Inception weights (default: the one in torch's cache)")
    evaluate.add_argument("--metrics", default="", help="besides, e.g. kid,precision_recall,density_coverage")
    evaluate.add_argument("--out", type=Path, help="a .csv file for the table")
    _add_sampling(evaluate, count=10_000)
    return top


def _add_sampling(verb: argparse.ArgumentParser, count: int) -> None:
    verb.add_argument("--nfe", type=int, default=1, help="network evaluations a sample (default 1)")
    verb.add_argument("--count", type=int, default=count, help=f"samples (default {count})")
    verb.add_argument("--solver", default="euler", help="euler, midpoint, heun, rk4, ab2, ... (default euler)")
    verb.add_argument("--seed", type=int, default=0, help="sample i starts from noise (seed, i) (default 0)")
    verb.add_argument("--guidance", type=float, help="scale of guidance; a guided step costs two of --nfe")
    verb.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status. A user's mistake is one line, not a traceback."""
    args = parser().parse_args(arguments)
    try:
        if args.count < 1:
            raise ValueError(f"--count must be at least 1, got {args.count}")
        print({"sample": _sample, "evaluate": _evaluate}[args.verb](args))
    except (ValueError, RuntimeError, OSError) as error:
        print(f"fmcore {args.verb}: {error}", file=sys.stderr)
        return 2
    return 0


def _drawn(args: argparse.Namespace, model: "Model", label: int | None) -> Iterator["Tensor"]:
    """Batches of the model's samples, with a bar."""
    from fmcore.fields import Guidance
    from fmcore.progress import Progress

    guidance = None if args.guidance is None else Guidance(args.guidance)
    options = {"solver_name": args.solver, "seed": args.seed, "label": label, "guidance": guidance}
    bar, done = Progress("sample", args.count, "samples"), 0
    for part in model.batches(args.count, args.nfe, **options):
        done += len(part)
        bar.to(done)
        yield part
    bar.close()


def _sample(args: argparse.Namespace) -> str:
    if args.out.suffix not in (".png", ".safetensors"):
        raise ValueError(f"--out must end in .png or .safetensors, got {args.out}")
    import torch

    from fmcore.pictures import sample_picture
    from fmcore.store import load_model, write_tensors

    samples = torch.cat(list(_drawn(args, load_model(args.model, args.device), args.label)))
    if args.out.suffix == ".png":
        sample_picture(samples, args.out)
    else:
        write_tensors(args.out, {"x1": samples})
    return f"{args.count} samples at {args.nfe} NFE -> {args.out}"


def _evaluate(args: argparse.Namespace) -> str:
    from fmcore.data import image_paths
    from fmcore.fidelity import FEATURE_METRICS
    from fmcore.pixels import quantise
    from fmcore.scoring import METRICS, ImageScorer, PointScorer, Scorer, folder_images
    from fmcore.store import ArtifactError, load_model, read_json, read_tensors

    file = args.against / "reference.safetensors"
    is_points = file.is_file() and read_json(args.against / "manifest.json").get("extractor") == "none"
    metrics = [name for name in args.metrics.split(",") if name]
    offered = tuple(FEATURE_METRICS) if is_points else METRICS
    for name in metrics:
        if name not in offered:
            raise ValueError(f"--metrics: expected any of {', '.join(offered)}, got {name!r}")
    model = load_model(args.target, args.device) if (args.target / "config.json").is_file() else None
    if model is None and is_points:
        raise ArtifactError(f"{args.target}: expected a model folder, since {args.against} holds points")
    how, count = (f"{args.nfe} NFE of {args.solver}", args.count) if model else ("files", 0)
    scorer: Scorer
    shape: tuple[int, ...] = (2,)
    if is_points:
        scorer = PointScorer(read_tensors(file)["x1"], metrics, args.seed)
    else:
        count = count or min(args.count, len(image_paths(args.target)))
        extractor, reference, shape = _reference(args, file)
        scorer = ImageScorer(count, extractor, reference, metrics, args.seed)
    if model is None:
        parts = folder_images(args.target, shape)
    elif model.shape != shape:
        raise ArtifactError(f"{args.target} makes samples of shape {model.shape}, {args.against} has {shape}")
    else:
        parts = _drawn(args, model, None)
    left = count
    for part in parts:
        kept = part[:left]
        scorer.add(quantise(kept) if kept.is_floating_point() and not is_points else kept)
        left -= len(kept)
        if not left:
            break
    scores = scorer.scores()
    if args.out:
        _write(args, scores)
    lines = [f"{args.target} against {args.against}: {count} samples ({how}), seed {args.seed}"]
    for score in scores:
        e = score.estimate
        made_with = f"{e.samples} samples, {score.n_reference} real, {score.extractor} {score.digest[:8]}".strip()
        lines.append(f"{score.metric:20} {e.value:.6g} ± {e.std:.2g}   ({made_with})")
    return "\n".join(lines)


def _reference(args: argparse.Namespace, file: Path) -> tuple["Extractor", "Reference", tuple[int, ...]]:
    """The extractor, the data under it and the shape of its images: the pipeline's, or made of a folder here."""
    from fmcore.data import image_paths
    from fmcore.features import adopt, load_extractor, load_reference, reference_parts
    from fmcore.progress import Progress
    from fmcore.scoring import folder_images
    from fmcore.store import read_json

    if file.is_file():
        extractor = load_extractor(args.against, args.device, args.weights, args.extractor)
        return extractor, load_reference(file), tuple(read_json(args.against / "manifest.json")["image_shape"])
    kind, count = args.extractor or "inception-v3-compat", len(image_paths(args.against))
    shape = tuple(next(folder_images(args.against, None, batch=1)).shape[1:])
    with TemporaryDirectory() as folder:
        data = folder_images(args.against, shape)
        extractor = adopt(kind, Path(folder), shape, data, args.device, args.weights)
    bar, total = Progress("reference", count, "images"), None
    for part in reference_parts(extractor, folder_images(args.against, shape), count):
        total = part if total is None else total + part
        bar.to(total.stats.count)
    bar.close()
    assert total is not None
    return extractor, total, shape


def _write(args: argparse.Namespace, scores: Sequence["Score"]) -> None:
    with args.out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["target", "solver", "nfe", "metric", "value", "std", "n_samples", "n_reference"])
        for score in scores:
            e = score.estimate
            writer.writerow(
                [args.target, args.solver, args.nfe, score.metric, e.value, e.std, e.samples, score.n_reference]
            )


if __name__ == "__main__":
    sys.exit(main())
