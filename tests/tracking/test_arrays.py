"""Arrays of a run: written boundary by boundary, read as if they were one."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from cil.tracking import Record, RecordError
from cil.tracking.arrays import Part

DENSE = np.array([[[3, 0], [0, 1]], [[1, 2], [0, 1]]])
CELLS = [np.array([[0, 0, 3], [1, 1, 1]]), np.array([[0, 0, 1], [0, 1, 2], [1, 1, 1]])]


@pytest.fixture
def record(tmp_path):
    made = Record.open(tmp_path, {"kind": "classes"})
    for index, cells in enumerate(CELLS):
        batches = Part(np.full(index + 1, 0.5 + index), "joined")
        confusion = Part(cells, "stacked", (2, 2))
        arrays = {"confusion": confusion, "error": batches, f"own.{index}": Part(cells)}
        made.add_arrays(f"boundary-{index:03d}", arrays)
    return made


def test_parts_come_back_as_one_array_or_one_after_the_other(record):
    arrays = record.arrays()
    assert list(arrays) == ["confusion", "error", "own.0", "own.1"]
    assert np.array_equal(arrays["confusion"], DENSE) and arrays["confusion"].dtype == np.int64
    assert all(np.array_equal(one, dense) for one, dense in zip(arrays.parts("confusion"), DENSE, strict=True))
    assert arrays["error"].tolist() == [0.5, 1.5, 1.5]
    assert np.array_equal(arrays["own.1"], CELLS[1])
    with pytest.raises(KeyError):
        arrays["absent"]


def test_a_part_written_again_counts_once_and_a_line_cut_short_does_not(record):
    index = record.directory / "arrays" / "index.jsonl"
    with index.open("ab") as file:
        file.write(b'{"file": "bound' + 2**17 * b"x")  # killed while it wrote
    assert np.array_equal(record.arrays()["confusion"], DENSE)
    record.add_arrays("boundary-001", {"confusion": Part(CELLS[0], "stacked", (2, 2))})
    assert record.arrays()["confusion"].tolist() == [DENSE[0].tolist()] * 2
    assert index.read_bytes().count(b"\n") == 3


def test_the_one_file_of_earlier_releases_is_read(tmp_path):
    save_file({"confusion": DENSE}, tmp_path / "arrays.safetensors")
    arrays = Record.open(tmp_path, {"kind": "classes"}).arrays()
    assert np.array_equal(arrays["confusion"], DENSE)
    assert [one.tolist() for one in arrays.parts("confusion")] == DENSE.tolist()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("arrays.safetensors", b"not a tensor file", r"arrays\.safetensors cannot be read"),
        ("arrays/index.jsonl", b'{"file": 3}\n', r"index\.jsonl is damaged at line 1"),
        ("arrays/boundary-001.safetensors", None, r"boundary-001\.safetensors.*No such file"),
        ("arrays/boundary-001.safetensors", 90, r"boundary-001\.safetensors is damaged"),
    ],
)
def test_damage_is_named(record, name, content, message):
    path = record.directory / name
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:  # one bit
        data = bytearray(path.read_bytes())
        data[-content] ^= 1
        path.write_bytes(data)
    with pytest.raises(RecordError, match=message) as refused:
        record.arrays()["confusion"]
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "part",
    [
        Part(CELLS[0], "stacked", (2, 1)),  # a cell outside
        Part(CELLS[0], "stacked", (10**9, 10**9)),  # more than any memory
        Part(CELLS[0], "stacked", (3, 3)),  # unlike that of the other boundaries
        Part(CELLS[0], "stacked", "ab"),
    ],
)
def test_what_has_its_sum_and_was_made_up_is_refused_in_one_line(record, part):
    record.add_arrays("boundary-001", {"confusion": part})
    with pytest.raises(
        RecordError, match=r"(boundary-001\.safetensors|index\.jsonl) is not what a run writes"
    ) as refused:
        record.arrays()["confusion"]
    assert "\n" not in str(refused.value)
