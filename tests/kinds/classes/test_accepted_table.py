"""Test images with several accepted classes: their accuracy in tables."""

from __future__ import annotations

from cil.report import table


def test_accuracy_by_accepted_classes_has_a_table_and_an_entry(run):
    accepted = {"accuracy_curve": [100.0, 75.0], "last_accuracy": 75.0, "counted": [40, 1080]}
    section = table([run("icarl", results={"accepted": accepted})]).sections[0]
    (found,) = (one for one in section.tables if one.heading == "Several accepted classes")
    (line,) = found.grid.lines
    assert line.cells["accepted %"].startswith("75.00") and line.cells["images"] == "1,080"
    assert section.entries[0]["accepted_last_accuracy"] == 75.0
    without = table([run("icarl")]).sections[0]
    assert "accepted_last_accuracy" not in without.entries[0]
    assert "Several accepted classes" not in [one.heading for one in without.tables]
