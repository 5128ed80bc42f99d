"""Evaluation inside experiences: what it measures, and that nothing else changes by it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from toys import Interrupt, Learner, Rehearse, TwoStages, plain, small_run, small_stream

from cil import metrics
from cil.cli.build import build
from cil.cli.compose import compose
from cil.engine.anytime import Anytime, anytime_results
from cil.engine.checkpoint import Checkpoints
from cil.engine.recipe import Recipe
from cil.errors import ConfigError, ContractError
from cil.memory import Budget
from cil.streams import Gaussian, IBlurry, blurry, rotated_domains
from cil.testing import toy_run, toy_stream, toy_tasks
from cil.testing.compare import demand_same, difference
from cil.testing.toy import toy_dataset, toy_factory
from cil.tracking import Record


def mixed():
    return blurry(toy_dataset(), experiences=3, arrival=IBlurry(50, 40))


# it changes nothing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["finetune", "derpp", "icarl", "bic"])
def test_training_is_the_same_bit_by_bit(name, tmp_path):
    plain = toy_run(name, mixed(), tmp_path / "plain", keep="all")
    watched = toy_run(name, mixed(), tmp_path / "watched", keep="all", anytime=Anytime(1))
    one, other = plain.execute().results, watched.execute().results
    for index in range(3):
        assert not difference(plain.checkpoints.state(index), watched.checkpoints.state(index))
    assert other["anytime"]["updates"] and "anytime" not in one
    assert one["accuracy_matrix"] == other["accuracy_matrix"] and one["ledger"] == other["ledger"]
    assert one["flops"]["training"] == other["flops"]["training"]
    more = other["flops"]["evaluation"][-1] - one["flops"]["evaluation"][-1]
    assert more == other["anytime"]["flops"] > 0


def test_experiences_in_processes_of_their_own_have_the_same_series(tmp_path):
    given = {"keep": "all", "anytime": Anytime(3, images=3), "stream": small_stream(2)}
    one, other = (
        small_run(Rehearse, tmp_path / "a", **given),
        small_run(Rehearse, tmp_path / "b", boundary="process", **given),
    )
    demand_same("in processes", one, one.execute(), other, other.execute())


@pytest.mark.parametrize(
    ("kind", "pace"), [(Rehearse, {}), (TwoStages, {}), (Rehearse, {"updates_per_batch": 2, "accumulate": 3})]
)
def test_an_interrupted_run_ends_with_the_same_series(kind, pace, tmp_path):
    recipe = plain(log_every=1, snapshot_steps=2, **pace)
    given = {"keep": "all", "anytime": Anytime(2, images=3), "stream": small_stream(2), "recipe": recipe}
    straight = small_run(kind, tmp_path / "straight", **given)
    expected = straight.execute()
    steps = sum(line["kind"] == "step" for line in expected.lines())
    assert len(expected.results["anytime"]["updates"]) > 3
    for stop in range(steps):
        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            small_run(kind, folder, loggers=[Interrupt(stop)], **given).execute()
        run = small_run(kind, folder, **given)
        demand_same(f"interrupted at step {stop}", straight, expected, run, run.execute())


# what is measured -----------------------------------------------------------------------------------------------------


def test_at_the_end_of_an_experience_it_says_what_the_boundary_says(tmp_path):
    results = toy_run("finetune", mixed(), tmp_path, anytime=Anytime(4)).execute().results
    found, R = results["anytime"], results["accuracy_matrix"]
    last = {experience: row for row, experience in enumerate(found["experiences"])}
    for experience, row in last.items():
        assert found["accuracy_by_experience"][row] == R[experience][: experience + 1]
        assert found["accuracy"][row] == pytest.approx(results["accuracy_curve"][experience])


def test_evaluations_are_every_so_many_steps_and_at_the_end_of_each_experience(tmp_path):
    found = toy_run("finetune", toy_stream(), tmp_path, anytime=Anytime(4)).execute().results["anytime"]
    assert found["updates"] == [4, 6, 8, 12, 16, 18]  # three batches an epoch, two epochs
    assert found["samples"] == [8 * u for u in found["updates"]]
    assert found["experiences"] == [0, 0, 1, 1, 2, 2]


def test_evaluations_are_every_so_many_samples(tmp_path):
    run = toy_run("finetune", toy_stream(), tmp_path, anytime=Anytime(20, unit="samples"))
    found = run.execute().results["anytime"]
    assert found["samples"] == [24, 40, 48, 64, 80, 96, 104, 120, 144]  # at the first batch that passes 20, 40, ...


def test_batches_that_are_missed_count_as_arrived(tmp_path):
    recipe = Recipe(epochs=1, batch_size=4, complexity="5/2")
    found = toy_run("finetune", toy_stream(), tmp_path, recipe=recipe, anytime=Anytime(1)).execute().results["anytime"]
    assert found["samples"] == [start + at for start in (0, 24, 48) for at in (4, 16, 24)]


def test_only_classes_that_were_in_a_batch_are_asked_for_and_answered(tmp_path):
    stream = blurry(toy_dataset(), experiences=3, arrival=Gaussian(0))  # one class after the other
    recipe = Recipe(epochs=1, batch_size=12, updates_per_batch=1)
    results = toy_run("finetune", stream, tmp_path, recipe=recipe, anytime=Anytime(1)).execute().results
    found = results["anytime"]
    assert found["updates"] == [1, 2, 3, 4, 5, 6]
    assert found["accuracy"][0] == 100 and found["accuracy_by_experience"][0] == [100]  # one class: nothing to mistake
    counts = [row["count"] for fact in _facts(tmp_path, stream) for row in fact["anytime"]["rows"]]
    assert counts == [[8], [16], [16, 8], [16, 16], [16, 16, 8], [16, 16, 16]]


def _facts(folder, stream):
    checkpoints = Checkpoints(folder, run=Record.load(folder).run)
    return [checkpoints.facts(index) for index in range(len(stream))]


def test_images_are_answered_before_they_are_learned_by_what_was_learned_before(tmp_path):
    class Last(Learner):  # answers the class that it trained on last
        answer = 0

        def after_step(self, batch):
            self.answer = int(batch.slots[-1])

        def predict(self, images):
            return torch.nn.functional.one_hot(torch.tensor([self.answer] * len(images)), self.num_classes).float()

    stream = blurry(toy_dataset(), experiences=2, arrival=Gaussian(0))  # batches AAA BBB CCC, DDD EEE FFF
    for pace, batches in (({"updates_per_batch": 1}, 6 * 2), ({"complexity": 2}, 2 * 2)):  # the third A, the third C
        run = small_run(
            Last,
            tmp_path / str(batches),
            stream=stream,
            make_factory=partial(toy_factory, stream),
            recipe=plain(batch_size=4, **pace),
            anytime=Anytime(1),
        )
        assert run.execute().results["anytime"]["online_accuracy"] == pytest.approx(100 * 4 * batches / 72)


def test_where_a_budget_ends_training_the_stream_goes_on(tmp_path):
    """36 images an experience in batches of four, and three steps: what was learned by then answers until its end."""
    stream = blurry(toy_dataset(), experiences=2, arrival=Gaussian(0))
    run = small_run(
        Learner, tmp_path, stream=stream, make_factory=partial(toy_factory, stream), budget=Budget(updates=3),
        recipe=plain(batch_size=4, updates_per_batch=1), anytime=Anytime(1),
    )  # fmt: skip
    found = run.execute().results["anytime"]
    assert [run.checkpoints.facts(index)["anytime"]["online"][1] for index in range(2)] == [36, 36]
    assert found["samples"] == [4, 8, 12, 40, 44, 48]
    a, b, c, d, e, f = found["accuracy"]
    heights = ([4, 8, 12, 36, 40, 44, 48, 72], [a, b, c, c, d, e, f, f])
    assert found["a_auc"] == pytest.approx(metrics.area_over_samples(*heights))


def test_a_fixed_choice_of_test_images_of_each_experience(tmp_path):
    stream = toy_stream()
    toy_run("replay", stream, tmp_path, anytime=Anytime(3, images=5)).execute()
    for index, fact in enumerate(_facts(tmp_path, stream)):
        assert {tuple(row["count"]) for row in fact["anytime"]["rows"]} == {(5,) * (index + 1)}


def test_domains_so_far_are_evaluated(tmp_path):
    stream = rotated_domains(toy_dataset(), angles=[0, 90])
    found = toy_run("finetune", stream, tmp_path, anytime=Anytime(9)).execute().results["anytime"]
    assert [len(row) for row in found["accuracy_by_experience"]] == [1, 1, 2, 2]
    assert found["experiences"] == [0, 0, 1, 1] and None not in found["accuracy_by_experience"][-1]


# the numbers ----------------------------------------------------------------------------------------------------------


def facts_of(e0, e1, tested=10):
    """Two experiences of three updates: accuracies in tenths of a percent of the specification's example."""

    def row(update, *right):
        return {"update": update, "samples": 100 * update, "correct": [*right], "count": [tested] * len(right)}

    first = [row(u, a) for u, a in enumerate(e0[:3], 1)]
    second = [row(u, a, b) for u, (a, b) in enumerate(zip(e0[3:], e1, strict=True), 4)]
    held = {"online": [1, 4], "every": 1, "unit": "steps", "images": None, "seconds": 0.0, "flops": 7}
    return [{"steps": 3, "anytime": {**held, "rows": rows, "samples": rows[-1]["samples"]}} for rows in (first, second)]


def test_the_example_of_the_specification():
    found = anytime_results(facts_of([2, 6, 9, 3, 5, 7], [4, 6, 8]))
    assert (found["min_accuracy"], found["worst_case_accuracy"]) == (30, 55)
    assert found["average_anytime_accuracy"] == pytest.approx(55.8333, abs=1e-4)
    assert found["stability_gaps"] == [
        {"earlier": 0, "later": 1, "gap": 60, "recovery": 40, "recovery_updates": None}
    ] and found["stability_gap"] == 60  # fmt: skip
    assert found["accuracy"] == [20, 60, 90, 35, 55, 75] and found["a_auc"] == pytest.approx(sum(found["accuracy"]) / 6)
    assert found["windowed_forgetting"]["10"] == metrics.anytime(
        {0: (range(1, 7), [20, 60, 90, 30, 50, 70]), 1: ([4, 5, 6], [40, 60, 80])}, [3, 6]
    ).windowed_forgetting[10]  # fmt: skip
    assert found["flops"] == 14 and found["online_accuracy"] == 25


def test_what_is_undefined_is_none():
    facts = facts_of([2, 6, 9, 3, 5, 7], [4, 6, 8])
    facts[1]["steps"] = 0
    found = anytime_results(facts)
    assert found["a_auc"] is found["min_accuracy"] is found["stability_gap"] is None and found["stability_gaps"] == []
    assert found["accuracy"][-1] == 75


def test_area_over_samples_is_the_mean_where_they_are_equally_spaced():
    assert metrics.area_over_samples([5, 10, 15], [1.0, 2.0, 6.0]) == 3
    assert metrics.area_over_samples([10, 15, 20], [1.0, 2.0, 6.0]) == (1 * 10 + 2 * 5 + 6 * 5) / 20  # sums, no lines


# refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{"every": 0}, {"every": 1, "images": 0}, {"every": 1, "unit": "epochs"}])
def test_what_cannot_be_meant_is_refused(given):
    with pytest.raises(ConfigError, match="anytime"):
        Anytime(**given)


def test_a_kind_of_run_that_is_not_looked_into_refuses_it(tmp_path, monkeypatch):
    monkeypatch.setattr("cil.kinds.classes.work.ClassWork.looks_inside", False)
    with pytest.raises(ConfigError, match=r"anytime\.every is 1, and runs of kind classes are not evaluated inside"):
        toy_run("finetune", toy_stream(), tmp_path, anytime=Anytime(1)).execute()


def test_a_stream_that_tells_the_task_is_refused_before_training(tmp_path):
    with pytest.raises(ConfigError, match=r"anytime\.every is 1, and stream 'toy_tasks' tells the task"):
        toy_run("previous", toy_tasks(), tmp_path, anytime=Anytime(1)).execute()
    assert not (tmp_path / "record.json").exists()


def test_a_learner_without_an_answer_before_the_boundary_says_so_in_one_line(tmp_path):
    class Silent(Rehearse):
        def predict(self, images):
            if not len(self.memory):
                raise RuntimeError("no means\nyet")
            return super().predict(images)

    with pytest.raises(ContractError, match=r"^Silent cannot answer inside experience 0; set anytime\.every=null") as e:
        small_run(Silent, tmp_path, anytime=Anytime(1)).execute()
    assert "\n" not in str(e.value)


def test_scores_that_a_learner_has_not_yet_are_never_chosen(tmp_path):
    class Late(Rehearse):
        def predict(self, images):
            return super().predict(images)[:, :2]  # of the first experience alone

    run = small_run(Late, tmp_path, anytime=Anytime(2))
    with pytest.raises(ContractError, match="predict gave scores of shape"):  # at the boundary they are missed
        run.execute()
    rows = run.checkpoints.facts(1)["anytime"]["rows"]
    assert all(row["correct"][1] == 0 for row in rows) and any(row["correct"][0] for row in rows)


def test_the_command_line_sets_it(tmp_path):
    more = ["stream=blurry_digits", "strategy=er_ace", "trainer.epochs=1", "trainer.updates_per_batch=1/2"]
    more += ["anytime.every=100", "anytime.unit=samples", "anytime.images=20", "progress=false"]
    record = build(compose(more), root=tmp_path).execute()
    found = record.results["anytime"]
    assert (found["every"], found["unit"], found["images"]) == (100, "samples", 20)
    assert len(found["samples"]) >= 5 and found["a_auc"] is not None
    assert record.identity["config"]["anytime"] == {"every": 100, "unit": "samples", "images": 20}
    assert record.identity["config"]["trainer"]["updates_per_batch"] == "1/2"
