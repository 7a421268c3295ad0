"""Files that hold arrays or tables, opened: the samples as they lie there, and what lies beside them by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmcore.disk.dataset import DataError
from fmcore.intake.walk import shown

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Values = np.ndarray[Any, Any]

TABLES = (".csv", ".parquet")
ARRAYS = (".npy", ".npz", ".safetensors")
NAMED = 8


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
            other = opened(Path(name), None, key=key)
            found = next(iter(other.others.values())) if other.values.size == 0 else other.values
        else:
            offered = ", ".join([*self.columns, *self.others]) or "none beside the samples"
            raise DataError(f"data.{key}: {name!r} is neither a file nor in {self.name}, which has {offered}")
        found = found.reshape(len(found), -1) if len(found) else found
        if found.shape != (count, 1):
            raise DataError(
                f"data.{key}: expected one value for each of {count} samples, {name} has {found.shape}"
            )
        if found.dtype.kind not in "biufUSO":
            raise DataError(f"data.{key}: {name} holds {found.dtype}, expected whole numbers or names")
        if empty := _missing(found[:, 0]):
            raise DataError(
                f"data.{key}: {len(empty)} of {count} rows of {name} have no value, the first is row {empty[0]}"
            )
        return found[:, 0]


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
    try:
        if path.suffix in TABLES:
            return _table(path, name, left, key)
        arrays = _arrays(path)
    except DataError:
        raise
    except Exception as error:  # readers raise what they like
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"data.{key}: {name} cannot be read: {reason}") from None
    offered = [one for one in arrays if one not in left]
    if array is None and len(offered) != 1:
        raise DataError(f"data.array: {name} holds {', '.join(offered) or 'nothing'}; expected the name of one")
    if array is not None and array not in arrays:
        raise DataError(f"data.array: {name} holds {', '.join(arrays) or 'nothing'}, got {array!r}")
    which = offered[0] if array is None else array
    if arrays[which].ndim == 0:
        raise DataError(f"data.{key}: {name} holds one number, expected an array with a row a sample")
    return Source(name, arrays[which], (), {one: value for one, value in arrays.items() if one != which})


def _arrays(path: Path) -> Mapping[str, "Values"]:
    """The arrays of a file by name; the one of a .npy has none."""
    import numpy as np

    if path.suffix == ".npy":
        return {"": np.load(path, mmap_mode="r", allow_pickle=False)}
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    from safetensors.torch import load_file

    return {
        name: (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
        for name, tensor in load_file(path).items()
    }


def _table(path: Path, name: str, left: Sequence[str], key: str) -> Source:
    from pyarrow import types

    table = _read(path)
    names = table.column_names
    if len(set(names)) < len(names):
        raise DataError(f"data.{key}: {name} has two columns of one name")
    others = {one: _texts(table[one]) for one in left if one in names}
    columns = [one for one in names if one not in others]
    if key != "root" and len(columns) == 1:  # a file of labels alone, which may be names
        return Source(name, _texts(table[columns[0]])[:, None], tuple(columns))
    kinds = {one: table[one].type for one in columns}
    wrong = [one for one, kind in kinds.items() if not (types.is_integer(kind) or types.is_floating(kind))]
    if wrong or not columns:
        more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise DataError(
            f"data.{key}: expected numbers in all columns of {name} but those of data.labels and data.group, got "
            f"{'others in ' if wrong else 'no column'}{', '.join(wrong[:NAMED])}{more}"
        )
    return Source(name, _numbers(table.select(columns)), tuple(columns), others)


def _read(path: Path) -> "pa.Table":
    from pyarrow import csv, parquet

    return csv.read_csv(path) if path.suffix == ".csv" else parquet.read_table(path)


def _numbers(table: "pa.Table") -> "Values":
    """A row for each, missing values as NaN; whole numbers stay whole if no column has others."""
    import numpy as np

    return np.stack([column.to_numpy() for column in table.columns], 1)


def _texts(column: "pa.ChunkedArray") -> "Values":
    """Names or numbers; a missing one is None."""
    import numpy as np
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count or not (types.is_integer(column.type) or types.is_floating(column.type)):
        return np.array(column.to_pylist(), dtype=object)
    return np.asarray(column.to_numpy())
