"""How a run ends: by the signal of a closed terminal, in the middle of its folder's removal, by two failures."""

from __future__ import annotations

import os
import shutil
import signal

import pytest
from toys import Acting, Rehearse, exit_code, forked, small_run

from cil.engine.process import stop_signals
from cil.engine.status import status_kept
from cil.errors import TrainingError
from cil.testing.compare import demand_same
from cil.tracking import Record


def _at(monkeypatch, act):
    """Call ``act`` before the first step of the second experience."""
    monkeypatch.setattr(
        Acting, "act", staticmethod(lambda experience, step: act() if (experience, step) == (1, 0) else None)
    )


@pytest.mark.parametrize("boundary", ["inline", "process"])
def test_a_terminal_that_is_closed_interrupts_a_run_that_goes_on_later(tmp_path, monkeypatch, boundary):
    parent = os.getpid()

    def hang_up():
        os.kill(os.getppid() if os.getppid() not in (parent, 1) else os.getpid(), signal.SIGHUP)

    with monkeypatch.context() as patch:
        _at(patch, hang_up)
        child = forked(small_run(Acting, tmp_path / "run", keep="all", boundary=boundary).execute)
        assert exit_code(child) == 130
    assert Record.load(tmp_path / "run").status == "interrupted"
    again, straight = (small_run(Acting, tmp_path / name, keep="all") for name in ("run", "straight"))
    demand_same("straight and hung up", straight, straight.execute(), again, again.execute())


@pytest.fixture(autouse=True)
def a_terminal():
    """As under a terminal, also where the tests run under ``nohup``."""
    old = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, old)


def test_under_nohup_the_signal_is_left_ignored():
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in stop_signals()
    finally:
        signal.signal(signal.SIGHUP, old)
    assert signal.SIGHUP in stop_signals()


def test_a_run_whose_folder_is_removed_fails_and_leaves_no_folder(tmp_path, monkeypatch):
    _at(monkeypatch, lambda: shutil.rmtree(tmp_path / "run"))
    with pytest.raises(TrainingError, match="was removed or replaced while this run was writing to it"):
        small_run(Acting, tmp_path / "run").execute()
    assert not (tmp_path / "run").exists()


def test_a_later_failure_does_not_hide_the_first(tmp_path, caplog):
    record = Record.open(tmp_path, {"kind": "of_no_package"})

    def finish(status):
        raise OSError("the dashboard is gone")

    with pytest.raises(ValueError, match="the first"), status_kept(record, "cpu", "batch", finish):
        raise ValueError("the first")
    assert "the dashboard is gone" in caplog.text
    assert Record.load(tmp_path).error.startswith("ValueError: the first (")


def test_a_full_disk_at_the_end_does_not_hide_why_it_ended(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    record = Record.open(tmp_path, {"kind": "of_no_package"})
    with pytest.raises(ValueError, match="the first"), status_kept(record, "cpu", "batch", lambda status: None):
        monkeypatch.setattr("cil.tracking.storage.os.fsync", full)
        raise ValueError("the first")


def test_what_killed_writes_left_is_cleaned_in_all_folders_of_a_run(tmp_path):
    run = small_run(Rehearse, tmp_path)
    for folder in ("checkpoint", "snapshot", "arrays"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / ".cil-partial.12.experience-000.safetensors").write_text("part")
        (tmp_path / folder / ".notes.tmp").write_text("mine")
    run.checkpoints.folder.joinpath(".keep").touch()
    Record.open(tmp_path, run.identity).close()
    assert run.execute().status == "finished"
    assert not list(tmp_path.rglob(".cil-partial*"))
    assert all((tmp_path / folder / ".notes.tmp").read_text() == "mine" for folder in ("checkpoint", "snapshot"))
