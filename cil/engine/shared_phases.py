"""Plain phases that several runs have, trained by one of them: the others take over where it ended.

FOLDER/KEY.json         log, bill and seconds of the run that trained it; written last
FOLDER/KEY.safetensors  the tensors as they were trained
FOLDER/KEY.lock         there while a run trains it; others that want it wait

What is taken over are the bits that training would give (``cil.engine.plain_phase``). Its lines are logged, its
operations, updates, bytes and seconds billed, as if it had been trained here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cil.contract import Progress
from cil.data.looks import Looks
from cil.engine.checkpoint import read_json, read_tensors, write_json, write_tensors
from cil.engine.cost import Cost
from cil.engine.fit import Fit
from cil.engine.plain_phase import PlainPhase
from cil.errors import ResumeError
from cil.tracking.storage import IDLE, remove_partial

CONTENT = ("lines", "cost", "progress", "seconds", "looks", "sum")
WAIT = 0.1  # seconds between two looks at a lock
Line = tuple[str, dict[str, float], dict[str, Any]]  # kind, values, axes
_say = logging.getLogger("cil.engine")


@dataclass(frozen=True)
class SharedPhases:
    """The phases in a folder.

    Args:
        folder: Runs that name the same one share.
        here: Called while another run trains what is wanted; it raises where this run shall stop.
    """

    folder: Path
    here: Callable[[], None] = lambda: None
    looks: Looks | None = None

    def run(self, fit: Fit, plain: PlainPhase) -> float:
        """Train a plain phase, or take over what another run trained.

        Returns:
            Seconds that the other run took; 0 where it was trained here.
        """
        with self._turn(plain.key):
            remove_partial(self.folder, IDLE)
            found = self._find(plain)
            if found is not None:
                if self.looks is not None:
                    self.looks.add(np.array(found[1]["looks"], dtype=np.int64))
                return _take_over(fit, plain, *found)
            before = None if self.looks is None else self.looks.counts.copy()
            began, lines, log = time.perf_counter(), list[Line](), fit.on_log

            def noted(kind: str, values: dict[str, float], axes: dict[str, Any]) -> None:
                lines.append((kind, {k: v for k, v in values.items() if k in ("loss", "lr")}, dict(axes)))
                log(kind, values, axes)

            fit.on_log = noted
            fit.run()
            looks = [] if self.looks is None or before is None else (self.looks.counts - before).tolist()
            self._write(fit, plain, lines, time.perf_counter() - began, looks)
        return 0.0

    def _json(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _find(self, plain: PlainPhase) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and content of a phase that was trained; None where there is none, or it is damaged."""
        path = self._json(plain.key)
        if not path.exists():
            return None
        try:
            content = read_json(path, CONTENT)
            tensors = read_tensors(path.with_suffix(".safetensors"), plain.key, content["sum"])
        except ResumeError as error:
            _say.warning("not reused, and trained again: %s", str(error).partition("; ")[0])
            return None
        own = {name: (tensor.shape, tensor.dtype) for name, tensor in plain.tensors().items()}
        alike = own == {n: (t.shape, t.dtype) for n, t in tensors.items()}
        if self.looks is not None and len(content["looks"]) != len(self.looks.counts):
            return None  # it was trained on some of the images of its experience
        return (tensors, content) if alike else None

    def _write(self, fit: Fit, plain: PlainPhase, lines: list[Line], seconds: float, looks: list[int]) -> None:
        """Keep a phase that was trained; where there is no room this is said, and the run goes on."""
        path = self._json(plain.key)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            written = write_tensors(path.with_suffix(".safetensors"), plain.tensors(), plain.key)
            progress = asdict(fit.learner.progress)
            content = {"lines": lines, "cost": asdict(fit.cost), "progress": progress, "seconds": seconds}
            write_json(path, {**content, "looks": looks, "sum": written})
        except OSError as error:
            _say.warning("a phase cannot be shared, as %s cannot be written: %s", path, error.strerror)

    @contextmanager
    def _turn(self, key: str) -> Iterator[None]:
        """Until no other process trains the phase. A process that ends lets go; without locks all go on at once."""
        path = self.folder / f"{key}.lock"
        try:
            import fcntl

            self.folder.mkdir(parents=True, exist_ok=True)
            handle = path.open("a")
        except (ImportError, OSError):
            yield
            return
        with handle:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except (BlockingIOError, PermissionError):
                    self.here()
                    time.sleep(WAIT)
                except OSError:  # a file system without locks
                    break
            try:
                yield
            finally:
                with suppress(OSError):  # who waits for it looks for the phase next
                    path.unlink()


def _take_over(fit: Fit, plain: PlainPhase, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> float:
    """Leave learner, log and bill as training would; seconds of the run that trained."""
    with torch.no_grad():
        for name, tensor in plain.tensors().items():
            tensor.copy_(tensors[name])
    for kind, values, axes in content["lines"]:
        loss = {plain.term: values["loss"]} if "loss" in values else {}
        fit.on_log(kind, loss | values, axes)
    fit.cost = Cost.of(content["cost"])
    fit.learner.progress = Progress(**content["progress"])
    fit.learner.train_mode()
    return float(content["seconds"])
