"""Batches: every sample once an epoch, in an order that only the place in the run decides."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from PIL import Image
from toys import some_samples

from cil.data import Augment, Samples
from cil.data.file_store import FileStore
from cil.data.samples import batch_bounds
from cil.engine.keys import generator
from cil.engine.loader import LOOKAHEAD, Loader, PhaseLoader
from cil.errors import ConfigError, DataError

CPU = torch.device("cpu")


def _keyed(*parts):
    return generator(0, "test", *parts)


def _phase(data, size=4, augment=None):
    return PhaseLoader(data, augment or Augment(), CPU, _keyed, size)


def _rows(batches):
    return [batch.rows.tolist() for batch in batches]


# where batches begin and end ----------------------------------------------------------------------------------------


@given(count=some.integers(0, 300), size=some.integers(1, 40))
def test_bounds_cover_everything_once_in_order(count, size):
    bounds = batch_bounds(count, size)
    assert [row for start, stop in bounds for row in range(start, stop)] == list(range(count))


@given(count=some.integers(0, 300), size=some.integers(1, 40))
def test_a_batch_has_the_size_asked_for_but_for_the_last(count, size):
    lengths = [stop - start for start, stop in batch_bounds(count, size)]
    assert all(length == size for length in lengths[:-1])
    if lengths:
        assert 1 <= lengths[-1] <= size + 1


@given(count=some.integers(2, 300), size=some.integers(2, 40))
def test_no_batch_is_of_a_single_image(count, size):
    assert min(stop - start for start, stop in batch_bounds(count, size)) > 1


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [
        (0, 4, []),
        (1, 4, [(0, 1)]),  # nothing to join it to
        (5, 4, [(0, 5)]),
        (9, 4, [(0, 4), (4, 9)]),
        (3, 1, [(0, 1), (1, 2), (2, 3)]),  # asked for
    ],
)
def test_a_last_batch_of_one_joins_the_one_before(count, size, expected):
    assert batch_bounds(count, size) == expected


# order --------------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(count=some.integers(1, 40), size=some.integers(1, 9), epoch=some.integers(0, 3))
def test_an_epoch_has_every_sample_once(count, size, epoch):
    rows = _rows(_phase(some_samples(count), size).epoch(epoch))
    assert sorted(row for batch in rows for row in batch) == list(range(count))


def test_epochs_differ_in_order_whatever_was_drawn_before():
    first = _phase(some_samples(20))
    orders = [_rows(first.epoch(epoch)) for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]
    second = _phase(some_samples(20))
    torch.rand(7)
    assert _rows(second.epoch(2)) == orders[2]


def test_an_epoch_entered_in_the_middle_goes_on_as_it_would_have():
    augment = Augment(crop_padding=1, flip=True)
    data = {"new": some_samples(20), "memory": some_samples(3, seed=1)}
    whole = list(_phase(data, augment=augment).epoch(1))
    late = list(_phase(data, augment=augment).epoch(1, 2))
    assert len(late) == len(whole) - 2 == 3
    for one, other in zip(whole[2:], late, strict=True):
        for name in ("new", "memory"):
            assert torch.equal(one.streams[name].rows, other.streams[name].rows)
            assert torch.equal(one.streams[name].images, other.streams[name].images)


def test_an_epoch_may_stop_early():
    loader = _phase(some_samples(20))
    assert _rows(loader.epoch(0, 1, 3)) == _rows(loader.epoch(0))[1:3]
    assert _rows(loader.epoch(0, 0, 99)) == _rows(loader.epoch(0))


def test_each_stream_is_shuffled_on_its_own():
    data = {"new": some_samples(20), "memory": some_samples(20)}
    batches = list(_phase(data).epoch(0))
    assert [b.new.rows.tolist() for b in batches] != [b.memory.rows.tolist() for b in batches]


# what is in a batch -------------------------------------------------------------------------------------------------


def test_images_slots_targets_and_side_data_belong_together():
    pixels = torch.arange(6).byte().reshape(6, 1, 1, 1).expand(6, 1, 2, 2)
    names = torch.arange(6) * 10
    samples = Samples.from_arrays(pixels.clone(), torch.arange(6), targets=torch.eye(6))
    samples = Samples(samples.parts[0][0], samples.slots, targets=samples.targets, extras={"names": names})
    for batch in _phase(samples).epoch(0):
        assert torch.equal((batch.images[:, 0, 0, 0] * 255).round().long(), batch.slots)
        assert torch.equal(batch.pixels[:, 0, 0, 0].long(), batch.slots)
        assert torch.equal(batch.rows, batch.slots)
        assert torch.equal(batch.targets.argmax(1), batch.slots)
        assert torch.equal(batch.extras["names"], batch.slots * 10)


def test_augmentation_depends_on_the_step_alone():
    data, flip = some_samples(40), Augment(flip=True)
    loader = _phase(data, 10, flip)
    plain, once, again = ([batch.images for batch in each.epoch(0)] for each in (_phase(data, 10), loader, loader))
    mirrored = []
    for as_it_is, one, other in zip(plain, once, again, strict=True):
        assert torch.equal(one, other)
        mirrored.append((one != as_it_is).flatten(1).any(1).tolist())
    assert any(map(any, mirrored))
    assert mirrored[0] != mirrored[1]


def test_samples_in_parts_are_one_set():
    joined = some_samples(6) + some_samples(5, seed=1)
    loader = Loader(joined, Augment(), CPU, _keyed)
    (batch,) = loader.batches([(torch.tensor([0, 10, 5]), 0, 0)])
    assert torch.equal(batch.pixels, joined.pixels[[0, 10, 5]])


# files --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Samples:
    """24 grey files, each of one shade, which is its slot times ten: any crop of it looks the same."""
    paths = []
    for slot in range(24):
        paths.append(str(tmp_path / f"{slot}.png"))
        Image.new("L", (6, 6), slot * 10).save(paths[-1])
    return Samples(FileStore(paths, 4, channels=1), torch.arange(24))


def _shades(batch):
    return (batch.images[:, 0, 1, 1] * 255 / 10).round().long()


def test_files_come_in_the_order_of_the_epoch(files):
    batches = list(_phase(files, 5).epoch(0))
    assert _rows(batches) == _rows(_phase(some_samples(24), 5).epoch(0))
    for batch in batches:
        assert torch.equal(_shades(batch), batch.slots)
        assert batch.images.shape[1:] == (1, 4, 4)
        assert torch.equal(batch.pixels[:, 0, 0, 0].long(), batch.slots * 10)


def test_a_few_batches_of_files_are_decoded_ahead_and_no_more(files):
    begun = []

    def noted(*parts):
        begun.extend([parts] if "augment" in parts else [])
        return _keyed(*parts)

    batches = PhaseLoader(files, Augment(), CPU, noted, 2).epoch(0)
    next(batches)
    assert len(begun) == 1 + LOOKAHEAD
    next(batches)
    assert len(begun) == 2 + LOOKAHEAD
    list(batches)
    assert len(begun) == 12


def test_crops_of_files_are_those_of_the_step(tmp_path):
    path = tmp_path / "ramp.png"
    ramp = Image.new("L", (16, 16))
    ramp.putdata(list(range(256)))
    ramp.save(path)
    samples = Samples(FileStore([str(path)] * 8, 4, channels=1), torch.arange(8))
    crops = Augment(resized_crop=True)
    once, again, later = ([b.images for b in _phase(samples, 4, crops).epoch(epoch)] for epoch in (0, 0, 1))
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(once, later, strict=True))
    assert not torch.equal(once[0][0], once[0][1])  # each image has a crop of its own


def test_files_and_exemplars_are_drawn_together(files):
    shades = torch.tensor([3, 7]).byte().mul(10).reshape(2, 1, 1, 1).expand(2, 1, 4, 4)
    both = files + Samples.from_arrays(shades.clone(), torch.tensor([3, 7]))
    for batch in _phase(both, 5).epoch(0):
        assert torch.equal(_shades(batch), batch.slots)


def test_pixels_before_augmentation_are_of_the_whole_image_where_parts_are_cut_out(half_file_half_stored):
    for batch in _phase(half_file_half_stored, 20, Augment(resized_crop=True)).epoch(0):
        assert torch.equal(batch.pixels, half_file_half_stored[batch.rows].pixels)


def test_a_file_that_is_no_image_stops_the_epoch_and_is_named(files, tmp_path):
    (tmp_path / "7.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"7\.png cannot be read as an image"):
        list(_phase(files, 5).epoch(0))


# parts of files and of what is stored of them -----------------------------------------------------------------------


@pytest.fixture
def half_file_half_stored(tmp_path):
    """Samples of one file beside a stored copy of it, left half black and right half white."""
    image = Image.new("L", (16, 16))
    image.paste(255, (8, 0, 16, 16))
    image.save(tmp_path / "halves.png")
    files = FileStore([str(tmp_path / "halves.png")] * 30, size=16, channels=1, shorter=16)
    slots = torch.zeros(30, dtype=torch.int64)
    return Samples(files, slots) + Samples.from_arrays(files.pixels(torch.arange(30)), slots + 1)


def test_exemplars_of_a_stream_of_files_are_cropped_as_new_files_are(half_file_half_stored):
    augment = Augment(resized_crop=True)
    means = {0: [], 1: []}
    for batch in _phase(half_file_half_stored, 20, augment).epoch(0):
        for slot, image in zip(batch.slots.tolist(), batch.images, strict=True):
            means[slot].append(image.mean().item())
    for found in means.values():
        assert len(found) == 30 and sum(abs(mean - 0.5) > 0.05 for mean in found) > 15
    alone = half_file_half_stored[half_file_half_stored.slots == 1]
    views = torch.cat([batch.images for batch in _phase(alone, 20, augment).epoch(0)])
    assert ((views.mean((1, 2, 3)) - 0.5).abs() > 0.05).sum() > 15


def test_the_size_of_parts_of_files_is_the_streams(half_file_half_stored):
    with pytest.raises(ConfigError, match=r"crop_size is of stored images; those of files have stream\.image_size"):
        _phase(half_file_half_stored, 20, Augment(resized_crop=True, crop_size=8))


def test_without_resized_crops_files_and_stored_images_are_seen_whole(half_file_half_stored):
    for batch in _phase(half_file_half_stored, 20).epoch(0):
        assert torch.equal(batch.images, half_file_half_stored[batch.rows.tolist()].images)
