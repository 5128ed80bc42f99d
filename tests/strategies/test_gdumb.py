"""GDumb: a fresh network on a greedily balanced memory, and nothing else."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from small_runs import ONE_STEP, PIXELS, STREAMS, Fixed, bare, batch, bits, differing, observed, regrouped

from cil.data import Batch
from cil.engine.dry_run import dry_run
from cil.engine.fit import Fit
from cil.engine.keys import reseed
from cil.engine.recipe import Recipe
from cil.memory import Budget
from cil.strategies import Phase
from cil.strategies.gdumb import GDumb, cutmix_batch
from cil.testing.toy import toy_factory


@pytest.mark.parametrize("stream", ["toy", "uneven"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_it_is_a_fresh_network_trained_on_the_memory_alone(learn, stream, index):
    done = learn("gdumb", stream)
    run, data = done.run, done.stream
    learner, factory = bare("gdumb"), toy_factory(data, seed=run.work.seed)
    if index == 0:
        reference = run.work.learners.rebuilt(0, None)
        run.work.learners.grow(reference, 0)
        fresh = reference.net
    else:
        factory.backbone()  # the network of the first experience
        fresh = factory()
        reseed(run.work.seed, "prepare", index)
        fresh.grow(data.signatures[index].num_classes)
    learner.net = fresh
    memory = done.learner(index).memory.samples()
    assert len(memory) == 10
    Fit(
        learner,
        Phase("main", memory, learner.loss),
        0,
        run.work.recipe,
        index,
        run.work.seed,
        data.augment,
        run.work.runtime,
    ).run()
    assert differing({f"net.{name}": value for name, value in bits(fresh).items()}, done.net(index)) == []


def test_what_the_network_learned_before_does_not_matter(learn):
    def forget(when, learner, experience):
        if when == "before" and experience.index:
            with torch.no_grad():
                for tensor in learner.net.state_dict().values():
                    tensor.fill_(0.5)

    plain, forgetful = learn("gdumb"), learn(observed("gdumb", forget))
    for index in range(3):
        assert differing(dict(plain.state(index).tensors), dict(forgetful.state(index).tensors)) == []


def test_it_trains_by_the_recipe_of_the_first_experience_every_time(learn):
    done = learn("gdumb", recipe=Recipe(epochs=1, batch_size=50, first={"epochs": 3}))
    epochs = [line["experience"] for line in done.record.lines() if line["kind"] == "epoch"]
    assert [epochs.count(index) for index in range(3)] == [3, 3, 3]


COUNTS = {  # 25: 12.5, 6.25 and 4.17 a class
    ("toy", 25): [{12}, {6, 7}, {4, 5}],
    ("toy", 6): [{3}, {1, 2}, {1}],
    ("uneven", 12): [{4}, {3}, {2}],  # 6, 6, 5; 9; 2, 7 images
}


@pytest.mark.parametrize(("stream", "slots"), COUNTS)
def test_the_memory_is_balanced_and_full(learn, stream, slots):
    done = learn("gdumb", stream, budget=Budget(exemplars=slots), recipe=ONE_STEP)
    for index, expected in enumerate(COUNTS[stream, slots]):
        memory = done.learner(index).memory
        arrived = sum(sum(signature.counts.values()) for signature in done.stream.signatures[: index + 1])
        assert len(memory) == min(slots, arrived) and set(memory.counts().values()) == expected
        assert list(memory.counts()) == list(range(done.stream.signatures[index].num_classes))


def test_exemplars_are_images_of_the_stream_and_old_ones_were_held_before(learn):
    done = learn("gdumb", budget=Budget(exemplars=25), recipe=ONE_STEP)
    for index in range(3):
        memory = done.learner(index).memory
        for slot in memory.counts():
            arrived = done.stream.experience_of_slot[slot]
            source = done.stream[index].train if arrived == index else done.learner(index - 1).memory.samples()
            known = set(map(bytes, source.of_class(slot).pixels.flatten(1).numpy()))
            own = list(map(bytes, memory.of_class(slot).pixels.flatten(1).numpy()))
            assert set(own) <= known and len(set(own)) == len(own)


GROUPS = [((0,), (1, 2, 3), (4, 5)), ((0, 1, 2, 3), (4,), (5,)), ((5,), (4,), (3,))]


@pytest.mark.parametrize("slots", [0, 1, 5, 13, 17, 30, 1000])
@pytest.mark.parametrize("stream", [*STREAMS, 0, 1])
def test_the_number_of_exemplars_is_known_before_training(learn, stream, slots):
    made = STREAMS[stream]() if isinstance(stream, str) else regrouped(*GROUPS[stream])
    done = learn("gdumb", made, budget=Budget(exemplars=slots), recipe=ONE_STEP)
    assert [bill["exemplars"] for bill in done.record.results["bills"]] == done.record.results["exemplars"]


@pytest.mark.parametrize("rooms", [(24, 14, 11), (13, 7, 5)])
def test_where_there_is_room_for_fewer_later_the_largest_classes_give(learn, rooms):
    stream = STREAMS["uneven"]()
    factory = partial(toy_factory, stream, seed=0, meta=True)
    fixed = [bill.fixed["exact"] for bill in dry_run(GDumb, factory, stream.signatures, Budget(exemplars=0))]
    limits = [size + room * (PIXELS + 1) for size, room in zip(fixed, rooms, strict=True)]
    done = learn("gdumb", "uneven", budget=Budget(limits=limits), recipe=ONE_STEP)
    results = done.record.results
    assert [bill["exemplars"] for bill in results["bills"]] == results["exemplars"]
    assert results["exemplars"][1:] == list(rooms[1:])
    assert results["exemplars"][0] == min(rooms[0], 17)


def test_without_room_the_network_stays_as_it_was_drawn(learn):
    done = learn("gdumb", budget=Budget(exemplars=0))
    drawn = {f"net.{name}": value for name, value in bits(toy_factory(done.stream, seed=done.run.work.seed)()).items()}
    assert {name for name in differing(done.net(0), drawn) if "head" not in name} == set()
    assert not [line for line in done.record.lines() if line["kind"] != "boundary"]


# mixing -------------------------------------------------------------------------------------------------------------


def test_a_box_of_another_image_is_pasted_and_the_share_says_how_much_stays():
    images = torch.arange(1.0, 6.0).view(5, 1, 1, 1).expand(5, 2, 8, 10).contiguous()
    shares = []
    for key in range(60):
        mixed, other, share = cutmix_batch(images, torch.Generator().manual_seed(key))
        assert sorted(other.tolist()) == list(range(5))
        own = mixed == images
        pasted = mixed == images[other]
        assert (own | pasted).all()
        moved = other != torch.arange(5)
        assert torch.allclose(own[moved].float().mean((1, 2, 3)), torch.full((int(moved.sum()),), share))
        assert torch.equal(own[moved].all(0).all(0), own[moved].any(0).any(0))  # the same box in all
        shares.append(share)
    assert min(shares) < 0.45 and max(shares) > 0.9 and len(set(shares)) > 12
    assert torch.equal(images[:, 0, 0, 0], torch.arange(1.0, 6.0))  # the images given stay as they were


def test_a_mixed_batch_has_both_labels_by_their_shares():
    learner = bare("gdumb", classes=[3], cutmix=1.0)
    given = batch(0, 1, 2)
    logits = torch.tensor([[0.0, 1.0, 3.0], [2.0, 1.0, 3.0], [0.0, 1.0, 1.0]])
    learner.net = Fixed(logits.tolist())
    generator = learner.generator("cutmix:0")
    torch.rand((), generator=generator)  # whether to mix
    _, other, share = cutmix_batch(given.images, generator)
    one, two = F.cross_entropy(logits, given.slots), F.cross_entropy(logits, given.slots[other])
    assert 0 < share < 1 and one != two
    assert learner.loss(given).item() == pytest.approx(float(share * one + (1 - share) * two), abs=1e-6)


def test_batches_are_mixed_with_the_probability_given():
    mixed = {}
    for cutmix in (0.0, 0.3, 1.0):
        learner, count = bare("gdumb", classes=[2], cutmix=cutmix), 0
        learner.context.generator = lambda purpose: torch.Generator().manual_seed(int(purpose.partition(":")[2]))
        given = Batch(torch.rand(4, 3, 12, 12), torch.tensor([0, 1, 0, 1]))

        def look(net, images, output, given=given):
            nonlocal count
            count += images[0] is not given.images

        learner.net.register_forward_hook(look)
        for step in range(200):
            learner.progress.step = step
            learner.loss(given)
        mixed[cutmix] = count
    assert mixed[0.0] == 0 and mixed[1.0] == 200 and abs(mixed[0.3] - 60) < 25
