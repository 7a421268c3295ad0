"""Everything on one GPU in a call of at most ten minutes: whether it computes the right things, and how fast.

    python benchmarks/gpu.py [--minutes 9] [--out FILE]
    python benchmarks/gpu.py --device cpu --quick     tiny networks, to see that all parts run

The numbers of each part go to a JSON file beside --out as soon as they are there, and the tables with them. A
later call with the same --out does what is left, then repeats what failed, was wrong or was killed. So a machine
lent for minutes suffices. Candidates take turns, and medians are shown. A training loop that cannot start is
named, and the others are still measured. torchcfm's loop is restated from its CIFAR-10 example. Beside torch
this needs safetensors, jaxtyping, psutil and diffusers; without torchcfm its loop is skipped.
"""

import argparse
import gc
import json
import sys
import time
import traceback
import warnings
from contextlib import nullcontext
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.on_gpu.pages import described, first_line, page, wrong
from benchmarks.on_gpu.parts import parts
from benchmarks.on_gpu.sizes import FULL, QUICK, Bench, Part, Row
from fmcore.disk.files import read_json, write_file
from fmcore.flow import speed


def run(part: Part, bench: Bench) -> Row:
    """The part's record, with its error's first line if it fails."""
    gc.collect()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    torch.compiler.reset()  # else networks of earlier parts would count as further shapes of this part's
    start = time.perf_counter()
    try:
        rows = part.measure(bench)
        json.dumps(rows, allow_nan=False)
    except Exception as error:
        traceback.print_exc()
        return {"status": "failed", "error": first_line(error)}
    return {"status": "done", "seconds": time.perf_counter() - start, "rows": rows}


def main(argv: list[str] | None = None) -> int:
    """Runs what is left of the parts; 1 if any failed or is wrong, 2 without a GPU."""
    started = time.monotonic()
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny networks, to see that all runs")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only with --quick")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin no part that would end later")
    parser.add_argument("--out", type=Path, help="where to write the tables; the numbers go to a .json beside it")
    args = parser.parse_args(argv)
    if args.device == "cpu" and not args.quick:
        parser.error("--device cpu only shows that the parts run: add --quick")
    if args.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks/gpu.py: torch sees no CUDA device (--device cpu --quick runs here)", file=sys.stderr)
        return 2
    speed.keep_freed_memory()
    device, size = torch.device(args.device), QUICK if args.quick else FULL
    numbers = args.out.with_suffix(".json") if args.out else None
    results = read_json(numbers) if numbers and numbers.exists() else {}
    key, about = described(device, args.quick)
    known = results.setdefault(key, {})
    wanted = parts(size)
    names = [part.name for part in wanted]

    def status(name: str) -> str:
        return str(known.get(name, {}).get("status", "left"))

    def shown() -> str:
        left = [name for name in names if status(name) in ("left", "begun")]
        return page(about, {name: known[name] for name in names if name in known}, left)

    def kept() -> None:
        if args.out and numbers:
            write_file(numbers, (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())
            write_file(args.out, shown().encode())

    # A quick call does not compile: that takes minutes, and the parts run without.
    stance = torch.compiler.set_stance("force_eager") if args.quick else nullcontext()
    with stance:
        for part in sorted(wanted, key=lambda part: part.name in known):
            if status(part.name) == "done" and not wrong(known[part.name]):
                continue
            expected = 0.0 if args.quick else part.seconds
            if time.monotonic() - started + expected > 60 * args.minutes:
                continue
            known[part.name] = {**known.get(part.name, {}), "status": "begun"}
            kept()
            known[part.name] = record = run(part, Bench(size, device, known))
            print(
                f"{part.name}: {record.get('error') or format(record['seconds'], '.1f') + ' s'}", file=sys.stderr
            )
            kept()
    kept()
    print(shown())
    return int(any(status(name) == "failed" or wrong(known.get(name, {})) for name in names))


if __name__ == "__main__":
    sys.exit(main())
