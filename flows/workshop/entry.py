"""What decides a stage's result: its entry in dvc.yaml, and nothing else.

The entry names parameters, inputs and code. DVC runs the stage again when one of them has changed, and the folder
of unfinished work (`flows.workshop.workspace`) is keyed by the same three. `${...}` stands for a value of
params.yaml, as it does for DVC.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from fmcore.disk.sums import SUMS

ROOT = Path(__file__).parents[2]  # of the code that runs, which in DVC's experiments is a copy
CODE = ("flows", "fmcore")
SOURCES = (".py", ".html")  # all that counts as code; .dvcignore says the same to DVC


class Stage(NamedTuple):
    """A stage: its `address` in dvc.yaml, as `couple@r1`, and the model or round it is about, "" if none."""

    address: str
    name: str


class Entry(NamedTuple):
    """What decides a stage.

    Main arguments:
        params: the values the stage depends on, by dotted key; None where params.yaml lacks the key.
        inputs: files and folders, relative to the repository's root.
        code: source files.
        outs: what the stage makes, relative to the repository's root.
    """

    params: dict[str, Any]
    inputs: tuple[Path, ...]
    code: tuple[Path, ...]
    outs: tuple[Path, ...]


def entry_of(address: str, params: Mapping[str, Any]) -> Entry:
    """The entry of the stage at that address, for those parameters."""
    kind, _, key = address.partition("@")
    body = graph()[kind]
    names: dict[str, Any] = dict(params)
    if "foreach" in body:
        items = _value(body["foreach"].removeprefix("${").removesuffix("}"), params)
        names |= {"key": key, "item": (items or {}).get(key)}
        body = body["do"]
    values = {name: _value(name, params) for name in _keys(body["params"], names)}
    deps = [Path(resolved(dep, names)) for dep in body["deps"]] if "deps" in body else []
    code = [file for dep in deps if dep.parts[0] in CODE for file in sources(ROOT / dep)]
    inputs = tuple(dep for dep in deps if dep.parts[0] not in CODE)
    return Entry(values, inputs, tuple(code), tuple(Path(resolved(out, names)) for out in body["outs"]))


def addresses(params: Mapping[str, Any]) -> list[str]:
    """All stages, each after those that make what it reads."""
    entries = {}
    for kind, body in graph().items():
        keys = _value(body["foreach"].removeprefix("${").removesuffix("}"), params) if "foreach" in body else None
        for address in [kind] if keys is None else [f"{kind}@{key}" for key in keys]:
            entries[address] = entry_of(address, params)
    before = {
        address: [other for other, made in entries.items() if reads(entry.inputs, made.outs)]
        for address, entry in entries.items()
    }
    return list(TopologicalSorter(before).static_order())


def reads(inputs: Iterable[Path], outs: Iterable[Path]) -> bool:
    """Whether an input is an output, or a folder of outputs."""
    return any(out == path or path in out.parents for path in inputs for out in outs)


def digest_of(entry: Entry, folder: Path) -> str:
    """A digest of an entry's parameters, inputs (below `folder`) and code; equal digests mean equal results."""
    digest = hashlib.sha256(json.dumps(entry.params, sort_keys=True).encode())
    for path in entry.inputs:
        digest.update(f"\n{path}".encode())
        for file in _files_to_hash(folder / path):
            digest.update(f"\n{file.relative_to(folder)} ".encode() + hashlib.sha256(file.read_bytes()).digest())
    for file in entry.code:
        digest.update(f"\n{file.relative_to(ROOT)} ".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def sources(path: Path) -> list[Path]:
    """The source files at or below a path: no caches, no editor's swap files."""
    found = [path] if path.is_file() else sorted(path.rglob("*"))
    hidden = re.compile(r"(^|/)(\.|__pycache__/)")
    return [f for f in found if f.suffix in SOURCES and not hidden.search(str(f.relative_to(path.parent)))]


def resolved(text: str, names: Mapping[str, Any]) -> str:
    """The text with `${dotted.key}` replaced by what stands there in `names`."""
    return re.sub(r"\$\{([^}]+)\}", lambda found: str(_value(found[1], names)), text)


def _keys(listed: list[Any], names: Mapping[str, Any]) -> list[str]:
    """The dotted keys that an entry lists; `params.yaml:` alone is all of them."""
    return [""] if any(isinstance(key, dict) for key in listed) else [resolved(key, names) for key in listed]


def _value(key: str, params: Mapping[str, Any]) -> Any:
    value: Any = params
    for part in key.split(".") if key else ():
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _files_to_hash(path: Path) -> list[Path]:
    """The files whose bytes stand for an input.

    A folder with a file of checksums is known by that file alone. Of any other folder it is all files. Where a
    manifest is among them, it holds the checksums of the safetensors files, so these need not be read.
    """
    if path.is_file():
        return [path]
    if (path / SUMS).is_file():
        return [path / SUMS]
    files = sorted(file for file in path.rglob("*") if file.is_file())
    has_manifest = (path / "manifest.json").is_file()
    return [file for file in files if not (has_manifest and file.suffix == ".safetensors")]


def graph() -> dict[str, Any]:
    """The stages of dvc.yaml as they stand there."""
    path = ROOT / "dvc.yaml"
    return _graph(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _graph(path: Path, changed: int) -> dict[str, Any]:
    stages: dict[str, Any] = YAML(typ="safe").load(path)["stages"]
    return stages
