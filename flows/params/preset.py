"""`make preset NAME=...`: writes params.yaml from the defaults and one overlay.

presets/digits.yaml is the whole file; every other preset lists only the keys that differ.
"""

import io
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import count
from pathlib import Path
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
        close = "".join(f"; did you mean {one}?" for one in get_close_matches(name, names, 1))
        raise ParamsError(f"make preset NAME=...: expected one of {', '.join(names)}, got {name!r}{close}")
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
    """Writes params.yaml; edits of the user's in the old file are kept as params.yaml.bak, .bak1, ..."""
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
        kept = next(path for i in count() if not (path := Path(f"{FILE}.bak{i or ''}")).exists())
        FILE.replace(kept)
        print(f"your {FILE} is kept as {kept}")
    part.replace(FILE)
    print(f"{FILE} now holds preset {arguments[0]}; run: make repro")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
