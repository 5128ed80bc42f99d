"""Image files as a store: both views, digests, and what is said of a file that cannot be read."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cil.data import ArrayStore
from cil.data.file_store import FileStore
from cil.errors import ConfigError, DataError


@pytest.fixture
def pictures(tmp_path, write_image):
    """Three noise images of different sizes, wide, high and square."""
    rng = np.random.default_rng(0)
    sizes = ((30, 50), (44, 20), (33, 33))
    arrays = [rng.integers(256, size=(*size, 3), dtype=np.uint8) for size in sizes]
    return [str(write_image(tmp_path / f"{k}.png", array)) for k, array in enumerate(arrays)]


def test_the_evaluation_view_is_the_usual_one_of_imagenet(pictures):
    from torchvision.transforms import functional as reference

    store = FileStore(pictures, size=14)  # the shorter side becomes 14 * 256 / 224 = 16
    for path, pixels in zip(pictures, store.pixels(torch.arange(3)), strict=True):
        expected = reference.center_crop(reference.resize(Image.open(path), [16]), [14, 14])
        assert torch.equal(pixels, reference.pil_to_tensor(expected))


def test_files_of_the_right_size_are_left_as_they_are_where_no_margin_is_cut(pictures):
    store = FileStore(pictures, size=33, shorter=33)
    expected = torch.from_numpy(np.array(Image.open(pictures[2]))).permute(2, 0, 1)
    assert torch.equal(store.pixels(torch.tensor([2]))[0], expected)


@pytest.fixture
def quarters(tmp_path, write_image):
    """An image of 16x16 whose quarters are 10, 20 (top), 30, 40 (bottom)."""
    array = np.kron(np.array([[10, 20], [30, 40]], np.uint8), np.ones((8, 8), np.uint8))
    return FileStore([str(write_image(tmp_path / "quarters.png", array))], size=4, channels=1)


@pytest.mark.parametrize(
    ("left", "top", "grey"), [(0.0, 0.0, 10), (0.999, 0.0, 20), (0.0, 0.999, 30), (0.999, 0.999, 40)]
)
def test_the_training_view_is_the_part_that_its_draws_name(quarters, left, top, grey):
    quarter_of_the_area = (0.25 - 0.08) / 0.92
    draws = torch.tensor([[quarter_of_the_area, 0.5, left, top]])  # 0.5: as wide as high
    assert quarters.training_pixels(torch.tensor([0]), draws).unique().tolist() == [grey]


def test_the_training_view_of_the_whole_area_is_the_resized_image(quarters):
    draws = torch.tensor([[1.0, 0.5, 0.3, 0.7]])
    image = quarters.training_pixels(torch.tensor([0]), draws)[0, 0]
    assert image[0, 0] == 10
    assert image[0, 3] == 20
    assert image[3, 0] == 30
    assert image[3, 3] == 40


def test_parts_of_a_stored_image_are_those_of_its_file(tmp_path, write_image):
    """An exemplar is kept as the evaluation view; where that is the file itself, its training views are the file's."""
    smooth = (128 + 120 * np.sin(np.arange(24 * 24).reshape(24, 24) / 90)).astype(np.uint8)
    files = FileStore([str(write_image(tmp_path / "smooth.png", smooth))], size=24, channels=1, shorter=24)
    rows = torch.zeros(50, dtype=torch.int64)
    draws = torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
    stored = ArrayStore(files.pixels(rows)).training_pixels(torch.arange(50), draws)
    decoded = files.training_pixels(rows, draws)
    assert (stored.int() - decoded.int()).abs().max() <= 1  # two ways to round
    assert len(decoded.flatten(1).unique(dim=0)) > 40


def test_all_draws_give_images_of_the_wanted_size(pictures):
    store = FileStore(pictures, size=9)
    draws = torch.rand(300, 4, generator=torch.Generator().manual_seed(0))
    draws[:4] = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.9999999] * 4, [1.0, 0.0, 0.99, 0.99], [1.0, 1.0, 0.0, 0.99]])
    pixels = store.training_pixels(torch.arange(300) % 3, draws)
    assert pixels.shape == (300, 3, 9, 9)
    assert pixels.dtype == torch.uint8


def test_files_are_brought_to_the_channels_asked_for(tmp_path, write_image):
    colour, grey = write_image(tmp_path / "a.png", (255, 0, 0)), write_image(tmp_path / "b.png", 77)
    rows = torch.arange(2)
    assert FileStore([str(colour), str(grey)], 4).pixels(rows)[1].unique().tolist() == [77]
    assert FileStore([str(colour), str(grey)], 4, channels=1).pixels(rows).shape == (2, 1, 4, 4)


def test_taking_rows_leaves_the_other_files_out_of_reach(pictures):
    store = FileStore(pictures, size=8)
    taken = store.take(torch.tensor([2, 1]))
    assert taken.paths == (pictures[2], pictures[1])
    assert torch.equal(taken.pixels(torch.arange(2)), store.pixels(torch.tensor([2, 1])))


def test_a_digest_follows_bytes_and_order_not_places(tmp_path, pictures):
    rows = torch.arange(3)
    digest = FileStore(pictures, 8).digest(rows)
    copies = []
    for number, path in enumerate(pictures):
        copies.append(tmp_path / "elsewhere" / f"{9 - number}.png")
        copies[-1].parent.mkdir(exist_ok=True)
        copies[-1].write_bytes(Path(path).read_bytes())
    assert FileStore([str(path) for path in copies], 8).digest(rows) == digest
    assert FileStore(pictures, 8).digest(torch.tensor([1, 0, 2])) != digest
    copies[1].write_bytes(copies[0].read_bytes())
    assert FileStore([str(path) for path in copies], 8).digest(rows) != digest


def test_a_digest_is_remembered_until_a_file_changes(tmp_path, pictures, monkeypatch):
    import cil.data.file_store as files

    read = []
    whole = files._look_at
    monkeypatch.setattr(files, "_look_at", lambda path: read.append(path) or whole(path))
    rows, store = torch.arange(3), FileStore(pictures, 8, digests=tmp_path / "digests")
    first = store.digest(rows)
    assert store.digest(rows) == first
    assert len(read) == 3
    os.utime(pictures[0], ns=(1, 1))
    assert store.digest(rows) == first
    assert len(read) == 6


@pytest.mark.parametrize("content", [b"not an image", b"\x89PNG\r\n\x1a\n and then nothing"])
def test_an_unreadable_image_is_named_in_both_views(tmp_path, content):
    broken = tmp_path / "broken.png"
    broken.write_bytes(content)
    store = FileStore([str(broken)], size=8)
    for view in (
        lambda: store.pixels(torch.tensor([0])),
        lambda: store.training_pixels(torch.tensor([0]), torch.rand(1, 4)),
    ):
        with pytest.raises(
            DataError, match=r"broken\.png cannot be read as an image .*; replace or remove it"
        ) as caught:
            view()
        assert "\n" not in str(caught.value)


def test_a_truncated_image_is_named(tmp_path, pictures):
    whole = Path(pictures[0]).read_bytes()
    short = tmp_path / "short.png"
    short.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"short\.png cannot be read as an image"):
        FileStore([str(short)], size=8).pixels(torch.tensor([0]))


def test_missing_and_empty_files_are_named_before_anything_is_decoded(tmp_path):
    (tmp_path / "empty.png").touch()
    for name, message in (("empty.png", "is empty"), ("gone.png", "cannot be read: No such file")):
        with pytest.raises(DataError, match=f"{name} {message}"):
            FileStore([str(tmp_path / name)], size=8).digest(torch.tensor([0]))


@pytest.mark.parametrize(("size", "channels"), [(0, 3), (8, 2), (8.5, 3)])
def test_wrong_sizes_are_refused(size, channels):
    with pytest.raises(ConfigError, match=f"stream.size is {size}, stream.channels {channels}; need"):
        FileStore([], size, channels)
