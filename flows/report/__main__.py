"""`python -m flows.report`: the report with what made it, and beside another one; one file to hand on.

`reports/index.html` says what decides its numbers and nothing else, so that equal inputs make equal bytes
(flows/launch/origin.py says why). This fills the places that it leaves, and writes another file: what made it, how
fast its best model samples here and, on request, another result.
"""

import argparse
import re
import sys
import time
from pathlib import Path
from typing import Any

from flows.layout import REPORTS, WORK
from flows.params.files import ParamsError
from flows.workshop.place import root
from fmcore.disk.files import ArtifactError, read_json, sha256, write_file

PAGE = REPORTS / "index.html"
OUT = WORK / "report.html"
SPEED = re.compile(r"<!--SPEED (\w+) (\d+) (\w*)-->")
MADE = re.compile(r"<!--MADE-->.*?<!--/MADE-->", re.DOTALL)  # a place with what stands there till then
SECONDS = 1.5  # of sampling


def main(arguments: list[str] | None = None) -> int:
    """Writes the file and says where it lies; returns 2 with one line for a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m flows.report", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--against",
        nargs="?",
        const="",
        metavar="REV",
        help="beside a DVC experiment or a commit; without a name: the newest experiment with other scores",
    )
    parser.add_argument("--no-speed", action="store_true", help="do not measure how fast the best model samples")
    parser.add_argument("--out", type=Path, default=OUT, help=f"where to write it ({OUT})")
    asked = parser.parse_args(arguments)
    try:
        write_file(asked.out, filled(root(), against=asked.against, speed=not asked.no_speed).encode())
    except (ValueError, OSError, ParamsError, ArtifactError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    print(asked.out)
    return 0


def filled(folder: Path, *, against: str | None, speed: bool) -> str:
    """The page with its places filled.

    Raises:
        ValueError: if there is no page, or nothing to compare it with.
    """
    from flows.report.made import made

    path = folder / PAGE
    if not path.exists():
        raise ValueError(f"{PAGE} is missing: `dvc repro` makes it")
    page = path.read_text()
    origin = MADE.search(page)
    if origin is None:
        raise ValueError(f"{PAGE} is of an older version: `dvc repro` makes it anew")
    parts = {origin[0]: part("made", made(folder, sha256(path)))}
    if speed and (place := SPEED.search(page)):
        parts[place[0]] = _speed(folder, place[1], place[2], place[3])
    if against is not None:
        from flows.report.against import compared, here, other, previous

        mine = here(folder)
        before = other(folder, against) if against else previous(folder, mine)
        parts["<!--AGAINST-->"] = part("against", compared(mine, before))
    for name, text in parts.items():
        page = page.replace(name, text)
    return page


def part(name: str, *arguments: Any) -> str:
    """A macro of later.html, filled."""
    from flows.report.page import templates

    macro = getattr(templates().get_template("later.html").module, name)
    return str(macro(*arguments))


def _speed(folder: Path, model: str, nfe: str, digest: str) -> str:
    """How many samples a second the page's best model makes here; nothing where its weights are not at hand."""
    manifest = folder / "models" / model / "manifest.json"
    if not manifest.exists() or read_json(manifest).get("sha256", "")[: len(digest)] != digest:
        return ""
    import torch

    from flows.local.machine import device
    from fmcore.model import load

    loaded = load(manifest.parent, "cuda" if torch.cuda.is_available() else "cpu")
    count, started, seconds = 0, 0.0, 0.0
    for done, batch in enumerate(loaded.batches(10**9, int(nfe))):
        if done == 0:  # the first one warms up
            started = time.perf_counter()
            continue
        count, seconds = count + len(batch), time.perf_counter() - started
        if seconds > SECONDS:
            break
    what = "points" if len(loaded.shape) == 1 else "images"
    return part("speed", f"{float(f'{count / seconds:.2g}'):,.0f} {what}", f"{model}, measured on {device()}")


if __name__ == "__main__":
    sys.exit(main())
