"""What was done to images as they were read, and what lay beside them: as data, and in words."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmcore.intake.planes import ImageFile
from fmcore.intake.reading import DONE, How, Read
from fmcore.intake.walk import Part, shown

NAMED = 8  # at most in a line
KEPT = 100  # at most in a manifest
FITTED = {
    "crop": "were cropped to the middle, by up to {share} of a side",
    "pad": "were padded, up to {share} of a side",
    "stretch": "were stretched, by up to {share} less along one side",
}


class Tally:
    """Counts what was done to images, as they are read."""

    def __init__(self, base: Path | None = None) -> None:
        self.base = base
        self.done: Counter[str] = Counter()
        self.count, self.misfits, self.worst, self.worst_name = 0, 0, 0.0, ""

    def kept(self) -> dict[str, Any]:
        """All that was counted, as JSON."""
        return {key: value for key, value in vars(self).items() if key != "base"}

    def take_up(self, kept: Mapping[str, Any]) -> None:
        """Counts on from what `kept` returned; a KeyError, TypeError or ValueError for anything else."""
        done = Counter({str(key): int(count) for key, count in dict(kept["done"]).items()})
        count, misfits, worst, name = kept["count"], kept["misfits"], kept["worst"], kept["worst_name"]
        self.done, self.count, self.misfits, self.worst = done, int(count), int(misfits), float(worst)
        self.worst_name = str(name)

    def name(self, file: ImageFile) -> str:
        """What a file is called: a path is seen from the folder."""
        if not isinstance(file, Path):
            return file.name
        if self.base is None:
            return shown(str(file))
        # Beside the base lie other parts of a split.
        return shown(str(file.relative_to(self.base if self.base in file.parents else self.base.parent)))

    def add(self, path: ImageFile, read: Read) -> None:
        """One more image."""
        self.count += 1
        self.done.update(read.done)
        self.misfits += read.misfit > 0
        if read.misfit > self.worst:
            self.worst, self.worst_name = read.misfit, self.name(path)

    def about(self, how: How, white: int | None) -> dict[str, Any]:
        """What was done, for a manifest: to how many images, by `DONE`, and how many had another form."""
        return {
            "background": how.background,
            "done": dict(sorted(self.done.items())),
            "largest_misfit": round(self.worst, 4),
            "levels": white,
            "misfits": self.misfits,
        }

    def notes(self, how: How, white: int | None) -> list[str]:
        """A line for each kind of thing that was done."""
        size = how.size and f"{how.size[0]}x{how.size[1]}"
        words = {"background": how.background, "levels": white, "size": size}
        total, done = self.count, self.done
        lines = [f"{done[key]} of {total} {text.format(**words)}" for key, text in DONE.items() if done[key]]
        if self.misfits and how.size:
            share = f"{100 * self.worst:.2g} %"
            lines.append(f"{self.misfits} of {total} {FITTED[how.fit].format(share=share)} ({self.worst_name})")
        return lines


def beside(part: Part) -> dict[str, Any]:
    """What lay beside the data and was left out, or followed, as `Part` and `Found` call it.

    Equal folders give the same on any machine; of long lists it is the first.
    """
    found = part.found
    counts = {"left_out": part.left_out, "hidden": found.hidden, "others": found.others}
    names = {"linked": found.linked, "unfollowed": found.unfollowed, "empty": found.empty}
    return {key: dict(list(value.items())[:KEPT]) for key, value in counts.items()} | {
        key: list(value[:KEPT]) for key, value in names.items()
    }


def found_notes(part: Part) -> list[str]:
    """A line for each kind of thing that lies in a folder and is not taken as it is."""
    found, lines = part.found, []
    if part.base != found.root:
        left = [f"{name or 'beside it'}{'/' if name else ''} ({n} images)" for name, n in part.left_out.items()]
        more = f"; left out: {', '.join(left)}" if left else ""
        lines.append(f"{shown(part.base.name)}/ is trained on{more}")
    kinds: dict[str, Sequence[str]] = {
        "left out, as hidden or left by programs": _counted(found.hidden),
        "left out, as no images by their suffix": _counted(
            {suffix or "without suffix": n for suffix, n in found.others.items()}
        ),
        "links that were followed": found.linked,
        "links that were not followed": found.unfollowed,
        "folders without an image": found.empty,
    }
    return lines + [f"{what}: {listed(names)}" for what, names in kinds.items() if names]


def _counted(counts: Mapping[str, int]) -> list[str]:
    return [f"{n} {name}" for name, n in sorted(counts.items(), key=lambda item: -item[1])]


def classes_note(names: Sequence[str], counts: Sequence[int]) -> str:
    """How many samples of each class are trained on, in a line."""
    line = f"classes: {listed([f'{name} ({n})' for name, n in zip(names, counts, strict=True)])}"
    if empty := [name for name, n in zip(names, counts, strict=True) if not n]:
        line += f"; nothing is trained on {listed(empty)}, all of which is held out"
    return line


def listed(names: Sequence[str]) -> str:
    """Names in a line, of many the first."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
