"""What DVC itself takes from params.yaml, rounds and students: `python -m flows.params.graph`.

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
TAKEN = re.compile(r"base|couplings-.*|(?i:null|none|nan|na|inf|infinity|true|false)")  # other things' names
NAMED = f"({NAME.pattern}), not base, couplings-..., none or the like"


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
        if not _is_name(name):
            yield f"{key}: expected a name like r1 {NAMED}, got {json.dumps(name)}"
        teacher = round_.get("teacher") if isinstance(round_, Mapping) else None
        if teacher not in seen:
            yield f"{key}.teacher: expected a model made before it ({', '.join(seen)}), got {json.dumps(teacher)}"
        seen.append(name)
    yield from _students(raw, seen)


def _students(raw: Mapping[str, Any], made: list[str]) -> Iterator[str]:
    students = _mapping(raw, "distill").get("students")
    if not isinstance(students, Mapping) or not students:
        example = f"{{student: {{init: {made[1]}, couplings: {made[1]}, differs: {{}}}}}}"
        yield f"distill.students: expected at least one student, e.g. {example}, got {json.dumps(students)}"
        return
    for name, student in students.items():
        key = f"distill.students.{name}"
        if not _is_name(name) or name in made:
            others = f" and not {', '.join(made)}, which are taken" if name in made else ""
            yield f"{key}: expected a name like student {NAMED}{others}, got {json.dumps(name)}"
        init, couplings = (
            student.get(of) if isinstance(student, Mapping) else None for of in ("init", "couplings")
        )
        if init not in made:
            yield f"{key}.init: expected one of {', '.join(made)}, got {json.dumps(init)}"
        if couplings not in made[1:]:
            yield f"{key}.couplings: expected a round ({', '.join(made[1:])}), got {json.dumps(couplings)}"


def _is_name(name: str) -> bool:
    return bool(NAME.fullmatch(name)) and not TAKEN.fullmatch(name)


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
