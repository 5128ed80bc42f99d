"""The run directory: what is written, what is refused, what survives a crash."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from cil.errors import ConfigError, ResumeError, TrainingError
from cil.tracking import Record, RecordError, identity_hash, without_secrets, write_json_atomic

IDENTITY = {
    "kind": "of_no_package",  # so that its results may be anything
    "config": {"strategy": {"name": "icarl", "temperature": 2.0}, "order": [3, 1, 2]},
    "strategy": "icarl",
    "seed": 0,
}


def test_a_new_record_says_what_runs_and_where_without_naming_the_host(tmp_path):
    Record.open(tmp_path / "run", IDENTITY)
    content = json.loads((tmp_path / "run" / "record.json").read_text())
    assert content["schema_version"] == 2
    assert content["status"] == "running"
    assert content["identity"] == IDENTITY
    assert content["results"] == {}
    assert set(content["environment"]) == {"started", "python", "torch", "platform", "cores"}


def test_opening_again_goes_on_with_the_same_results(tmp_path):
    first = Record.open(tmp_path, IDENTITY, {"cores": 2})
    first.update({"accuracy_curve": [90.0]})
    first.set_status("interrupted")
    first.close()
    again = Record.open(tmp_path, IDENTITY, {"cores": 8})
    assert (again.status, again.results, again.environment) == ("interrupted", {"accuracy_curve": [90.0]}, {"cores": 2})


def test_another_identity_is_refused_naming_the_first_key_with_both_values(tmp_path):
    Record.open(tmp_path, IDENTITY)
    other = {**IDENTITY, "config": {"strategy": {"name": "icarl", "temperature": 4.0}, "order": [3, 1, 2]}}
    with pytest.raises(ResumeError) as refused:
        Record.open(tmp_path, {**other, "seed": 1})
    assert "config.strategy.temperature was 2.0 and is now 4.0" in str(refused.value)
    assert "choose another run_dir" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"strategy": {"name": "icarl", "temperature": 2.0}, "order": [3, 2, 1]}}, "order.1 was 1"),
        ({"extra": 5}, "extra was absent and is now 5"),
    ],
)
def test_a_difference_in_a_list_or_an_absent_key_is_found(tmp_path, change, message):
    Record.open(tmp_path, IDENTITY)
    with pytest.raises(ResumeError, match=message):
        Record.open(tmp_path, {**IDENTITY, **change})


def test_tuples_paths_and_integer_keys_come_back_as_the_same_identity(tmp_path):
    identity = {"kind": "of_no_package", "order": (1, 2), "counts": {0: 5}, "file": tmp_path / "manifest.csv"}
    Record.open(tmp_path / "run", identity)
    assert Record.open(tmp_path / "run", identity).identity["counts"] == {"0": 5}


def test_numbers_that_are_not_finite_are_null(tmp_path):
    record = Record.open(tmp_path, IDENTITY)
    record.update({"forgetting": math.nan, "curve": np.array([1.0, np.inf]), "count": np.int64(3)})
    record.append({"loss": float("nan")})
    assert json.loads((tmp_path / "record.json").read_text())["results"] == {
        "forgetting": None,
        "curve": [1.0, None],
        "count": 3,
    }
    assert (tmp_path / "metrics.jsonl").read_text() == '{"loss":null}\n'


def test_what_has_no_json_form_is_refused_by_its_type(tmp_path):
    with pytest.raises(TypeError, match="a set has no place in a record"):
        Record.open(tmp_path, {"classes": {1, 2}})


def test_no_secret_is_ever_written(tmp_path):
    config = {
        "api_key": "s3cr3t-a",
        "hubToken": "s3cr3t-b",
        "nested": [{"password": "s3cr3t-c"}, {"client_secret_id": 31415}],
        "wandb": {"keys": ["s3cr3t-d"]},
    }
    Record.open(tmp_path, {"config": config})
    text = (tmp_path / "record.json").read_text()
    assert "s3cr3t" not in text and "31415" not in text


def test_hyper_parameters_that_sound_like_secrets_still_tell_runs_apart():
    numbers = {"prompt_tokens": 5, "key_weight": 0.1, "prompt_key_init": "uniform", "monkey": "m", "use_token": True}
    assert without_secrets(numbers) == numbers
    assert identity_hash({"embedding_key": "mean"}) != identity_hash({"embedding_key": "cls"})
    veiled = without_secrets({"embedding_key": "mean"})
    assert without_secrets(veiled) == veiled


def test_the_hash_of_an_identity_has_twelve_digits_and_ignores_the_order_of_keys():
    digits = identity_hash({"a": 1, "b": {"c": (1, 2)}})
    assert digits == identity_hash({"b": {"c": [1, 2]}, "a": 1})
    assert len(digits) == 12 and int(digits, 16) >= 0
    assert digits != identity_hash({"a": 1, "b": {"c": [2, 1]}})


@pytest.mark.parametrize("status", ["interrupted", "failed", "over_budget"])
def test_a_run_that_stopped_may_run_again_and_finish(tmp_path, status):
    record = Record.open(tmp_path, IDENTITY)
    record.set_status(status, error="why")
    assert Record.load(tmp_path).error == "why"
    record.set_status("running")
    record.set_status("finished")
    assert (Record.load(tmp_path).status, Record.load(tmp_path).error) == ("finished", None)


def test_a_finished_run_stays_finished(tmp_path):
    record = Record.open(tmp_path, IDENTITY)
    record.set_status("finished")
    with pytest.raises(RecordError, match="has finished and cannot become running"):
        record.set_status("running")


def test_an_unknown_status_names_the_nearest(tmp_path):
    with pytest.raises(RecordError, match="did you mean 'finished'"):
        Record.open(tmp_path, IDENTITY).set_status("finishd")


def test_no_line_is_doubled_when_a_run_resumes(tmp_path):
    record = Record.open(tmp_path, IDENTITY)
    record.append({"step": 1})
    offset = record.offset()
    assert offset == (tmp_path / "metrics.jsonl").stat().st_size
    record.append({"step": 2})
    record.close()

    resumed = Record.open(tmp_path, IDENTITY)
    resumed.truncate(offset)
    resumed.append({"step": 2})
    resumed.append({"step": 3})
    assert [line["step"] for line in resumed.lines()] == [1, 2, 3]


def test_a_line_that_a_crash_cut_short_is_neither_read_nor_glued_to_the_next(tmp_path):
    record = Record.open(tmp_path, IDENTITY)
    record.append({"step": 1})
    record.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "lo')
    assert [line["step"] for line in Record.load(tmp_path).lines()] == [1]
    resumed = Record.open(tmp_path, IDENTITY)
    resumed.append({"step": 2})
    assert [line["step"] for line in resumed.lines()] == [1, 2]


def test_lines_that_were_added_to_a_finished_run_are_not_read(tmp_path):
    with_lines = Record.open(tmp_path, IDENTITY)
    with_lines.append({"step": 1})
    with_lines.set_status("finished")
    with_lines.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 1}\n')
    assert list(Record.load(tmp_path).lines()) == [{"step": 1}]


def test_a_damaged_line_of_a_run_that_goes_on_is_named(tmp_path):
    Record.open(tmp_path, IDENTITY).close()
    for line in (b"{", b"3", b"\xff"):
        (tmp_path / "metrics.jsonl").write_bytes(b"{}\n" + line + b"\n")
        with pytest.raises(RecordError, match=r"metrics\.jsonl is damaged at line 2; restore it"):
            list(Record.load(tmp_path).lines())


def test_a_log_shorter_than_the_checkpoint_is_refused(tmp_path):
    record = Record.open(tmp_path, IDENTITY)
    record.append({"step": 1})
    with pytest.raises(ResumeError, match="the checkpoint was made at 1,000"):
        record.truncate(1000)


def test_a_loaded_record_cannot_be_written(tmp_path):
    Record.open(tmp_path, IDENTITY).close()
    loaded = Record.load(tmp_path)
    writers = (lambda: loaded.append({}), lambda: loaded.add_arrays("a", {}), lambda: loaded.update({}))
    for write in (loaded.save, *writers):
        with pytest.raises(RecordError, match="open for reading only"):
            write()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no run directory"),
        ("{", "cannot be read"),
        ("[]", "schema_version or status is wrong"),
        ('{"schema_version": 1, "status": "done"}', "schema_version or status is wrong"),
        ('{"schema_version": 99, "status": "finished"}', "update cil"),
    ],
)
def test_a_directory_without_a_good_record_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "record.json").write_text(content)
    with pytest.raises(RecordError, match=message) as refused:
        Record.load(tmp_path)
    assert str(tmp_path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json_atomic(path, {"a": 1})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cil.tracking.storage.os.fsync", full)
    with pytest.raises(TrainingError, match="No space left on device; make room"):
        write_json_atomic(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_run_dir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match="choose another"):
        Record.open(tmp_path / "taken", IDENTITY)


def test_two_processes_cannot_write_the_same_run(tmp_path):
    record = Record.open(tmp_path, IDENTITY)
    code = (
        "import json, sys\nfrom cil.tracking import Record\n"
        "try: Record.open(sys.argv[1], json.loads(sys.argv[2]))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), json.dumps(IDENTITY)]
    assert "ResumeError" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    record.close()
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""
