"""DVC's cache as it lies on the disk: objects named by the MD5 of their bytes, and lists of folders' files."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path


def cache_of(root: Path) -> Path:
    """The folder of the cache that a checkout uses, which may be shared with others."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        return Path(repo.cache.local_cache_dir)


def objects(cache: Path) -> Iterator[tuple[str, Path]]:
    """Each object's name, which is its digest, with `.dir` for a list, and its path."""
    for folder in sorted((cache / "files/md5").glob("[0-9a-f][0-9a-f]")):
        for path in sorted(folder.iterdir()):
            if re.fullmatch(r"[0-9a-f]{30}(\.dir)?", path.name) and path.is_file():
                yield f"{folder.name}{path.name}", path


def object_path(cache: Path, digest: str) -> Path:
    """Where the object of that digest lies, or would."""
    return cache / "files/md5" / digest[:2] / digest[2:]


def md5(path: Path) -> str:
    """The file's MD5 as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def listed(cache: Path, digest: str) -> dict[str, str]:
    """The digests of the files in a folder of that digest, by relative path; none if the cache lacks the list."""
    path = object_path(cache, digest)
    found = json.loads(path.read_text()) if digest.endswith(".dir") and path.exists() else []
    return {str(entry["relpath"]): str(entry["md5"]) for entry in found}
