"""The fan-out of loggers: files always, a broken sink never stops a run."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cil import plugins
from cil.errors import ConfigError
from cil.tracking import FileLogger, Logger, Loggers, Record, build_loggers
from cil.tracking.panels import Picture, Table
from cil.tracking.progress import ProgressLogger
from cil.tracking.tensorboard_sink import TensorBoardLogger
from cil.tracking.wandb_sink import WandbLogger

CONF = Path(__file__).parents[2] / "conf"
AXES = {"experience": 0, "experiences": 2, "phase": "main", "epoch": 1, "epochs": 3, "step": 40, "share": 0.5}


class Memory:
    """Keeps what it is sent; fails at the call named."""

    def __init__(self, fails_at: str = "") -> None:
        self.fails_at = fails_at
        self.calls: list[tuple] = []

    def _call(self, name, *args):
        self.calls.append((name, *args))
        if name == self.fails_at:
            raise OSError("the line is cut")

    def start(self, identity, run_dir, name, group):
        self._call("start", name)

    def log(self, kind, values, axes):
        self._call("log", kind, values)

    def table(self, name, columns, rows):
        self._call("table", name)

    def finish(self, status):
        self._call("finish", status)


def test_files_hold_one_line_a_call_without_what_only_progress_needs(tmp_path):
    record = Record.open(tmp_path, {})
    loggers = build_loggers("files", record)
    loggers.start({}, tmp_path, "run", None)
    loggers.log("step", {"loss": 2.5}, AXES)
    loggers.table("accuracy_matrix", ["a"], [[90.0]])
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {"kind": "step", "experience": 0, "phase": "main", "epoch": 1, "step": 40, "values": {"loss": 2.5}},
        {"kind": "table", "name": "accuracy_matrix", "columns": ["a"], "rows": [[90.0]]},
    ]


@pytest.mark.parametrize("call", ["log", "table", "finish"])
def test_a_sink_that_fails_is_reported_once_and_dropped(tmp_path, caplog, call):
    broken, sound = Memory(call), Memory()
    loggers = Loggers([broken, sound])
    loggers.start({}, tmp_path, "run", None)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            loggers.log("step", {"loss": 1.0}, AXES)
            loggers.table("t", [], [])
        loggers.finish("finished")
    assert caplog.text.count("Memory failed and is dropped, the run goes on: the line is cut") == 1
    assert len(sound.calls) == 1 + 6 + 1
    assert broken.calls[-1][0] == call


def test_a_sink_that_cannot_start_stops_the_run_and_ends_those_that_could(tmp_path):
    sound = Memory()
    with pytest.raises(ConfigError, match="Memory cannot start: the line is cut; leave it out"):
        Loggers([sound, Memory("start")]).start({}, tmp_path, "run", None)
    assert sound.calls == [("start", "run"), ("finish", "failed")]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], []),
        (["logger=wandb", "logger.mode=disabled"], [WandbLogger]),
        (["logger=tensorboard"], [TensorBoardLogger]),
        (["logger=all", "logger.wandb.mode=disabled"], [WandbLogger, TensorBoardLogger]),
    ],
)
def test_each_choice_of_the_config_group_builds(tmp_path, overrides, expected):
    (tmp_path / "config.yaml").write_text("defaults: [{logger: files}]\n")
    (tmp_path / "logger").symlink_to(CONF / "logger")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        config = compose("config", overrides=overrides)
    for chosen in (config.logger, OmegaConf.to_container(config.logger)):
        sinks = build_loggers(chosen).sinks
        assert [type(sink) for sink in sinks] == expected
    if "logger.wandb.mode=disabled" in overrides:
        assert isinstance(sinks[0], WandbLogger) and sinks[0].mode == "disabled"


def test_names_configs_and_objects_may_be_mixed(tmp_path):
    own = Memory()
    assert isinstance(own, Logger)
    chosen = ["files", "wandb", {"_target_": "cil.tracking.wandb_sink.WandbLogger", "mode": "disabled"}, own]
    loggers = build_loggers(chosen, Record.open(tmp_path, {}), progress=True)
    kinds = [FileLogger, ProgressLogger, WandbLogger, WandbLogger, Memory]
    assert [type(sink) for sink in loggers.sinks] == kinds


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("wandbb", "did you mean 'wandb'"),
        ({"_target_": "cil.tracking.nowhere.Logger"}, "cannot be imported"),
        ({"_target_": "cil.tracking.wandb_sink.WandbLogger", "colour": "red"}, "colour"),
        ({"_target_": "builtins.dict"}, "needs start, log, table and finish"),
        ({"_target_": "cil.tracking.wandb_sink.WandbLogger", "mode": "ofline"}, "did you mean 'offline'"),
        (7, "is no logger"),
    ],
)
def test_a_wrong_logger_is_one_clear_line(chosen, message):
    with pytest.raises(ConfigError, match=message) as refused:
        build_loggers(chosen)
    assert "\n" not in str(refused.value)


def test_a_logger_of_another_package_is_found_by_its_entry_point(tmp_path, monkeypatch):
    package = tmp_path / "plug-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[cil.loggers]\npaper = plug_paper:PaperLogger\n")
    (tmp_path / "plug_paper.py").write_text(
        "class PaperLogger:\n"
        "    def start(self, identity, run_dir, name, group): pass\n"
        "    def log(self, kind, values, axes): pass\n"
        "    def table(self, name, columns, rows): pass\n"
        "    def finish(self, status): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plugins.forget()
    assert type(build_loggers("paper").sinks[0]).__name__ == "PaperLogger"
    with pytest.raises(ConfigError, match="paper"):
        build_loggers("nothing")


def test_tensorboard_curves_are_over_steps_and_experiences(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    loggers = build_loggers("tensorboard")
    loggers.start({}, tmp_path, "run", None)
    loggers.log("step", {"loss": 2.5}, AXES)
    loggers.log("boundary", {"accuracy": 80.0, "forgetting": None}, {"experience": 3, "step": 90})
    loggers.table("matrix", ["a", "b"], [[1, 2]])
    loggers.finish("finished")
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(40, 2.5)]
    assert [(event.step, event.value) for event in events.Scalars("eval/accuracy")] == [(3, 80.0)]
    assert loggers.sinks, "an undefined value must not break the sink"


def test_tensorboard_shows_curves_pictures_and_tables_each_once(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    loggers = build_loggers("tensorboard")
    loggers.start({"stream": {"name": "digits"}, "seed": 3}, tmp_path, "icarl", None)
    ledger = Table("ledger", ["experience", "exemplars"], [[0, 10], [1, 20]], "columns")
    picture = Picture("confusion", 1, np.full((4, 6), 7, np.uint8))
    loggers.show(lambda: [ledger, picture])
    loggers.show(lambda: [ledger, picture], final=True)
    loggers.finish("finished")
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("ledger/exemplars")] == [(0, 10), (1, 20)]
    [image] = events.Images("pictures/confusion")
    assert (image.step, image.height, image.width) == (1, 4, 6)
    text = [events.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0] for name in ("run", "tables/ledger")]
    assert b"|method|icarl|" in text[0] and b"|1|20|" in text[1]


def test_a_missing_tensorboard_is_said_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("cil.tracking.tensorboard_sink.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"cil\[dashboards\]"):
        build_loggers("tensorboard")


def test_building_the_default_loggers_imports_nothing_heavy():
    import subprocess

    code = (
        "import sys\nfrom cil.tracking import build_loggers\nbuild_loggers('files', progress=True)\n"
        "print([name for name in ('torch', 'wandb', 'tensorboard', 'matplotlib', 'scipy') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
