"""A kind of run of another package in tables and on the page, and one that is not installed."""

from __future__ import annotations

import csv
import io
import json
import logging
from importlib.metadata import EntryPoint
from typing import Any, Literal

import pytest
from typing_extensions import TypedDict

from cil import plugins
from cil.report import (
    ReadingAid,
    Section,
    Sections,
    find_runs,
    table,
    to_csv,
    to_json,
    to_markdown,
    to_text,
    write_html,
)
from cil.report.grids import Line, grid
from cil.report.grouping import grouped
from cil.report.rows import Row


class GameIdentity(TypedDict):
    kind: Literal["games"]
    player: str
    seed: int
    stream: dict[str, Any]


class GameResults(TypedDict):
    points: list[float]


class Games:
    """A kind of run that only this test knows."""

    name = "games"
    learner = "player"
    unit = "rounds"
    progress = "points"

    def identity_type(self):
        return GameIdentity

    def results_type(self):
        return GameResults

    def sections(self, records):
        rows = tuple(Row(group.first.learner, group) for group in grouped(records))
        lines = [Line(row.label, {"points": str(row.score("points", -1))}) for row in rows]
        section = Section(
            title="games",
            rows=rows,
            grid=grid("player", lines),
            plots=lambda number, paint: [],
            entries=tuple({"label": row.label, "points": row.score("points", -1).mean} for row in rows),
        )
        return Sections((section,), ReadingAid("How to read games", "Points are points.", ()), ("Games are games.",))


GAMES = Games()


@pytest.fixture
def play(run):
    """Leave a run of the other kind: three points in two of two rounds."""

    def leave(player: str, **more):
        return run(
            player, kind="games", player=player, results={"points": [1, 3]}, stream_changes={"rounds": 2}, **more
        )

    return leave


@pytest.fixture
def installed(monkeypatch):
    point = EntryPoint("games", f"{__name__}:GAMES", "cil.kinds")
    monkeypatch.setattr(EntryPoint, "load", lambda self: GAMES)
    monkeypatch.setattr(plugins, "points", lambda group: (point,))


def test_a_kind_of_another_package_is_in_every_form(play, run, installed, tmp_path):
    records = [play("anna"), run("icarl")]
    content = table(records)
    assert [section.title for section in content.sections][1:] == ["games"]
    assert "Games are games." in to_text(content) and "| anna | 3.00 |" in to_markdown(content)
    assert [row["points"] for row in csv.DictReader(io.StringIO(to_csv(content)))] == ["", "3.0"]
    assert json.loads(to_json(content))["sections"][1]["rows"] == [{"label": "anna", "points": 3.0}]
    page = write_html(records, tmp_path / "page.html").read_text()
    assert "How to read games" in page and "2 runs, 1 strategy, 1 player" in page and "<td>2/2</td>" in page


def test_a_record_lacks_what_its_own_kind_needs(play, installed, caplog):
    good = play("anna")
    bad = play("bert").directory / "record.json"
    content = json.loads(bad.read_text())
    del content["identity"]["player"]
    bad.write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        assert [record.directory for record in find_runs(good.directory.parent)] == [good.directory]
    assert "has no identity.player" in caplog.text


def test_records_of_a_kind_that_is_not_installed_are_left_out_with_a_warning(play, run, tmp_path):
    record = play("anna")
    records = [*find_runs(record.directory.parent), run("icarl")]
    content = table(records)
    assert [row.label for section in content.sections for row in section.rows] == ["icarl"]
    (warning,) = content.warnings
    assert warning.startswith("Left out, because their kind is not installed: 1 run (cil.kinds has no 'games'")
    page = write_html(records, tmp_path / "page.html").read_text()
    assert "1 run, 1 strategy" in page and "anna" not in page
    assert table([record]).sections == () and "games" in to_text(table([record]))
    assert write_html([record], tmp_path / "alone.html").exists()
