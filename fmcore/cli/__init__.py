"""`python -m fmcore` with `sample MODEL`, `evaluate MODEL_OR_FOLDER` or `export MODEL`: models from the shell."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fmcore.cli import evaluate, export, sample
from fmcore.cli.ways import add_sampling, add_way, complete

VERBS = {"sample": sample.run, "evaluate": evaluate.run, "export": export.run}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m fmcore", description="Use and score trained models.")
    verbs = top.add_subparsers(dest="verb", required=True)
    of_sample = verbs.add_parser(
        "sample", help="draw samples into files of images, a picture (a grid, or a plot of points), or an array"
    )
    of_sample.add_argument("model", type=Path, help="a model folder, e.g. models/student")
    add_sampling(of_sample, 64, "64")
    of_sample.add_argument(
        "--out",
        required=True,
        help="a folder (a name without a suffix) for a PNG an image, which goes on where it was stopped; a .png "
        "picture, in pages where there are many images; .safetensors with the tensor x1; .npy; .csv for points",
    )
    of_sample.add_argument("--label", help="the class of all samples, by name or number, for a conditional model")
    of_evaluate = verbs.add_parser("evaluate", help="score a model, or a folder of anyone's images, against data")
    of_evaluate.add_argument(
        "target",
        type=Path,
        help="a model folder (a conditional model draws classes as often as the data has them), or a folder of "
        "images: PNG, JPEG, WebP, BMP, TIFF, GIF or AVIF",
    )
    of_evaluate.add_argument(
        "--against",
        type=Path,
        required=True,
        help="the folder `features` that the pipeline made of its data, or a folder of images",
    )
    of_evaluate.add_argument(
        "--extractor",
        help="what images are compared by: inception-v3-compat (default), efficientnet-lite0, pixels, random, or "
        "a function of yours, MODULE:FUNCTION; a folder `features` says so itself, but a function must be "
        "named here again",
    )
    of_evaluate.add_argument("--weights", help="file of Inception weights (default: the one in torch's cache)")
    of_evaluate.add_argument("--metrics", default="", help="besides, e.g. kid,precision_recall,density_coverage")
    of_evaluate.add_argument("--out", type=Path, help="a .csv file for the table")
    add_sampling(of_evaluate, None, f"{evaluate.MODEL_SAMPLES} of a model, all images of a folder")
    of_export = verbs.add_parser("export", help="write a model as a folder for other programs")
    of_export.add_argument("model", type=Path, help="a model folder, e.g. models/student")
    of_export.add_argument(
        "out", type=Path, metavar="OUT", help="a new folder for the model, a picture and a card"
    )
    of_export.add_argument("--to", required=True, metavar="FORMAT", help="diffusers, onnx or torch")
    of_export.add_argument(
        "--scores", type=Path, help="a table of scores (default: the pipeline's beside the model)"
    )
    add_way(of_export)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status. A user's mistake is one line, not a traceback."""
    args = parser().parse_args(arguments)
    from fmcore.flow.speed import keep_freed_memory

    keep_freed_memory()
    try:
        complete(args)
        print(VERBS[args.verb](args))
    except (ValueError, RuntimeError, OSError) as error:
        line = " ".join(part.strip() for part in str(error).splitlines())
        print(f"fmcore {args.verb}: {line}", file=sys.stderr)
        return 2
    return 0
