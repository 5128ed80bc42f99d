"""A finished run is audited: an experience redone from its stored state has the same bits, or it is found out."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cil.engine.audit import Redoing, candidates, chosen
from cil.engine.checkpoint import Checkpoints
from cil.errors import ConfigError, ResumeError
from cil.strategies.finetune import Finetune
from cil.strategies.replay import Replay
from cil.testing.shifts import toy_adaptation, toy_shifts
from cil.testing.toy import toy_run, toy_stream, toy_tasks
from cil.tracking import Record
from cil.tracking.audits import Audit, read_audits, write_audit

PAST: list = []


class UsesThePastLate(Replay):
    """Keeps images where no state is, and learns from them from the third experience on."""

    def training_set(self, experience):
        data = super().training_set(experience)
        PAST.append(experience.train)
        for past in PAST[:-1] if experience.index >= 2 else ():
            data = data + past
        return data


class NeedsThePast(Finetune):
    """The same, and fails without it."""

    def after_experience(self, experience):
        PAST.append(experience.train)
        assert len(PAST) > experience.index


@pytest.fixture
def clean():
    """Empties what a fresh process has not; given to a test it says when."""
    PAST.clear()
    yield PAST.clear
    PAST.clear()


def redo(run, index, folder, **changes):
    """Audit an experience of a run that was executed."""
    return Redoing(Record.load(run.run_dir), replace(run, **changes)).redo(index, folder)


def test_memory_outside_the_state_that_is_used_late_is_found(tmp_path, clean):
    run = toy_run(UsesThePastLate, toy_stream(), tmp_path / "run", keep="all")
    run.execute()
    audits = []
    for index in range(3):
        clean()
        audits.append(redo(run, index, tmp_path / f"again-{index}"))
    assert [audit.verdict for audit in audits] == ["equal", "equal", "differs"]
    assert audits[0].compared == ("state", "answers", "facts")
    assert audits[2].key.startswith("state: ") and audits[2].refutes


def test_an_error_without_the_past_is_a_finding(tmp_path, clean):
    run = toy_run(NeedsThePast, toy_stream(), tmp_path / "run", keep="all")
    run.execute()
    clean()
    found = redo(run, 2, tmp_path / "again")
    assert found.refutes and found.key.startswith("raises AssertionError")


@pytest.mark.parametrize("name, stream", [("replay", toy_stream()), ("task_replay", toy_tasks())])
def test_by_default_the_first_experience_and_the_last_answers_can_be_audited(name, stream, tmp_path):
    run = toy_run(name, stream, tmp_path / "run")
    run.execute()
    last = len(stream) - 1
    assert candidates(Checkpoints(run.run_dir)) == [0, last]
    assert chosen(Record.load(run.run_dir)) in (0, last)
    first, answers = (redo(run, index, tmp_path / str(index)) for index in (0, last))
    assert (first.verdict, first.compared) == ("equal", ("answers", "facts"))
    assert (answers.verdict, answers.compared) == ("equal", ("answers",))
    with pytest.raises(ConfigError, match=r"experience 1 cannot be redone: .* checkpoint.keep=all"):
        redo(run, 1, tmp_path / "1")


def test_an_adapter_is_deployed_and_meets_a_segment_once_more(tmp_path):
    run = toy_adaptation("cotta", toy_shifts(), tmp_path / "run", keep="all")
    run.execute()
    for index in (0, len(run.work.stream)):  # before the last segment the adapter is put back to its deployed state
        found = redo(run, index, tmp_path / str(index))
        assert found.verdict == "equal" and "state" in found.compared, found


def test_what_is_redone_elsewhere_is_named(tmp_path):
    run = toy_run("finetune", toy_stream(), tmp_path / "run")
    run.execute()
    other = replace(run, identity={**run.identity, "versions": {"torch": "9"}})
    assert redo(other, 0, tmp_path / "again").elsewhere["versions"] == [None, {"torch": "9"}]
    with pytest.raises(ConfigError, match="another run: seed was 0 and is now 1"):
        Redoing(Record.load(run.run_dir), replace(run, identity={**run.identity, "seed": 1}))


def test_a_run_that_has_not_finished_is_not_audited(tmp_path):
    record = Record.open(tmp_path, {"kind": "classes"})
    record.close()
    with pytest.raises(ConfigError, match="running"):
        chosen(record)


def test_audits_of_another_run_and_damaged_ones_are_not_read_and_named(tmp_path, caplog):
    audit = Audit("a run", 1, ("state",), "equal")
    write_audit(tmp_path, audit)
    write_audit(tmp_path, replace(audit, experience=0))
    assert [one.experience for one in read_audits(tmp_path, "a run")] == [0, 1]
    assert read_audits(tmp_path, "another run") == []
    assert caplog.messages == [f"{tmp_path}/audits.json has audits of another run, which are not shown"]
    whole = (tmp_path / "audits.json").read_text()
    changed = whole.replace('"equal"', '"differs"', 1)
    for text in (changed, whole[:-9], "", "{", "[]", '{"audits": [{"run": "a run"}, 3]}', '{"audits": 3}'):
        (tmp_path / "audits.json").write_text(text)
        caplog.clear()
        assert read_audits(tmp_path, "a run") == []
        assert caplog.messages == [
            f"{tmp_path}/audits.json is damaged, so no audit of this run is shown; audit it again"
        ]


def test_a_metric_of_a_package_that_came_later_is_no_finding_and_a_forged_one_is(tmp_path, monkeypatch):
    run = toy_run("finetune", toy_stream(), tmp_path / "run", keep="all")
    run.execute()
    monkeypatch.setattr("cil.kinds.classes.results.own_metrics", lambda matrix: {"mine": 1.0})
    assert redo(run, 0, tmp_path / "again").verdict == "equal"
    path = tmp_path / "run/record.json"
    content = json.loads(path.read_text())
    del content["sha256"]  # as who edits it by hand does
    content["results"]["metrics"] = {"mine": 2.0, "of a package that is gone": 3.0}
    path.write_text(json.dumps(content))
    assert redo(run, 0, tmp_path / "once-more").key == "record: metrics.mine is 2.0, and what was counted gives 1.0"


def test_results_that_the_counts_do_not_give_are_found_and_missing_counts_are_named(tmp_path):
    run = toy_run("finetune", toy_stream(), tmp_path / "run", keep="all")
    run.execute()
    path = tmp_path / "run/record.json"
    content = json.loads(path.read_text())
    del content["sha256"]  # as who edits it by hand does
    content["results"]["accuracy_curve"] = [100.0] * 3
    path.write_text(json.dumps(content))
    found = redo(run, 0, tmp_path / "again")
    assert found.verdict == "differs" and found.key.startswith("record: accuracy_curve.")
    for index in (1, 2):
        gone = tmp_path / f"run/checkpoint/evaluation-{index:03d}.safetensors"
        kept = gone.read_bytes()
        gone.unlink()
        with pytest.raises(ResumeError, match=f"{gone.name} is missing"):
            redo(run, 0, tmp_path / f"again-{index}")
        gone.write_bytes(kept)
