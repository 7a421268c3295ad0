"""`make upgrade`: brings params.yaml and the presets of an older version up to date, and says each change.

`STEPS`, oldest first, change keys that were renamed or take another form. Missing keys are added with their value
in presets/digits.yaml, or with one that keeps what the old file did. Comments stay.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from flows.params.files import (
    DEFAULT,
    FILE,
    NAMES_OF_THE_USER,
    PRESETS,
    ParamsError,
    dumped,
    load_yaml,
    with_preset,
)
from flows.params.reading import validate
from flows.params.schema import FAMILIES
from fmcore.flow.paths import CONTINUOUS_PATHS

# New keys whose usual value would change what an older file did, and the value that does not.
AS_BEFORE: dict[str, Any] = {"couple.batch": 1000}
WIDTH_OF_USER = 4096  # so that no line of the user's is broken

Step = Callable[[Any], Iterator[str]]


def _at(whole: Any, path: str) -> Any:
    """The mapping at a dotted path, None if there is none."""
    for part in path.split(".") if path else ():
        whole = whole.get(part) if isinstance(whole, Mapping) else None
    return whole if isinstance(whole, Mapping) else None


def renamed(old: str, new: str, change: Callable[[Any], Any] = lambda value: value) -> Step:
    """A step for a key that has another name now, and perhaps another form."""
    section, _, key = old.rpartition(".")

    def step(whole: Any) -> Iterator[str]:
        found = _at(whole, section)
        if found is not None and key in found:
            place, value = list(found).index(key), found.pop(key)
            found.insert(place, new.rpartition(".")[2], change(value))
            yield f"{old} is called {new} now: {_shown(change(value))}"

    return step


def changed(path: str, change: Callable[[Any], Any], applies: Callable[[Any], bool]) -> Step:
    """A step for a key whose value is written otherwise now; without a section in `path`, in every section."""
    section, _, key = path.rpartition(".")

    def step(whole: Any, at: str = "") -> Iterator[str]:
        found = _at(whole, section)
        if found is None:
            return
        if key in found and applies(found[key]):
            found[key] = change(found[key])
            yield f"{at}{path} is written {_shown(found[key])} now"
        if not section:
            for name, inner in found.items():
                if isinstance(inner, Mapping):
                    yield from step(inner, f"{at}{name}.")

    return step


def with_ending(whole: Any) -> Iterator[str]:
    """Makes `distill.ending` of the older keys `k`, `match` (samples matched to data in pixels) and `distance`."""
    section = _at(whole, "distill")
    found = {} if section is None else {key: section[key] for key in ("k", "match", "distance") if key in section}
    if not found:
        return
    place = min(list(section).index(key) for key in found)
    for key in found:
        del section[key]
    usual = load_yaml(PRESETS / f"{DEFAULT}.yaml")["distill"]["ending"]
    distance = {"distance": dict(found.get("distance", usual["distance"]))}
    if found.get("match"):
        ending = {**usual, **distance, "start": found["match"]["start"]}
        yield "distill.match is the ending matched now, which works better: expect other numbers"
    elif list(found) == ["distance"]:  # of a preset, which lists what differs
        ending = {"name": usual["name"], **distance}
    else:
        ending = {"name": "regression", "k": found.get("k", 1), **distance}
    section.insert(place, "ending", ending)
    yield f"distill.ending is what {', '.join(f'distill.{key}' for key in found)} were: {_shown(ending)}"


def with_students(whole: Any) -> Iterator[str]:
    """Makes `distill.students` of the older keys `init` and `couplings`, of the one student there was."""
    section = _at(whole, "distill")
    found = {} if section is None else {key: section.pop(key) for key in ("init", "couplings") if key in section}
    if not found:
        return
    (usual,) = load_yaml(PRESETS / f"{DEFAULT}.yaml")["distill"]["students"].values()
    student = {**usual, **found, "differs": {}}
    section["students"] = {"student": student}
    yield f"distill.students is what distill.init and distill.couplings were: {_shown({'student': student})}"


def with_euler_last(whole: Any) -> Iterator[str]:
    """Lowers even NFE of Heun's method by one: its last step is Euler's now, and costs one evaluation less."""
    rounds = _at(whole, "reflow.rounds") or {}
    couples = {"couple": _at(whole, "couple")} | {
        f"reflow.rounds.{name}.couple": _at(round_, "couple") for name, round_ in rounds.items()
    }
    usual = (couples["couple"] or {}).get("solver")
    for at, couple in [*couples.items(), ("evaluate.likelihood", _at(whole, "evaluate.likelihood"))]:
        is_heun = couple and couple.get("solver", usual if "couple" in at else None) == "heun"
        if is_heun and couple.get("nfe", 1) % 2 == 0:
            couple["nfe"] -= 1
            yield f"{at}.nfe is {couple['nfe']} now: Heun's last step is Euler's"
    solvers = _at(whole, "evaluate.solvers") or {}
    if any(nfe % 2 == 0 for nfe in solvers.get("heun") or ()):
        solvers["heun"] = [nfe - 1 + nfe % 2 for nfe in solvers["heun"]]
        yield f"evaluate.solvers.heun is {_shown(solvers['heun'])} now: its last step is Euler's"


STEPS: tuple[Step, ...] = (
    changed("base.path", lambda name: asdict(CONTINUOUS_PATHS[name]()), lambda value: isinstance(value, str)),
    changed("ema_halflife_images", lambda value: [value], lambda value: not isinstance(value, list)),
    renamed("evaluate.grid", "evaluate.grids", lambda value: [value]),
    changed("features.extractor", lambda _: "inception-v3-compat", lambda value: value == "inception"),
    with_ending,
    with_students,
    with_euler_last,
    renamed("data.grey", "data.channels", lambda grey: 1 if grey else 3),
)


def stepped(whole: Any) -> list[str]:
    """Changes a file in place as the steps say; returns a line for each change."""
    return [line for step in STEPS for line in step(whole)]


def filled(whole: Any, usual: Any, at: str = "") -> list[str]:
    """Adds the keys that a file lacks, in place and with their comments; returns a line for each."""
    lines: list[str] = []
    place = 0
    for key, value in usual.items():
        path = f"{at}{key}"
        if key not in whole:
            whole.insert(place, key, AS_BEFORE.get(path, value))
            if key in usual.ca.items:
                whole.ca.items[key] = usual.ca.items[key]
            lines.append(f"{path} is new: {_shown(whole[key])}")
        elif key not in NAMES_OF_THE_USER and isinstance(whole[key], Mapping) and isinstance(value, Mapping):
            same = whole[key].get("name") == value.get("name")
            lines += filled(whole[key], value, f"{path}.") if same else _filled_choice(whole[key], f"{path}.")
        place = list(whole).index(key) + 1
    return lines


def filled_choices(part: Any, usual: Any, at: str = "") -> list[str]:
    """Adds the keys missing where a preset chooses another `name`; its other sections hold only what differs."""
    lines: list[str] = []
    for key, value in part.items():
        old = usual.get(key) if isinstance(usual, Mapping) else None
        if isinstance(value, Mapping):
            chosen = "name" in value and not (isinstance(old, Mapping) and old.get("name") == value["name"])
            lines += _filled_choice(value, f"{at}{key}.") if chosen else filled_choices(value, old, f"{at}{key}.")
    return lines


def _filled_choice(section: Any, at: str) -> list[str]:
    """Adds the missing keys for which the chosen member of a family has a default."""
    kind = next((family[section["name"]] for family in FAMILIES if section.get("name") in family), None)
    lines = []
    for field in fields(kind) if kind else ():
        if field.name not in section and field.default is not MISSING:
            section[field.name] = field.default
            lines.append(f"{at}{field.name} is new: {_shown(field.default)}")
    return lines


def _shown(value: Any) -> str:
    return json.dumps(value, default=list)


def upgraded(path: Path, *, whole: bool) -> tuple[bytes, list[str]]:
    """The file as this version has it, and a line for each change; a `whole` file gets all keys it lacks."""
    load_yaml(path)  # raises if the file is not such YAML
    found = YAML().load(path)
    lines = stepped(found)
    fill = filled if whole else filled_choices
    lines += fill(found, with_preset(DEFAULT))
    return dumped(found, WIDTH_OF_USER), lines


def main() -> int:
    """Upgrades params.yaml and the presets; the old version of each changed file is kept beside it as .bak."""
    try:
        for path in [FILE, *sorted(PRESETS.glob("*.yaml"))]:
            text, lines = upgraded(path, whole=path == FILE)
            if lines:
                path.with_suffix(".yaml.bak").write_bytes(path.read_bytes())
                path.write_bytes(text)
            for line in lines:
                print(f"{path}: {line}")
        validate(load_yaml(FILE), str(FILE))
    except ParamsError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{FILE} is up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
