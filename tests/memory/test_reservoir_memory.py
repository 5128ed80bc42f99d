"""Memories that are filled while the stream passes."""

import time

import pytest
import torch

from cil.errors import ShapeError, StateError
from cil.memory import ReservoirMemory, greedily_balanced, reservoir_places

SHAPE = (3, 12, 12)


def keyed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def images(*keys: int) -> torch.Tensor:
    """Smooth images (a JPEG of them is small), one for each key."""
    ramp = torch.linspace(0, 1, 12)
    grid = torch.stack([ramp[:, None] + 0 * ramp, 0 * ramp[:, None] + ramp, ramp[:, None] * ramp])
    return torch.stack([(grid * 100 + key * 7 % 150).byte() for key in keys])


# the reservoir ------------------------------------------------------------------------------------------------------


def kept(capacity: int, batches: list[int], key: int) -> list[int]:
    """Numbers of the items that are held after batches of these sizes were offered."""
    held: list[int] = []
    seen, generator = 0, keyed(key)
    for size in batches:
        for row, place in enumerate(reservoir_places(len(held), seen, size, capacity, generator).tolist()):
            if place == len(held):
                held.append(seen + row)
            elif place >= 0:
                held[place] = seen + row
        seen += size
        assert len(held) == min(capacity, seen)
    return held


@pytest.mark.parametrize(("capacity", "batches"), [(2, [1, 1, 1, 1]), (3, [4, 1, 3]), (2, [5])])
def test_each_of_n_items_is_held_with_probability_m_over_n(capacity, batches):
    trials, count = 10_000, sum(batches)
    times = torch.zeros(count)
    for key in range(trials):
        times[kept(capacity, batches, key)] += 1
    assert (times / trials - capacity / count).abs().max() < 0.02


def test_item_n_takes_place_r_where_r_from_0_to_n_is_below_the_capacity():
    draws = torch.rand(3, dtype=torch.float64, generator=keyed(5)).tolist()
    places = reservoir_places(2, 7, 3, 2, keyed(5)).tolist()
    assert places == [int(u * n) if int(u * n) < 2 else -1 for u, n in zip(draws, (8, 9, 10), strict=True)]
    assert reservoir_places(1, 1, 3, 9, keyed(0)).tolist() == [1, 2, 3]
    assert reservoir_places(0, 0, 3, 0, keyed(0)).tolist() == [-1, -1, -1]
    assert len({reservoir_places(5, 1, 1, 5, keyed(key)).item() for key in range(40)}) == 2  # 0 and 1, N included


# exchanging ---------------------------------------------------------------------------------------------------------

CODECS = ["raw", "downsample:4", "jpeg:60"]


def memory_of(codec: str = "raw") -> ReservoirMemory:
    return ReservoirMemory(codec, {"logits": "replay_logits"})


def stored(memory: ReservoirMemory) -> dict[str, torch.Tensor]:
    return {name: tensor for name, (tensor, _) in memory.tensors(9).items()}


def same(one: ReservoirMemory, other: ReservoirMemory) -> bool:
    a, b = stored(one), stored(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def random_step(generator: torch.Generator, held: int, step: int) -> tuple[torch.Tensor, list[int], list[int]]:
    """Rows to drop, keys of new images, and their slots."""
    count = int(torch.randint(0, 6, (), generator=generator))
    leaving = torch.randperm(held, generator=generator)[: int(torch.randint(0, 4, (), generator=generator))]
    return (
        leaving,
        [10 * step + row for row in range(count)],
        torch.randint(0, 4, (count,), generator=generator).tolist(),
    )


@pytest.mark.parametrize("look", [False, True])
@pytest.mark.parametrize("codec", CODECS)
def test_it_holds_what_a_list_would_class_by_class_in_order_of_arrival(codec, look):
    memory, model, generator = memory_of(codec), [], keyed(3)
    for step in range(30):
        leaving, keys, slots = random_step(generator, len(memory), step)
        logits = torch.tensor([[key, slot] for key, slot in zip(keys, slots, strict=True)]).reshape(-1, 2).float()
        now = memory.exchange(leaving, images(*keys) if keys else torch.empty(0, *SHAPE).byte(),
                              torch.tensor(slots).long(), {"logits": logits})  # fmt: skip
        gone, before = set(leaving.tolist()), [*model, *zip(slots, keys, strict=True)]
        model = [item for row, item in enumerate(before) if row not in gone]
        model.sort(key=lambda item: item[0])
        assert [model[row] if row >= 0 else None for row in now.tolist()] == [
            None if row in gone else item for row, item in enumerate(before)
        ]
        assert memory.slots.tolist() == [slot for slot, _ in model]
        if not model or not (look or step == 29):
            continue
        rows = torch.randperm(len(model), generator=generator)
        fresh = memory_of(codec)
        fresh.exchange(torch.empty(0).long(), images(*(key for _, key in model)), torch.tensor([s for s, _ in model]),
                       {"logits": torch.tensor([[key, slot] for slot, key in model]).float()})  # fmt: skip
        drawn = memory[rows]
        assert torch.equal(drawn.pixels, fresh.samples().pixels[rows])
        assert drawn.extras["logits"][:, 0].tolist() == [model[row][1] for row in rows.tolist()]
        assert drawn.slots.tolist() == [model[row][0] for row in rows.tolist()]
        assert same(memory, fresh)
        if codec == "raw":
            assert torch.equal(memory.samples().pixels, images(*(key for _, key in model)))


@pytest.mark.parametrize("codec", CODECS)
def test_saved_and_loaded_at_any_step_it_goes_on_the_same(codec):
    for stop in (1, 7, 12):
        straight, resumed = memory_of(codec), memory_of(codec)
        for memory in (straight, resumed):
            generator = keyed(4)
            for step in range(20):
                leaving, keys, slots = random_step(generator, len(memory), step)
                if keys:
                    logits = torch.tensor([[float(key)] for key in keys])
                    memory.exchange(leaving, images(*keys), torch.tensor(slots), {"logits": logits})
                if memory is resumed and step == stop:
                    held = {name: tensor.clone() for name, tensor in stored(memory).items()}
                    memory.load(held, SHAPE)
        assert same(straight, resumed)
        rows = torch.arange(0, len(straight), 2)
        assert torch.equal(straight[rows].pixels, resumed[rows].pixels)


def test_what_was_drawn_or_handed_out_does_not_change_with_later_exchanges():
    memory = ReservoirMemory()
    none = torch.empty(0).long()
    memory.exchange(none, images(1, 2, 3), torch.tensor([0, 0, 1]))
    all_, some = memory.samples(), memory[torch.tensor([0, 2])]
    memory.exchange(torch.tensor([0, 1, 2]), images(7, 8, 9), torch.tensor([0, 0, 1]))
    assert torch.equal(all_.pixels, images(1, 2, 3)) and torch.equal(some.pixels, images(1, 3))
    drawn = memory[torch.tensor([0])]
    memory.exchange(torch.tensor([0]), images(4), torch.tensor([2]))
    assert torch.equal(drawn.pixels, images(7)) and torch.equal(memory.samples().pixels, images(8, 9, 4))


def test_an_image_that_loses_something_is_encoded_once():
    memory, none = memory_of("jpeg:20"), torch.empty(0).long()
    memory.exchange(none, images(1, 2), torch.tensor([0, 0]), {"logits": torch.zeros(2, 1)})
    before = memory.samples().pixels.clone()
    for key in range(5):
        memory.exchange(none, images(key), torch.tensor([1]), {"logits": torch.zeros(1, 1)})
        memory.samples()
    assert torch.equal(memory.of_class(0).pixels, before)


def test_thinned_it_holds_any_exemplar_with_the_same_probability():
    times = torch.zeros(5)
    pixels = images(0, 1, 2, 3, 4)
    for key in range(2000):
        memory = ReservoirMemory()
        memory.exchange(torch.empty(0).long(), pixels, torch.tensor([0, 0, 0, 1, 1]))
        memory.thin(2, keyed(key))
        assert len(memory) == 2
        times[memory.samples().pixels[:, 0, 0, 0].long() // 7] += 1
    assert (times / 2000 - 0.4).abs().max() < 0.05
    memory.thin(9, keyed(0))
    assert len(memory) == 2
    memory.thin(0, keyed(0))
    assert len(memory) == 0 and memory.tensors(3) == {}


def test_side_data_are_widened_and_billed_at_the_new_width():
    memory = memory_of()
    assert memory.item_kinds(SHAPE, 3).get("replay_logits") is None
    memory.pad("logits", 5, 0.0)  # nothing held: nothing to widen
    memory.exchange(torch.empty(0).long(), images(1, 2), torch.tensor([1, 0]), {"logits": torch.ones(2, 2)})
    memory.pad("logits", 3, -torch.inf)
    assert memory.samples().extras["logits"].tolist() == [[1.0, 1.0, -torch.inf]] * 2
    assert memory.item_bytes(SHAPE, 3) == 432 + 1 + 12
    memory.exchange(torch.tensor([0]), images(3), torch.tensor([1]), {"logits": torch.full((1, 3), 7.0)})
    assert memory[torch.tensor([0, 1])].extras["logits"][:, 2].tolist() == [-torch.inf, 7.0]


@pytest.mark.parametrize("settled", [False, True])
def test_side_data_of_some_rows_are_replaced_and_nothing_else(settled):
    memory, none = memory_of("jpeg:60"), torch.empty(0).long()
    memory.exchange(none, images(1, 2, 3), torch.tensor([0, 0, 1]), {"logits": torch.zeros(3, 2)})
    handed = memory.samples() if settled else memory[torch.arange(3)]
    before = handed.pixels.clone()
    memory.rewrite(torch.tensor([2, 0]), {"logits": torch.tensor([[1.0, 2.0], [3.0, 4.0]])})
    assert memory.samples().extras["logits"].tolist() == [[3.0, 4.0], [0.0, 0.0], [1.0, 2.0]]
    assert torch.equal(memory.samples().pixels, before) and not handed.extras["logits"].any()
    with pytest.raises(ShapeError):
        memory.rewrite(torch.tensor([0]), {"logits": torch.zeros(1, 3)})
    memory.rewrite(none, {"logits": torch.zeros(0, 2)})


def test_what_does_not_belong_is_refused():
    memory, none = memory_of(), torch.empty(0).long()
    memory.exchange(none, images(1), torch.tensor([0]), {"logits": torch.zeros(1, 2)})
    with pytest.raises(StateError, match="logits"):
        memory.exchange(none, images(1), torch.tensor([0]))
    for logits, pixels in ((torch.zeros(1, 3), images(1)), (torch.zeros(2, 2), images(1)),
                           (torch.zeros(1, 2), torch.zeros(1, 3, 8, 8).byte())):  # fmt: skip
        with pytest.raises(ShapeError):
            memory.exchange(none, pixels, torch.tensor([0]), {"logits": logits})
    assert len(memory) == 1


def test_a_step_costs_less_than_to_copy_the_memory():
    """Ten of 2,000 images of 32 x 32 with 100 logits are exchanged, 32 drawn; alternately all pixels are copied."""
    memory = memory_of()
    pixels = torch.randint(0, 256, (2000, 3, 32, 32), dtype=torch.uint8)
    memory.exchange(torch.empty(0).long(), pixels, torch.arange(2000) % 100, {"logits": torch.rand(2000, 100)})
    seconds, copying = [], []
    for step in range(31):
        began = time.perf_counter()
        pixels[torch.arange(2000).flip(0)]
        copying.append(time.perf_counter() - began)
        rows = torch.randperm(2000, generator=keyed(step))[:10]
        began = time.perf_counter()
        memory.exchange(rows, pixels[:10], torch.arange(10), {"logits": torch.rand(10, 100)})
        memory[torch.randperm(2000, generator=keyed(step))[:32]]
        seconds.append(time.perf_counter() - began)
    assert sorted(seconds)[15] < sorted(copying)[15]


# greedily balanced --------------------------------------------------------------------------------------------------


def counts_of(slots: list[int], rows: list[int]) -> dict[int, int]:
    kept_slots = [slots[row] for row in rows]
    return {slot: kept_slots.count(slot) for slot in sorted(set(kept_slots))}


def test_a_class_is_taken_up_to_its_share_while_there_is_room():
    slots = [0] * 9 + [1] * 2
    assert greedily_balanced([], slots, 10, 2, keyed(0)) == [0, 1, 2, 3, 4, 9, 10]  # 5 = 10 / 2, and both of class 1
    assert greedily_balanced([], slots, 9, 2, keyed(0)) == [0, 1, 2, 3, 4, 9, 10]  # fewer than 4.5: five
    assert greedily_balanced([], slots, 0, 2, keyed(0)) == []
    assert greedily_balanced([], slots, 2**62, 2, keyed(0)) == list(range(11))


def test_a_full_memory_makes_room_from_the_largest_class():
    held = [0] * 6 + [1] * 3
    rows = greedily_balanced(held, [2] * 9, 9, 3, keyed(1))
    assert counts_of(held + [2] * 9, rows) == {0: 3, 1: 3, 2: 3}
    assert rows[3:] == [6, 7, 8, 9, 10, 11]  # class 1 stays, the first three of class 2 come
    assert len({tuple(greedily_balanced(held, [2] * 9, 9, 3, keyed(key))[:3]) for key in range(20)}) > 5


def test_where_there_is_room_for_fewer_the_largest_classes_give_first():
    held = [0] * 6 + [1] * 3 + [2]
    assert counts_of(held, greedily_balanced(held, [], 7, 3, keyed(0))) == {0: 3, 1: 3, 2: 1}
