"""Files of unfinished work: what is read is what was written under that name, to the last bit, or nothing is."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fmcore.disk.files import ArtifactError
from fmcore.disk.kept import are_whole, is_whole, keep, keep_tensors, kept, kept_tensors, with_block

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.floats(allow_nan=False, allow_infinity=False),
    lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=5), x, max_size=4),
)


@given(value=VALUES)
def test_a_value_comes_back(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("kept") / "x.json"
    keep(path, value)
    assert kept(path) == value
    assert is_whole(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, torch.zeros(2)])
def test_what_json_cannot_hold_is_not_written(tmp_path, value):
    with pytest.raises(ArtifactError, match=r"x\.json: expected what JSON can hold"):
        keep(tmp_path / "x.json", value)
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.bool, torch.int64]
)
def test_tensors_of_every_kind_come_back(tmp_path, dtype):
    tensors = {
        "a": torch.ones(3, 2).to(dtype),
        "none": torch.empty(0, 4).to(dtype),
        "one": torch.tensor(1).to(dtype),
    }
    keep_tensors(tmp_path / "x.safetensors", tensors)
    found = kept_tensors(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == dtype for name in tensors)


@pytest.mark.parametrize("name", ["x.json", "x.safetensors"])
def test_under_another_name_it_is_not_whole(tmp_path, name):
    path = tmp_path / name
    keep(path, 3) if name.endswith("json") else keep_tensors(path, {"a": torch.zeros(2)})
    assert is_whole(path)
    assert not is_whole(path.rename(path.with_stem("y")))


@pytest.mark.parametrize("part", range(3))
def test_each_flipped_bit_is_found(tmp_path, part):
    path = tmp_path / "x.safetensors"
    keep_tensors(path, {"a": torch.arange(4), "b": torch.ones(2)})
    data = path.read_bytes()
    blank = [i for i, byte in enumerate(data) if byte == 0x20]  # the header's padding says nothing
    for i in range(part, len(data), 3):
        for bit in range(8):
            path.write_bytes(data[:i] + bytes([data[i] ^ 1 << bit]) + data[i + 1 :])
            assert not is_whole(path) or i in blank, (i, bit)


@pytest.mark.parametrize("change", [{"value": 4}, {"sha256": "0"}, {"more": 1}])
def test_a_changed_value_or_checksum_is_found(tmp_path, change):
    path = tmp_path / "x.json"
    keep(path, 3)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert not is_whole(path)


def test_blocks_cover_the_rows_that_are_filled_and_no_others():
    rows, blocks = torch.zeros(10, 3), ()
    for first, stop in ((0, 2), (2, 2), (2, 7)):
        rows[first:stop] = 1 + first
        blocks = with_block(blocks, rows, stop)
    assert [stop for stop, _ in blocks] == [2, 7], "none for no rows"
    rows[8] = 5
    assert are_whole(json.loads(json.dumps(blocks)), rows, 7)
    assert not are_whole(blocks, rows, 8)
    assert not are_whole(blocks, rows[:6], 7)
    rows[6, 1] += 1
    assert not are_whole(blocks, rows, 7)
    assert are_whole((), rows, 0)
