"""Exemplar memory: who stays, in which order, and what is charged, saved and refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cil.data import ArrayStore, Samples
from cil.errors import ShapeError, StateError
from cil.memory import ExemplarMemory, label_dtype, tensor_bytes

GREY = (1, 2, 3)  # six pixels


def keyed(key: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(key)


def samples(slots: list[int], shape: tuple[int, int, int] = GREY, start: int = 0, **extras: Tensor) -> Samples:
    """Image i is filled with the value start + i, so that it can be told from the others."""
    values = torch.arange(start, start + len(slots)) % 256
    pixels = values.to(torch.uint8)[:, None, None, None].expand(-1, *shape).contiguous()
    return Samples(ArrayStore(pixels), torch.tensor(slots, dtype=torch.int64), extras=extras)


def values(memory: ExemplarMemory) -> list[int]:
    return memory.samples().pixels[:, 0, 0, 0].tolist()


def features(data: Samples) -> Tensor:
    """(N, 2): a direction for each pixel value."""
    angles = data.pixels[:, 0, 0, 0].double() / 100
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def carried(memory: ExemplarMemory, num_classes: int = 10) -> dict[str, Tensor]:
    return {name: tensor for name, (tensor, _) in memory.tensors(num_classes).items()}


# what is stored -------------------------------------------------------------------------------------------------------


def test_classes_lie_by_slot_and_each_in_the_order_given():
    memory = ExemplarMemory()
    memory.replace([samples([3, 0, 3]), samples([1, 0], start=10)])
    assert memory.slots.tolist() == [0, 0, 1, 3, 3]
    assert values(memory) == [1, 11, 10, 0, 2]
    assert memory.counts() == {0: 2, 1: 1, 3: 2}
    assert memory.of_class(3).pixels[:, 0, 0, 0].tolist() == [0, 2]
    assert len(memory) == 5


def test_added_samples_come_after_those_of_their_class():
    memory = ExemplarMemory()
    memory.add(1, samples([1, 1]))
    memory.add(0, samples([0], start=20))
    memory.add(1, samples([1], start=30))
    assert values(memory) == [20, 0, 1, 30]
    with pytest.raises(ShapeError, match="given as slot 0"):
        memory.add(0, samples([1]))


def test_the_memory_owns_its_pixels():
    data = samples([0, 0])
    memory = ExemplarMemory()
    memory.replace([data])
    store = data.parts[0][0]
    assert isinstance(store, ArrayStore)
    store.tensor.zero_()
    assert values(memory) == [0, 1]


def test_shrinking_keeps_a_prefix_of_each_class_and_small_classes_whole():
    memory = ExemplarMemory()
    memory.replace([samples([0, 0, 0, 1, 2, 2])])
    memory.shrink(2)
    assert values(memory) == [0, 1, 3, 4, 5]
    memory.shrink(5)
    assert len(memory) == 5
    memory.shrink(0)
    assert len(memory) == 0
    assert memory.samples().counts() == memory.counts() == {}


def test_a_rebuild_keeps_the_first_of_old_classes_and_herds_the_new_ones():
    memory = ExemplarMemory()
    memory.replace([samples([0] * 4)])
    # new: five images at angles 0, 10, 40, 90, 25 degrees, herded 4, 2, 1, 3, 0
    angles = torch.tensor([0.0, 10, 40, 90, 25]).deg2rad()
    new = samples([1] * 5, start=100)

    def seen(data: Samples) -> Tensor:
        at = angles[data.pixels[:, 0, 0, 0].long() - 100]
        return torch.stack([at.cos(), at.sin()], dim=1)

    memory.rebuild(new, 3, seen, keyed())
    assert values(memory) == [0, 1, 2, 104, 102, 101]
    assert memory.counts() == {0: 3, 1: 3}


def test_a_class_smaller_than_its_quota_is_stored_whole():
    memory = ExemplarMemory()
    memory.rebuild(samples([0] * 9 + [1] * 2), 4, features, keyed())
    assert memory.counts() == {0: 4, 1: 2}


def test_of_a_class_that_comes_again_old_exemplars_and_new_images_are_one_pool():
    memory = ExemplarMemory(selection="closest_to_mean")
    memory.replace([samples([0, 0], start=50), samples([1, 1], start=90)])
    memory.rebuild(samples([0, 0, 0]), 4, features, keyed())
    assert memory.counts() == {0: 4, 1: 2}
    assert set(values(memory)[:4]) < {0, 1, 2, 50, 51}
    assert values(memory)[4:] == [90, 91]


@pytest.mark.parametrize("selection", ["herding", "random", "reservoir", "closest_to_mean"])
def test_a_quota_of_nothing_leaves_nothing(selection):
    memory = ExemplarMemory(selection=selection)
    memory.rebuild(samples([0, 1]), 0, features, keyed())
    assert len(memory) == 0
    assert memory.tensors(2) == {}


def test_rules_that_draw_compute_no_features():
    def never(data: Samples) -> Tensor:
        raise AssertionError("features were computed for nothing")

    memory = ExemplarMemory(selection="random")
    memory.rebuild(samples([0] * 5), 2, never, keyed())
    assert len(memory) == 2


def test_7431_slots_hold_what_the_survey_says_after_each_of_ten_experiences():
    memory, totals = ExemplarMemory(selection="random"), []
    for experience in range(10):
        slots = [slot for slot in range(10 * experience, 10 * experience + 10) for _ in range(500)]
        memory.rebuild(samples(slots, (1, 1, 1)), 7_431 // (10 * experience + 10), features, keyed(experience))
        totals.append(len(memory))
    assert totals == [5000, 7420, 7410, 7400, 7400, 7380, 7420, 7360, 7380, 7400]


def equal_quota_totals(slots, class_counts):
    """Exemplars stored after each experience: the sum over classes of min(floor(slots / C), images of the class)."""
    totals, seen = [], []
    for counts in class_counts:
        seen += list(counts)
        totals.append(sum(min(slots // len(seen), count) for count in seen))
    return totals


experiences = st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=3), min_size=1, max_size=4)


@given(experiences, st.integers(0, 40), st.sampled_from(["herding", "random", "reservoir", "closest_to_mean"]))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_equal_quotas_never_hold_more_than_the_slots_and_as_many_as_planned(counts, slots, selection):
    memory, seen = ExemplarMemory(selection=selection), 0
    for index, (experience, planned) in enumerate(zip(counts, equal_quota_totals(slots, counts), strict=True)):
        new = [slot for slot, count in enumerate(experience, seen) for _ in range(count)]
        seen += len(experience)
        before = memory.samples()
        memory.rebuild(samples(new, start=7 * index), slots // seen, features, keyed(index))
        assert len(memory) == planned <= slots
        assert memory.slots.tolist() == sorted(memory.slots.tolist())
        for slot in before.slots.unique().tolist():  # what stays of an old class is a prefix of what there was
            kept = memory.of_class(slot).pixels.tolist()
            assert kept == before.of_class(slot).pixels.tolist()[: len(kept)]


# what is charged ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_classes", "dtype"),
    [(1, torch.uint8), (256, torch.uint8), (257, torch.uint16), (65_536, torch.uint16), (65_537, torch.int32)],
)
def test_labels_take_the_smallest_type_that_holds_every_slot(num_classes, dtype):
    assert label_dtype(num_classes) == dtype
    assert torch.tensor(num_classes - 1).to(dtype).long() == num_classes - 1


def test_labels_widen_when_the_257th_class_arrives_and_come_back_as_they_were():
    memory = ExemplarMemory()
    memory.replace([samples([0, 200, 255])])
    assert carried(memory, 256)["slots"].dtype == torch.uint8
    memory.add(256, samples([256]))
    tensors = carried(memory, 257)
    assert tensor_bytes(tensors["slots"]) == 4 * 2
    other = ExemplarMemory()
    other.load(tensors, GREY)
    assert other.slots.tolist() == [0, 200, 255, 256]


def test_an_exemplar_costs_its_pixels_and_its_label_and_under_survey_its_pixels():
    memory = ExemplarMemory()
    assert memory.item_bytes((3, 32, 32), 100) == 3 * 32 * 32 + 1
    assert memory.item_bytes((3, 32, 32), 1000) == 3 * 32 * 32 + 2
    assert memory.item_bytes((3, 224, 224), 1000, "survey") == 150_528
    memory.replace([samples([0, 1, 1])])
    assert memory.survey_bytes() == 3 * 6
    assert sum(tensor_bytes(t) for t in carried(memory).values()) == 3 * memory.item_bytes(GREY, 10) == 21


def test_side_data_are_charged_as_their_kind_before_any_is_stored_too():
    memory = ExemplarMemory(extras={"logits": "replay_logits"}, extra_bytes=20)
    assert memory.item_bytes(GREY, 10) == 6 + 1 + 20
    memory.replace([samples([1, 0], logits=torch.tensor([[1.0] * 5, [2.0] * 5]))])
    assert memory.item_bytes(GREY, 10) == 6 + 1 + 20
    assert memory.item_bytes(GREY, 10, "survey") == 6
    held = memory.tensors(10)
    assert {name: kind for name, (_, kind) in held.items()} == {
        "images": "exemplars",
        "slots": "labels",
        "logits": "replay_logits",
    }
    assert held["logits"][0][:, 0].tolist() == [2, 1]  # sorted with their images
    assert memory.samples().extras["logits"].shape == (2, 5)
    memory.shrink(0)
    memory.replace([samples([0], logits=torch.zeros(1, 9))])
    assert memory.item_bytes(GREY, 10) == 6 + 1 + 36  # what is there is measured


def test_samples_without_the_side_data_are_refused_and_nothing_is_lost():
    memory = ExemplarMemory(extras={"logits": "replay_logits"})
    memory.replace([samples([0], logits=torch.ones(1, 2))])
    with pytest.raises(StateError, match="logits"):
        memory.replace([samples([0, 1])])
    assert values(memory) == [0]


# what is saved --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["raw", "jpeg:90"])
def test_a_memory_loaded_from_its_tensors_is_the_same_memory(codec):
    shape = (3, 8, 8)
    memory = ExemplarMemory(codec, extras={"logits": "replay_logits"})
    memory.replace([samples([2, 0, 2], shape, start=40, logits=torch.randn(3, 4, generator=keyed()))])
    assert set(carried(memory)) == memory.tensor_names
    other = ExemplarMemory(codec, extras={"logits": "replay_logits"})
    other.load(carried(memory), shape)
    assert torch.equal(other.samples().pixels, memory.samples().pixels)
    assert torch.equal(other.slots, memory.slots)
    for name, tensor in carried(memory).items():
        assert torch.equal(carried(other)[name], tensor)
        assert carried(other)[name].dtype == tensor.dtype
    other.load({}, shape)
    assert len(other) == 0


ONE_OF_THREE = torch.tensor([0, 1, 0], dtype=torch.int32)


def state(codec: str = "raw") -> dict[str, Tensor]:
    memory = ExemplarMemory(codec, extras={"logits": "replay_logits"})
    memory.replace([samples([0, 1, 1], logits=torch.ones(3, 2))])
    return carried(memory)


@pytest.mark.parametrize(
    ("codec", "wrong", "message"),
    [
        ("raw", lambda t: {"slots": t["slots"][:2]}, r"rows of slots are 2, logits are 3"),
        ("raw", lambda t: {"logits": t["logits"][:1]}, r"logits are 1"),
        ("raw", lambda t: {"images": t["images"][:2]}, r"3 images of \(1, 2, 3\) are 18 bytes, the state has 12"),
        ("raw", lambda t: {"images": t["images"].float()}, r"float32, not uint8"),
        ("raw", lambda t: {"slots": t["slots"].flip(0)}, r"slots are not sorted"),
        ("raw", lambda t: {name: value[:0] for name, value in t.items()}, r"rows of slots are 0"),
        ("raw", lambda t: {"sizes": torch.ones(3)}, r"holds \['images', 'logits', 'slots'\], the state has"),
        ("jpeg", lambda t: {"sizes": t["sizes"][:2]}, r"sizes are 2"),
        ("jpeg", lambda t: {"sizes": t["sizes"] + 1}, r"bytes, the state has"),
        ("jpeg", lambda t: {"sizes": t["sizes"] * ONE_OF_THREE}, r"image of no bytes"),
    ],
)
def test_tensors_that_do_not_belong_together_are_refused_in_one_line(codec, wrong, message):
    tensors = state(codec)
    memory = ExemplarMemory(codec, extras={"logits": "replay_logits"})
    memory.load(tensors, GREY)
    with pytest.raises(StateError, match=message) as caught:
        memory.load(tensors | wrong(tensors), GREY)
    assert "\n" not in str(caught.value)


def test_raw_images_of_another_shape_than_the_streams_are_refused():
    with pytest.raises(StateError, match=r"3 images of \(3, 2, 3\) are 54 bytes, the state has 18"):
        ExemplarMemory(extras={"logits": "replay_logits"}).load(state(), (3, 2, 3))
