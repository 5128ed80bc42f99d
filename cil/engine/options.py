"""The options that every run has, whatever its kind: their names, defaults and configuration keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import torch

from cil.engine.runtime import Runtime
from cil.errors import ConfigError, nearest
from cil.targets import check_arguments
from cil.values import KEYS, check_value


@dataclass(frozen=True)
class RunOptions:
    """Seed, device, loggers, folder and the like of a run.

    The metadata of a field is the key that sets it in the configuration; None: no key does.

    Args:
        seed: All random draws follow from it.
        run_dir: Where the record is; by default a folder under ``root`` that is named by the identity of the run.
        root: Folder of runs that are not given a ``run_dir``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``fp32``, ``bf16``, ``fp16`` or ``auto``.
        threads: CPU threads; by default as torch has them.
        devices, nodes: Devices on each machine, and machines, that share each batch; torchrun or SLURM starts a
            process for each of them, or on one machine ``cil run``.
        loggers: As ``cil.tracking.build_loggers`` takes them; files are always written.
        progress: Show progress.
        keep: Which boundaries' states stay on disk: ``last``, ``all`` or ``best``.
        boundary: ``inline``, or ``process``: what is done at each boundary in a process of its own.
        evaluation_batch: Images a batch in evaluation.
        features: ``fp32`` or ``bf16``: features of frozen backbones are computed once for each image, rounded to this
            type, and kept in the folder of ``reuse``, else in that of the run; None: computed when they are asked for.
        answers: Which are evaluated where a learner has several: ``all``, or its ``own`` alone.
        open_set: After each experience score the test images of classes to come, as unknown ones.
        pictures: Keep a few small test images with the last answers to them, and let pages show them and exemplars.
        reuse: Folder of plain first phases that runs share, so that one of them trains what all of them begin with;
            ``auto``: that of the comparison that the run is of, if it is of one; None: none.
        group: Name of the runs that it belongs to on a dashboard.
        command: The command that asked for it, for readers of the record; None: not by a command.
    """

    seed: int = field(default=0, metadata={"key": "seed"})
    run_dir: str | Path | None = field(default=None, metadata={"key": "run_dir"})
    root: str | Path = field(default="runs")
    device: str = field(default="auto", metadata={"key": "device"})
    precision: str = field(default="fp32", metadata={"key": "trainer.precision"})
    threads: int | None = field(default=None, metadata={"key": "trainer.threads"})
    devices: int = field(default=1, metadata={"key": "trainer.devices"})
    nodes: int = field(default=1, metadata={"key": "trainer.nodes"})
    loggers: Any = field(default=(), metadata={"key": "logger"})
    progress: bool = field(default=False, metadata={"key": "progress"})
    keep: str = field(default="last", metadata={"key": "checkpoint.keep"})
    boundary: str = field(default="inline", metadata={"key": "boundary"})
    evaluation_batch: int = field(default=500, metadata={"key": "trainer.evaluation_batch"})
    features: str | None = field(default=None, metadata={"key": "trainer.features"})
    answers: str = field(default="all", metadata={"key": "trainer.answers"})
    open_set: bool = field(default=False, metadata={"key": "trainer.open_set"})
    pictures: bool = field(default=True, metadata={"key": "trainer.pictures"})
    reuse: str | Path | None = field(default="auto", metadata={"key": "reuse"})
    group: str | None = field(default=None)
    command: str | None = field(default=None)

    def __post_init__(self) -> None:
        for name in ("run_dir", "root", "reuse"):
            if getattr(self, name) == "":
                raise ConfigError(f"{name} is empty; give it a folder, or leave it out ('.' is the current folder)")
        for item in fields(self):
            key, value = item.metadata.get("key"), getattr(self, item.name)
            if key in KEYS and not isinstance(value, Path):
                check_value(key, value)

    @property
    def shared(self) -> Path | None:
        """Folder of phases that runs share; None where this run shares none."""
        return None if self.reuse in (None, "auto") else Path(str(self.reuse))

    @classmethod
    def of(cls, given: Mapping[str, Any], base: Self | None = None) -> Self:
        """From keyword arguments, in place of what ``base`` says.

        Raises:
            ConfigError: for an unknown name or a value of another type.
        """
        names = [item.name for item in fields(cls)]
        for name in given:
            if name not in names:
                raise ConfigError(f"unknown key {name}; a run has no such option; {nearest(name, names)}")
        check_arguments(cls, given, "")
        return replace(base or cls(), **given)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **changes: Any) -> Self:
        """From a composed configuration; ``changes`` go before it."""
        found = {}
        for item in fields(cls):
            if "key" in item.metadata:
                value: Any = config
                for step in item.metadata["key"].split("."):
                    value = value[step]
                found[item.name] = value
        found["progress"] = config["progress"] is not False
        return cls(**{**found, **changes})

    def runtime(self) -> Runtime:
        """Device, precision and threads, as far as they are there.

        Raises:
            ConfigError: for those that are not.
        """
        return Runtime(self.device, self.precision, self.threads or torch.get_num_threads(), self.devices, self.nodes)
