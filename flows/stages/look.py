"""Stage `look`: whether the files of the data changed, by their names, sizes and times; it opens none of them.

DVC runs it in every `dvc repro`, wherever the data lie. Its output is a digest, and `intake` reads the data again
only if that changed. It imports neither torch nor the schema, so that a `dvc repro` without changes is fast.
"""

import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows import layout
from flows.workshop.place import BESIDE, bring

if TYPE_CHECKING:
    from flows.events import Events
    from flows.params.schema import Params
    from flows.workshop.entry import Stage

NAMED = 8  # of the files that changed


def look(params: "Params", stage: "Stage") -> "Events":
    """Writes a digest of the data's files."""
    write_seen(params.model_dump(mode="json")["data"])
    yield from ()


def write_seen(data: Mapping[str, Any]) -> None:
    """Writes a digest of the files that `data` names; a FileNotFoundError names what is not there."""
    part = layout.SEEN.with_suffix(".part")  # the file may be a link into DVC's cache
    part.write_text(json.dumps(digest(data), indent=1) + "\n")
    part.replace(layout.SEEN)


def digest(data: Mapping[str, Any]) -> dict[str, Any]:
    """A digest of the files that `data` names.

    Raises:
        FileNotFoundError: if they are not there, and not to be downloaded.
    """
    about: dict[str, Any] = {"name": data.get("name")}
    for key, place in _places(data):
        found = seen(place, key)
        about |= found if key == "root" else {key: found}
    return about


def _places(data: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Path]]:
    """The keys of `data` that name files, and the files; `at` stands before those of what latents are of."""
    root = data.get("root")
    if root is not None and not data.get("download"):  # what is downloaded is checked by who downloads it
        yield f"{at}root", Path(root)
    for key in BESIDE:
        if isinstance(value := data.get(key), str) and Path(value).is_file():
            yield f"{at}{key}", Path(value)
    if isinstance(images := data.get("images"), Mapping):
        yield from _places(images, "images.")
    if isinstance(folder := data.get("autoencoder"), str):
        yield "autoencoder", Path(folder)


def changed(data: Mapping[str, Any]) -> str:
    """Which files that `data` names changed since their digest was written, in words; empty if none did."""
    try:
        before = json.loads(layout.SEEN.read_text())
    except ValueError as error:
        raise ValueError(f"{layout.SEEN} is not JSON: {error}; run: dvc repro -f -s look") from None
    try:
        if digest(data) == before:
            return ""
    except FileNotFoundError as error:
        return str(error)
    since = layout.SEEN.stat().st_mtime_ns
    late = [path for _, place in _places(data) for path, about in found(place) if about.st_ctime_ns > since]
    return ", ".join(map(repr, late[:NAMED])) or "some are gone, or were changed back"


def seen(place: Path, key: str) -> dict[str, Any]:
    """How many files there are, their size in bytes, and a SHA-256 of all names, sizes and times."""
    if not place.exists():
        raise FileNotFoundError(f"data.{key}: no file or folder {str(place)!r}")
    whole, files, size = hashlib.sha256(), 0, 0
    for path, about in found(place):
        relative = os.fsencode(os.path.relpath(path, place))
        whole.update(b"%b\0%d %d\n" % (relative, about.st_size, about.st_mtime_ns))
        files, size = files + 1, size + about.st_size
    return {"files": files, "bytes": size, "sha256": whole.hexdigest()}


def found(place: Path) -> Iterator[tuple[str, os.stat_result]]:
    """The files at or below a place, in order of name; links are followed, each folder is entered once."""
    if not place.is_dir():
        yield str(place), place.stat()
        return
    entered = set()
    for folder, folders, names in os.walk(place, followlinks=True):
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in entered:
            folders.clear()
            continue
        entered.add((here.st_dev, here.st_ino))
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)  # a Path for each of a million files takes seconds
            try:
                about = os.stat(path)
            except OSError:  # a link to nothing, or gone since
                about = os.lstat(path)
            if stat.S_ISREG(about.st_mode) or stat.S_ISLNK(about.st_mode):
                yield path, about


def main() -> int:
    """Looks at what params.yaml names; what is wrong with params.yaml itself, `check` says."""
    try:
        whole = YAML(typ="safe").load(Path("params.yaml"))
        data = whole.get("data") if isinstance(whole, Mapping) else None
        about = data if isinstance(data, Mapping) else {}
        bring({"data": about})
        write_seen(about)
    except (OSError, YAMLError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
