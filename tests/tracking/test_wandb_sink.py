"""wandb, read back from what it wrote: offline, axes as values, no secrets, no waiting for a server."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from cil.errors import ConfigError
from cil.tracking import build_loggers
from cil.tracking.wandb_sink import WandbLogger


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


def test_an_offline_run_holds_config_axes_values_table_and_status(tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    loggers = build_loggers("wandb")
    identity = {"config": {"strategy": {"lr": 0.1}}, "api_key": "s3cr3t", "seed": 3}
    loggers.start(identity, run_dir, "icarl-seed3", "sweep-1")
    loggers.log("step", {"loss": 2.5}, {"experience": 0, "phase": "main", "epoch": 0, "step": 40, "share": 0.5})
    loggers.log("boundary", {"accuracy": 81.0, "forgetting": None}, {"experience": 0, "experiences": 2, "step": 80})
    loggers.table("accuracy_matrix", ["0", "1"], [[90.0, None], [70.0, 80.0]])
    loggers.finish("finished")
    assert loggers.sinks, "the sink must not have been dropped"

    records = _read_back(run_dir)
    [run] = [record["run"] for record in records if record["type"] == "run"]
    assert (run["project"], run["run_group"], run["display_name"]) == ("cil", "sweep-1", "icarl-seed3")
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
    }
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert (history[0]["train/loss"], history[0]["opt_step"]) == (2.5, 40)
    assert (history[1]["eval/accuracy"], history[1]["experience"]) == (81.0, 0)
    assert "eval/forgetting" not in history[1], "what is undefined is not sent"
    assert "share" not in history[0] and "phase" not in history[0]
    assert any(record["type"] == "artifact" for record in records)
    assert records[-1]["exit"]["exit_code"] == 0
    assert any(record.get("summary", {}).get("update", {}).get("status") == "finished" for record in records)


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


def test_a_key_is_looked_for_where_wandb_keeps_it(tmp_path, monkeypatch):
    from cil.tracking.wandb_sink import _has_key

    assert not _has_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password 0123\n")
    assert _has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not _has_key()
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    assert _has_key()


def test_disabled_writes_nothing(tmp_path):
    logger = WandbLogger(mode="disabled")
    logger.start({}, tmp_path, "run", None)
    logger.log("step", {"loss": 1.0}, {"step": 1})
    logger.table("t", ["a"], [[1]])
    logger.finish("finished")
    assert list(tmp_path.iterdir()) == []
