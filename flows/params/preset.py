"""`make preset NAME=...`: writes params.yaml from the defaults and one overlay.

presets/digits.yaml is the whole file; every other preset lists only the keys that differ.
"""

import io
import sys
from collections.abc import Sequence
from typing import Any

from ruamel.yaml import YAML

from flows.params.files import DEFAULT, FILE, PRESETS, ParamsError, lay_over, load_yaml
from flows.params.reading import validate


def overlaid(name: str) -> Any:
    """The defaults with preset `name` laid over them, comments kept; a ParamsError if there is none."""
    names = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if not names:
        raise ParamsError(f"no folder {PRESETS} here: run it in the project's root")
    if name not in names:
        raise ParamsError(f"make preset NAME=...: expected one of {', '.join(names)}, got {name!r}")
    whole = YAML().load(PRESETS / f"{DEFAULT}.yaml")
    if name != DEFAULT:
        lay_over(whole, load_yaml(PRESETS / f"{name}.yaml"))
    return whole


def rendered(name: str) -> bytes:
    """params.yaml as preset `name` makes it."""
    if name == DEFAULT:
        return (PRESETS / f"{name}.yaml").read_bytes()
    yaml = YAML()
    yaml.width = 115
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    text = io.BytesIO()
    yaml.dump(overlaid(name), text)
    return text.getvalue()


def main(arguments: Sequence[str]) -> int:
    """Writes params.yaml; if the old file held edits of the user's, it is kept as params.yaml.bak."""
    try:
        text = rendered(arguments[0] if arguments else "")
        part = FILE.with_suffix(".part")
        part.write_bytes(text)
        validate(load_yaml(part), f"presets/{arguments[0]}.yaml")
    except ParamsError as error:
        print(error, file=sys.stderr)
        return 2
    untouched = {rendered(path.stem) for path in PRESETS.glob("*.yaml")}
    if FILE.exists() and FILE.read_bytes() not in untouched:
        FILE.replace(FILE.with_suffix(".yaml.bak"))
        print(f"your {FILE} is kept as {FILE}.bak")
    part.replace(FILE)
    print(f"{FILE} now holds preset {arguments[0]}; run: make repro")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
