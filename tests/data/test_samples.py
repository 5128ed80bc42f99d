"""Samples: rows of stores, in the order asked for, sealed off from everything else; batches."""

import pytest
import torch

from cil.data import ArrayStore, Batch, Samples, to_float
from cil.errors import DataError, ShapeError


def numbered(count, start=0, slot=0, **extras):
    """Images of one pixel whose value is their number."""
    pixels = torch.arange(start, start + count, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    slots = torch.full((count,), slot)
    return Samples(ArrayStore(pixels), slots, extras=extras)


def values(samples):
    return samples.pixels.flatten().tolist()


def test_rows_of_several_stores_come_in_the_order_asked_for():
    both = numbered(3) + numbered(3, start=10, slot=1)
    picked = both[[4, 0, 5, 1, 2]]
    assert values(picked) == [11, 0, 12, 1, 2]
    assert picked.slots.tolist() == [1, 0, 1, 0, 0]
    assert values(picked[[4, 3, 2, 1, 0]]) == [2, 1, 12, 0, 11]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (slice(1, 3), [1, 2]),
        (slice(None, None, 2), [0, 2]),
        ([-1, 0], [3, 0]),
        ([], []),
        (torch.tensor([True, False, False, True]), [0, 3]),
        (torch.tensor(2), [2]),
        ([1, 1, 1], [1, 1, 1]),
    ],
)
def test_rows_may_be_numbers_a_mask_or_a_slice(rows, expected):
    samples = numbered(2) + numbered(2, start=2)
    assert values(samples[rows]) == expected
    assert len(samples[rows]) == len(expected)


def test_an_empty_choice_keeps_the_shape_of_images():
    nothing = numbered(4)[[]]
    assert nothing.pixels.shape == (0, 1, 1, 1)
    assert nothing.counts() == {}
    assert values(nothing + numbered(2)) == [0, 1]


def test_sealed_samples_cannot_reach_other_rows_of_their_data_set():
    whole = numbered(6)
    sealed = whole[[4, 1]].sealed()
    ((store, rows),) = sealed.parts
    assert len(store) == 2
    assert rows.tolist() == [0, 1]
    assert store.tensor.flatten().tolist() == [4, 1]
    whole.parts[0][0].tensor.zero_()
    assert values(sealed) == [4, 1]


def test_joining_puts_all_pixels_into_one_tensor():
    joined = (numbered(2) + numbered(2, start=8)).joined()
    assert len(joined.parts) == 1
    assert values(joined) == [0, 1, 8, 9]


def test_side_data_follows_its_rows_and_survives_where_both_sides_have_it():
    left = numbered(2, logits=torch.tensor([[1.0], [2.0]]), only_left=torch.zeros(2))
    right = numbered(1, start=9, logits=torch.tensor([[3.0]]))
    both = (left + right)[[2, 0]]
    assert both.extras["logits"].flatten().tolist() == [3, 1]
    assert both.extras.keys() == {"logits"}


def test_classes_are_counted_and_picked():
    samples = numbered(3, slot=5) + numbered(2, start=3, slot=2)
    assert samples.counts() == {2: 2, 5: 3}
    assert values(samples.of_class(2)) == [3, 4]
    assert values(samples.of_class(7)) == []


def test_other_slots_over_the_same_pixels():
    samples = numbered(3)
    renamed = samples.with_slots(torch.tensor([2, 0, 1]))
    assert renamed.slots.tolist() == [2, 0, 1]
    assert samples.slots.tolist() == [0, 0, 0]
    with pytest.raises(ShapeError, match=r"3 images but slots of shape \(2,\)"):
        samples.with_slots(torch.tensor([2, 0]))


def test_batches_cover_everything_once_in_order_without_augmentation():
    samples = numbered(5, slot=3)
    batches = list(samples.batches(size=2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([batch.images for batch in batches]), samples.images)
    assert torch.cat([batch.rows for batch in batches]).tolist() == [0, 1, 2, 3, 4]
    assert batches[1].pixels.flatten().tolist() == [2, 3]
    assert batches[2].slots.tolist() == [3]


def test_multi_label_targets_follow_their_rows():
    targets = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    samples = Samples(ArrayStore(torch.zeros(3, 1, 2, 2).byte()), torch.zeros(3).long(), targets=targets)
    assert torch.equal(samples[[2, 1]].targets, targets[[2, 1]])
    assert torch.equal((samples + samples).targets, torch.cat([targets, targets]))
    with pytest.raises(DataError, match="with and without multi-label targets"):
        samples + Samples(ArrayStore(torch.zeros(1, 1, 2, 2).byte()), torch.zeros(1).long())


def test_pixels_become_floats_between_zero_and_one_channels_last():
    images = to_float(torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1).expand(2, 3, 4, 4))
    assert images[0, :, 0, 0].tolist() == pytest.approx([0, 0.2, 1])
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_a_batch_gives_further_streams_by_name_and_says_which_there_are():
    memory = Batch(torch.zeros(1, 1, 1, 1), torch.zeros(1).long())
    batch = Batch(torch.zeros(2, 1, 1, 1), torch.zeros(2).long(), streams={"memory": memory})
    assert batch.memory is memory
    with pytest.raises(AttributeError, match="no stream 'buffer'; it has: memory"):
        _ = batch.buffer
    with pytest.raises(DataError, match="no pixels before augmentation"):
        _ = batch.pixels


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ArrayStore(torch.zeros(2, 1, 4, 4)), r"uint8 \(N, C, H, W\), not torch.float32 \(2, 1, 4, 4\)"),
        (lambda: ArrayStore(torch.zeros(2, 4, 4).byte()), r"not torch.uint8 \(2, 4, 4\)"),
        (lambda: Samples.from_arrays(torch.zeros(2, 1, 4, 4).byte(), torch.zeros(3)), r"2 images but slots .*\(3,\)"),
        (lambda: numbered(2, logits=torch.zeros(3, 1)), "2 images but 3 rows of logits"),
        (
            lambda: numbered(1) + Samples.from_arrays(torch.zeros(1, 3, 4, 4).byte(), torch.zeros(1)),
            r"cannot join images of shape \(1, 1, 1\) and \(3, 4, 4\)",
        ),
    ],
)
def test_wrong_shapes_are_refused(make, message):
    with pytest.raises(ShapeError, match=message):
        make()
