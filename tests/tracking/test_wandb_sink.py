"""wandb, read back from what it wrote: offline, axes as values, no secrets, no waiting for a server."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time

import pytest
from toys import Rehearse, small_run

from cil.errors import ConfigError
from cil.memory import Budget
from cil.tracking import build_loggers
from cil.tracking.wandb_server import has_key, reachable
from cil.tracking.wandb_sink import CURVES, WandbLogger

TABLES = ("accuracy_matrix", "class_accuracy", "confusion")


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    """No key and no file of the user's: wandb works in the test's own folders."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


def _read_back(run_dir) -> list[dict]:
    [folder] = (run_dir / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in out.splitlines()]


def test_an_offline_run_holds_config_axes_values_table_and_status(tmp_path, monkeypatch):
    monkeypatch.setattr("cil.tracking.wandb_sink._EVERY", 60.0)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    loggers = build_loggers("wandb")
    stream = {"name": "digits", "fingerprint": "c0ffee"}
    identity = {"config": {"strategy": {"lr": 0.1}}, "api_key": "s3cr3t", "seed": 3, "stream": stream}
    loggers.start(identity | {"budget": {"exemplars": 50}}, run_dir, "icarl", "sweep-1")
    loggers.log("step", {"loss": 2.5}, {"experience": 0, "phase": "main", "epoch": 0, "step": 40, "share": 0.5})
    loggers.log("step", {"loss": 2.4}, {"experience": 0, "phase": "main", "epoch": 0, "step": 41})  # at once: left out
    loggers.log("boundary", {"accuracy": 81.0, "forgetting": None}, {"experience": 0, "experiences": 2, "step": 80})
    loggers.table("accuracy_matrix", ["0", "1"], [[90.0, None], [70.0, 80.0]])
    loggers.finish("finished")
    assert loggers.sinks, "the sink must not have been dropped"

    records = _read_back(run_dir)
    [run] = [record["run"] for record in records if record["type"] == "run"]
    assert (run["project"], run["run_group"], run["display_name"]) == (
        "cil",
        "sweep-1",
        "icarl digits 50 exemplars seed 3",
    )
    assert (run["job_type"], run["tags"]) == ("icarl", ["icarl", "digits", "50 exemplars", "seed 3"])
    searched = {"method": "icarl", "stream_name": "digits", "budget_words": "50 exemplars", "seed": 3}
    searched |= {"fingerprint": "c0ffee", "sweep": "sweep-1"}
    assert run["config"]["update"].items() >= searched.items()
    assert run["run_id"] == (run_dir / "wandb_id").read_text()
    assert run["config"]["update"]["config"] == {"strategy": {"lr": 0.1}}
    assert "s3cr3t" not in json.dumps(records)

    metrics = [record["metric"] for record in records if record["type"] == "metric"]
    axes = {metric.get("glob_name", metric.get("name")): metric.get("step_metric") for metric in metrics}
    assert axes == {
        "opt_step": None,
        "experience": None,
        "train/*": "opt_step",
        "epoch/*": "opt_step",
        "eval/*": "experience",
        **{f"{name}/*": "experience" for name in CURVES},
    }
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert (history[0]["train/loss"], history[0]["opt_step"]) == (2.5, 40)
    assert (history[1]["eval/accuracy"], history[1]["experience"]) == (81.0, 0)
    assert "eval/forgetting" not in history[1], "what is undefined is not sent"
    assert "share" not in history[0] and "phase" not in history[0]
    assert any(record["type"] == "artifact" for record in records)
    assert records[-1]["exit"]["exit_code"] == 0
    assert any(record.get("summary", {}).get("update", {}).get("status") == "finished" for record in records)


def test_a_run_shows_its_tables_pictures_and_record(tmp_path):
    """What was sent is what the record says, of a run of three experiences with two classes each."""
    record = small_run(Rehearse, tmp_path, budget=Budget(exemplars=6), loggers="wandb", seed=1).execute()
    records = _read_back(tmp_path)
    [run] = [record["run"] for record in records if record["type"] == "run"]
    assert run["display_name"].endswith("6 exemplars seed 1")
    assert run["run_group"] == run["display_name"].removesuffix(" seed 1"), "seeds of one setting are one group"

    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    ledger = {item["experience"]: item for item in items if "ledger/total" in item}
    assert sorted(ledger) == [0, 1, 2]
    for index, item in ledger.items():
        totals = record.results["ledger"][index]["totals"]["exact"]
        assert {kind: item[f"ledger/{kind}"] for kind in totals} == totals
        assert item["spent/exemplars"] == record.results["exemplars"][index]
        known = [value for value in record.results["accuracy_matrix"][index] if value is not None]
        assert [item[f"accuracy_matrix/on_{j}"] for j in range(len(known))] == pytest.approx(known)
        assert item["pictures/confusion.height"] >= 256

    [last] = [item for item in items if "tables/confusion.path" in item]
    folder = next((tmp_path / "wandb").glob("offline-run-*")) / "files"
    tables = {name: json.loads((folder / last[f"tables/{name}.path"]).read_text()) for name in TABLES}
    cells = record.arrays()["confusion"][-1]
    found = {(true, said): count for true, said, count in tables["confusion"]["data"]}
    assert found == {(f"class {i}", f"class {j}"): cells[i, j] for i, j in zip(*cells.nonzero(), strict=True)}
    right = [100 * cells[k, k] / cells[k].sum() for k in range(6)]
    assert [row[-1] for row in tables["class_accuracy"]["data"]] == pytest.approx(right)
    assert [row[1:] for row in tables["accuracy_matrix"]["data"]] == record.results["accuracy_matrix"]

    charts = {key for record in records for key in record.get("config", {}).get("update", {})}
    assert {"_wandb.visualize.charts/confusion", "_wandb.visualize.charts/class_accuracy"} <= charts
    kept = [record["artifact"] for record in records if record.get("artifact", {}).get("type") == "record"]
    assert [artifact["name"] for artifact in kept] == [f"record-{run['run_id']}"]
    assert not any("tables" in line for line in record.lines()), "files hold none of it twice"


def test_a_resumed_run_has_the_same_id(tmp_path):
    for _ in range(2):
        logger = WandbLogger()
        logger.start({}, tmp_path, "run", None)
        logger.finish("interrupted")
    ids = {folder.name.split("-")[3] for folder in (tmp_path / "wandb").glob("offline-run-*")}
    assert ids == {(tmp_path / "wandb_id").read_text()}


def test_online_without_a_key_is_refused_at_once(tmp_path):
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"WANDB_API_KEY, or use logger\.mode=offline"):
        WandbLogger(mode="online").start({}, tmp_path, "run", None)
    assert time.monotonic() - began < 1.0


def test_without_a_server_a_run_is_offline_after_seconds(tmp_path, monkeypatch, caplog):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    began = time.monotonic()
    logger = WandbLogger(mode="online")
    logger.start({}, tmp_path, "run", None)
    logger.finish("finished")
    assert time.monotonic() - began < 15, "a server that is not there must not be waited for"
    assert "written offline" in caplog.text
    assert [*(tmp_path / "wandb").glob("offline-run-*")]


def test_a_server_that_listens_or_a_proxy_to_it_is_reached(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("http_proxy", here)
        monkeypatch.setenv("WANDB_BASE_URL", "http://nowhere.invalid")
        assert reachable(2.0)
        monkeypatch.delenv("http_proxy")
        monkeypatch.setenv("WANDB_BASE_URL", here)
        assert reachable(2.0)
        monkeypatch.setenv("WANDB_BASE_URL", "http://nowhere.invalid")
        assert not reachable(2.0)


@pytest.mark.parametrize("project", ["a/b", "", "50%", "x" * 129])
def test_a_project_that_wandb_cannot_name_is_refused_when_it_is_made(project):
    with pytest.raises(ConfigError, match=r"logger\.project is .*; wandb takes 1 to 128 characters, and none of /"):
        WandbLogger(project=project)


def test_a_key_is_looked_for_where_wandb_keeps_it(tmp_path, monkeypatch):
    assert not has_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password 0123\n")
    assert has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_key()
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    assert has_key()


def test_disabled_writes_nothing(tmp_path):
    logger = WandbLogger(mode="disabled")
    logger.start({}, tmp_path, "run", None)
    logger.log("step", {"loss": 1.0}, {"step": 1})
    logger.table("t", ["a"], [[1]])
    logger.finish("finished")
    assert list(tmp_path.iterdir()) == []


def test_an_offline_start_leaves_out_what_no_run_here_uses(tmp_path):
    """In a process of its own: pandas, the launcher and reports of use are packages that nothing here imports."""
    code = f"""
import sys
import numpy as np
from cil.tracking.panels import Picture, Table
from cil.tracking.wandb_sink import WandbLogger
identity = {{"strategy": "replay", "stream": {{"name": "s", "fingerprint": "f"}}, "seed": 0}}
identity |= {{"budget": {{"exemplars": 3}}, "config": {{}}, "kind": "classes"}}
logger = WandbLogger()
logger.start(identity, {str(tmp_path)!r}, "replay", None)
logger.log("step", {{"loss": 1.0}}, {{"step": 1}})
table = Table("class_accuracy", ["class", "0"], [["cat", 50.0]], "rows")
logger.show([table, Picture("confusion", 0, np.zeros((8, 8), np.uint8))], final=True)
logger.finish("finished")
print(*(name for name in ("pandas", "wandb.sdk.launch", "opentelemetry.sdk", "requests") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    written = json.dumps(_read_back(tmp_path))
    assert all(name in written for name in ("tables/class_accuracy", "charts/class_accuracy", "pictures/confusion"))
