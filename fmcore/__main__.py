"""`python -m fmcore sample MODEL --nfe 1 --count 64 --out grid.png`: use a trained model from the shell."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m fmcore", description="Use a trained model.")
    verbs = top.add_subparsers(dest="verb", required=True)
    sample = verbs.add_parser(
        "sample", help="draw samples into a PNG grid (images), a scatter plot (points) or tensors"
    )
    sample.add_argument("model", type=Path, help="a model folder, e.g. models/student")
    sample.add_argument("--nfe", type=int, default=1, help="network evaluations a sample (default 1)")
    sample.add_argument("--count", type=int, default=64, help="samples (default 64)")
    sample.add_argument(
        "--out", type=Path, required=True, help="a .png picture, or .safetensors with the tensor x1"
    )
    sample.add_argument("--solver", default="euler", help="euler, midpoint, heun, rk4, ab2, ... (default euler)")
    sample.add_argument("--seed", type=int, default=0, help="sample i depends on (seed, i) alone (default 0)")
    sample.add_argument("--label", type=int, help="the class of all samples, for a conditional model")
    sample.add_argument(
        "--guidance", type=float, help="scale of classifier-free guidance; doubles the evaluations"
    )
    sample.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status. A user's mistake is one line, not a traceback."""
    args = parser().parse_args(arguments)
    if args.count < 1 or args.out.suffix not in (".png", ".safetensors"):
        print("--count must be at least 1 and --out end in .png or .safetensors", file=sys.stderr)
        return 2
    import torch

    from fmcore.fields import Guidance
    from fmcore.pictures import sample_picture
    from fmcore.progress import Progress
    from fmcore.store import load_model, write_tensors

    try:
        model = load_model(args.model, args.device)
        guidance = None if args.guidance is None else Guidance(args.guidance)
        options = {"solver_name": args.solver, "seed": args.seed, "label": args.label, "guidance": guidance}
        bar, parts = Progress("sample", args.count, "samples"), []
        for part in model.batches(args.count, args.nfe, **options):
            parts.append(part)
            bar.to(sum(map(len, parts)))
        bar.close()
        samples = torch.cat(parts)
        if args.out.suffix == ".png":
            sample_picture(samples, args.out)
        else:
            write_tensors(args.out, {"x1": samples})
    except (ValueError, RuntimeError, OSError) as error:
        print(f"fmcore sample: {error}", file=sys.stderr)
        return 2
    print(f"{args.count} samples at {args.nfe} NFE -> {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
