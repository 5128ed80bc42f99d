"""Search as a phase: what is drawn, which trial stays, what is billed, resuming inside it, and budgets of compute."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle

import pytest
import torch.nn.functional as F
from torch import Tensor
from toys import Interrupt, Learner, factory, plain, small_run, small_stream

from cil.contract import Choice, Phase, Range, Search
from cil.data import Batch
from cil.engine.checkpoint import Checkpoints
from cil.engine.learning import StrategyWork
from cil.engine.recipe import cosine
from cil.errors import ConfigError, ContractError, TrainingError
from cil.memory import Budget
from cil.testing.compare import demand_same

STREAM = small_stream(2, train=8, validation=0.5)  # eight images to train on and eight to judge by, of two classes
FORWARD, STEP = 2 * 4 * 2, 2 * 4 * 2 * 2  # operations an image: a head of 4 x 2; forward, and gradients of its weights


class Searching(Learner):
    """Rates are searched over; ``seen`` notes each trial's settings and the weights that it began with."""

    trials, refit, rates = 3, False, (0.001, 1.0)
    uses_validation = True

    def phases(self, experience) -> Iterator[Phase | Search]:
        self.seen: list[tuple[float, bytes]] = []
        again = partial(self._phase, experience.train + experience.validation) if self.refit else None
        space = {"lr": Range(*self.rates, log=True)}
        trial = partial(self._phase, experience.train)
        yield Search("main", space, self.trials, trial, experience.validation, again)

    def _phase(self, data, settings) -> Phase:
        self.seen.append((settings["lr"], self.net.head.weight.detach().numpy().tobytes()))
        return Phase("main", data, self.loss, lr=settings["lr"])


def run_of(folder, kind=Searching, **options):
    given = {"stream": STREAM, "recipe": plain(log_every=1, snapshot_steps=1), "budget": Budget(), "keep": "all"}
    return small_run(kind, folder, **{**given, **options})


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    run = run_of(tmp_path_factory.mktemp("search"))
    return run, run.execute()


def trials_of(run, index=0):
    return Checkpoints(run.run_dir).facts(index)["search"]


# what is drawn ------------------------------------------------------------------------------------------------------


def test_a_logarithmic_range_is_uniform_in_the_exponent():
    values = Range(1e-4, 1e-1, log=True)
    assert [math.isclose(values.at(share), 10 ** (-4 + 3 * share)) for share in (0, 0.25, 1)] == [True] * 3
    assert Range(0, 0.3).at(0.5) == 0.15 and Choice([1, 10, 100]).at(0.99) == 100


def test_settings_depend_on_seed_and_place_alone(done, tmp_path):
    run, _ = done

    class Other(Searching):
        def loss(self, batch: Batch) -> Tensor:
            return 0.5 * F.cross_entropy(self.net(batch.images).logits, batch.slots)

    other = run_of(tmp_path, Other)
    other.execute()
    for index in range(2):
        rates = [trial["lr"] for trial in trials_of(run, index)]
        assert rates == [trial["lr"] for trial in trials_of(other, index)] and len(set(rates)) == 3
        assert all(0.001 <= rate <= 1 for rate in rates)
    assert [t["lr"] for t in trials_of(run, 0)] != [t["lr"] for t in trials_of(run, 1)]


# which one stays ----------------------------------------------------------------------------------------------------


def test_every_trial_starts_from_the_same_weights(tmp_path):
    found = []

    class Noting(Searching):
        def after_experience(self, experience) -> None:
            found.append(self.seen)

    run_of(tmp_path, Noting).execute()
    for seen in found:
        assert len(seen) == 3 and all(weights == seen[0][1] for _, weights in seen)


def test_the_trial_with_the_lowest_held_out_error_stays(done):
    run, _ = done
    trials = trials_of(run)
    errors = [trial["error"] for trial in trials]
    assert [trial.get("chosen", False) for trial in trials].index(True) == errors.index(min(errors))
    learner = run.work.learners.rebuilt(1, run.checkpoints.state(0))
    held = STREAM[0].validation
    wrong = (learner.predict(held.images).argmax(1) != held.slots).float().mean()
    assert float(100 * wrong) == pytest.approx(min(errors))


def test_a_refit_starts_anew_on_train_and_held_out_data(tmp_path):
    class Refitting(Searching):
        refit = True

    run = run_of(tmp_path, Refitting)
    record = run.execute()
    steps = Checkpoints(run.run_dir).facts(0)["steps"]
    assert steps == 3 * 2 + 4  # three trials on 8 images and once 16, in batches of four
    assert record.results["flops"]["training"][0] == STEP * 16


@pytest.mark.parametrize(("trials", "again", "copies"), [(1, False, 1), (1, True, 2), (3, False, 2)])
def test_copies_that_a_search_holds_are_training_memory(trials, again, copies, tmp_path):
    """Where trials start, and the best so far once there is one; told before training, and billed as told."""

    class Some(Searching):
        refit = again

    Some.trials = trials
    run = run_of(tmp_path, Some)
    results = run.execute().results
    training = results["ledger"][1]["totals"]["training"]
    size = sum(tensor.numel() * tensor.element_size() for tensor in run.checkpoints.state(1).tensors.values())
    assert training["temporary"] == copies * size > 0
    if not again:  # a toy's refit needs held-out images, and nobody has any before the run
        told = run.work.steps().at(1)
        assert told.kinds["temporary"] == copies * size and told.total == results["peak_training_bytes"]


def test_a_trial_that_diverges_does_not_stop_the_others(tmp_path):
    class Wild(Searching):
        def _phase(self, data, settings) -> Phase:
            phase = super()._phase(data, settings)
            if len(self.seen) == 2:
                return Phase("main", data, lambda batch: self.loss(batch) * math.inf)
            return phase

    run = run_of(tmp_path, Wild)
    assert run.execute().status == "finished"
    diverged = [trial.get("diverged", False) for trial in trials_of(run)]
    assert diverged == [False, True, False] and trials_of(run)[1]["error"] == 100


def test_where_every_trial_diverges_the_run_stops(tmp_path):
    class Hopeless(Searching):
        def loss(self, batch: Batch) -> Tensor:
            return super().loss(batch) * math.nan

    with pytest.raises(TrainingError, match="every trial of experience 0"):
        run_of(tmp_path, Hopeless).execute()


def test_a_trial_that_is_always_wrong_is_still_better_than_one_that_diverged(tmp_path, monkeypatch):
    class Wild(Searching):
        def _phase(self, data, settings) -> Phase:
            phase = super()._phase(data, settings)
            return replace(phase, loss=lambda batch: self.loss(batch) * math.nan) if len(self.seen) == 1 else phase

    monkeypatch.setattr(StrategyWork, "_error", lambda *given: 100.0)
    run = run_of(tmp_path, Wild)
    assert run.execute().status == "finished"
    assert [trial.get("chosen", False) for trial in trials_of(run)] == [False, True, False]
    assert all(bool(t.isfinite().all()) for t in run.checkpoints.state(0).tensors.values())


def test_what_is_searched_over_has_a_name_of_its_own(tmp_path):
    class Stepping(Searching):
        def phases(self, experience) -> Iterator[Phase | Search]:
            (search,) = super().phases(experience)
            yield replace(search, space={"steps": Choice([1, 2])})

    with pytest.raises(ContractError, match="searches over 'steps', a name that the record needs"):
        run_of(tmp_path, Stepping).execute()


def test_without_held_out_data_a_search_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"3 trials and no held-out data.*stream.validation"):
        run_of(tmp_path, stream=small_stream(2), kind=type("Bare", (Searching,), {"phases": _bare})).execute()


def test_held_out_images_are_handed_to_those_alone_that_say_so(tmp_path):
    class Trains(Learner):
        """Trains on images that are held out, too."""

        def phases(self, experience):
            more = experience.validation
            yield Phase("main", experience.train if more is None else experience.train + more, self.loss)

    class SaysSo(Trains):
        uses_validation = True

    runs = [run_of(tmp_path / kind.__name__, kind) for kind in (Trains, SaysSo)]
    flops = [run.execute().results["flops"]["training"] for run in runs]
    assert flops[1] == [2 * count for count in flops[0]]


def _bare(self, experience):
    self.seen = []
    yield Search("main", {"lr": Range(0.1, 0.2)}, 3, partial(self._phase, experience.train), experience.validation)


# what is billed -----------------------------------------------------------------------------------------------------


def test_all_trials_are_billed_and_validation_apart(done):
    """Eight images a trial; two outputs in the first experience, four in the second. Judging: forward on eight."""
    _, record = done
    flops = record.results["flops"]
    assert flops["training"] == [0, 0]
    assert flops["search"] == [3 * 8 * STEP, 3 * 8 * STEP + 3 * 8 * 2 * STEP]
    assert flops["validation"] == [3 * 8 * FORWARD, 3 * 8 * FORWARD + 3 * 8 * 2 * FORWARD]
    parts = [values[-1] for name, values in flops.items() if name != "total"]
    assert flops["total"] == sum(parts)
    assert sum(trial["flops"] for trial in trials_of(done[0])) == flops["search"][0]


def test_the_log_has_a_line_for_each_trial(done):
    lines = [line for line in done[1].lines() if line["kind"] == "trial"]
    assert [line["trial"] for line in lines] == [0, 1, 2] * 2
    assert [line["values"]["error"] for line in lines[:3]] == [trial["error"] for trial in trials_of(done[0])]


# resuming -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", range(12))
def test_resumed_at_any_step_it_ends_as_the_straight_run(done, line, tmp_path):
    straight, expected = done
    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path, loggers=[Interrupt(line)]).execute()
    run = run_of(tmp_path)
    record = run.execute()
    demand_same(f"straight and interrupted at step {line}", straight, expected, run, record)
    assert [trials_of(run, index) for index in range(2)] == [trials_of(straight, index) for index in range(2)]
    assert [line["values"] for line in record.lines()] == [line["values"] for line in expected.lines()]


@pytest.mark.parametrize("line", [0, 2, 4])
def test_resumed_between_two_trials_it_ends_as_the_straight_run(done, line, tmp_path):
    straight, expected = done
    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path, loggers=[Interrupt(line, ("trial",))]).execute()
    run = run_of(tmp_path)
    demand_same("straight and interrupted after a trial", straight, expected, run, run.execute())


def test_a_refit_is_resumed_too(tmp_path):
    class Refitting(Searching):
        refit = True

    straight = run_of(tmp_path / "straight", Refitting)
    expected = straight.execute()
    for line in (6, 8, 9):
        folder = tmp_path / str(line)
        with pytest.raises(KeyboardInterrupt):
            run_of(folder, Refitting, loggers=[Interrupt(line)]).execute()
        run = run_of(folder, Refitting)
        demand_same("straight and interrupted in a refit", straight, expected, run, run.execute())


# budgets of compute -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("updates", [1, 3, 4, 100])
def test_training_stops_after_so_many_updates(updates, tmp_path):
    record = small_run(Learner, tmp_path, budget=Budget(updates=updates)).execute()
    made = min(updates, 4)  # four steps an experience
    assert [spent["updates"] for spent in record.results["compute"]] == [{"available": updates, "spent": made}] * 3
    assert sum(line["kind"] == "step" for line in record.lines()) == 3 * made
    ended = [line["values"]["ended_early"] for line in record.lines() if line["kind"] == "boundary"]
    assert ended == [int(updates < 4)] * 3


def test_operations_are_overspent_by_less_than_a_step(tmp_path):
    """Steps on four images cost 4, 8 and 12 STEP, for two, four and six outputs; 10 are allowed."""
    record = small_run(Learner, tmp_path, budget=Budget(flops=10 * STEP)).execute()
    spent = [each["flops"]["spent"] for each in record.results["compute"]]
    assert spent == [12 * STEP, 16 * STEP, 12 * STEP]
    each = [4 * STEP * width for width in (1, 2, 3)]
    assert all(total - 10 * STEP < step for total, step in zip(spent, each, strict=True))


def test_trials_share_the_budget_of_an_experience(tmp_path):
    run = run_of(tmp_path, budget=Budget(updates=3))
    record = run.execute()
    assert [trial["steps"] for trial in trials_of(run)] == [2, 1]  # the third was not begun
    assert record.results["compute"][0] == {"updates": {"available": 3, "spent": 3}}


def test_a_trial_that_the_budget_cut_does_not_compete_with_whole_ones(tmp_path, monkeypatch):
    errors = cycle([90.0, 10.0])  # of the whole one, and of one with half of its steps
    monkeypatch.setattr(
        "cil.engine.learning.StrategyWork._error", lambda self, experience, learner, samples: next(errors)
    )
    run = run_of(tmp_path, budget=Budget(updates=3))
    run.execute()
    assert [(trial["steps"], trial["error"]) for trial in trials_of(run)] == [(2, 90.0), (1, 10.0)]
    assert ["chosen" in trial for trial in trials_of(run)] == [True, False]


def test_operations_stop_a_search_inside_a_trial(tmp_path):
    """The first trial and its judging leave one operation, so the second has one step of four images and is judged."""
    whole, judged = 8 * STEP, 8 * FORWARD
    run = run_of(tmp_path, budget=Budget(flops=whole + judged + 1))
    record = run.execute()
    assert [trial["steps"] for trial in trials_of(run)] == [2, 1]
    spent = record.results["compute"][0]["flops"]
    assert spent == {"available": whole + judged + 1, "spent": whole + judged + 4 * STEP + judged}
    given = {"budget": Budget(flops=whole + judged + 1)}
    for line in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            run_of(tmp_path / str(line), loggers=[Interrupt(line)], **given).execute()
        again = run_of(tmp_path / str(line), **given)
        demand_same("straight and interrupted under a budget", run, record, again, again.execute())


def test_a_refit_is_made_only_where_there_is_room_for_it(tmp_path):
    class Refitting(Searching):
        refit, trials = True, 2

    for updates, steps in ((4, 4), (5, 4), (6, 6), (100, 8)):
        run = run_of(tmp_path / str(updates), Refitting, budget=Budget(updates=updates))
        run.execute()
        assert Checkpoints(run.run_dir).facts(0)["steps"] == steps


def test_under_a_budget_a_resumed_run_ends_as_the_straight_one(tmp_path):
    given = {"budget": Budget(updates=3), "recipe": plain(log_every=1, snapshot_steps=1), "keep": "all"}
    straight = small_run(Learner, tmp_path / "straight", **given)
    expected = straight.execute()
    for line in range(9):
        folder = tmp_path / str(line)
        with pytest.raises(KeyboardInterrupt):
            small_run(Learner, folder, loggers=[Interrupt(line)], **given).execute()
        run = small_run(Learner, folder, **given)
        demand_same("straight and interrupted under a budget", straight, expected, run, run.execute())


@pytest.mark.parametrize("given", [{"flops": 0}, {"flops": -1.0}, {"updates": 0}, {"flops": float("inf")}])
def test_a_budget_of_compute_must_be_positive(given):
    with pytest.raises(
        ConfigError, match=r"must be a (positive number, for each experience|whole number of 1 or more, or null)"
    ):
        Budget(**given)


def test_steps_of_a_phase_are_in_place_of_epochs():
    recipe = plain(epochs=7)
    phase = Phase("main", STREAM[0].train, lambda batch: batch.images.sum(), steps=5)
    own = recipe.of(phase, 0)
    assert (own.epochs, own.max_steps) == (3, 5)  # two batches of four an epoch
    assert plain(max_steps=4).of(phase, 0).max_steps == 4


class Counted(Learner):
    """A phase of five steps: two epochs and a half."""

    def phases(self, experience) -> Iterator[Phase]:
        yield Phase("main", experience.train, lambda batch: F.cross_entropy(self.net(batch.images).logits, batch.slots),
                    lr=1.0, steps=5)  # fmt: skip


def test_a_schedule_counts_the_steps_of_a_phase_that_says_them_interrupted_or_not(tmp_path):
    given = {"recipe": plain(log_every=1, snapshot_steps=1, scheduler=cosine)}
    straight = run_of(tmp_path / "straight", Counted, **given)
    expected = straight.execute()
    rates = [line["values"]["lr"] for line in expected.lines() if line["kind"] == "step" and line["experience"] == 0]
    by_hand = [(1 + math.cos(math.pi * step / 5)) / 2 for step in range(5)]
    assert rates == pytest.approx(by_hand)
    epochs = [line["values"]["lr"] for line in expected.lines() if line["kind"] == "epoch" and line["experience"] == 0]
    assert epochs == pytest.approx([by_hand[step] for step in (1, 3, 4)])  # two steps each, and one
    for stop in range(5):
        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            run_of(folder, Counted, loggers=[Interrupt(stop)], **given).execute()
        run = run_of(folder, Counted, **given)
        record = run.execute()
        demand_same(f"straight and interrupted at step {stop}", straight, expected, run, record)
        assert [*record.lines()] == [*expected.lines()]


def test_networks_of_the_toys_are_what_these_numbers_are_for():
    net = factory()()
    net.grow(2)
    assert net.head.weight.shape == (2, 4)
