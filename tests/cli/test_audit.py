"""``cil audit``: an experience of a finished run redone in a clean process."""

from __future__ import annotations

import pytest

from cil.cli.audit import recorded_overrides
from cil.errors import ConfigError
from cil.tracking import Record

CHEAT = """
from cil.strategies.replay import Replay

PAST = []


class Late(Replay):
    def training_set(self, experience):
        data = super().training_set(experience)
        PAST.append(experience.train)
        for past in PAST[:-1] if experience.index >= 2 else ():
            data = data + past
        return data
"""


def test_a_module_that_remembers_is_found_and_shown(cil, tmp_path):
    (tmp_path / "late_cheat.py").write_text(CHEAT)
    own = "strategy=late_cheat:Late"
    settings = ("stream=split_digits", "scale=quick", "trainer.max_steps=2", "checkpoint.keep=all", "progress=false")
    assert cil("run", own, *settings, "run_dir=run").code == 0
    refused = cil("audit", "run")
    assert refused.code == 2 and "code is never imported because a record names it" in refused.line
    from cil import audit

    (found,) = audit("run", experience=3, given=[own])
    assert found.verdict == "differs" and found.key.startswith("state: ") and not found.elsewhere
    told = cil("report", "run").out
    assert "audit differs" in told and "not ranked" in told and "experience 3 of seed 0" in told


def test_a_run_that_was_made_in_python_is_planned_by_a_function(cil, tmp_path):
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
