"""A workspace and a report for a sweep: built without a server, and read back from the file."""

from __future__ import annotations

import json

import pytest

from cil.cli.main import main
from cil.tracking import Record

pytest.importorskip("wandb_workspaces")


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    """No key, and no file of the user's."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two seeds of a run that were logged to wandb and one that was not, as records."""
    monkeypatch.setattr("cil.tracking.record.first_problem", lambda content: None)
    for seed, identifier in enumerate(["aa11", "bb22", None]):  # the last one was not
        folder = tmp_path / "sweep" / f"seed{seed}"
        identity = {"kind": "classes", "strategy": "icarl", "seed": seed, "stream": {"name": "digits"}, "config": {}}
        record = Record.open(folder, identity)
        record.append({"kind": "step", "values": {"loss": 2.0}})
        record.append({"kind": "boundary", "values": {"accuracy": 50.0, "carried_bytes": 150}})
        record.update({"ledger": [{"totals": {"exact": {"network": 100, "exemplars": 50, "total": 150}}}]})
        record.close()
        if identifier:
            (folder / "wandb_id").write_text(identifier)
    return tmp_path / "sweep"


def _plots(panels, axis):
    """Names of what is drawn over an axis."""
    settings = [panel["config"] for panel in panels]
    return [name for one in settings if one.get("xAxis") == axis for name in one.get("metrics") or ()]


def test_a_workspace_shows_the_runs_of_a_folder(runs, tmp_path, capsys):
    out = tmp_path / "view.json"
    assert main(["dashboard", str(runs), "--project", "mine", "--entity", "us", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"workspace of 2 runs: {out}\n"
    view = json.loads(out.read_text())
    assert (view["project"], view["entity"], view["displayName"]) == ("mine", "us", "cil: sweep")

    [shown] = view["spec"]["section"]["runSets"]
    [chosen] = shown["filters"]["filters"]
    assert (chosen["key"], chosen["op"]) == ({"section": "run", "name": "name"}, "IN")
    assert sorted(chosen["value"]) == ["aa11", "bb22"]
    assert [group["name"] for group in shown["grouping"]] == ["stream_name.value", "budget_words.value", "method.value"]

    sections = {one["name"]: one["panels"] for one in view["spec"]["section"]["panelBankConfig"]["sections"]}
    assert list(sections) == ["Results", "Memory", "Tables", "Training"]
    everything = [panel for panels in sections.values() for panel in panels]
    assert _plots(everything, "experience") == [
        "eval/accuracy",
        "eval/carried_bytes",
        "ledger/network",
        "ledger/exemplars",
        "ledger/total",
        "spent/exemplars",
    ]
    assert _plots(everything, "opt_step") == ["train/loss", "epoch/loss"]
    text = json.dumps(sections["Tables"])
    assert all(f"tables/{name}" in text for name in ("accuracy_matrix", "class_accuracy", "confusion", "ledger"))


def test_a_report_has_a_part_for_each_stream(runs, tmp_path):
    out = tmp_path / "report.json"
    assert main(["dashboard", str(runs), "--report", "--out", str(out)]) == 0
    text = out.read_text()
    content = json.loads(text)
    assert (content["displayName"], content["project"]["name"]) == ("cil: sweep", "cil")
    grids = [block for block in content["spec"]["blocks"] if block["type"] == "panel-grid"]
    assert len(grids) == 4
    for grid in grids:
        [shown] = grid["metadata"]["runSets"]
        assert {"aa11", "bb22"} <= set(_values(shown["filters"]))


def _values(node):
    """All texts in a filter."""
    if isinstance(node, str):
        yield node
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _values(part)


def test_a_whole_project_needs_no_folder(tmp_path):
    out = tmp_path / "view.json"
    assert main(["dashboard", "--project", "mine", f"--out={out}"]) == 0
    view = json.loads(out.read_text())
    assert view["project"] == "mine" and view["spec"]["section"]["runSets"][0]["filters"]["filters"] == []


def test_what_cannot_be_is_refused_in_one_line(runs, tmp_path, monkeypatch, capsys):
    (runs / "seed0" / "wandb_id").unlink()
    (runs / "seed1" / "wandb_id").unlink()
    cases = {
        "needs a folder of runs, or --project": ["dashboard"],
        "run them with logger=wandb": ["dashboard", str(runs)],
        "--online needs --entity": ["dashboard", str(runs), "--online"],
        "--online needs an API key": ["dashboard", str(runs), "--online", "--entity", "us"],
    }
    for words, command in cases.items():
        assert main(command) == 2
        assert words in capsys.readouterr().err
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr("cil.tracking.wandb_server.reachable", lambda: False)
    assert main(["dashboard", "--project", "p", "--online", "--entity", "us"]) == 2
    assert "cannot be reached" in capsys.readouterr().err
    assert not [*tmp_path.glob("*.json")]


def test_a_missing_package_is_said_with_what_to_install(runs, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces.reports.v2", None)
    assert main(["dashboard", str(runs)]) == 2
    assert "pip install 'cil[dashboards]'" in capsys.readouterr().err


def test_a_file_that_is_no_dashboard_is_left_alone(tmp_path, capsys):
    out = tmp_path / "mine.json"
    out.write_text('{"mine": 1}')
    assert main(["dashboard", "--project", "mine", f"--out={out}"]) == 2
    assert "mine.json is there already, and no dashboard" in capsys.readouterr().err
    assert out.read_text() == '{"mine": 1}'
    out.unlink()
    for more in ([], ["--report"], []):  # each replaces the one before
        assert main(["dashboard", "--project", "mine", f"--out={out}", *more]) == 0
