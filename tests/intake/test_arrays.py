"""Numbers from files: every format gives the same, statistics agree with NumPy's, what does not fit is named."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import save_file

from fmcore.disk.dataset import DataError, Units, load_dataset, save_dataset
from fmcore.intake import arrays as intake_arrays
from fmcore.intake.arrays import Arrays

ROWS = 60


@pytest.fixture
def table(tmp_path):
    """60 rows of four columns of different units, classes by name, and ten groups of six."""
    random = np.random.default_rng(0)
    x = random.normal(size=(ROWS, 4)) * [1, 1000, 1e-3, 7] + [0, 5, 1e4, -3]
    frame = pd.DataFrame(x, columns=["a", "b", "c", "d"])
    frame["kind"] = [("item 10", "item 2", "item 1")[i % 3] for i in range(ROWS)]
    frame["patient"] = [f"p{i // 6}" for i in range(ROWS)]
    return frame


def written(frame, folder):
    """The numbers of a table and their classes in every format; by suffix, the keywords that read them."""
    x, kind = frame[["a", "b", "c", "d"]].to_numpy().copy(order="C"), frame.kind.to_numpy(dtype=str)
    number = np.unique(kind, return_inverse=True)[1]
    np.save(folder / "x.npy", x)
    np.savetxt(folder / "kinds.csv", kind, header="kind", comments="", fmt="%s")
    np.savez(folder / "x.npz", x=x, kind=kind, patient=frame.patient.to_numpy(dtype=str))
    save_file({"x": x, "kind": number}, folder / "x.safetensors")
    frame.drop(columns="patient").to_csv(folder / "x.csv", index=False)
    frame.drop(columns="patient").to_parquet(folder / "x.parquet")
    own = {"labels": "kind"}
    return {
        "npy": {"labels": str(folder / "kinds.csv")},
        "npz": {**own, "array": "x"},
        "safetensors": own,
        "csv": own,
        "parquet": own,
    }


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors", "csv", "parquet"])
def test_every_format_gives_the_same(table, tmp_path, suffix):
    options = written(table, tmp_path)[suffix]
    data = Arrays(str(tmp_path / f"x.{suffix}"), (4,), held_out=0.0, **options).load()
    x = table[["a", "b", "c", "d"]].to_numpy()
    np.testing.assert_allclose(data.x1.numpy(), (x - x.mean(0)) / x.std(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(data.units.restored(data.x1).numpy(), x, rtol=1e-5, atol=1e-3)
    assert data.reference is data.x1
    assert data.num_classes == 3
    if suffix != "safetensors":  # which holds numbers only
        assert data.names == ("item 1", "item 2", "item 10")
        assert [data.names[i] for i in data.label.tolist()] == table.kind.tolist()
    assert data.units.names == (("a", "b", "c", "d") if suffix in ("csv", "parquet") else ())
    assert any(line.startswith("classes: ") for line in data.notes)


def test_groups_stay_on_one_side_and_nothing_held_out_decides_the_units(table, tmp_path):
    table.to_csv(tmp_path / "x.csv", index=False)
    data = Arrays(str(tmp_path / "x.csv"), (4,), labels="kind", group="patient", held_out=0.3).load()
    assert len(data.x1) == 42
    assert len(data.reference) == 18
    x = table[["a", "b", "c", "d"]].to_numpy()

    def patients(part):
        rows = [int(np.abs((x - row) / x.std(0)).sum(1).argmin()) for row in data.units.restored(part).numpy()]
        return set(table.patient[rows])

    trained, held = patients(data.x1), patients(data.reference)
    assert len(held) == 3
    assert not trained & held
    torch.testing.assert_close(data.x1.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.x1.std(0, correction=0), torch.ones(4), atol=1e-4, rtol=0)
    assert "18 of 60 are held out, those of 3 of 10 groups" in data.notes


@settings(max_examples=30)
@given(
    x=arrays(
        np.float64, st.tuples(st.just(25), st.integers(1, 3), st.integers(1, 4)), elements=st.floats(-1e3, 1e3)
    ),
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(-1e4, 1e4),
)
def test_channels_of_series_are_standardised_over_time_and_come_back(x, scale, shift, tmp_path_factory):
    path = tmp_path_factory.mktemp("series") / "x.npy"
    whole = x * scale + shift
    np.save(path, whole)
    data = Arrays(str(path), whole.shape[1:], held_out=0.0).load()
    for channel in range(x.shape[1]):
        spread = whole[:, channel].std()
        if spread > 1e-6 * max(1, np.abs(whole).max()):
            assert abs(float(data.x1[:, channel].double().mean())) < 1e-3
            assert abs(float(data.x1[:, channel].double().std(correction=0)) - 1) < 1e-3
    np.testing.assert_allclose(
        data.units.restored(data.x1.double()).numpy(), whole, rtol=1e-6, atol=2e-6 * max(1, np.abs(whole).max())
    )


def test_a_density_is_smaller_where_units_are_smaller():
    units = Units((0.0, 0.0), (2.0, 0.5))
    assert units.log_volume((2,)) == pytest.approx(0)
    assert Units((1.0,), (3.0,)).log_volume((1, 5)) == pytest.approx(5 * np.log(3))


def test_axes_are_merged_or_split_but_never_exchanged(tmp_path):
    x = np.arange(10 * 12, dtype=np.float32).reshape(10, 12)
    np.save(tmp_path / "x.npy", x)
    data = Arrays(str(tmp_path / "x.npy"), (3, 4), values="raw", held_out=0.0).load()
    assert data.x1.flatten(1).tolist() == x.tolist()
    assert "rows of shape [12] are taken as [3, 4]" in data.notes
    np.save(tmp_path / "last.npy", np.zeros((5, 8, 6, 3)))
    with pytest.raises(DataError, match=r"data\.shape: .* channels last; expected them first: numpy\.moveaxis"):
        Arrays(str(tmp_path / "last.npy"), (3, 8, 6)).load()
    with pytest.raises(DataError, match=r"data\.shape: expected \[8, 6, 3\], .* got \[6, 8, 3\]"):
        Arrays(str(tmp_path / "last.npy"), (6, 8, 3)).load()


def test_pixels_are_images_and_stay_as_they_are(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (20, 2, 5, 4))
    np.save(tmp_path / "x.npy", x)
    data = Arrays(str(tmp_path / "x.npy"), (2, 5, 4), values="pixels", held_out=0.0).load()
    assert data.x1.dtype == torch.uint8
    assert data.x1.tolist() == x.tolist()
    assert data.units is None
    assert data.bin_width is not None
    np.save(tmp_path / "x.npy", x / 255)
    with pytest.raises(
        DataError, match=r"data\.values: pixels are whole numbers from 0 to 255, x\.npy holds float64"
    ):
        Arrays(str(tmp_path / "x.npy"), (2, 5, 4), values="pixels").load()


def test_raw_values_keep_their_names_and_a_hint_tells_of_far_ones(table, tmp_path):
    table[["a", "b"]].to_csv(tmp_path / "x.csv", index=False)
    data = Arrays(str(tmp_path / "x.csv"), (2,), values="raw", held_out=0.0).load()
    np.testing.assert_allclose(data.x1.numpy(), table[["a", "b"]].to_numpy(), rtol=1e-6)
    assert data.units.names == ("a", "b")
    assert torch.equal(data.units.restored(data.x1), data.x1)
    assert any("data.values: standardised may train better" in line for line in data.notes)


def test_a_column_that_never_changes_is_named_and_keeps_its_value(tmp_path):
    frame = pd.DataFrame({"a": np.arange(30.0), "same": 0.1})
    frame.to_csv(tmp_path / "x.csv", index=False)
    data = Arrays(str(tmp_path / "x.csv"), (2,), held_out=0.0).load()
    assert "the same in all samples: same" in data.notes
    np.testing.assert_allclose(data.units.restored(data.x1)[:, 1].numpy(), 0.1, rtol=1e-6)


def test_a_stored_data_set_keeps_its_units_and_names(table, tmp_path):
    table.to_csv(tmp_path / "x.csv", index=False)
    data = Arrays(str(tmp_path / "x.csv"), (4,), labels="kind", group="patient").load()
    save_dataset(tmp_path / "d", data, {})
    back = load_dataset(tmp_path / "d")
    assert back.units == data.units
    assert back.names == data.names
    assert torch.equal(back.reference, data.reference)


REFUSED = {
    "no file": ({"root": "gone.npy"}, r"data\.root: no file '.*gone\.npy'; expected"),
    "another kind": ({"root": "x.txt"}, r"data\.root: expected a file ending in \.npy, .*x\.txt"),
    "a pickle": ({"root": "objects.npy"}, r"data\.root: objects\.npy cannot be read: .*Python objects"),
    "cut off": ({"root": "cut.npy"}, r"data\.root: cut\.npy cannot be read"),
    "texts": (
        {"root": "t.csv", "shape": (2,)},
        r"data\.root: expected numbers in all columns of t\.csv .* in kind",
    ),
    "missing": (
        {"root": "hole.csv", "shape": (2,)},
        r"1 of 4 rows of hole\.csv hold a missing .* the first is row 2",
    ),
    "columns": ({"root": "hole.csv", "shape": (3,)}, r"data\.shape: expected \[2\], .* got \[3\]"),
    "which": ({"root": "two.npz"}, r"data\.array: two\.npz holds x, y; expected the name of one"),
    "not there": ({"root": "two.npz", "array": "z"}, r"data\.array: two\.npz holds x, y, got 'z'"),
    "no label": ({"root": "hole.csv", "labels": "species"}, r"data\.labels: 'species' is neither a file"),
    "one class": ({"root": "two.npz", "array": "x", "labels": "y"}, r"data\.labels: y names 1 classes"),
    "fractions": ({"root": "f.npz", "array": "x", "labels": "y"}, r"data\.labels: y holds fractions"),
    "unnamed": (
        {"root": "unnamed.csv", "shape": (1,), "labels": "kind"},
        r"data\.labels: 2 of 3 rows of kind have no value, the first is row 1",
    ),
    "infinite": (
        {"root": "f.npz", "array": "x", "labels": "far"},
        r"data\.labels: 1 of 4 rows of far have no value, the first is row 2",
    ),
    "days": ({"root": "f.npz", "array": "x", "labels": "days"}, r"data\.labels: days holds datetime64\[D\], exp"),
    "large": ({"root": "large.npy"}, r"data\.root: large\.npy holds values up to 1e\+39, and float32 ends at"),
    "small": ({"root": "large.npy", "values": "raw"}, r"data\.root: large\.npy holds values up to 1e\+39"),
    "too few": (
        {"root": "f.npz", "array": "x", "labels": "short"},
        r"data\.labels: expected one value for each of 4",
    ),
    "complex": ({"root": "complex.npy"}, r"data\.root: expected numbers in complex\.npy, got complex128"),
    "split": ({"root": "x.npy", "held_out": 0.01}, r"data\.held_out: 0\.01 of 4 samples leaves too few"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_named(name, tmp_path):
    changes, message = REFUSED[name]
    four = np.arange(8.0).reshape(4, 2)
    np.save(tmp_path / "x.npy", four)
    np.save(tmp_path / "complex.npy", four + 1j)
    np.save(tmp_path / "objects.npy", np.array([[{}]] * 4, dtype=object), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:90])
    (tmp_path / "x.txt").write_text("1 2")
    (tmp_path / "t.csv").write_text("a,kind\n1,cat\n2,dog\n")
    (tmp_path / "hole.csv").write_text("a,b\n1,2\n3,4\n,6\n7,8\n")
    np.savez(tmp_path / "two.npz", x=four, y=np.ones(4))
    days = np.array(["2026-01-01"] * 4, dtype="datetime64[D]")
    far = np.array([0, 1, np.inf, 1])
    np.savez(tmp_path / "f.npz", x=four, y=np.arange(4) / 2, short=np.arange(3), days=days, far=far)
    (tmp_path / "unnamed.csv").write_text("a,kind\n1,cat\n2,\n3,\n")
    np.save(tmp_path / "large.npy", np.array([[0.0, 1.0], [-1e39, 1.0]]))
    options = {"shape": (2,), "held_out": 0.0, **changes, "root": str(tmp_path / changes["root"])}
    with pytest.raises(DataError, match=message):
        Arrays(**options).load()


WRONG = {
    "shape": ({"shape": (2, 2, 2, 2)}, "shape must be that of one sample"),
    "sides": ({"shape": (0,)}, "shape must be that of one sample"),
    "pixels": ({"shape": (2,), "values": "pixels"}, r"pixels are images of shape \[C, H, W\]"),
    "share": ({"shape": (2,), "held_out": 1.0}, r"held_out must lie in \[0, 1\), got 1.0"),
    "group": ({"shape": (2,), "held_out": 0.0, "group": "a"}, "group is for the split"),
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_that_cannot_be_meant(name):
    changes, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        Arrays("x.npy", **changes)


# --- deviations that are small, or of large numbers ---------------------------------------------------------

Z = np.random.default_rng(1).normal(size=1000)
SMALL = {
    "tiny": 1e-14 * Z,
    "tinier": 1e-200 * Z,
    "far": 1e9 + 1e-4 * Z,
    "two values": np.where(Z > 0, 1e16, 1e16 + 2),
    "long": 2**60 + np.round(100 * Z).astype(np.int64),
    "long below": -(2**62) + np.round(100 * Z).astype(np.int64),
    "longest": (2**63 + np.round(100 * Z).astype(np.int64).astype(np.uint64)),
    "whole range": np.where(Z > 0, -(2**63), 2**63 - 1),
}


@pytest.mark.parametrize("case", SMALL)
def test_a_column_that_changes_gets_deviation_one(tmp_path, case):
    x = SMALL[case]
    np.save(tmp_path / "x.npy", np.stack([x, np.arange(1000).astype(x.dtype)], 1))
    data = Arrays(str(tmp_path / "x.npy"), (2,), held_out=0.2).load()
    whole = torch.cat([data.x1, data.reference]).double()
    for column in (0, 1):
        assert float(data.x1[:, column].double().mean()) == pytest.approx(0, abs=1e-5)
        assert float(data.x1[:, column].double().std(correction=0)) == pytest.approx(1, abs=1e-5)
    # In the order of the values, which lie this far apart.
    exact = [int(value) if x.dtype.kind in "iu" else value for value in x.tolist()]
    middle = sum(exact) // len(exact) if x.dtype.kind in "iu" else sum(exact) / len(exact)
    apart = np.sort([float(value - middle) for value in exact])
    apart = (apart - apart[0]) / (apart[-1] - apart[0])
    found = whole[:, 0].sort().values.numpy()
    np.testing.assert_allclose((found - found[0]) / (found[-1] - found[0]), apart, atol=1e-6)
    told = "deviations too small for float32, so samples in the data's own units lose digits: column 0"
    assert (told in data.notes) == (case not in ("tiny", "whole range"))


def test_digits_beyond_those_of_floats_are_no_constant_of_other_columns(tmp_path):
    """A column that never changes keeps its value to the last digit, whatever the sum of its values is."""
    x = np.stack([np.full(999, 0.1), np.arange(999.0), np.full(999, 1e-300)], 1)
    np.save(tmp_path / "x.npy", x)
    data = Arrays(str(tmp_path / "x.npy"), (3,)).load()
    assert "the same in all samples: column 0, column 2" in data.notes
    assert not data.x1[:, [0, 2]].any()
    assert (data.units.mean[0], data.units.mean[2]) == (0.1, 1e-300)
    assert (data.units.std[0], data.units.std[2]) == (1, 1)


def test_the_scale_does_not_depend_on_the_parts(tmp_path, monkeypatch):
    x = np.random.default_rng(2).normal(1e6, 1, (5000, 3))
    np.save(tmp_path / "x.npy", x)
    whole = Arrays(str(tmp_path / "x.npy"), (3,), held_out=0.1).load()
    monkeypatch.setattr(intake_arrays, "BYTES", 24 * 7)
    parts = Arrays(str(tmp_path / "x.npy"), (3,), held_out=0.1).load()
    np.testing.assert_allclose(parts.units.mean, whole.units.mean, rtol=1e-15)
    np.testing.assert_allclose(parts.units.std, whole.units.std, rtol=1e-12)
    np.testing.assert_allclose(parts.x1, whole.x1, atol=1e-6)
