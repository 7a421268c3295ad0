"""The checksums of finished folders: what they find, and what they leave alone."""

import subprocess

import pytest

from fmcore.disk.files import ArtifactError, DamagedError, sha256
from fmcore.disk.sums import SUMS, check, is_there, seal, seal_all


@pytest.fixture
def folder(tmp_path):
    """A sealed folder with another in it, as couplings with inverted data are."""
    inner = tmp_path / "inner"
    inner.mkdir()
    for place in (tmp_path, inner):
        (place / "x.safetensors").write_text(f"tensors of {place.name}")
        (place / "manifest.json").write_text("{}")
    seal(inner, ["x.safetensors", "manifest.json"])
    (inner / "quality.json").write_text("written later")
    seal_all(tmp_path)
    return tmp_path


def test_sha256sum_reads_the_lists(folder):
    for place in (folder, folder / "inner"):
        done = subprocess.run(["sha256sum", "-c", SUMS], cwd=place, capture_output=True, text=True, check=True)
        assert done.stdout.count(": OK") == (5 + 1 if place == folder else 3)
        check(place)


def test_tensors_are_not_read_twice_and_descriptions_are(folder, monkeypatch):
    read = []
    monkeypatch.setattr("fmcore.disk.sums.sha256", lambda path: read.append(path.name) or sha256(path))
    (folder / "manifest.json").write_text("changed")
    seal_all(folder)
    assert "x.safetensors" not in read
    assert read.count("manifest.json") == 3
    check(folder)


@pytest.mark.parametrize("name", ["x.safetensors", "manifest.json", "inner/x.safetensors", "inner/quality.json"])
def test_what_changed_or_is_gone_is_named(folder, name):
    (folder / name).write_text("changed")
    for names in ((), (name,)):
        with pytest.raises(DamagedError, match=rf"{name} is damaged or was edited"):
            check(folder, *names)
    (folder / name).unlink()
    for names in ((), (name,)):
        with pytest.raises(ArtifactError, match=rf"{name} is missing: {SUMS} beside it lists it"):
            check(folder, *names)


def test_what_is_not_listed_is_told_but_hidden_files_are_left_alone(folder):
    (folder / ".DS_Store").touch()
    check(folder)
    (folder / "more.csv").touch()
    check(folder, "manifest.json")
    with pytest.raises(ArtifactError, match=r"more\.csv is not listed"):
        check(folder)


@pytest.mark.parametrize("text", [b"", b"no list", b"\xff\xfe", b"\0" * 100])
def test_a_list_that_is_none_lets_nothing_through(folder, text):
    (folder / SUMS).write_bytes(text)
    with pytest.raises(ArtifactError):
        check(folder)
    with pytest.raises(ArtifactError):
        check(folder, "manifest.json")


def test_a_folder_in_its_place_lets_nothing_through(folder):
    (folder / SUMS).unlink()
    check(folder)
    (folder / SUMS).mkdir()
    with pytest.raises(DamagedError):
        check(folder, "manifest.json")


def test_a_file_that_may_be_lacking_is_missed_where_it_is_listed(folder):
    assert is_there(folder, "manifest.json")
    assert not is_there(folder, "labels.safetensors")
    (folder / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match=r"manifest\.json is missing"):
        is_there(folder, "manifest.json")
    (folder / SUMS).unlink()
    assert not is_there(folder, "manifest.json")
