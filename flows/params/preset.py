"""`make preset NAME=...`: writes params.yaml from the defaults and one overlay.

presets/digits.yaml is the whole file; every other preset lists only the keys that differ.
"""

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from typing import Any

from flows.params.files import DEFAULT, FILE, PRESETS, ParamsError, dumped, load_yaml, presets, with_preset
from flows.params.reading import validate


def overlaid(name: str) -> Any:
    """The defaults with preset `name` laid over them, comments kept; a ParamsError if there is none."""
    names = sorted(presets())
    if not names:
        raise ParamsError(f"no folder {PRESETS} here: run it in the project's root")
    if name not in names:
        close = "".join(f"; did you mean {one}?" for one in get_close_matches(name, names, 1))
        raise ParamsError(f"make preset NAME=...: expected one of {', '.join(names)}, got {name!r}{close}")
    return with_preset(name)


def rendered(name: str) -> bytes:
    """params.yaml as preset `name` makes it."""
    if name == DEFAULT:
        return (PRESETS / f"{name}.yaml").read_bytes()
    return dumped(overlaid(name))


def main(arguments: Sequence[str]) -> int:
    """Writes params.yaml; edits of the user's in the old file are kept as params.yaml.bak, .bak1, ..."""
    part = FILE.with_suffix(".part")
    try:
        text = rendered(arguments[0] if arguments else "")
        part.write_bytes(text)
        validate(load_yaml(part), f"{PRESETS}/{arguments[0]}.yaml")
        untouched = {rendered(name) for name in presets()}
    except ParamsError as error:
        part.unlink(missing_ok=True)
        print(error, file=sys.stderr)
        return 2
    if FILE.exists() and FILE.read_bytes() not in untouched:
        kept = next(path for i in count() if not (path := Path(f"{FILE}.bak{i or ''}")).exists())
        FILE.replace(kept)
        print(f"your {FILE} is kept as {kept}")
    part.replace(FILE)
    print(f"{FILE} now holds preset {arguments[0]}; run: make repro")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
