"""Arrays on disk: written whole or not at all, cached, read back."""

import stat
from pathlib import Path

import numpy as np
import pytest

from cil.data import data_root, load_dataset
from cil.data.arrays import load_or_make, read_npz, samples_from_arrays, write_npz

ARRAYS = {"images": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "labels": np.array([1, 0])}


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_arrays_come_back_as_they_were_written(tmp_path):
    file = tmp_path / "new" / "folder" / "a.npz"
    write_npz(file, ARRAYS)
    assert same(read_npz(file), ARRAYS)
    assert [path.name for path in file.parent.iterdir()] == ["a.npz"]


def test_a_file_is_readable_for_whoever_may_read_new_files(tmp_path):
    plain, file = tmp_path / "plain", tmp_path / "a.npz"
    plain.touch()
    write_npz(file, ARRAYS)
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "a.npz"
    write_npz(file, ARRAYS)

    def full(handle, **arrays):
        handle.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        write_npz(file, {"images": np.zeros(3)})
    assert same(read_npz(file), ARRAYS)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_what_is_cached_is_made_once_and_again_where_it_is_damaged(tmp_path):
    made, file = [], tmp_path / "cache" / "a.npz"

    def make():
        made.append(1)
        return ARRAYS

    assert same(load_or_make(file, make), ARRAYS)
    assert same(load_or_make(file, make), ARRAYS)
    assert len(made) == 1
    file.write_bytes(file.read_bytes()[:100])
    assert same(load_or_make(file, make), ARRAYS)
    assert len(made) == 2
    assert same(read_npz(file), ARRAYS)


def test_a_place_that_cannot_be_written_costs_no_run(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert same(load_or_make(tmp_path / "cache" / "a.npz", lambda: ARRAYS), ARRAYS)


def test_grey_images_and_a_column_of_labels_are_understood():
    samples = samples_from_arrays(np.full((2, 3, 4), 7, np.uint8), np.array([[1], [0]]), "here")
    assert samples.shape == (1, 3, 4)
    assert samples.slots.tolist() == [1, 0]


def test_samples_hold_a_copy_of_the_pixels_in_order():
    images = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    samples = samples_from_arrays(images, np.array([0, 1]), "here")
    assert samples.pixels[1, 2, 3, 4] == images[1, 3, 4, 2]
    before = samples.pixels.clone()
    images[:] = 0
    assert samples.pixels.equal(before)


def test_columns_of_zeros_and_ones_are_multi_label_targets():
    samples = samples_from_arrays(np.zeros((2, 4, 4), np.uint8), np.array([[1, 0, 1], [0, 0, 1]]), "here")
    assert samples.targets.tolist() == [[1, 0, 1], [0, 0, 1]]


@pytest.mark.parametrize(
    "names",
    [("train_images", "train_labels", "test_images", "test_labels"), ("x_train", "y_train", "x_test", "y_test")],
)
def test_one_npz_file_may_hold_both_splits(tmp_path, names):
    images, labels = np.zeros((4, 5, 5), np.uint8), np.array([0, 1, 1, 0])
    np.savez(tmp_path / "mine.npz", **dict(zip(names, (images, labels, images[:2], labels[:2]), strict=True)))
    data = load_dataset("npz", root=tmp_path, path="mine.npz")
    assert data.name == "mine"
    assert tuple(data.classes) == ("0", "1")
    assert (len(data.train), len(data.test)) == (4, 2)


def test_a_folder_of_the_data_root_is_a_data_set_by_its_path(tmp_path):
    for split, count in (("train", 6), ("test", 2)):
        arrays = {"images": np.zeros((count, 5, 5, 3), np.uint8), "labels": np.arange(count) % 2}
        write_npz(tmp_path / "small" / "birds" / f"{split}.npz", arrays | {"classes": np.array([b"wren", b"tit"])})
    data = load_dataset("small/birds", root=tmp_path)
    assert data.name == "small/birds"
    assert tuple(data.classes) == ("wren", "tit")
    assert data.official is None


def test_the_environment_names_the_data_root(tmp_path, monkeypatch):
    monkeypatch.setenv("CIL_DATA", str(tmp_path))
    assert data_root() == tmp_path
    assert data_root("~/data") == Path.home() / "data"
    monkeypatch.delenv("CIL_DATA")
    assert data_root() == Path.home() / ".cache" / "cil"
