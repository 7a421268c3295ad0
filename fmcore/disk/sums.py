"""The checksums of a finished folder: a file `SHA256SUMS` in it, which `sha256sum -c` reads, too.

Whoever loads the folder compares what it reads with them. A folder without that file is taken as it is: older
versions wrote none, and one who edits a description on purpose removes it.
"""

from collections.abc import Mapping
from pathlib import Path

from fmcore.disk.files import ArtifactError, sha256, write_file

SUMS = "SHA256SUMS"


def seal(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Writes the checksums of all files below a folder; `known` ones, by relative path, are not computed again."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SUMS)
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    lines = [f"{(known or {}).get(name) or sha256(path)}  {name}\n" for name, path in names.items()]
    write_file(folder / SUMS, "".join(lines).encode())


def check(folder: Path, *names: str) -> None:
    """Compares files of a folder, all that are listed if none are named, with the folder's checksums.

    Raises:
        ArtifactError: if one is missing, differs or is not listed, or if the list is damaged.
    """
    if not (folder / SUMS).is_file():
        return
    sums = _read(folder / SUMS)
    for name in names or sums:
        if name not in sums:
            raise ArtifactError(f"{folder / SUMS} does not list {name}; expected the sums of all files beside it")
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{path} is missing: {SUMS} beside it lists it")
        if sha256(path) != sums[name]:
            raise ArtifactError(
                f"{path} is damaged or was edited: its SHA-256 is not the one in {SUMS} of its folder. Remove the "
                f"folder to have it made again, or only {SUMS} if you edited the file on purpose"
            )


def _read(path: Path) -> dict[str, str]:
    """The sums by name."""
    sums = {}
    try:
        for line in path.read_text().splitlines():
            digest, name = line.split("  ", 1)
            sums[name] = digest
    except (OSError, ValueError):
        raise ArtifactError(f"{path} is damaged: expected lines of a SHA-256, two spaces and a name") from None
    return sums
