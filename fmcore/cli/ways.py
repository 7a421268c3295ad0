"""What the verbs share: how samples are drawn, and options that say so."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from fmcore.model import Model
    from fmcore.ode.sampling import Sampling

# Options that say how a model is sampled, and what they are if they are not given.
WAY = {"nfe": 1, "solver": "euler", "guidance": None, "autoencoder": None}


def add_way(verb: argparse.ArgumentParser) -> None:
    """Options that say how a model is sampled."""
    verb.add_argument("--nfe", type=int, help="network evaluations a sample (default 1)")
    verb.add_argument("--solver", help="euler, midpoint, heun, rk4, ab2, ... (default euler)")
    verb.add_argument("--guidance", type=float, help="scale of guidance; a guided step costs two of --nfe")
    verb.add_argument(
        "--autoencoder",
        type=Path,
        help="folder of the autoencoder that decodes a model's latents (default: that beside the model)",
    )


def add_sampling(verb: argparse.ArgumentParser, count: int | None, many: str) -> None:
    """Options that say how a model is sampled, how often and where; `many` names the default count."""
    add_way(verb)
    verb.add_argument("--count", type=int, default=count, help=f"samples (default {many})")
    verb.add_argument("--seed", type=int, default=0, help="sample i starts from noise (seed, i) (default 0)")
    verb.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default cpu)")


def complete(args: argparse.Namespace) -> None:
    """Fills in what was not given, which `args.given` then lists, and checks the rest.

    Raises:
        ValueError: for a count below 1, and for a device that is none of this machine's.
    """
    args.given = [f"--{name}" for name in WAY if getattr(args, name) is not None]
    for name, value in WAY.items():
        setattr(args, name, value if getattr(args, name) is None else getattr(args, name))
    if getattr(args, "count", None) is not None and args.count < 1:
        raise ValueError(f"--count must be at least 1, got {args.count}")
    if getattr(args, "device", "cpu") != "cpu":
        _check_device(args.device)


def _check_device(name: str) -> None:
    import torch

    there = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    there += [f"cuda:{i}" for i in range(torch.cuda.device_count())] if "cuda" in there else []
    if name not in there:
        raise ValueError(f"--device: expected {' or '.join(there)} on this machine, got {name}")


def check_out(path: Path) -> None:
    """A ValueError if no file can be written there; before hours are spent on what it is to hold."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        what = "is a folder" if path.is_dir() else f"{folder} is no folder that can be written to"
        raise ValueError(f"--out: expected a file that can be written, got {path}: {what}")


def loaded(args: argparse.Namespace, folder: Path) -> "Model":
    """The model in a folder."""
    from fmcore.model import load

    return load(folder, args.device, autoencoder=args.autoencoder)


def way(args: argparse.Namespace) -> "Sampling":
    """How to sample."""
    from fmcore.flow.fields import Guidance
    from fmcore.flow.times import UniformGrid
    from fmcore.ode.sampling import Sampling

    guidance = None if args.guidance is None else Guidance(args.guidance)
    return Sampling(args.solver, UniformGrid(), args.nfe, guidance)


def drawn(
    args: argparse.Namespace,
    model: "Model",
    count: int,
    label: int | str | None,
    purpose: str,
    start: int = 0,
    pool: "Tensor | None" = None,
) -> Iterator["Tensor"]:
    """Batches of the model's samples from `start` on, with a bar."""
    from fmcore.progress import Progress

    bar, done = Progress("sample", count, "samples", start), start
    for part in model.batches(
        count, way(args), seed=args.seed, label=label, purpose=purpose, start=start, pool=pool
    ):
        done += len(part)
        bar.to(done)
        yield part
    bar.close()
