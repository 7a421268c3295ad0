"""Numbers from a file as a data set: points and tables, series, arrays of any number of channels, 8-bit pixels."""

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import accumulate
from math import isfinite, prod
from operator import mul
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from fmcore.disk.dataset import PIXEL, DataError, Dataset, Units
from fmcore.disk.files import mapped
from fmcore.intake.notes import classes_note, listed
from fmcore.intake.split import held_out
from fmcore.intake.tables import Source, opened
from fmcore.intake.walk import natural, shown

if TYPE_CHECKING:
    import numpy as np

    Values = np.ndarray[Any, Any]

LARGE = 10.0  # a mean or deviation from which on raw values are likely to be a mistake
MOST_CLASSES = 1000  # more are likely to be a column of something else
LARGEST, SMALLEST = torch.finfo(torch.float32).max, torch.finfo(torch.float32).tiny
EXACT = 2**53  # up to which float64 holds all whole numbers
FINE = 1e-6  # a deviation, as a share of the mean, below which float32 has few steps for it
BYTES = 2**25  # converted at a time


@dataclass(frozen=True)
class Arrays:
    """Samples in a file, one a row: points (D,), series (C, L), arrays or images (C, H, W).

    Main arguments:
        root: the file: .npy, .npz, .safetensors, .csv or .parquet.
        shape: of one sample. Rows of as many numbers in another form, e.g. a table of series, take this form.
        array: the name of the array in a .npz or .safetensors; null for the only one.
        values: standardised: each column of points, or channel of others, gets mean 0 and deviation 1, and samples
            get the data's own again; raw: as they are; pixels: 8-bit images, uint8.
        labels: the classes: a column of a table, another array in the file, or another file; null for none.
        group: what must not lie on both sides of the split, e.g. a patient; named as `labels` is. null for none.
        held_out: share of the samples (of the groups, if there are any) that nothing is trained on, and that
            generated samples are compared with; images are compared with both. 0 holds nothing out.
    """

    root: str
    shape: tuple[int, ...]
    array: str | None = None
    values: Literal["standardised", "raw", "pixels"] = "standardised"
    labels: str | None = None
    group: str | None = None
    held_out: float = 0.1
    name: Literal["arrays"] = "arrays"

    def __post_init__(self) -> None:
        if not 1 <= len(self.shape) <= 3 or min(self.shape) < 1:
            raise ValueError(
                "shape must be that of one sample, [D] of points, [C, L] of series or [C, H, W], got "
                f"{list(self.shape)}"
            )
        if self.values == "pixels" and len(self.shape) != 3:
            raise ValueError(f"values: pixels are images of shape [C, H, W], got shape {list(self.shape)}")
        if not (isfinite(self.held_out) and 0 <= self.held_out < 1):
            raise ValueError(f"held_out must lie in [0, 1), got {self.held_out}")
        if self.group is not None and not self.held_out:
            raise ValueError("group is for the split, so held_out must be above 0, got 0")

    def load(self, scratch: Path | None = None) -> Dataset:
        """float32 (N, *shape), or uint8 pixels; a DataError names what cannot be taken.

        With a folder `scratch` they lie in files there instead of in memory.
        """
        source = opened(Path(self.root), self.array, leaving=[self.labels, self.group])
        values, notes = self._formed(source)
        names, label = self._classes(source, len(values))
        held, told = self._split(source, len(values))
        notes += told
        x1, kept, units = self._converted(source, values, held, scratch)
        if label is not None:
            counts = torch.bincount(label[~held], minlength=len(names)).tolist()
            notes.append(classes_note(names, counts))
        about: dict[str, Any] = {"columns": list(source.columns)} if source.columns else {}
        about |= {"held_out": int(held.sum())}
        about |= {} if label is None else {"class_counts": counts}
        notes += self._warnings(x1, units)
        return Dataset(
            x1,
            None if label is None else label[~held],
            None if label is None else len(names),
            x1 if kept is None or self.values == "pixels" else kept,
            PIXEL if self.values == "pixels" else None,
            names=names or None,
            about=about,
            notes=tuple(notes),
            units=units,
            held_out=kept if self.values == "pixels" else None,
        )

    def _formed(self, source: Source) -> tuple["Values", list[str]]:
        """The values as (N, *shape)."""
        values, there = source.values, source.values.shape[1:]
        if not len(values):
            raise DataError(f"data.root: {source.name} holds no rows")
        if there == self.shape:
            return values, []
        # Axes may be merged or split, which keeps the order of the numbers, but not exchanged.
        ends, wanted = (set(accumulate(shape, mul)) - {1} for shape in (there, self.shape))
        if prod(there) != prod(self.shape) or not (ends <= wanted or wanted <= ends):
            raise DataError(self._misfit(source, there))
        note = f"rows of shape {list(there)} are taken as {list(self.shape)}"
        return values.reshape(len(values), *self.shape), [note]

    def _misfit(self, source: Source, there: tuple[int, ...]) -> str:
        line = (
            f"data.shape: expected {list(there)}, the shape of a sample in {source.name}, got {list(self.shape)}"
        )
        if len(there) == 3 and (there[2], *there[:2]) == self.shape:
            line = (
                f"data.shape: {source.name} holds samples of shape {list(there)}, channels last; expected them "
                "first: numpy.moveaxis(x, -1, 1)"
            )
        return line

    def _classes(self, source: Source, count: int) -> tuple[tuple[str, ...], Tensor | None]:
        """The names of the classes in natural order, and each sample's."""
        if self.labels is None:
            return (), None
        found = source.beside(self.labels, "labels", count)
        values, are_numbers = found.tolist(), found.dtype.kind in "fiub"
        if any(isinstance(value, float | Decimal) and value != int(value) for value in values):
            raise DataError(f"data.labels: {self.labels} holds fractions, expected whole numbers or names")
        texts = [str(int(value)) if are_numbers or isinstance(value, Decimal) else str(value) for value in values]
        names = tuple(sorted(set(texts), key=natural))
        if not 2 <= len(names) <= MOST_CLASSES:
            raise DataError(f"data.labels: {self.labels} names {len(names)} classes, expected 2 to {MOST_CLASSES}")
        index = {name: i for i, name in enumerate(names)}
        return tuple(map(shown, names)), torch.tensor([index[text] for text in texts])

    def _split(self, source: Source, count: int) -> tuple[Tensor, list[str]]:
        """Which rows are held out, and a line that says so."""
        groups = None
        if self.group is not None:
            groups = source.beside(self.group, "group", count).astype(str).tolist()
        held, told = held_out(self.held_out, count, groups, str(self.group))
        if self.values != "pixels" and self.held_out and not 2 <= held.sum() <= count - 2:
            raise DataError(f"data.held_out: {self.held_out} of {count} samples leaves too few on one side")
        return held, told

    def _converted(
        self, source: Source, values: "Values", held: Tensor, scratch: Path | None
    ) -> tuple[Tensor, Tensor | None, Units | None]:
        """The values as tensors, standardised by those that are trained on: these, and those held out."""
        self._check(source, values)
        kind, scale, units = torch.uint8, None, None
        if self.values != "pixels":
            kind = torch.float32
            scale = _scale(values, ~held.numpy() if self.values == "standardised" else None)
            units = scale.units(source.columns if len(source.columns) == self.shape[0] else ())
        found = []
        for name, side in {"x1": ~held, "held_out": held}.items() if held.any() else [("x1", ~held)]:
            shape = (int(side.sum()), *self.shape)
            rows = torch.empty(shape, dtype=kind) if scratch is None else mapped(scratch / name, shape, kind)
            done = 0
            for rows_at in _parts(values):
                part = values[rows_at][side[rows_at].numpy()]
                rows.numpy()[done : done + len(part)] = scale.standardised(part) if scale else part
                done += len(part)
            found.append(rows)
        return found[0], found[1] if len(found) > 1 else None, units

    def _check(self, source: Source, values: "Values") -> None:
        """Refuses what is no number, or not what `values` says."""
        if self.values == "pixels":
            if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
                are_numbers = values.dtype.kind in "fiu"
                ends = f" from {values.min():.4g} to {values.max():.4g}" if are_numbers else ""
                raise DataError(
                    f"data.values: pixels are whole numbers from 0 to 255, {source.name} holds {values.dtype}"
                    f"{ends}; of images in [0, 1] (255 * x).round() is"
                )
            return
        if values.dtype.kind not in "fiu" or values.dtype.itemsize > 8:
            raise DataError(f"data.root: expected numbers in {source.name}, got {values.dtype}")
        if len(bad := _unfinite(values)):
            raise DataError(
                f"data.root: {len(bad)} of {len(values)} rows of {source.name} hold a missing or infinite value, "
                f"the first is row {bad[0]}"
            )
        if (most := _largest(values)) > LARGEST:
            raise DataError(
                f"data.root: {source.name} holds values up to {most:.3g}, and float32 ends at {LARGEST:.3g}: "
                "scale them"
            )

    def _warnings(self, x1: Tensor, units: Units | None) -> list[str]:
        """Lines about values that are likely to train badly."""
        if units is None:
            return []
        what = "column" if len(self.shape) == 1 else "channel"
        named = units.names or [f"{what} {i}" for i in range(self.shape[0])]
        axes = [0, *range(2, x1.ndim)]
        if self.values == "standardised":
            are_flat = (x1.amin(axes) == x1.amax(axes)).tolist()
            rows = list(zip(named, are_flat, units.mean, units.std, strict=True))
            flat = [name for name, is_flat, _, _ in rows if is_flat]
            fine = [
                name for name, is_flat, mean, std in rows if not is_flat and std < max(FINE * abs(mean), SMALLEST)
            ]
            small = "deviations too small for float32, so samples in the data's own units lose digits"
            lines = {"the same in all samples": flat, small: fine}
            return [f"{line}: {listed(names)}" for line, names in lines.items() if names]
        mean, std = x1.mean(axes), x1.std(axes)
        far = bool(((mean.abs() > LARGE) | (std > LARGE) | (std < 1 / LARGE)).any())
        told = (
            f"means from {mean.min():.4g} to {mean.max():.4g}, deviations from {std.min():.4g} to {std.max():.4g}"
        )
        return [f"raw values, {told}: noise has 0 and 1, so data.values: standardised may train better"] * far


def _rows(values: "Values") -> int:
    """How many rows are converted at a time."""
    return max(1, BYTES // max(1, values[:1].nbytes))


def _parts(values: "Values") -> Iterator[slice]:
    """The rows, part by part."""
    rows = _rows(values)
    return (slice(first, first + rows) for first in range(0, len(values), rows))


def _unfinite(values: "Values") -> list[int]:
    import numpy as np

    if values.dtype.kind != "f":
        return []
    fine = [np.isfinite(values[part]).reshape(-1, prod(values.shape[1:])).all(1) for part in _parts(values)]
    found: list[int] = (~np.concatenate(fine)).nonzero()[0].tolist()
    return found


def _largest(values: "Values") -> float:
    """The largest absolute value."""
    ends = [(float(values[part].max()), -float(values[part].min())) for part in _parts(values)]
    return max(max(pair) for pair in ends)


class _Scale(NamedTuple):
    """How each column or channel is standardised, in arrays of shape (1, K, 1, ...).

    Main arguments:
        origin: what whole numbers are counted from that float64 cannot hold, in 64 bits; None for others.
        centre: the mean, from `origin` on, as far as float64 has it.
        rest: what it lacks, so that the mean of values close to each other gets all of their digits.
        std: the deviation, 1 of what never changes.
    """

    origin: "Values | None"
    centre: "Values"
    rest: "Values"
    std: "Values"

    def standardised(self, part: "Values") -> "Values":
        """Some rows with mean 0 and deviation 1."""
        found: Values = (_floats(part, self.origin) - self.centre - self.rest) / self.std
        return found

    def units(self, names: tuple[str, ...]) -> Units:
        """What `standardised` takes away; `names` are those of the columns."""
        mean = self.centre + self.rest if self.origin is None else self.origin + (self.centre + self.rest)
        return Units(tuple(mean.reshape(-1).tolist()), tuple(self.std.reshape(-1).tolist()), names)


def _scale(values: "Values", trained: "Values | None") -> _Scale:
    """The scale of the rows that are trained on, one that changes nothing for None."""
    import numpy as np

    axes = (0, *range(2, values.ndim))
    if trained is None:
        zeros = np.zeros((1, values.shape[1], *(1 for _ in values.shape[2:])))
        return _Scale(None, zeros, zeros, zeros + 1)
    origin, count = _origin(values), int(trained.sum()) * prod(values.shape[2:])
    first = _floats(values[trained.nonzero()[0][: _rows(values)]], origin).mean(axes, keepdims=True)
    total, low, high = 0.0, np.inf, -np.inf
    for rows in _parts(values):
        if trained[rows].any():
            part = _floats(values[rows][trained[rows]], origin)
            total = total + (part - first).sum(axes, keepdims=True)
            low = np.minimum(low, part.min(axes, keepdims=True))
            high = np.maximum(high, part.max(axes, keepdims=True))
    centre = np.where(low == high, low, first + total / count)
    # A power of two, which takes no digit, so that no square is too small or too large a number.
    unit = np.ldexp(1.0, np.frexp(high - low)[1])
    rest, square = np.zeros_like(centre), np.zeros_like(centre)
    for rows in _parts(values):
        part = (_floats(values[rows][trained[rows]], origin) - centre) / unit
        rest, square = rest + part.sum(axes, keepdims=True), square + (part**2).sum(axes, keepdims=True)
    rest = rest / count
    std = unit * np.sqrt(np.maximum(square / count - rest**2, 0))
    std[std == 0] = 1.0
    return _Scale(origin, centre, unit * rest, std)


def _origin(values: "Values") -> "Values | None":
    """The middle of each column or channel of whole numbers beyond 2^53, from which all lie within 2^63."""
    import numpy as np

    if values.dtype.kind == "f" or _largest(values) <= EXACT:
        return None
    axes = (0, *range(2, values.ndim))
    low, high = values.min(axes, keepdims=True), values.max(axes, keepdims=True)
    middle = [(int(a) + int(b) + 1) // 2 for a, b in zip(low.flat, high.flat, strict=True)]
    return np.array(middle, dtype=values.dtype).reshape(low.shape)


def _floats(part: "Values", origin: "Values | None") -> "Values":
    """Rows in float64, counted from `origin` on."""
    import numpy as np

    if origin is None:
        return part.astype(np.float64)
    # Modulo 2^64 a difference is exact, though one of the two may have no sign.
    return (part.astype(np.uint64) - origin.astype(np.uint64)).view(np.int64).astype(np.float64)
