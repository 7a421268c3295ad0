"""DVC's cache as it lies on the disk: objects named by the MD5 of their bytes, and lists of folders' files."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FILES = Path(".dvc/cache/files/md5")


class Listed(NamedTuple):
    """A file of an out: its path from the root, and the digest it should have."""

    path: Path
    md5: str


def cached_objects(root: Path) -> Iterator[tuple[str, Path]]:
    """Each object's name, which is its digest, `.dir` for a list, and its path."""
    for folder in sorted((root / FILES).glob("[0-9a-f][0-9a-f]")):
        for path in sorted(folder.iterdir()):
            if path.is_file():
                yield f"{folder.name}{path.name}", path


def object_path(root: Path, digest: str) -> Path:
    """Where the object of that digest lies, or would."""
    return root / FILES / digest[:2] / digest[2:]


def md5(path: Path) -> str:
    """The file's MD5 as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def listed(root: Path, out: str, digest: str) -> list[Listed] | None:
    """The files of an out of that digest; None if it is a folder whose list is not in the cache or damaged."""
    if not digest.endswith(".dir"):
        return [Listed(Path(out), digest)]
    path = object_path(root, digest)
    if not path.is_file() or md5(path) != digest.removesuffix(".dir"):
        return None
    return [Listed(Path(out) / item["relpath"], item["md5"]) for item in json.loads(path.read_bytes())]
