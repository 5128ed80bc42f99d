"""Joint: a fresh network on all data of the classes seen, charged for all of it."""

import pytest
import torch
from small_runs import ONE_STEP, PIXELS, bare, bits, differing, observed, regrouped

from cil.engine.fit import Fit
from cil.engine.keys import reseed
from cil.errors import BudgetExceeded
from cil.memory import Budget
from cil.strategies import Phase
from cil.testing import toy_run, toy_stream
from cil.testing.toy import toy_factory


@pytest.mark.parametrize("stream", ["toy", "uneven"])
@pytest.mark.parametrize("index", [1, 2])
def test_after_each_experience_it_is_a_fresh_network_trained_on_the_union(learn, stream, index):
    done = learn("joint", stream)
    run, data = done.run, done.stream
    learner = bare("joint")
    factory = toy_factory(data, seed=run.work.seed)
    factory.backbone()  # the network of the first experience
    fresh = factory()
    reseed(run.work.seed, "prepare", index)
    fresh.grow(data.signatures[index].num_classes)
    learner.net = fresh
    union = data[index].train
    for past in range(index):
        union = union + data[past].train
    phase = Phase("main", union, learner.loss)
    Fit(learner, phase, 0, run.work.recipe, index, run.work.seed, data.augment, run.work.runtime).run()
    assert differing({f"net.{name}": value for name, value in bits(fresh).items()}, done.net(index)) == []


def test_how_the_past_was_split_and_what_was_learned_then_does_not_matter(learn):
    even, uneven = (
        learn("joint", regrouped(*groups)) for groups in (((0, 1), (2, 3), (4, 5)), ((0,), (1, 2, 3), (4, 5)))
    )
    assert differing(dict(even.state(2).tensors), dict(uneven.state(2).tensors)) == []
    assert differing(even.net(1), uneven.net(1))

    def forget(when, learner, experience):
        if when == "before":
            with torch.no_grad():
                for tensor in learner.net.state_dict().values():
                    tensor.fill_(0.5)

    assert differing(learn("joint").net(2), learn(observed("joint", forget)).net(2)) == []


def test_it_trains_on_everything_seen(learn):
    seen = []

    def see(when, learner, experience):
        if when == "prepared":
            seen.append(learner.training_set(experience))

    done = learn(observed("joint", see), "uneven")
    for index, data in enumerate(seen):
        for slot in range(done.stream.signatures[index].num_classes):
            arrived = done.stream.experience_of_slot[slot]
            assert torch.equal(data.of_class(slot).pixels, done.stream[arrived].train.of_class(slot).pixels)


@pytest.mark.parametrize("stream", ["toy", "uneven"])
@pytest.mark.parametrize("budget", [Budget(exemplars=3), Budget(limits=[1000]), Budget(exemplars=0, enforce="shrink")])
def test_it_is_charged_for_all_past_data_and_a_budget_only_reports(learn, stream, budget):
    done = learn("joint", stream, budget=budget, recipe=ONE_STEP)
    seen = 0
    assert done.record.status == "finished"
    for index, signature in enumerate(done.stream.signatures):
        seen += sum(signature.counts.values())
        assert done.record.results["exemplars"][index] == seen
        ledger = done.ledger(index)
        assert (ledger["exemplars"], ledger["labels"]) == (PIXELS * seen, seen)
        assert done.record.results["over_budget"][index] is not None


def test_others_are_stopped_by_such_a_budget_and_the_callers_budget_stays_as_it_was(tmp_path):
    budget = Budget(limits=[1000])
    toy_run("joint", toy_stream(), tmp_path / "joint", budget=budget, recipe=ONE_STEP).execute()
    assert budget == Budget(limits=[1000])
    with pytest.raises(BudgetExceeded, match="without a single exemplar"):
        toy_run("replay", toy_stream(), tmp_path / "replay", budget=budget, recipe=ONE_STEP).execute()


def test_it_trains_by_the_recipe_of_the_first_experience_every_time(tmp_path):
    """A fresh network wants the length of a first training."""
    from cil.engine.recipe import Recipe
    from cil.testing import toy_run, toy_stream

    recipe = Recipe(epochs=1, batch_size=50, first={"epochs": 3})
    record = toy_run("joint", toy_stream(), tmp_path, recipe=recipe).execute()
    epochs = [line["experience"] for line in record.lines() if line["kind"] == "epoch"]
    assert [epochs.count(index) for index in range(3)] == [3, 3, 3]
