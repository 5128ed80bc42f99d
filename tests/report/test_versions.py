"""Runs of one setting on several versions of a user's code: those of the newest make the row, and it is said."""

from __future__ import annotations

from cil.report import table, to_text


def _started(record, when):
    record.environment["started"] = when
    return record


def test_of_two_versions_of_own_code_the_newest_makes_the_row(run):
    old = [
        _started(run("mine", seed, code="a" * 12, name=f"old{seed}", matrix=((50.0, None), (10.0, 10.0))), "2026-01-01")
        for seed in (0, 1)
    ]
    new = _started(run("mine", 0, code="0" * 12, name="new"), "2026-02-01")
    said = to_text(table([*old, new]), 200)
    assert "mine: edited: 2 more runs of an earlier version of the code, left out" in said
    assert said == to_text(table([new, *reversed(old)]), 200)
    (section,) = table([*old, new]).sections
    assert [entry["last_accuracy"] for entry in section.entries] == [65.0]


def test_a_version_that_failed_does_not_replace_one_that_finished(run):
    old = _started(run("mine", 0, code="a" * 12, name="old"), "2026-01-01")
    new = _started(run("mine", 0, code="b" * 12, name="new", status="failed", error="a bug"), "2026-02-01")
    (section,) = table([old, new]).sections
    assert [entry["last_accuracy"] for entry in section.entries] == [65.0]
    assert "mine: edited: 1 more run of an earlier version of the code, left out" not in to_text(table([old]), 200)
