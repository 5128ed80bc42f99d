"""The watch over hooks sees whatever leaves or enters by the back door, and lets honest code alone."""

from __future__ import annotations

import ctypes
import importlib
import io
import os
import sqlite3
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import load, save

from cil.data import ArrayStore, Samples
from cil.kinds.classes.rules import BRIEF
from cil.kinds.classes.subject import StrategySubject
from cil.strategies import Phase
from cil.strategies.replay import Replay
from cil.testing.side_effects import inside, watched, watching

ONE = {"one": torch.zeros(3)}


@pytest.fixture
def place(tmp_path):
    """A folder with a file of each kind, one below a ``torch`` folder; and a database that is open."""
    (tmp_path / "torch").mkdir()
    save_file(ONE, tmp_path / "held.safetensors")
    torch.save(ONE, tmp_path / "held.pth")
    torch.save(ONE, tmp_path / "torch" / "held.bin")
    np.save(tmp_path / "held.npy", np.zeros(3))
    (tmp_path / "own_module.py").write_text("from sklearn.datasets import load_digits\nload_digits()\n")
    return tmp_path


def _imports(place: Path) -> None:
    sys.path.insert(0, str(place))
    try:
        importlib.import_module("own_module")
    finally:
        sys.path.remove(str(place))
        sys.modules.pop("own_module", None)


FORBIDDEN = {
    "save_file": (lambda at: save_file(ONE, at / "new.safetensors"), "writes the file"),
    "load_file": (lambda at: load_file(at / "held.safetensors"), "reads the file"),
    "safe_open": (lambda at: safe_open(at / "held.safetensors", "pt"), "reads the file"),
    "torch save": (lambda at: save(ONE, at / "new.pth"), "writes the file"),
    "torch save, old format": (
        lambda at: save(ONE, at / "new.pt", _use_new_zipfile_serialization=False),
        "writes the file",
    ),
    "torch load of .pth": (lambda at: load(at / "held.pth"), "reads the file"),
    "a torch folder": (lambda at: load(at / "torch" / "held.bin"), "reads the file"),
    "jit": (lambda at: torch.jit.save(torch.jit.script(torch.nn.ReLU()), str(at / "new.jit")), "writes the file"),
    "mapped": (
        lambda at: torch.UntypedStorage.from_file(str(at / "held.npy"), shared=True, nbytes=8),
        "maps the file",
    ),
    "numpy": (lambda at: np.load(at / "held.npy"), "reads the file"),
    "sqlite3": (lambda at: sqlite3.connect(":memory:"), "opens the database"),
    "mkdir": (lambda at: (at / "new").mkdir(), "makes the folder"),
    "rename": (lambda at: (at / "held.npy").rename(at / "new.npy"), "renames the file"),
    "remove": (lambda at: (at / "held.npy").unlink(), "removes the file"),
    "times": (lambda at: os.utime(at / "held.npy", (1, 2)), "changes the file"),
    "scandir": (lambda at: os.scandir(at).close(), "lists the folder"),
    "glob": (lambda at: list(at.glob("*")), "lists the folder"),
    "dlopen": (lambda at: ctypes.CDLL(None), "loads the library"),
    "a process": (lambda at: subprocess.run(["true"], check=True), "starts"),
    "a thread": (lambda at: Thread(target=bool).start(), "starts a thread"),
    "public data": (lambda at: load_digits(), "digits"),
    "public data in an own module": (_imports, "digits"),
    "shared memory": (lambda at: Path("/dev/shm/cil-none").read_bytes(), "reads the file /dev/shm"),
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_the_watch_names_what_is_done_and_the_line(name, place):
    work, says = FORBIDDEN[name]
    with watching() as seen, suppress(OSError):
        inside(work)(place)
    said = next((line for line in seen if says in line), "")
    assert "test_side_effects.py:" in said or "own_module.py:2" in said, seen


def _lazy_import(place: Path) -> None:
    sys.modules.pop("colorsys", None)
    importlib.import_module("colorsys")


ALLOWED = {
    "an import": _lazy_import,
    "versions of packages": lambda at: importlib.import_module("importlib.metadata").version("torch"),
    "memory": lambda at: load(io.BytesIO(_saved())),
    "the machine": lambda at: Path("/proc/cpuinfo").read_bytes(),
    "numbers": lambda at: torch.zeros(3).numpy().sum(),
}


def _saved() -> bytes:
    held = io.BytesIO()
    save(ONE, held)
    return held.getvalue()


@pytest.mark.parametrize("name", ALLOWED)
def test_honest_code_is_left_alone(name, place):
    with watching() as seen:
        inside(ALLOWED[name])(place)
    assert seen == []


def _leak(name: str) -> None:
    with suppress(OSError):
        os.scandir(f"/nowhere/{name}")


class LeakingStore(ArrayStore):
    """Pixels that are made when a batch is."""

    in_memory = False

    def pixels(self, rows):
        _leak("Store.pixels")
        return super().pixels(rows)


class Leaks(Replay):
    """Two phases, the first of which has its own training mode and source of pixels."""

    def phases(self, experience):
        data = Samples(LeakingStore(experience.train.pixels), experience.train.slots)
        yield Phase("main", data, self.loss, train_mode=partial(_leak, "Phase.train_mode"))
        yield Phase("again", experience.train, self.loss, epochs=1, main=False)


CALLED = (
    *("train_mode", "exemplar_plan", "load_state", "grow", "accepts", "memory_of", "fixed_bytes"),
    *("state", "predict", "loss", "after_step", "adjust_gradients", "before_experience", "after_experience", "prepare"),
)


def _leaking(name: str):
    def hook(self, *args):
        _leak(name)
        return getattr(Replay, name)(self, *args)

    return hook


def test_every_hook_is_watched_and_so_are_pixels_and_modes_of_phases():
    cheat = type("Leaky", (Leaks,), {name: _leaking(name) for name in CALLED})
    subject = StrategySubject(cheat)
    with watching() as seen, subject.fresh(wrap=partial(watched, hooks=subject.hooks), recipe=BRIEF):
        pass
    named = {line.split("/nowhere/")[1].split(" ")[0] for line in seen if "/nowhere/" in line}
    assert named == {*CALLED, "Store.pixels", "Phase.train_mode"}
