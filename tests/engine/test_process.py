"""Processes and signals: what a child does stays in it, and a run that is told to stop loses nothing."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
from toys import Acting, exit_code, forked, plain, small_run

from cil.engine.process import Stopped, in_child
from cil.errors import BudgetExceeded, TrainingError
from cil.testing.compare import demand_same
from cil.tracking import Record

HELD: list[int] = []


def _raises(error):
    def work():
        raise error

    return work


# work in a child ----------------------------------------------------------------------------------------------------


def test_what_a_child_does_to_memory_is_gone():
    HELD.clear()
    in_child(lambda: HELD.append(os.getpid()))
    assert not HELD


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (BudgetExceeded("too much"), BudgetExceeded, "too much"),
        (TrainingError("é" * 20_000), TrainingError, "é" * 5_000),  # what a pipe holds
        (ValueError("odd"), TrainingError, "ValueError: odd (.*test_process.py:[0-9]+, in work)"),
        (SystemExit(3), TrainingError, "sys.exit(3) was called, which ends the whole command (.*, in work)"),
    ],
)
def test_the_error_of_a_child_is_raised_by_type_and_text(error, kind, says):
    with pytest.raises(kind) as raised:
        in_child(_raises(error))
    assert type(raised.value) is kind
    pattern = says.replace("(", "\\(").replace(")", "\\)")
    assert re.fullmatch(pattern, str(raised.value))


@pytest.mark.parametrize("stop", [Stopped, KeyboardInterrupt])
def test_a_child_that_was_stopped_stops_its_parent(stop):
    with pytest.raises(stop):
        in_child(_raises(stop()))


def test_a_child_that_is_killed_is_missed():
    with pytest.raises(TrainingError, match="the process of an experience ended with -9"):
        in_child(lambda: os.kill(os.getpid(), signal.SIGKILL))


def _while_a_child_sleeps(folder: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    in_child(lambda: (folder.joinpath("child").write_text(str(os.getpid())), time.sleep(60)))


def test_a_signal_that_would_end_this_process_ends_it_also_while_a_child_works(tmp_path):
    """``cil compare`` that times steps, told to stop: no word of it may be lost, and no further child begin."""
    process = forked(lambda: _while_a_child_sleeps(tmp_path))
    while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
        time.sleep(0.01)
    os.kill(process, signal.SIGTERM)
    assert exit_code(process) == -signal.SIGTERM


def test_signal_handlers_and_open_files_are_as_before():
    def before():
        return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], signal.pthread_sigmask(
            signal.SIG_BLOCK, []
        )

    handlers, files = before(), len([*Path("/dev/fd").iterdir()])
    in_child(lambda: None)
    with pytest.raises(TrainingError):
        in_child(_raises(ValueError()))
    assert before() == handlers
    assert len([*Path("/dev/fd").iterdir()]) == files


# runs ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run that nothing happens to."""
    run = _run(tmp_path_factory.mktemp("straight"))
    return run, run.execute()


def _run(folder: Path, **options):
    recipe = plain(log_every=2, snapshot_steps=3)
    return small_run(Acting, folder, recipe=recipe, keep="all", **options)


def _at(monkeypatch, place, *acts):
    """Do things before the loss of one step; give signals the time to arrive."""

    def act(experience, step):
        if (experience, step) == place:
            for each in acts:
                each()
                time.sleep(0.2)

    monkeypatch.setattr(Acting, "act", staticmethod(act))


def _ends_as(straight, folder, **options):
    """Started again, the run ends where the straight one did, in bits and in lines."""
    run = _run(folder, **options)
    record = run.execute()
    assert record.status == "finished"
    demand_same("straight and interrupted", *straight, run, record)
    assert [*record.lines()] == [*straight[1].lines()]


def _signal_self(number=signal.SIGINT):
    return lambda: os.kill(os.getpid(), number)


def test_a_process_for_each_experience_gives_the_same(straight, tmp_path):
    _ends_as(straight, tmp_path, boundary="process")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_the_step_saves_and_says_so(straight, tmp_path, monkeypatch, number):
    with monkeypatch.context() as patch:
        _at(patch, (1, 2), _signal_self(number))
        assert exit_code(forked(lambda: _run(tmp_path).execute())) == 130
    assert Record.load(tmp_path).status == "interrupted"
    content = _run(tmp_path).checkpoints.snapshot_content("now")
    assert (content["experience"], content["step"]) == (1, 3)  # the third step of experience 1 is done and saved
    _ends_as(straight, tmp_path)


def test_a_second_ctrl_c_stops_at_once(straight, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        _at(patch, (1, 1), _signal_self(), _signal_self(), lambda: (tmp_path / "went on").touch())
        assert exit_code(forked(lambda: _run(tmp_path).execute())) == 130
    assert not (tmp_path / "went on").exists()
    assert Record.load(tmp_path).status == "interrupted"
    assert not _run(tmp_path).checkpoints.snapshot_names()  # the step was not finished
    _ends_as(straight, tmp_path)


def test_ctrl_c_in_the_last_step_of_all_lets_the_run_finish_or_resume(straight, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        _at(patch, (2, 4), _signal_self())
        assert exit_code(forked(lambda: _run(tmp_path).execute())) == 130
    _ends_as(straight, tmp_path)


@pytest.mark.parametrize("index", [1, 2])
def test_ctrl_c_between_training_and_evaluation_leaves_the_evaluation_for_later(tmp_path, index):
    told = []

    class Late(Acting):
        def after_experience(self, experience):
            super().after_experience(experience)
            if experience.index == index and not told:
                told.append(index)
                os.kill(os.getpid(), signal.SIGINT)

    run = small_run(Late, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run.execute()
    assert Record.load(tmp_path).status == "interrupted"
    assert run.checkpoints.done() == index + 1  # what was trained is committed
    assert len(Record.load(tmp_path).results["accuracy_curve"]) == index
    assert not run.checkpoints.snapshot_names()  # nothing was begun after it
    assert small_run(Late, tmp_path).execute().status == "finished"


@pytest.mark.parametrize(
    "tell",
    [
        lambda: os.kill(os.getppid(), signal.SIGTERM),  # to the parent alone, as a cluster does
        lambda: os.kill(os.getppid(), signal.SIGINT),
        lambda: os.killpg(os.getpgrp(), signal.SIGINT),  # to all, as a terminal does
    ],
    ids=["sigterm", "sigint", "terminal"],
)
def test_a_signal_reaches_the_process_of_an_experience(straight, tmp_path, monkeypatch, tell):
    with monkeypatch.context() as patch:
        _at(patch, (1, 1), tell)
        assert exit_code(forked(lambda: _run(tmp_path, boundary="process").execute())) == 130
    assert Record.load(tmp_path).status == "interrupted"
    content = _run(tmp_path).checkpoints.snapshot_content("now")
    assert (content["experience"], content["step"]) == (1, 2)
    _ends_as(straight, tmp_path, boundary="process")


def test_the_process_of_an_experience_ends_with_its_parent(straight, tmp_path, monkeypatch):
    """Else it would write beside the run that is started next."""
    with monkeypatch.context() as patch:
        _at(patch, (1, 1), lambda: os.kill(os.getppid(), signal.SIGKILL), lambda: (tmp_path / "went on").touch())
        assert exit_code(forked(lambda: _run(tmp_path, boundary="process").execute())) == -signal.SIGKILL
    time.sleep(0.5)
    assert not (tmp_path / "went on").exists()
    assert Record.load(tmp_path).status == "running"
    _ends_as(straight, tmp_path)
