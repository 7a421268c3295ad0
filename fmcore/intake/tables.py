"""Files that hold arrays or tables, opened: the samples as they lie there, and what lies beside them by name."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmcore.disk.dataset import DataError
from fmcore.flow.errors import one_line
from fmcore.intake.notes import NAMED, listed
from fmcore.intake.walk import shown

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Values = np.ndarray[Any, Any]

TABLES = (".csv", ".parquet")
ARRAYS = (".npy", ".npz", ".safetensors")
ZIPPED = b"PK"  # how a .npz begins
DIGITS = re.compile(r"[+-]?\d+")
WHOLE = re.compile(r"[+-]?\d+(\.0*)?")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*(e[+-]?\d+)?|\.\d+(e[+-]?\d+)?|inf(inity)?)", re.IGNORECASE)
TOLD = str | bytes | int | float | Decimal | date  # what a class or a group may be called


@dataclass(frozen=True)
class Source:
    """What a file holds.

    Main arguments:
        name: the file's, printable.
        values: the samples, one a row; mapped from disk where the format allows.
        columns: names of the columns of a table.
        others: columns or arrays beside the samples, by name.
    """

    name: str
    values: "Values"
    columns: tuple[str, ...] = ()
    others: Mapping[str, "Values"] = field(default_factory=dict)

    def beside(self, name: str, key: str, count: int) -> "Values":
        """One value for each sample: a column or array of the file, or another file of its own.

        Raises:
            DataError: if there is none of that name, or not one for each of `count` samples.
        """
        if name in self.others:
            found = self.others[name]
        elif Path(name).is_file():
            found = opened(Path(name), None, key=key).values
        else:
            offered = ", ".join([*self.columns, *self.others]) or "none beside the samples"
            raise DataError(f"data.{key}: {name!r} is neither a file nor in {self.name}, which has {offered}")
        if not found.ndim or found.size != count or len(found) != count:
            raise DataError(
                f"data.{key}: expected one value for each of {count} samples, {name} has shape {found.shape}"
            )
        return _told(found.reshape(count), name, key)


def _told(values: "Values", name: str, key: str) -> "Values":
    """Classes or groups (N,), of which each row has one; bytes become text."""
    if values.dtype.kind not in "biufUSO":
        raise DataError(f"data.{key}: {name} holds {values.dtype}, expected whole numbers or names")
    if empty := _missing(values):
        raise DataError(
            f"data.{key}: {len(empty)} of {len(values)} rows of {name} have no value, the first is row {empty[0]}"
        )
    if values.dtype.kind not in "SO":
        return values
    texts = values.tolist()
    for row, value in enumerate(texts):
        if not isinstance(value, TOLD):
            kind = type(value).__name__
            raise DataError(f"data.{key}: row {row} of {name} holds a {kind}, expected whole numbers or names")
        if isinstance(value, bytes):
            try:
                texts[row] = value.decode()
            except UnicodeDecodeError:
                raise DataError(f"data.{key}: row {row} of {name} holds {value!r}, expected UTF-8") from None
    return _objects(texts)


def _objects(values: Sequence[Any]) -> "Values":
    """Values as they are, (N,): NumPy would make lists of one length another axis."""
    import numpy as np

    return np.fromiter(values, dtype=object, count=len(values))


def _missing(values: "Values") -> list[int]:
    """The rows that say nothing: None, an empty text, a number that is none."""
    import numpy as np

    if values.dtype.kind == "f":
        return [int(row) for row in (~np.isfinite(values)).nonzero()[0]]
    if values.dtype.kind in "biu":
        return []
    told = enumerate(values.tolist())
    return [row for row, value in told if value is None or value != value or value in ("", b"")]


def opened(path: Path, array: str | None, leaving: Sequence[str | None] = (), key: str = "root") -> Source:
    """Opens a file; nothing in it is run.

    Main arguments:
        array: the name of the samples in a file of several arrays.
        leaving: names of columns or arrays that are not part of the samples.
        key: of the setting that names the file.

    Raises:
        DataError: if it is missing, of another kind or cannot be read, or if its arrays or columns do not fit.
    """
    if not path.is_file():
        raise DataError(f"data.{key}: {'a folder' if path.is_dir() else 'no file'} {str(path)!r}; expected a file "
                        f"ending in {', '.join(ARRAYS + TABLES)}")  # fmt: skip
    if path.suffix not in ARRAYS + TABLES:
        raise DataError(
            f"data.{key}: expected a file ending in {', '.join(ARRAYS + TABLES)}, got {shown(str(path))}"
        )
    name, left = shown(path.name), [one for one in leaving if one is not None]
    if array is not None and path.suffix not in (".npz", ".safetensors"):
        what = (
            "one array, which has no name" if path.suffix == ".npy" else "a table, whose columns are the samples"
        )
        raise DataError(f"data.array: {name} holds {what}; expected null, got {array!r}")
    try:
        if path.suffix in TABLES:
            return _table(path, name, left, key)
        arrays = _arrays(path)
    except DataError:
        raise
    except Exception as error:  # readers raise what they like
        reason = one_line(error)
        raise DataError(f"data.{key}: {name} cannot be read: {reason}") from None
    offered = list(arrays) if path.suffix == ".npy" else [one for one in arrays if one not in left]
    if array is None and len(offered) != 1:
        there = f"{name} holds {', '.join(offered) or 'nothing'}"
        if key != "root":
            raise DataError(f"data.{key}: {there}; expected one array")
        raise DataError(f"data.array: {there}; expected the name of one")
    if array is not None and array not in arrays:
        raise DataError(f"data.array: {name} holds {', '.join(arrays) or 'nothing'}, got {array!r}")
    which = offered[0] if array is None else array
    if arrays[which].ndim == 0:
        raise DataError(f"data.{key}: {name} holds one number, expected an array with a row a sample")
    return Source(name, arrays[which], (), {one: value for one, value in arrays.items() if one != which})


def _arrays(path: Path) -> Mapping[str, "Values"]:
    """The arrays of a file by name; the one of a .npy has none."""
    import numpy as np

    if path.suffix in (".npy", ".npz"):
        with path.open("rb") as file:
            is_zipped = file.read(len(ZIPPED)) == ZIPPED
        if is_zipped != (path.suffix == ".npz"):
            raise ValueError("it is a .npz by another name" if is_zipped else "it is no .npz")
    if path.suffix == ".npy":
        return {"": np.load(path, mmap_mode="r", allow_pickle=False)}
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    from safetensors.torch import load_file

    return {
        name: (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
        for name, tensor in load_file(path).items()
    }


def _table(path: Path, name: str, left: Sequence[str], key: str) -> Source:
    from pyarrow import types

    table = _read(path, name, left, key)
    names = table.column_names
    if len(set(names)) < len(names):
        raise DataError(f"data.{key}: {name} has two columns of one name")
    if not table.num_rows:
        raise DataError(f"data.{key}: {name} holds no rows")
    texts = _spelled if path.suffix == ".csv" else _texts
    if key != "root":  # a file of labels alone, which may be names
        if len(names) != 1:
            raise DataError(f"data.{key}: {name} holds {', '.join(names) or 'nothing'}; expected one column")
        return Source(name, texts(table[names[0]])[:, None], tuple(names))
    others = {one: texts(table[one]) for one in left if one in names}
    columns = [one for one in names if one not in others]
    kinds = {one: table[one].type for one in columns}
    wrong = [one for one, kind in kinds.items() if not (types.is_integer(kind) or types.is_floating(kind))]
    if wrong or not columns:
        raise DataError(
            f"data.{key}: expected numbers in all columns of {name} but those of data.labels and data.group, got "
            f"{'others in ' if wrong else 'no column'}{listed(wrong)}"
        )
    return Source(name, _numbers(table.select(columns)), tuple(columns), others)


def _read(path: Path, name: str, left: Sequence[str], key: str) -> "pa.Table":
    """A table; of a CSV the columns `left`, and all of a file of labels, are text, as it stands there."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    if path.suffix != ".csv":
        return parquet.read_table(path)
    # A blank line is a missing value: without it all that follows would belong to the sample before.
    body, parsing = _trimmed(path), csv.ParseOptions(ignore_empty_lines=False)
    with csv.open_csv(pa.BufferReader(body), parse_options=parsing) as reader:
        names = reader.schema.names
    bare = [one.strip() for one in names]
    if any(map(NUMBER.fullmatch, bare)) and all(NUMBER.fullmatch(one) or one in _void() for one in bare):
        more = ", ..." if len(names) > NAMED else ""
        raise DataError(
            f"data.{key}: {name}: expected a first line of names, got the numbers {', '.join(bare[:NAMED])}{more}"
        )
    as_text = csv.ConvertOptions(column_types=dict.fromkeys(left if key == "root" else names, pa.string()))
    return csv.read_csv(pa.BufferReader(body), parse_options=parsing, convert_options=as_text)


def _trimmed(path: Path) -> "pa.Buffer":
    """The bytes of a file, mapped, without the blank lines at its beginning and end."""
    import pyarrow as pa

    whole = pa.memory_map(str(path)).read_buffer()
    text = memoryview(whole).cast("B")
    first, end = 0, len(text)
    while end and text[end - 1] in b"\r\n":
        end -= 1
    # Arrow wants the names alone to end in one.
    end = min(len(text), end + (2 if bytes(text[end : end + 2]) == b"\r\n" else 1))
    while first < end and text[first] in b"\r\n":
        first += 1
    return whole.slice(first, end - first)


def _void() -> frozenset[str]:
    """How a number that is missing is written in a CSV, e.g. NA."""
    from pyarrow import csv

    return frozenset(csv.ConvertOptions().null_values)


def _numbers(table: "pa.Table") -> "Values":
    """A row for each, missing values as NaN; whole numbers stay whole if no column has others."""
    import numpy as np

    return np.stack([column.to_numpy() for column in table.columns], 1)


def _spelled(column: "pa.ChunkedArray") -> "Values":
    """Classes or groups in a CSV, a missing one is None or NaN.

    Names are taken as they stand, and so are numbers of digits alone: 01 is not 1, and none is too long. In a
    column of whole numbers with points, which pandas makes of a column with holes, 1.0 is 1.
    """
    import numpy as np

    texts, void = column.to_pylist(), _void()
    bare = [None if text.strip() in void else text.strip() for text in texts]
    said = [text for text in bare if text is not None]
    if not said or not all(map(NUMBER.fullmatch, said)):
        return _objects(texts)
    if all(map(DIGITS.fullmatch, said)):
        return _objects(bare)
    if all(map(WHOLE.fullmatch, said)):
        return _objects([text and _plain(text) for text in bare])
    return np.array([float("nan" if text is None else text) for text in bare])


def _plain(text: str) -> str:
    """A whole number as Python writes it; `int` refuses thousands of digits."""
    digits = text.partition(".")[0].lstrip("+-0") or "0"
    return f"-{digits}" if text[0] == "-" and digits != "0" else digits


def _texts(column: "pa.ChunkedArray") -> "Values":
    """Classes or groups in a Parquet file: names or numbers; a missing one is None."""
    import numpy as np
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count or not (types.is_integer(column.type) or types.is_floating(column.type)):
        return _objects(column.to_pylist())
    return np.asarray(column.to_numpy())
