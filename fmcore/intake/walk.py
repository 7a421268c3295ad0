"""What lies in a folder of images: the images in a fixed order, and what else was met there.

Reads names and links only, never a file. Imports nothing heavy, for what only wants to know whether files changed.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import overload

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
# Left by systems and programs beside a user's files; names that start with a dot are hidden anyway.
OF_SYSTEMS = (
    *("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"),
    *("Thumbs.db", "desktop.ini"),
)
# Folders at the top that are parts of a data set rather than classes, if the first kind is among them.
TRAINING = ("train", "training")
HELD_OUT = ("test", "testing", "val", "valid", "validation", "dev", "held_out", "held-out", "holdout")


class FolderError(ValueError):
    """A folder that cannot be taken in as it is; the message names it."""


@dataclass(frozen=True)
class Files(Sequence[Path]):
    """Files by their names below a folder: a million paths would fill a quarter of a gigabyte.

    Main arguments:
        root: the folder.
        names: relative to it, with / between folders.
    """

    root: Path
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, place: int) -> Path: ...
    @overload
    def __getitem__(self, place: slice) -> "Files": ...
    def __getitem__(self, place: int | slice) -> "Path | Files":
        if isinstance(place, slice):
            return Files(self.root, self.names[place])
        return Path(self.root, self.names[place])

    def __add__(self, other: "Files") -> "Files":
        return Files(self.root, (*self.names, *other.names))


@dataclass(frozen=True)
class Found:
    """What `found` met under a folder; every name is relative to it and printable.

    Main arguments:
        root: the folder.
        images: in natural order, the files of a folder before its subfolders.
        hidden: hidden names and those of systems, none of them entered, with how often each is there.
        others: suffixes of the files that are no images, "" for none, with how many of each.
        linked: links to folders and images that were followed, out of the tree.
        unfollowed: links that were not, and why.
        refused: what has the name of an image, or holds some, but cannot be read, and why.
        empty: folders without an image in them or below, the uppermost of each.
    """

    root: Path
    images: Files
    hidden: Mapping[str, int]
    others: Mapping[str, int]
    linked: tuple[str, ...]
    unfollowed: tuple[str, ...]
    refused: tuple[str, ...]
    empty: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """The images of a folder that are the data.

    Main arguments:
        found: all that lies there.
        base: the folder they lie in: the root, or the training part of a data set that is split.
        images: in order.
        left_out: how many images lie in other parts, by their folder, "" for those beside the parts.
        held_out: those in parts for tests.
    """

    found: Found
    base: Path
    images: Files
    left_out: Mapping[str, int]
    held_out: Files

    @property
    def inside(self) -> Iterator[str]:
        """The images' names below the base."""
        first = len(self.base.name) + 1 if self.base != self.found.root else 0
        return (name[first:] for name in self.images.names)


@dataclass
class _Walk:
    root: str
    images: list[str] = field(default_factory=list)  # relative to the root, as all names here
    links: list[str] = field(default_factory=list)
    linked: list[str] = field(default_factory=list)
    unfollowed: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    hidden: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    walked: set[str] = field(default_factory=set)  # real paths of folders


def found(root: str | Path) -> Found:
    """Walks a folder to its depth.

    Hidden names are left out. Every real folder is entered once: a link out of the tree is followed, one into it
    or around it is not. A link to an image that lies in the tree is that image again and is left out.

    Raises:
        OSError: if there is no such folder, or it cannot be listed.
    """
    walk = _Walk(str(root))
    os.scandir(root).close()
    _enter(walk, "", os.path.realpath(root))
    files: list[str] = []
    while walk.links:
        level, walk.links = sorted(walk.links, key=_order), []
        files += [name for name in level if not _follow(walk, name)]
    for name in files:  # last, when every folder is known that may hold what they lead to
        _follow_file(walk, name)
    # The walk meets them in order, but for those that links lead to. The keys of a million fill 200 MB.
    images = sorted(walk.images, key=_order) if walk.linked else walk.images
    full = {parent for name in images for parent in _parents(name)}
    empty = [name for name in walk.folders if name not in full and full.issuperset(_parents(name))]
    return Found(
        Path(root),
        Files(Path(root), tuple(images)),
        dict(sorted(walk.hidden.items())),
        dict(sorted(walk.others.items())),
        *(
            tuple(map(shown, sorted(names, key=natural)))
            for names in (walk.linked, walk.unfollowed, walk.refused, empty)
        ),
    )


def training_part(found: Found) -> Part:
    """The images to train on: all of them, or those in `train` if the folders at the top are a split.

    Raises:
        FolderError: if they could be a split or classes.
    """
    names = found.images.names
    counts = Counter(name.partition("/")[0] if "/" in name else "" for name in names)
    folders = sorted(counts.keys() - {""}, key=natural)
    training = [name for name in folders if name.casefold() in TRAINING]
    held_out = [name for name in folders if name.casefold() in HELD_OUT]
    classes = [name for name in folders if name not in training + held_out]
    if not training + held_out or (classes and not held_out) or (folders == held_out and len(held_out) == 1):
        return Part(found, found.root, found.images, {}, Files(found.root, ()))
    if classes or len(training) != 1:
        there = ", ".join(f"{shown(name)}/" for name in folders)
        raise FolderError(
            f"{shown(str(found.root))} holds {there}: parts of a split, or classes? Expected train/ with test/ or "
            "val/ and no other folder; name the folder to train on instead"
        )
    used = training[0]
    images, for_tests = (
        Files(found.root, tuple(name for name in names if name.partition("/")[0] in tops and "/" in name))
        for tops in ([used], held_out)
    )
    left_out = {shown(name): counts[name] for name in ["", *folders] if counts[name] and name != used}
    return Part(found, found.root / used, images, left_out, for_tests)


def _enter(walk: _Walk, at: str, real: str) -> None:
    """Takes in what lies in a folder, `at` is its name under the root, and in the folders in it."""
    waiting = [(at, real)]
    while waiting:
        at, real = waiting.pop()
        if real in walk.walked:
            walk.unfollowed.append(f"{at} (was entered by another name)")
            continue
        walk.walked.add(real)
        try:
            entries = sorted(os.scandir(real), key=lambda entry: natural(entry.name))
        except OSError as error:
            walk.refused.append(f"{at}: cannot be listed: {error.strerror}")
            continue
        folders = []
        for entry in entries:
            name = f"{at}/{entry.name}" if at else entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            if entry.name.startswith(".") or entry.name in OF_SYSTEMS:
                kind = "._*" if entry.name.startswith("._") else shown(entry.name)
                walk.hidden[f"{kind}/" if is_folder else kind] += 1
            elif entry.is_symlink():
                walk.links.append(name)
            elif is_folder:
                folders.append((name, os.path.join(real, entry.name)))
                walk.folders.append(name)
            elif not _is_image(entry.name):
                walk.others[_suffix(entry.name)] += 1
            elif entry.is_file(follow_symlinks=False):
                walk.images.append(name)
            else:
                walk.refused.append(f"{name}: no file, but a pipe, a socket or a device")
        waiting += reversed(folders)


def _follow(walk: _Walk, name: str) -> bool:
    """Enters the folder that a link leads to, once; False if it leads to none."""
    real = os.path.realpath(os.path.join(walk.root, name))
    if not os.path.isdir(real):
        return False
    if os.path.realpath(walk.root).startswith(os.path.join(real, "")) or real in walk.walked:
        walk.unfollowed.append(f"{name} (leads to a folder that is entered anyway, or around it)")
        return True
    walk.linked.append(f"{name}/")
    walk.folders.append(name)
    _enter(walk, name, real)
    return True


def _follow_file(walk: _Walk, name: str) -> None:
    """Takes in the image that a link leads to, unless it lies in the tree."""
    real = os.path.realpath(os.path.join(walk.root, name))
    folder, target = os.path.split(real)
    is_hidden = target.startswith(".") or target in OF_SYSTEMS
    if not os.path.exists(real):
        where = walk.refused if _is_image(name) else walk.unfollowed
        where.append(f"{name}: a link that leads nowhere")
    elif not _is_image(name):
        walk.others[_suffix(name)] += 1
    elif not os.path.isfile(real):
        walk.refused.append(f"{name}: no file, but a link to a pipe, a socket or a device")
    elif folder in walk.walked and not is_hidden and _is_image(target):
        walk.unfollowed.append(f"{name} (leads to an image that is there anyway)")
    else:
        walk.images.append(name)
        walk.linked.append(name)


def _suffix(name: str) -> str:
    return shown(os.path.splitext(name)[1].lower())


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def shown(name: str) -> str:
    r"""A name as it can be printed and stored: bytes that are not UTF-8 as \xff, and so are control characters."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@lru_cache(maxsize=100_000)
def natural(name: str) -> tuple[object, ...]:
    """A key to sort names by, with whole numbers in them by their value: 2 before 10.

    >>> sorted(["10", "9b", "9a", "09"], key=natural)
    ['09', '9a', '9b', '10']
    """
    parts = re.split(r"([0-9]+)", name)
    parts[1::2] = [part.lstrip("0") for part in parts[1::2]]
    # By length, then by digits: int() refuses thousands of them.
    return tuple((len(part), part) if i % 2 else part for i, part in enumerate(parts)), name


def _parents(name: str) -> list[str]:
    """The folders that a name lies in, the uppermost first."""
    parts = name.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]


def _order(name: str) -> list[tuple[bool, tuple[object, ...]]]:
    *folders, last = name.split("/")
    return [*((True, natural(folder)) for folder in folders), (False, natural(last))]
