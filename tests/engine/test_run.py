"""A run: how it ends, how it goes on, what it refuses, and what its record says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import SHAPE, Acting, Interrupt, Learner, Rehearse, plain, small_run, small_stream

from cil.api import plan
from cil.engine.lifecycle import as_structured
from cil.engine.recipe import Recipe
from cil.engine.runtime import Runtime
from cil.errors import BudgetExceeded, ConfigError, ContractError, ResumeError, StateError, TrainingError
from cil.memory import Budget, State
from cil.testing import toy_run, toy_stream
from cil.testing.compare import demand_same
from cil.tracking import Record

# a linear network on four features: 4 * 2 weights and 2 biases of four bytes after experience 0, thrice that at the end
FIXED = [40, 80, 120]
ITEM = 1 * 2 * 2 + 1  # bytes of an exemplar: its pixels and its label


def _found(folder: Path) -> Record:
    """The record as it lies on the disk."""
    return Record.load(folder)


def _act(monkeypatch, act) -> None:
    monkeypatch.setattr(Acting, "act", staticmethod(act))


def _stop_at(monkeypatch, place, error) -> None:
    def act(experience, step):
        if (experience, step) == place:
            raise error

    _act(monkeypatch, act)


# how it ends --------------------------------------------------------------------------------------------------------


def test_a_run_is_running_until_it_has_finished(tmp_path, monkeypatch):
    seen = set()
    _act(monkeypatch, lambda experience, step: seen.add((_found(tmp_path).status, _found(tmp_path).error)))
    record = small_run(Acting, tmp_path).execute()
    assert seen == {("running", None)}
    assert (record.status, record.error) == ("finished", None)
    assert (_found(tmp_path).status, _found(tmp_path).error) == ("finished", None)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "ValueError: two lines"),
        (ContractError("the rule"), "the rule"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to"), "no memory left on cpu (CUDA out of memory.); lower"),
    ],
)
def test_a_run_that_fails_says_why_in_one_line(tmp_path, monkeypatch, error, line):
    expected = TrainingError if isinstance(error, torch.OutOfMemoryError) else type(error)
    with monkeypatch.context() as patch:
        _stop_at(patch, (1, 1), error)
        with pytest.raises(expected):
            small_run(Acting, tmp_path).execute()
    found = _found(tmp_path)
    assert found.status == "failed"
    assert found.error.startswith(line)
    assert "\n" not in found.error
    assert len(found.results["accuracy_curve"]) == 1  # what was computed is there
    assert small_run(Acting, tmp_path).execute().status == "finished"
    assert _found(tmp_path).error is None


def test_a_loss_that_is_no_number_fails_the_run_with_its_place(tmp_path):
    class Diverges(Learner):
        def loss(self, batch):
            bad = self.old_classes == 2 and self.progress.step == 3
            return super().loss(batch) * (math.nan if bad else 1.0)

    with pytest.raises(TrainingError, match="the loss is nan in experience 1, phase 'main', epoch 0, step 3;"):
        small_run(Diverges, tmp_path, recipe=plain()).execute()
    assert _found(tmp_path).status == "failed"
    assert _found(tmp_path).error.startswith("the loss is nan in experience 1, phase 'main', epoch 0, step 3;")


def test_a_finished_run_does_nothing_when_it_is_started_again(tmp_path, monkeypatch):
    first = small_run(Acting, tmp_path).execute()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.suffix}
    _stop_at(monkeypatch, (0, 0), AssertionError("it trains"))
    again = small_run(Acting, tmp_path).execute()
    assert again.status == "finished"
    assert again.results == _found(tmp_path).results == first.results
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.suffix} == before


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 2}, "seed was 1 and is now 2"),
        ({"config": {"trainer": {"epochs": 3}}}, "config.trainer.epochs was 2 and is now 3"),
        ({"precision": "bf16"}, 'precision was "fp32" and is now "bf16"'),
    ],
)
def test_another_run_is_refused_with_the_key_that_differs(tmp_path, changes, says):
    identity = {"seed": 1, "config": {"trainer": {"epochs": 2}}}
    small_run(Learner, tmp_path, identity=identity).execute()
    before = (tmp_path / "record.json").read_bytes()
    with pytest.raises(ResumeError) as refused:
        small_run(Learner, tmp_path, identity=identity | changes).execute()
    assert str(refused.value) == f"run_dir={tmp_path} belongs to another run: {says}; choose another run_dir"
    assert (tmp_path / "record.json").read_bytes() == before


@pytest.mark.parametrize("place", [(0, 0), (0, 3), (1, 0), (2, 1)])
def test_an_interrupted_run_says_so_and_ends_as_the_straight_one(tmp_path, monkeypatch, place):
    straight = small_run(Acting, tmp_path / "straight", keep="all")
    expected = straight.execute()
    with monkeypatch.context() as patch:
        _stop_at(patch, place, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            small_run(Acting, tmp_path / "other", keep="all").execute()
    assert (_found(tmp_path / "other").status, _found(tmp_path / "other").error) == ("interrupted", None)
    run = small_run(Acting, tmp_path / "other", keep="all")
    demand_same(f"interrupted at {place}", straight, expected, run, run.execute())
    assert [*_found(tmp_path / "other").lines()] == [*expected.lines()]


@pytest.mark.parametrize("kind", ["step", "epoch", "boundary"])
@pytest.mark.parametrize("line", [0, 1])
def test_no_line_is_doubled_after_a_resume(tmp_path, kind, line):
    recipe = plain(log_every=1, snapshot_steps=3)
    expected = small_run(Rehearse, tmp_path / "straight", recipe=recipe).execute()
    for logger in (Interrupt(line, [kind]), Interrupt(4)):  # interrupted twice
        with pytest.raises(KeyboardInterrupt):
            small_run(Rehearse, tmp_path / "other", recipe=recipe, loggers=[logger]).execute()
    record = small_run(Rehearse, tmp_path / "other", recipe=recipe).execute()
    assert [*record.lines()] == [*expected.lines()]


def test_a_snapshot_is_made_every_so_many_minutes(tmp_path, monkeypatch):
    """Minutes pass quickly here: ten between two looks at the clock."""
    times = iter(range(0, 10**9, 600))
    monkeypatch.setattr("cil.engine.fit.time.monotonic", lambda: next(times))
    trained = []

    def act(experience, step):
        trained.append((experience, step))
        if (experience, step) == (1, 2) and len(trained) < 8:
            raise KeyboardInterrupt

    _act(monkeypatch, act)
    recipe = plain(log_every=1, snapshot_minutes=5)
    with pytest.raises(KeyboardInterrupt):
        small_run(Acting, tmp_path, recipe=recipe).execute()
    before = len(trained)
    small_run(Acting, tmp_path, recipe=recipe).execute()
    assert trained[before] == (1, 2)  # nothing is trained again


@pytest.mark.parametrize(("settings", "again"), [({"snapshot_steps": 2}, (1, 2)), ({"snapshot_minutes": None}, (1, 0))])
def test_snapshots_bound_what_is_trained_again(tmp_path, monkeypatch, settings, again):
    trained = []

    def act(experience, step):
        trained.append((experience, step))
        if (experience, step) == (1, 3) and len(trained) < 9:
            raise KeyboardInterrupt

    _act(monkeypatch, act)
    with pytest.raises(KeyboardInterrupt):
        small_run(Acting, tmp_path, recipe=plain(**settings)).execute()
    before = len(trained)
    small_run(Acting, tmp_path, recipe=plain(**settings)).execute()
    assert trained[before] == again


# budgets ------------------------------------------------------------------------------------------------------------


class Hoards(Rehearse):
    """Keeps all that it meets, whatever the budget says, and does not tell the dry run."""

    def exemplar_plan(self, slots, counts):
        return {}

    def after_experience(self, experience):
        for slot in experience.new_slots:
            self.memory.add(slot, experience.train.of_class(slot))


class Notes(Learner):
    """Keeps a text that grows in training, so that nobody can know before."""

    def __init__(self, make_net, budget):
        super().__init__(make_net, budget)
        self.keep("text", "")

    def after_experience(self, experience):
        self.text = "x" * 100 * (experience.index + 1)


def test_exemplars_fill_a_budget_of_bytes_to_the_last_whole_one(tmp_path):
    limit = FIXED[-1] + 6 * ITEM + 4  # one byte less than a seventh exemplar needs
    record = small_run(Rehearse, tmp_path, budget=Budget(limits=[limit])).execute()
    assert record.results["exemplars"] == [16, 12, 6]  # all images at first; then 14 // 4 * 4 = 12, then 6 // 6 * 6
    totals = [ledger["totals"]["exact"]["total"] for ledger in record.results["ledger"]]
    assert totals == [FIXED[0] + 16 * ITEM, FIXED[1] + 12 * ITEM, FIXED[2] + 6 * ITEM]
    assert all(total <= limit for total in totals)
    assert record.results["over_budget"] == [None, None, None]


def test_what_cannot_fit_is_refused_before_training(tmp_path, monkeypatch):
    _stop_at(monkeypatch, (0, 0), AssertionError("it trains"))
    with pytest.raises(BudgetExceeded) as refused:
        small_run(Acting, tmp_path, budget=Budget(limits=[100])).execute()
    told = (
        "Acting will carry 120 bytes (exact) without a single exemplar after experience 2, budget.limit is 100: "
        "parameters 120; raise budget.limit, take a smaller model, or set budget.enforce=report"
    )
    assert str(refused.value) == told
    found = _found(tmp_path)
    assert (found.status, found.error) == ("over_budget", told)
    assert [bill["fixed"]["exact"] for bill in found.results["bills"]] == FIXED
    assert [bill["exemplars"] for bill in found.results["bills"]] == [12, 4, 0]  # 60 // 5, and 20 // 5
    assert [bill["total"]["exact"] for bill in found.results["bills"]] == [100, 100, 120]


NOTES = len('{"text":""}')  # as metadata are written; 100 letters more after each experience


@pytest.mark.parametrize("boundary", ["inline", "process"])
def test_what_only_training_shows_is_refused_then_and_the_ledger_stays(tmp_path, boundary):
    with pytest.raises(BudgetExceeded) as refused:
        small_run(Notes, tmp_path, budget=Budget(limits=[280]), boundary=boundary).execute()
    assert str(refused.value) == (
        f"Notes carries {80 + NOTES + 200} bytes (exact), budget.limit is 280 after experience 1: "
        f"other {NOTES + 200}, parameters 80; raise budget.limit or budget.exemplars, or set budget.enforce=report"
    )
    found = _found(tmp_path)
    assert (found.status, found.error) == ("over_budget", str(refused.value))
    totals = [ledger["totals"]["exact"]["total"] for ledger in found.results["ledger"]]
    assert totals == [40 + NOTES + 100, 80 + NOTES + 200]
    assert len(found.results["accuracy_curve"]) == 1


def test_a_budget_that_is_only_reported_stops_nothing(tmp_path):
    record = small_run(Notes, tmp_path, budget=Budget(limits=[280], enforce="report")).execute()
    assert record.status == "finished"
    over = [
        f"carries {fixed + NOTES + 100 * (k + 1)} bytes (exact), budget.limit is 280" for k, fixed in enumerate(FIXED)
    ]
    assert record.results["over_budget"] == [None, *over[1:]]


def test_more_exemplars_than_are_allowed_are_refused(tmp_path):
    with pytest.raises(BudgetExceeded, match=r"Hoards carries 16 exemplars, budget\.exemplars is 6 after experience 0"):
        small_run(Hoards, tmp_path).execute()


def test_shrinking_drops_what_was_chosen_last(tmp_path):
    stream = small_stream()
    run = small_run(Hoards, tmp_path, stream, budget=Budget(exemplars=6, enforce="shrink"), keep="all")
    record = run.execute()
    assert record.status == "finished"
    assert record.results["exemplars"] == [6, 4, 6]  # 3 of each of two classes, 1 of each of four, 1 of each of six
    held = run.checkpoints.state(0).tensors["memory.images"]
    chosen = [stream[0].train.of_class(slot).pixels[:3] for slot in (0, 1)]
    assert torch.equal(held, torch.cat(chosen))
    later = run.checkpoints.state(1).tensors["memory.images"]
    assert torch.equal(later[:2], held[[0, 3]])


def test_shrinking_fits_bytes_too(tmp_path):
    limit = FIXED[-1] + 13 * ITEM
    record = small_run(Hoards, tmp_path, budget=Budget(limits=[limit], enforce="shrink")).execute()
    assert record.results["exemplars"] == [16, 20, 12]
    assert all(ledger["totals"]["exact"]["total"] <= limit for ledger in record.results["ledger"])


def test_what_is_too_large_without_exemplars_cannot_be_shrunk(tmp_path):
    with pytest.raises(BudgetExceeded, match=r"Notes carries .* after experience 1"):
        small_run(Notes, tmp_path, budget=Budget(limits=[280], enforce="shrink")).execute()


def test_a_bound_is_billed_and_not_held_to_the_budget(tmp_path):
    class All(Hoards):
        bound = True

    run = small_run(All, tmp_path, budget=Budget(limits=[100]))
    record = run.execute()
    assert record.status == "finished"
    assert record.results["exemplars"] == [16, 32, 48]
    assert record.results["ledger"][2]["totals"]["exact"]["total"] == 120 + 48 * ITEM
    assert None not in record.results["over_budget"]


def test_exemplars_may_be_counted_from_the_size_at_the_end(tmp_path):
    limit = FIXED[-1] + 12 * ITEM
    record = small_run(Rehearse, tmp_path, budget=Budget(limits=[limit], reserve="final")).execute()
    assert record.results["exemplars"] == [12, 12, 12]
    assert [bill["exemplars"] for bill in record.results["bills"]] == [12, 12, 12]


def test_a_strategy_that_cannot_be_grown_without_data_is_told_so(tmp_path):
    class Looks(Learner):
        def grow(self, signature):
            super().grow(signature)
            self.net.head.weight.sum().item()

    with pytest.raises(ConfigError, match=r"Looks\.grow fails without data at experience 0: "):
        small_run(Looks, tmp_path).execute()
    assert not list(tmp_path.iterdir())  # what is refused before training leaves nothing


# what may be carried ------------------------------------------------------------------------------------------------


def test_a_tensor_that_grow_did_not_make_is_refused(tmp_path):
    class Smuggles(Learner):
        def after_experience(self, experience):
            self.keep("extra", torch.ones(3), kind="statistics")

    with pytest.raises(StateError) as refused:
        small_run(Smuggles, tmp_path).execute()
    assert str(refused.value) == (
        "Smuggles: the state and the structure after grow differ in extra; allocate in __init__ or grow, at its "
        "final size, all that is carried"
    )
    assert _found(tmp_path).status == "failed"


def test_names_of_a_state_are_not_a_way_around_the_ledger(tmp_path):
    run = small_run(Rehearse, tmp_path)
    run.execute()
    state, learner = run.checkpoints.state(2), run.work.learners.rebuilt(3, None)
    as_structured(state, learner)
    message = torch.zeros(0)
    for tensors in (
        {**state.tensors, "net.head.a message": message},
        {**state.tensors, "memory.another": message},
        {name: tensor for name, tensor in state.tensors.items() if name != "net.head.bias"},
    ):
        with pytest.raises(StateError, match="the state and the structure after grow differ in"):
            as_structured(State(tensors, state.kinds, state.meta, state.references, state.survey), learner)


def test_kinds_and_the_survey_charge_are_those_of_the_structure(tmp_path):
    run = small_run(Rehearse, tmp_path)
    run.execute()
    state, learner = run.checkpoints.state(2), run.work.learners.rebuilt(3, None)
    told = State(state.tensors, {"net.head.weight": "other"}, state.meta, (), {"parameters": 12345})
    given = as_structured(told, learner)
    assert given.kinds["net.head.weight"] == "parameters"
    assert given.survey == learner.state().survey


def test_structure_may_depend_on_the_budget_of_its_boundary(tmp_path):
    class Spends(Learner):
        """Keeps a float for each hundred bytes that are allowed after an experience."""

        def grow(self, signature):
            super().grow(signature)
            self.keep(f"part{signature.index}", torch.zeros(self.budget.limit // 100), kind="statistics")

    budget = Budget(limits=[300, 400, 500])
    record = small_run(Spends, tmp_path, budget=budget).execute()
    kinds = [ledger["totals"]["exact"]["statistics"] for ledger in record.results["ledger"]]
    assert kinds == [4 * 3, 4 * (3 + 4), 4 * (3 + 4 + 5)]
    assert [bill["by_kind"]["statistics"] for bill in record.results["bills"]] == kinds


# the record ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Record:
    return small_run(Rehearse, tmp_path_factory.mktemp("finished"), recipe=plain(epochs=2, log_every=2)).execute()


def _is_percent(value) -> bool:
    return isinstance(value, float) and 0 <= value <= 100


def test_the_record_has_every_result_of_the_design(finished):
    results = _found(finished.directory).results
    assert results.keys() == {
        "accuracy_matrix", "accuracy_matrix_task_aware", "accuracy_curve", "average_incremental_accuracy",
        "last_accuracy", "average_accuracy", "forgetting", "backward_transfer", "forward_transfer", "class_counts",
        "ledger", "exemplars", "given_up", "over_budget", "flops", "seconds", "peak_training_bytes",
        "peak_parameters", "bills", "losses", "looks", "answer", "answers", "averages", "task_identification_curve",
    }  # fmt: skip
    for name in ("accuracy_matrix", "accuracy_matrix_task_aware"):
        matrix = results[name]
        assert [len(row) for row in matrix] == [3, 3, 3]
        for i, row in enumerate(matrix):
            assert all(_is_percent(value) for value in row[: i + 1])
            assert row[i + 1 :] == [None] * (2 - i)
    assert len(results["accuracy_curve"]) == 3
    assert all(_is_percent(value) for value in results["accuracy_curve"])
    for name in ("average_incremental_accuracy", "last_accuracy", "average_accuracy"):
        assert _is_percent(results[name])
    assert isinstance(results["forgetting"], float)
    assert isinstance(results["backward_transfer"], float)
    assert results["forward_transfer"] is None
    assert results["class_counts"] == [4] * 6
    assert len(results["losses"]) == 3 and all(loss > 0 for loss in results["losses"])
    assert results["exemplars"] == [6, 4, 6]
    assert results["over_budget"] == [None] * 3


def test_the_ledger_of_the_record_adds_up(finished):
    for index, ledger in enumerate(finished.results["ledger"]):
        assert ledger.keys() == {"entries", "totals", "public", "beside"}
        fields = {"name", "kind", "lifetime", "source", "bytes", "numel", "dtype"}
        assert all(entry.keys() == fields for entry in ledger["entries"])
        for lifetime, totals in (("carried", ledger["totals"]["exact"]), ("training", ledger["totals"]["training"])):
            entries = [entry for entry in ledger["entries"] if entry["lifetime"] == lifetime]
            assert totals["total"] == sum(entry["bytes"] for entry in entries)
            assert sum(size for kind, size in totals.items() if kind != "total") == totals["total"]
        held = finished.results["exemplars"][index]
        assert ledger["totals"]["exact"] == {
            "parameters": FIXED[index], "exemplars": 4 * held, "labels": held, "total": FIXED[index] + ITEM * held
        }  # fmt: skip
        assert ledger["totals"]["survey"] == {"exemplars": 4 * held, "total": 4 * held}  # a backbone of no parameters
        assert ledger["public"] == 0
        assert ledger["totals"]["training"]["gradients"] == FIXED[index]
    peaks = [sum(ledger["totals"][part]["total"] for part in ("exact", "training")) for ledger in
             finished.results["ledger"]]  # fmt: skip
    assert finished.results["peak_training_bytes"] == max(peaks)


def test_bills_say_before_training_what_the_ledger_says_after(finished):
    for index, bill in enumerate(finished.results["bills"]):
        assert bill["experience"] == index
        assert bill["exemplars"] == finished.results["exemplars"][index]
        assert bill["total"]["exact"] == finished.results["ledger"][index]["totals"]["exact"]["total"]
        assert bill["total"]["survey"] == finished.results["ledger"][index]["totals"]["survey"]["total"]
        assert bill["fixed"]["exact"] == FIXED[index]


def test_operations_and_seconds_of_the_record(finished):
    flops, seconds = finished.results["flops"], finished.results["seconds"]
    # 16 images, later 16 and the exemplars, twice; 4 features, 2, 4, 6 outputs: forward and the weights' gradient
    each = [2 * 16 * 32, 2 * (16 + 6) * 64, 2 * (16 + 4) * 96]
    assert flops["training"] == np.cumsum(each).tolist()
    assert flops["evaluation"] == np.cumsum([(8 + 6) * 16, (16 + 4) * 32, (24 + 6) * 48]).tolist()  # and exemplars
    assert flops["consolidation"] == [0, 0, 0]  # random exemplars ask no network
    assert flops["total"] == flops["training"][-1] + flops["evaluation"][-1]
    parts = ("train", "evaluate", "consolidate")
    assert all(len(seconds[part]) == 3 and min(seconds[part]) >= 0 for part in parts)
    assert seconds["total"] == pytest.approx(sum(sum(seconds[part]) for part in parts))


def test_work_before_and_after_the_phases_is_billed(tmp_path):
    class Looking(Rehearse):
        def before_experience(self, experience):
            torch.ones(5, 7) @ torch.ones(7, 3)  # 210 operations

        def prepare(self, experience):
            torch.ones(2, 3) @ torch.ones(3, 4)  # 48

        def after_experience(self, experience):
            super().after_experience(experience)
            torch.ones(1, 2) @ torch.ones(2, 1)  # 4

    plain = small_run(Rehearse, tmp_path / "plain").execute().results["flops"]
    flops = small_run(Looking, tmp_path / "looking").execute().results["flops"]
    assert flops["consolidation"] == [262, 524, 786]
    assert flops["training"] == plain["training"]


def test_the_confusion_over_time_holds_what_the_accuracies_say(finished):
    confusion = finished.arrays()["confusion"]
    assert confusion.shape == (3, 6, 6)
    assert confusion.dtype == np.int64
    for index, counts in enumerate(confusion):
        assert counts.sum() == 8 * (index + 1)
        assert finished.results["accuracy_curve"][index] == pytest.approx(100 * counts.trace() / counts.sum())
        own = counts[:2, :2].trace() if index == 0 else counts[:2].diagonal().sum()
        assert finished.results["accuracy_matrix"][index][0] == pytest.approx(100 * own / 8)


def test_boundary_lines_say_what_the_record_says(finished):
    lines = [line for line in finished.lines() if line["kind"] == "boundary"]
    assert [line["experience"] for line in lines] == [0, 1, 2]
    assert [line["values"]["accuracy"] for line in lines] == finished.results["accuracy_curve"]
    assert [line["values"]["exemplars"] for line in lines] == [6, 4, 6]
    assert "forgetting" not in lines[0]["values"]  # undefined after one experience
    assert lines[2]["values"]["forgetting"] == finished.results["forgetting"]
    last = finished.results["ledger"][2]["totals"]["exact"]["total"]
    assert lines[2]["values"]["carried_bytes"] == last


def test_one_experience_leaves_undefined_what_needs_two(tmp_path):
    results = small_run(Learner, tmp_path, small_stream(1)).execute().results
    assert (results["forgetting"], results["backward_transfer"], results["forward_transfer"]) == (None, None, None)
    text = (tmp_path / "record.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["results"]["forgetting"] is None


# device and precision -----------------------------------------------------------------------------------------------


def test_bf16_runs_on_the_cpu_and_resumes_to_the_same_bits(tmp_path):
    recipe = Recipe(epochs=1, batch_size=8, log_every=1, snapshot_steps=1)

    def run(name, precision="bf16", **options):
        runtime = Runtime("cpu", precision)
        return toy_run("icarl", toy_stream(), tmp_path / name, recipe=recipe, keep="all", runtime=runtime, **options)

    straight = run("straight")
    expected = straight.execute()
    with pytest.raises(KeyboardInterrupt):
        run("other", loggers=[Interrupt(5)]).execute()
    resumed = run("other")
    demand_same("in bf16", straight, expected, resumed, resumed.execute())
    exact = run("exact", "fp32")
    exact.execute()
    name = "net.head.weight"
    assert not torch.equal(exact.checkpoints.state(2).tensors[name], straight.checkpoints.state(2).tensors[name])


def test_threads_device_and_precision_stand_in_the_identity(tmp_path):
    run = plan(Learner, small_stream(), "smallconv", Budget(exemplars=6), run_dir=tmp_path, device="cpu", threads=1)
    assert {name: run.identity[name] for name in ("threads", "device", "precision", "seed")} == {
        "threads": 1, "device": "cpu", "precision": "fp32", "seed": 0
    }  # fmt: skip
    other = plan(Learner, small_stream(), "smallconv", Budget(exemplars=6), run_dir=tmp_path, device="cpu",
                 precision="bf16", threads=1)  # fmt: skip
    assert other.identity["precision"] == "bf16"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"boundary": "thread"}, "boundary is 'thread'; known: inline, process"),
        ({"keep": "first"}, "checkpoint.keep is 'first'; "),
    ],
)
def test_a_run_that_cannot_be_is_refused(tmp_path, options, says):
    with pytest.raises(ConfigError) as refused:
        small_run(Learner, tmp_path, **options)
    assert str(refused.value).startswith(says)
    assert not list(tmp_path.iterdir())


def test_a_boundary_of_processes_needs_one_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(ConfigError, match=r"boundary=process forks, so it needs device=cpu and trainer\.threads=1"):
        small_run(Learner, tmp_path, boundary="process")


def test_images_have_the_shape_that_these_sums_are_about():
    assert small_stream().image_shape == SHAPE == (1, 2, 2)


def test_another_rhythm_of_snapshots_is_the_same_run():
    stream, model = toy_stream(), "smallconv"
    runs = [plan("finetune", stream, model, recipe=Recipe(snapshot_minutes=m)) for m in (5.0, 0.5, None)]
    assert len({run.run_dir for run in runs}) == 1
    other = plan("finetune", stream, model, recipe=Recipe(max_steps=3))
    assert other.run_dir != runs[0].run_dir
