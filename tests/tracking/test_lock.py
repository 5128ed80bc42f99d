"""Whose the run directory is while it is written: its lock, and files that are not the run's."""

from __future__ import annotations

import errno
import logging
import os
import shutil

import pytest

from cil.errors import ConfigError, TrainingError
from cil.tracking import Record, replacing
from cil.tracking.storage import IDLE, PARTIAL, cannot_write, remove_partial

IDENTITY = {"kind": "of_no_package", "seed": 0}


def test_files_of_a_user_stay_and_what_a_killed_process_left_goes(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    own = [tmp_path / name for name in (".notes.tmp", ".record.json.12.tmp", "checkpoint/.mine.tmp")]
    for path in own:
        path.write_text("mine")
    left = tmp_path / f"{PARTIAL}12.record.json"
    left.write_text("{")
    Record.open(tmp_path, IDENTITY)
    assert all(path.read_text() == "mine" for path in own)
    assert not left.exists()


def test_where_others_may_be_writing_only_what_was_left_long_ago_goes(tmp_path):
    left, fresh = (tmp_path / f"{PARTIAL}{number}.index.html" for number in (12, 13))
    for path in (left, fresh):
        path.write_text("<p>")
    os.utime(left, (0, 0))
    remove_partial(tmp_path, IDLE)
    assert not left.exists() and fresh.exists()


def test_a_file_that_is_being_written_has_a_name_that_is_cleaned(tmp_path):
    with replacing(tmp_path / "a.json") as temporary:
        assert temporary.name.startswith(PARTIAL) and temporary.parent == tmp_path
        temporary.write_text("{}")


@pytest.mark.parametrize("again", [True, False], ids=["replaced", "removed"])
def test_a_run_whose_folder_is_taken_away_stops_in_one_line_and_writes_nothing(tmp_path, again):
    record = Record.open(tmp_path / "run", IDENTITY)
    record.append({"step": 1})
    shutil.rmtree(tmp_path / "run")
    if again:
        Record.open(tmp_path / "run", {**IDENTITY, "seed": 1})
    before = sorted(tmp_path.rglob("*"))
    for write in (record.save, record.mark, lambda: record.append({}), lambda: record.set_status("finished")):
        with pytest.raises(TrainingError, match="was removed or replaced while this run was writing to it") as stopped:
            write()
        assert "\n" not in str(stopped.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_log_that_is_taken_away_is_noticed(tmp_path):
    record = Record.open(tmp_path, IDENTITY)
    record.append({"step": 1})
    record.mark()
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(TrainingError, match=r"metrics\.jsonl was removed or replaced"):
        record.mark()


def test_a_lock_that_cannot_be_opened_is_one_line(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(ConfigError, match=r"\.lock cannot be opened \(Is a directory\); make it writable, or choose"):
        Record.open(tmp_path, IDENTITY)


def test_a_file_system_without_locks_is_said_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    def without(handle, operation):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", without)
    with caplog.at_level(logging.WARNING):
        record = Record.open(tmp_path, IDENTITY)
    (said,) = caplog.messages
    assert said.startswith(f"run_dir={tmp_path} is on a file system without locks: ") and "\n" not in said
    record.save()


@pytest.mark.parametrize(
    ("number", "advice"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False), (errno.EROFS, False)]
)
def test_room_is_asked_for_only_where_there_is_none(tmp_path, number, advice):
    from safetensors import SafetensorError

    for error in (
        OSError(number, "why"),
        SafetensorError(f"Error while serializing: I/O error: why (os error {number})"),
    ):
        said = cannot_write(tmp_path / "file", error)
        assert said.startswith(f"cannot write {tmp_path / 'file'}: ")
        assert ("make room" in said) == advice
