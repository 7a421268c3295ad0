"""The checksums of a finished folder: a file `SHA256SUMS` in it, which `sha256sum -c` reads, too.

Whoever loads the folder compares what it reads with them. A folder without that file is taken as it is: older
versions wrote none, and one who edits a description on purpose removes it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from fmcore.disk.files import ArtifactError, DamagedError, sha256, write_file

SUMS = "SHA256SUMS"


def seal(folder: Path, names: Iterable[str], known: Mapping[str, str] | None = None) -> None:
    """Writes the checksums of the named files of a folder; `known` ones are not computed again."""
    sums = {name: (known or {}).get(name) or sha256(folder / name) for name in sorted(names)}
    write_file(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode())


def seal_all(folder: Path) -> None:
    """Writes the checksums of all files below a folder; tensors that were sealed already are not read again."""
    known: dict[str, str] = {}
    for path in sorted(folder.rglob(SUMS), reverse=True):
        if path.parent == folder:
            continue
        seal(path.parent, _names(path.parent), _of_tensors(path))
        at = path.parent.relative_to(folder)
        known |= {(at / name).as_posix(): digest for name, digest in _of_tensors(path).items()}
    if (folder / SUMS).is_file():
        known |= _of_tensors(folder / SUMS)
    seal(folder, _names(folder), known)


def _names(folder: Path) -> set[str]:
    """All files below a folder but its own list of checksums, and hidden ones, which file managers leave."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix() for path in files} - {SUMS}


def _of_tensors(path: Path) -> dict[str, str]:
    """Sums of files that nobody writes twice."""
    return {name: digest for name, digest in _read(path).items() if name.endswith(".safetensors")}


def is_there(folder: Path, name: str) -> bool:
    """Whether a folder has a file that it may lack; an `ArtifactError` if it had one, which is damaged or gone."""
    if (folder / SUMS).is_file() and name in _read(folder / SUMS):
        check(folder, name)
    return (folder / name).is_file()


def check(folder: Path, *names: str) -> None:
    """Compares files of a folder, all that are listed if none are named, with the folder's checksums.

    Raises:
        ArtifactError: if one is missing or not listed.
        DamagedError: if one differs, or if the list cannot be read.
    """
    if not (folder / SUMS).exists():
        return
    sums = _read(folder / SUMS)
    for name in names or sorted(sums.keys() | _names(folder)):
        path = folder / name
        if name not in sums:
            raise ArtifactError(f"{path} is not listed in {SUMS} beside it; expected the sums of all files there")
        if not path.is_file():
            raise ArtifactError(f"{path} is missing: {SUMS} beside it lists it")
        if sha256(path) != sums[name]:
            raise DamagedError(f"{path} is damaged or was edited: its SHA-256 differs from the one in {SUMS}")


def _read(path: Path) -> dict[str, str]:
    """The sums by name."""
    sums = {}
    try:
        for line in path.read_text().splitlines():
            digest, name = line.split("  ", 1)
            sums[name] = digest
    except (OSError, ValueError):
        raise DamagedError(f"{path} is damaged: expected lines of a SHA-256, two spaces and a name") from None
    return sums
