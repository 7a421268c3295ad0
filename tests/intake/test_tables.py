"""Tables and what lies beside the samples: rows stay together, classes keep their names, one line says why not."""

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from fmcore.disk.dataset import DataError
from fmcore.intake.arrays import Arrays
from fmcore.intake.split import held_out

FOUR = np.arange(8.0).reshape(4, 2)


def load(path, **options):
    return Arrays(str(path), **{"shape": (2,), "held_out": 0.0, **options}).load()


def classes(data):
    return [data.names[i] for i in data.label.tolist()]


def refused(path, **options):
    """The line that a file is refused with."""
    with pytest.raises(DataError) as caught:
        load(path, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.fixture
def four(tmp_path):
    np.save(tmp_path / "x.npy", FOUR)
    return tmp_path / "x.npy"


def beside(folder, text, name="kind.csv"):
    """The path of a file with that text or array."""
    if isinstance(text, str):
        (folder / name).write_text(text)
    else:
        np.save(folder / name, text)
    return str(folder / name)


# --- lines of a CSV -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["1.5,2", "1e-3,.5", "-1, +2.", "1,", "inf,3"])
def test_a_csv_without_names_is_refused_before_it_loses_a_sample(tmp_path, first):
    line = refused(beside(tmp_path, f"{first}\n3,4\n5,6\n"))
    assert line.startswith("data.root: kind.csv: expected a first line of names, got the numbers ")


def test_labels_without_a_name_are_refused(four, tmp_path):
    line = refused(four, labels=beside(tmp_path, "0\n1\n0\n1\n"))
    assert line == "data.labels: kind.csv: expected a first line of names, got the numbers 0"


@pytest.mark.parametrize("end", ["", "\n", "\n\n\n", "\r\n\r\n"])
def test_blank_lines_at_the_ends_say_nothing(four, tmp_path, end):
    data = load(four, labels=beside(tmp_path, f"\n\nkind\na\nb\nb\na{end}"))
    assert classes(data) == ["a", "b", "b", "a"]
    table = load(beside(tmp_path, f"\na,b\n1,2\n3,4\n5,6{end}", "t.csv"), values="raw")
    assert table.x1.tolist() == [[1, 2], [3, 4], [5, 6]]


@pytest.mark.parametrize("values", ["abca", "0120"])
def test_a_blank_line_between_others_is_a_missing_value(four, tmp_path, values):
    a, b, c, d = values
    line = refused(four, labels=beside(tmp_path, f"kind\n{a}\n{b}\n\n{d}\n"))
    assert "1 of 4 rows of " in line
    assert line.endswith("have no value, the first is row 2")
    line = refused(four, labels=beside(tmp_path, f"kind\n{a}\n\n{b}\n{c}\n{d}\n"))
    assert "expected one value for each of 4 samples" in line, "it is no shift by one"


def test_a_blank_line_in_a_table_is_refused_with_its_row(tmp_path):
    line = refused(beside(tmp_path, "a,b\n1,2\n\n3,4\n5,6\n"))
    assert line.endswith("1 of 4 rows of kind.csv hold a missing or infinite value, the first is row 1")
    one = refused(beside(tmp_path, "a\n1\n2\n\n3\n"), shape=(1,))
    assert one.endswith("the first is row 2")


# --- names of classes ---------------------------------------------------------------------------------------

LONG = 2**53
SPELLED = {
    "leading zeros": (["01", "1", "01", "2"], ["01", "1", "01", "2"]),
    "long": ([str(LONG), str(LONG + 1), str(LONG), "5"], [str(LONG), str(LONG + 1), str(LONG), "5"]),
    "thousands of digits": (["1" * 5000, "2", "2", "2"], ["1" * 5000, "2", "2", "2"]),
    "points": (["1.0", "2.0", "10.0", "1.0"], ["1", "2", "10", "1"]),
    "long points": ([f"{LONG}.0", f"{LONG + 1}.0", "-0.0", "-3."], [str(LONG), str(LONG + 1), "0", "-3"]),
    "powers": (["1e1", "2.0", "3", "3"], ["10", "2", "3", "3"]),
    "spaces": ([" 1", "1", "2 ", "2"], ["1", "1", "2", "2"]),
    "names": (["1.0", "1", "a", "NA"], ["1.0", "1", "a", "NA"]),
    "truths": (["true", "false", "true", "true"], ["true", "false", "true", "true"]),
}


@pytest.mark.parametrize("case", SPELLED)
@pytest.mark.parametrize("place", ["a column", "a file"])
def test_classes_of_a_csv_are_called_as_they_stand_there(four, tmp_path, case, place):
    written, wanted = SPELLED[case]
    if place == "a file":
        data = load(four, labels=beside(tmp_path, "\n".join(["kind", *written])))
    else:
        rows = [f"{a},{b},{kind}" for (a, b), kind in zip(FOUR, written, strict=True)]
        data = load(beside(tmp_path, "\n".join(["a,b,kind", *rows])), labels="kind")
    assert classes(data) == wanted


def test_whole_numbers_stand_in_natural_order(four, tmp_path):
    assert load(four, labels=beside(tmp_path, "kind\n10\n9\n2\n9\n")).names == ("2", "9", "10")


@pytest.mark.parametrize("void", ["", "NA", "nan", "inf"])
def test_numbers_that_are_missing_are_no_class(four, tmp_path, void):
    for numbers in (["1", "2"], ["1.0", "2.0"], ["1.5", "2"]):
        text = "\n".join(["a,kind", f"0,{numbers[0]}", f"1,{void}", f"2,{numbers[1]}"])
        line = refused(beside(tmp_path, text), shape=(1,), labels="kind")
        assert line == "data.labels: 1 of 3 rows of kind have no value, the first is row 1"


def test_fractions_are_no_classes_but_may_be_groups(tmp_path):
    path = beside(tmp_path, "\n".join(["a,kind", *(f"{i},{i // 2 / 2}" for i in range(12))]))
    assert "holds fractions" in refused(path, shape=(1,), labels="kind")
    data = load(path, shape=(1,), group="kind", held_out=0.3)
    assert len(data.reference) == 4


def test_groups_that_differ_in_zeros_or_late_digits_are_apart(tmp_path):
    names = ["01", "1", str(LONG), str(LONG + 1)]
    text = "\n".join(["a,who", *(f"{i},{names[i // 3]}" for i in range(12))])
    data = load(beside(tmp_path, text), shape=(1,), group="who", held_out=0.5, values="raw")
    assert "6 of 12 are held out, those of 2 of 4 groups" in data.notes


def test_bytes_are_names_in_utf8(tmp_path):
    names = ["é".encode(), b"b", b"b", "é".encode()]
    np.savez(tmp_path / "x.npz", x=FOUR, kind=np.array(names))
    assert classes(load(tmp_path / "x.npz", labels="kind")) == ["é", "b", "b", "é"]
    table = pa.table({"a": [1.0, 2, 3, 4], "kind": pa.array(names, pa.binary())})
    parquet.write_table(table, tmp_path / "x.parquet")
    assert classes(load(tmp_path / "x.parquet", shape=(1,), labels="kind")) == ["é", "b", "b", "é"]
    np.savez(tmp_path / "x.npz", x=FOUR, kind=np.array([b"a", b"\xff", b"b", b"b"]))
    line = refused(tmp_path / "x.npz", labels="kind")
    assert line == r"data.labels: row 1 of kind holds b'\xff', expected UTF-8"


COLUMNS = {
    "structs": ([{"n": 1}, {"n": 2}, {"n": 1}], "row 0 of kind holds a dict, expected whole numbers or names"),
    "lists": ([[1], [2], [1]], "row 0 of kind holds a list, expected whole numbers or names"),
    "decimals": (list(map(Decimal, ("1.5", "2.0", "1.5"))), "kind holds fractions, expected whole numbers"),
    "holes": (["a", None, "b"], "1 of 3 rows of kind have no value, the first is row 1"),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_columns_that_are_no_classes(tmp_path, case):
    values, message = COLUMNS[case]
    table = pa.table({"a": [1.0, 2.0, 3.0], "kind": values})
    parquet.write_table(table, tmp_path / "x.parquet")
    assert message in refused(tmp_path / "x.parquet", shape=(1,), labels="kind")


def test_whole_decimals_are_classes(tmp_path):
    table = pa.table({"a": [1.0, 2.0, 3.0], "kind": pa.array(map(Decimal, ("1.00", "10.00", "2.00")))})
    parquet.write_table(table, tmp_path / "x.parquet")
    assert load(tmp_path / "x.parquet", shape=(1,), labels="kind").names == ("1", "2", "10")


def test_a_class_that_is_held_out_whole_is_said(tmp_path):
    held, _ = held_out(0.25, 4, list("abcd"))
    lost = int(held.nonzero()[0])
    text = "\n".join(["a,kind,who", *(f"{i},{'xy'[i // 3 == lost]},{'abcd'[i // 3]}" for i in range(12))])
    data = load(beside(tmp_path, text), shape=(1,), labels="kind", group="who", held_out=0.25)
    assert "classes: x (9), y (0); nothing is trained on y, all of which is held out" in data.notes


# --- arrays by name, and files of labels --------------------------------------------------------------------


def test_a_name_for_what_has_none_is_refused(four, tmp_path):
    line = refused(four, array="foo")
    assert line == "data.array: x.npy holds one array, which has no name; expected null, got 'foo'"
    parquet.write_table(pa.table({"a": [1.0], "b": [2.0]}), tmp_path / "t.parquet")
    for path in (beside(tmp_path, "a,b\n1,2\n", "t.csv"), tmp_path / "t.parquet"):
        assert "holds a table, whose columns are the samples; expected null, got 'a'" in refused(path, array="a")
    assert refused(four, labels="").startswith("data.labels: '' is neither a file nor in x.npy")


def test_a_file_of_labels_has_one_array_or_column(four, tmp_path):
    np.savez(tmp_path / "y.npz", a=np.arange(4), b=np.arange(4))
    line = refused(four, labels=str(tmp_path / "y.npz"))
    assert line == "data.labels: y.npz holds a, b; expected one array"
    line = refused(four, labels=beside(tmp_path, "a,b\n1,2\n"))
    assert line == "data.labels: kind.csv holds a, b; expected one column"


EMPTY = {
    "no rows": (np.zeros(0), "expected one value for each of 4 samples, .* has shape \\(0,\\)"),
    "no columns": (np.zeros((4, 0)), "expected one value for each of 4 samples, .* has shape \\(4, 0\\)"),
    "a number": (np.array(3), "holds one number"),
    "a name alone": ("kind\n", "kind.csv holds no rows"),
    "nothing": ("", "kind.csv cannot be read: Empty CSV file"),
    "transposed": (np.zeros((1, 4)), "expected one value for each of 4 samples"),
}


@pytest.mark.parametrize("case", EMPTY)
def test_files_of_labels_without_labels(four, tmp_path, case):
    values, message = EMPTY[case]
    path = beside(tmp_path, values, "kind.csv" if isinstance(values, str) else "kind.npy")
    line = refused(four, labels=path)
    assert line.startswith("data.labels: ")
    with pytest.raises(DataError, match=message):
        load(four, labels=path)


def test_one_number_beside_the_samples_is_no_column(tmp_path):
    np.savez(tmp_path / "x.npz", x=FOUR, kind=np.array(3))
    line = refused(tmp_path / "x.npz", array="x", labels="kind")
    assert line == "data.labels: expected one value for each of 4 samples, kind has shape ()"


def test_a_table_of_names_alone_holds_no_rows(tmp_path):
    assert refused(beside(tmp_path, "a,b\n")) == "data.root: kind.csv holds no rows"


def test_files_by_another_name(tmp_path):
    np.savez(tmp_path / "x.npz", x=FOUR)
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    assert refused(tmp_path / "x.npy") == "data.root: x.npy cannot be read: it is a .npz by another name"
    np.save(tmp_path / "y.npy", FOUR)
    (tmp_path / "y.npy").rename(tmp_path / "y.npz")
    assert refused(tmp_path / "y.npz") == "data.root: y.npz cannot be read: it is no .npz"


@pytest.mark.parametrize("dtype", ["U3", "S3", "datetime64[D]", "timedelta64[D]", "bool", "complex64", "i1,f4"])
def test_pixels_of_what_are_no_numbers(tmp_path, dtype):
    np.save(tmp_path / "x.npy", np.zeros((4, 1, 2, 2), dtype=dtype))
    line = refused(tmp_path / "x.npy", shape=(1, 2, 2), values="pixels")
    assert line.startswith("data.values: pixels are whole numbers from 0 to 255, x.npy holds ")
