"""`export`: a model as a folder for other programs."""

import argparse
import shlex
from pathlib import Path

from fmcore.cli.ways import way


def run(args: argparse.Namespace) -> str:
    """Writes the folder."""
    from fmcore.export.formats import export
    from fmcore.model import load

    def shown(path: Path) -> str:
        return path.name if path.is_absolute() else str(path)  # a card is for others

    words = ["python", "-m", "fmcore", "export", shown(args.model), shown(args.out), "--to", args.to]
    words += ["--nfe", str(args.nfe), "--solver", args.solver]
    words += [] if args.guidance is None else ["--guidance", f"{args.guidance:g}"]
    words += [] if args.scores is None else ["--scores", shown(args.scores)]
    files = export(
        load(args.model, autoencoder=args.autoencoder),
        way(args),
        args.to,
        args.out,
        folder=args.model,
        command=shlex.join(words),
        scores=args.scores,
    )
    return f"{args.model} at {args.nfe} NFE of {args.solver} -> {args.out}: {', '.join(files)}"
