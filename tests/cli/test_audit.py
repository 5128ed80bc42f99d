"""``cil audit``: an experience of a finished run redone in a clean process."""

from __future__ import annotations

from importlib import import_module

import pytest

from cil.cli.audit import audit, recorded_overrides
from cil.errors import ConfigError
from cil.tracking import Record

CHEAT = """
from pathlib import Path

from cil.strategies.replay import Replay
from cil.testing.toy import toy_run, toy_stream

PAST = []


class Late(Replay):
    def training_set(self, experience):
        data = super().training_set(experience)
        PAST.append(experience.train)
        for past in PAST[:-1] if experience.index >= 2 else ():
            data = data + past
        return data


def plan():
    return toy_run(Late, toy_stream(), Path("run"), keep="all")
"""


def test_a_module_that_remembers_is_found_in_a_clean_process(tmp_path, monkeypatch):
    (tmp_path / "late_cheat.py").write_text(CHEAT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    plan = import_module("late_cheat").plan
    plan().execute()
    (found,) = audit("run", experience=2, run=plan)
    assert found.verdict == "differs" and found.key.startswith("state: ") and not found.elsewhere


def test_a_run_that_was_made_in_python_is_planned_by_a_function(tmp_path):
    record = Record(tmp_path / "run", {}, {})
    with pytest.raises(ConfigError, match=r"made in Python: .* --run module:function"):
        recorded_overrides(record, set())


@pytest.mark.parametrize(
    "command",
    [
        "cil run strategy=trap:Spring",
        "cil run 'strategy=\"trap\\:Spring\"'",
        "cil run +optimizer._target_=trap.spring",
        "cil run hydra.searchpath=[file:///tmp]",
        "cil run budget=aligned budget.to=trap:Spring",
        "cil run --config-dir=/tmp",
        "python -c 1",
    ],
)
def test_a_record_names_no_code(command, tmp_path):
    record = Record(tmp_path, {}, {"command": command})
    with pytest.raises(ConfigError, match=r"record.json|made in Python"):
        recorded_overrides(record, set())
