"""cil tune: settings are chosen without the test data, the cost stands beside the result, and it goes on."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from cil.cli import tune, tuning_protocols
from cil.cli.compose import compose
from cil.cli.names import choices
from cil.cli.pool import QueuedRun, RunEnd
from cil.cli.search_space import Study, read_ranges, space_hash
from cil.cli.tuning_protocols import protocol_of, replace_overrides
from cil.errors import ConfigError
from cil.streams import class_order
from cil.tracking import Record

DIGITS = ("stream=split_digits", "strategy=replay", "model=smallconv", "budget.exemplars=20", "trainer.batch_size=32")
SHORT = ("trainer.max_steps=2", "trainer.epochs=1", "stream.train_per_class=20", "progress=false", "jobs=1", "out=here")
SPACE = "tune.space={optimizer.lr:{log:[1e-3,1.0]}}"
FIELDS = ("protocol", "n_trials", "tuning_stream_id", "search_space_hash", "selection_metric", "tuning_cost")


def records(under: Path) -> list[Record]:
    return [Record.load(path.parent) for path in sorted(under.rglob("record.json"))]


def reported(under: Path) -> list[Record]:
    return [record for record in records(under) if record.identity.get("role") != "trial"]


# drawing ------------------------------------------------------------------------------------------------------------


def drawn(space: dict, many: int, sampler: str = "random", seed: int = 0) -> list[dict]:
    study, made = Study(read_ranges(space), sampler, seed), []
    for number in range(many):
        made.append(study.ask())
        study.tell(number, float(number % 3) if number % 4 else None)
    return made


LR, EPOCHS = {"optimizer.lr": {"log": [0.001, 1.0]}}, {"trainer.epochs": {"int": [1, 9]}}


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_the_same_seed_draws_the_same_trials(sampler):
    many = 14  # tpe draws at random for ten
    assert drawn(LR | EPOCHS, many, sampler) == drawn(LR | EPOCHS, many, sampler)
    assert drawn(LR | EPOCHS, many, sampler) != drawn(LR | EPOCHS, many, sampler, seed=1)
    assert drawn(LR | EPOCHS, many, sampler)[:5] == drawn(LR | EPOCHS, 5, sampler)  # more trials are added to the first


def test_a_further_key_moves_no_other_draw():
    alone, both = drawn(LR, 6), drawn(LR | EPOCHS, 6)
    assert [trial["optimizer.lr"] for trial in both] == [trial["optimizer.lr"] for trial in alone]


def test_draws_lie_in_their_range_and_are_rounded():
    space = (
        LR | EPOCHS | {"optimizer.momentum": {"uniform": [0.12345, 0.12346]}, "scheduler.milestones": [[1, 2], None]}
    )
    trials = drawn(space, 40)
    assert {trial["trainer.epochs"] for trial in trials} == set(range(1, 10))
    assert all(0.12345 <= trial["optimizer.momentum"] <= 0.12346 for trial in trials)
    assert {str(trial["scheduler.milestones"]) for trial in trials} == {"[1, 2]", "None"}
    rates = [trial["optimizer.lr"] for trial in trials]
    assert all(0.001 <= rate <= 1 and float(f"{rate:.4g}") == rate for rate in rates)
    assert 10 < sum(rate < 0.0316 for rate in rates) < 30  # half of a logarithmic range


def test_a_space_is_read_dotted_or_nested_and_its_hash_is_of_what_is_drawn():
    nested = {"optimizer": {"lr": {"log": [0.001, 1.0]}}, "trainer": {"epochs": {"int": [1, 9]}}}
    assert read_ranges(nested) == read_ranges(EPOCHS | LR)
    assert space_hash(read_ranges(nested)) == space_hash(read_ranges(LR | EPOCHS)) != space_hash(read_ranges(LR))


# protocols ----------------------------------------------------------------------------------------------------------


def plan(*overrides: str):
    return protocol_of(compose(["stream=split_digits", "strategy=replay", *overrides]))


def said(overrides: tuple[str, ...]) -> dict[str, str]:
    return dict(item.split("=", 1) for item in overrides)


def test_two_phases_share_no_class_whatever_the_seed():
    protocol, order = plan("stream.validation=0.0"), class_order(10)
    for seed, trial in enumerate(protocol.trials):
        asked = said(trial)
        assert set(json.loads(asked["stream.order"])[:5]) == set(order[:5])
        assert (asked["stream.classes"], asked["seed"], asked["stream.validation"]) == ("5", str(seed), "0.2")
    assert len({said(trial)["stream.order"] for trial in protocol.trials}) == 5
    assert json.loads(said(protocol.report)["stream.order"])[:5] == order[5:]


def test_a_stream_that_holds_data_out_keeps_its_share_and_caps_are_kept():
    protocol = plan("stream.validation=0.3", "stream.classes=6")
    assert "stream.validation" not in said(protocol.trials[0])
    assert said(protocol.trials[0])["stream.classes"] == said(protocol.report)["stream.classes"] == "3"
    order = class_order(10)
    assert json.loads(said(protocol.report)["stream.order"])[:3] == order[3:6]


def test_other_orders_are_of_the_same_classes_and_none_is_the_one_reported():
    protocol = plan("tune.stream=order")
    orders = [json.loads(said(trial)["stream.order"]) for trial in protocol.trials]
    assert all(sorted(order) == list(range(10)) and order != class_order(10) for order in orders)
    assert protocol.report == ()


def test_first_k_cuts_a_list_of_limits():
    protocol = plan("tune.protocol=first_k", "tune.k=2", "budget=bytes", "budget.at=each", "budget.limit=[5,6,7,8,9]",
                    "budget.reserve=now")  # fmt: skip
    assert protocol.first == 2 and said(protocol.trials[0])["budget.limit"] == "[5, 6]"


def test_another_stream_takes_its_place_with_its_own_orders():
    protocol = plan("tune.stream=split_glyphs", "tune.seeds=2")
    assert [said(trial)["stream"] for trial in protocol.trials] == ["split_glyphs"] * 2
    assert [said(trial)["stream.order_seed"] for trial in protocol.trials] == ["1993", "1994"]
    assert replace_overrides(["stream=split_digits", "seed=3"], protocol.trials[1])[0] == "stream=split_glyphs"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ((), "tune.space is None; give what is drawn"),
        (("tune.space={}",), "tune.space is {}; give what is drawn"),
        (("tune=lr_and_epochs", "tune.trials=0"), "tune.trials is 0; it must be a whole number of 1 or more"),
        (("tune.space={optimizer.lrr:[1,2]}",), "tune.space: unknown key optimizer.lrr; did you mean 'optimizer.lr'?"),
        (("tune.space={optimizer.lr:{lgo:{low:1}}}",), "tune.space.optimizer.lr.lgo is {'low': 1}"),
        (("tune.space={optimizer.lr:{log:[0,1]}}",), "give two numbers, low below high, above 0"),
        (("tune.space={trainer.epochs:{int:[1,2.5]}}",), "give two whole numbers"),
        (("tune.space={trainer.epochs:[0,2]}",), "tune.space: trainer.epochs is 0; it must be a whole number"),
        (("tune.space={stream.increment:[1,2]}",), "tune.space has stream.increment; it may have keys of strategy"),
        (("tune=lr_and_epochs", "stream.increment=5"), "two_phase has too few classes: half of the 10 classes is 5"),
        (("tune=lr_and_epochs", "tune.protocol=first_k", "tune.k=5"), "has 5 experiences, and tuning may see fewer"),
        (
            ("tune=lr_and_epochs", "tune.protocol=per_task"),
            "tune.protocol=per_task is no protocol of cil tune (two_phase, first_k, none)",
        ),
        (
            ("tune=lr_and_epochs", "tune.stream=split_digits", "tune.seeds=1"),
            "has 10 classes of stream=split_digits (0, 1, 2...)",
        ),
        (("tune=nothing",), "no tune 'nothing' (key tune); known: default"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line_before_anything_is_trained(cil, tmp_path, asked, says):
    found = cil("tune", *DIGITS[:2], *asked)
    assert found.code == 2 and says in found.line
    assert not records(tmp_path)


def test_a_kind_of_run_without_such_scores_is_not_tuned(cil, monkeypatch):
    monkeypatch.setattr("cil.kinds.classes.CLASSES.results", "cil.kinds.adaptation.record_types:AdaptationResults")
    said = cil("tune", *DIGITS[:2])
    assert said.code == 2
    assert "tune.metric is average_incremental_accuracy, which runs of kind classes do not have" in said.line


# the command --------------------------------------------------------------------------------------------------------


def test_trials_never_open_the_test_data(cil, tmp_path, monkeypatch):
    """The test data say so when they are opened: that happens in the runs that are reported, and in no trial."""
    streams = sys.modules["cil.streams.class_incremental"]
    real = streams._experience_data

    def shut(*parts):
        def opened():
            raise ConfigError("the test data were opened")

        return replace(real(*parts), test=opened)

    monkeypatch.setattr(streams, "_experience_data", shut)
    monkeypatch.setattr("cil.cli.build._streams", {})
    found = cil("tune", *DIGITS, *SHORT, SPACE, "tune.trials=2")
    trials = records(tmp_path / "here/trials")
    assert [trial.status for trial in trials] == ["finished"] * 2
    assert all(trial.results["class_counts"] == [4] * 5 for trial in trials)  # a fifth of twenty training images
    assert found.code == 1 and found.err.count("failed: the test data were opened") >= 2


def test_the_result_carries_how_it_was_tuned_and_goes_on_where_it_stood(cil, tmp_path):
    asked = ("tune", *DIGITS, *SHORT, SPACE, "tune.seeds=2")
    found = cil(*asked, "tune.trials=2")
    assert found.code == 0, found.err
    trials = records(tmp_path / "here/trials")
    (tuned,) = [record for record in reported(tmp_path) if "tuning" in record.identity]
    (untuned,) = [record for record in reported(tmp_path) if "tuning" not in record.identity]
    tuning = tuned.identity["tuning"]
    assert set(FIELDS) <= tuning.keys() and tuning["classes_disjoint"]
    assert (tuning["protocol"], tuning["n_trials"]) == ("two_phase", 2)
    assert tuning["tuning_cost"] == sum(trial.results["flops"]["total"] for trial in trials) > 0
    best = max(trials, key=lambda trial: trial.results["average_incremental_accuracy"])
    assert tuning["chosen"] == {"optimizer.lr": best.identity["config"]["optimizer"]["lr"]}
    assert tuned.identity["config"]["optimizer"]["lr"] == tuning["chosen"]["optimizer.lr"]
    assert untuned.identity["config"]["optimizer"]["lr"] == 0.1
    met = [set(record.identity["stream"]["classes"]) for record in (tuned, trials[0], trials[1])]
    assert not met[0] & met[1] and met[1] == met[2]

    report = json.loads((tmp_path / "here/tune.json").read_text())[0]
    assert report["cost_in_runs"] == pytest.approx(
        tuning["tuning_cost"] / sum(tuned.results["flops"][part][-1] for part in ("training", "consolidation"))
    )
    assert report["best_of"]["1"] == pytest.approx(sum(t["score"] for t in report["trials"]) / 2)
    assert report["held_out"]["tuned"]["last_accuracy"] == [tuned.results["last_accuracy"]]
    for words in (
        "chosen",
        "quartiles",
        "best of m",
        "times one run",
        "untuned",
        "two_phase, 2 trials",
        "tuning FLOPs",
    ):
        assert words in found.out

    # again: nothing is run; with more trials and another seed, only those
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")}
    assert cil(*asked, "tune.trials=2").out == found.out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")} == stamps
    assert cil(*asked, "tune.trials=3", "seed=1").code == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert len(records(tmp_path / "here/trials")) == 3
    assert len(reported(tmp_path)) == 4

    # nothing is chosen without a trial that finished and was damaged since
    record, before = best.directory / "record.json", set(tmp_path.rglob("record.json"))
    record.write_text(record.read_text().replace('"finished"', '"running"'))
    damaged = cil(*asked, "tune.trials=3", "seed=1")
    assert damaged.code == 2 and f"{best.directory.name}/record.json is damaged" in damaged.err.splitlines()[-1]
    assert set(tmp_path.rglob("record.json")) == before


def test_trials_are_left_out_of_tables_unless_asked_for(cil, tmp_path):
    cil("tune", *DIGITS, *SHORT, SPACE, "tune.trials=1", "tune.protocol=first_k")
    assert "tuned: lr=" in cil("report", "here").out
    assert "tuning_first1" not in cil("report", "here").out
    assert "tuning_first1" in cil("report", "here/trials").out
    (tuned,) = [record for record in reported(tmp_path) if "tuning" in record.identity]
    assert tuned.identity["stream"]["experiences"] == 5
    assert tuned.identity["stream"]["train_counts"] == [40] * 5  # all training images, from scratch


def test_untuned_it_is_the_run_of_cil_run(cil, tmp_path):
    assert cil("tune", *DIGITS, *SHORT, "tune.protocol=none").code == 0
    cil("run", *DIGITS, *SHORT[:-2], "run_dir=one")
    (none,) = reported(tmp_path / "here")
    assert none.identity == Record.load(tmp_path / "one").identity


def test_where_no_trial_finishes_the_first_reason_is_told(cil, tmp_path):
    found = cil("tune", *DIGITS, *SHORT, "tune.space={optimizer.lr:[1e6]}", "tune.trials=1", "tune.seeds=1")
    assert found.code == 2 and "no trial of 1 finished; the first says:" in found.err
    assert not reported(tmp_path)


@pytest.mark.parametrize("name", [name for name in choices("tune") if name != "default"])
def test_every_space_that_is_shipped_is_one(name):
    ranges = read_ranges(compose([f"tune={name}"]).config["tune"]["space"])
    for each in ranges:
        assert all(compose([each.override(value)]) for value in each.values)


def test_a_trial_that_is_killed_goes_on_once_before_anything_is_chosen(tmp_path, monkeypatch):
    begun: list[list[str]] = []

    def run_cells(cells, jobs, out, plan):
        begun.append([cell.varied["trial"] for cell in cells])
        statuses = {"1": "killed" if len(begun) == 1 else "finished", "2": "killed"}
        return [RunEnd(QueuedRun("", tmp_path, None), statuses.get(cell.varied["trial"], "finished")) for cell in cells]

    read: dict[int, str] = {}
    monkeypatch.setattr(tune, "run_cells", run_cells)
    monkeypatch.setattr(tune, "_read", lambda group, end, metric: read.update({group[0].number: end.status}))
    monkeypatch.setattr(tuning_protocols, "with_overrides", lambda job, overrides: job)
    protocol = SimpleNamespace(trials=[()], first=None)
    setting = SimpleNamespace(job=None, protocol=protocol, ranges=[], tune={"metric": "last_accuracy"})
    tune._run_trials(setting, [tune.Trial(number, 0, {"lr": number}) for number in range(3)], 1, tmp_path)
    assert begun == [["0", "1", "2"], ["1", "2"]]
    assert read == {0: "finished", 1: "finished", 2: "killed"}
