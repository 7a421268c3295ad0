"""What DVC itself takes from params.yaml, the rounds and who teaches them: `python -m flows.params.graph`.

DVC builds its graph before the first stage runs, so a mistake here never reaches the stage `check`: DVC answers it
in words of its own. `make repro` asks here first. This loads without torch.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from flows.params.files import FILE, ParamsError, load_yaml

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")  # a number would not be read from a table as it was written
TAKEN = re.compile(
    r"base|student|couplings-.*|(?i:null|none|nan|na|inf|infinity|true|false)"
)  # other things' names


def names(raw: Mapping[str, Any]) -> Iterator[str]:
    """A line for each name that is not allowed, and for each model that is named before it is made."""
    rounds = _mapping(raw, "reflow").get("rounds")
    if not isinstance(rounds, Mapping) or not rounds:
        got = json.dumps(rounds)
        yield f"reflow.rounds: expected at least one round, e.g. {{r1: {{teacher: base, ...}}}}, got {got}"
        return
    seen = ["base"]
    for name, round_ in rounds.items():
        key = f"reflow.rounds.{name}"
        if not NAME.fullmatch(name) or TAKEN.fullmatch(name):
            wanted = f"a name like r1 ({NAME.pattern}), not base, student, couplings-..., none or the like"
            yield f"{key}: expected {wanted}, got {json.dumps(name)}"
        teacher = round_.get("teacher") if isinstance(round_, Mapping) else None
        if teacher not in seen:
            yield f"{key}.teacher: expected a model made before it ({', '.join(seen)}), got {json.dumps(teacher)}"
        seen.append(name)
    distill = _mapping(raw, "distill")
    if distill.get("init") not in seen:
        yield f"distill.init: expected one of {', '.join(seen)}, got {json.dumps(distill.get('init'))}"
    if distill.get("couplings") not in seen[1:]:
        rounds = ", ".join(seen[1:])
        yield f"distill.couplings: expected a round ({rounds}), got {json.dumps(distill.get('couplings'))}"


def _mapping(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = raw.get(key)
    return found if isinstance(found, Mapping) else {}


def main() -> int:
    """Says what is wrong with the file, if DVC could not make its graph of it."""
    try:
        lines = [f"{FILE}: {line}" for line in names(load_yaml(FILE))]
    except ParamsError as error:
        lines = [str(error)]
    print("\n".join(lines), end="\n" if lines else "", file=sys.stderr)
    return 2 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
