"""What the tests of all rooms share: one thread, and streams that are made in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for processes that tests start

import pytest
import torch
import torch.nn.functional as F

from cil.cli import composition
from cil.cli.names import conf_dir, plugin_conf_dirs
from cil.data import Augment, Dataset, Samples
from cil.streams import Stream, class_incremental

torch.set_num_threads(1)

# Files whose cases look at the same runs by the first part of their names, up to this sign; elsewhere a file's do.
PARTED = {
    "tests/testing/test_contract.py": "-",
    "tests/adapt/test_all_adapters.py": "-",
    "tests/docs/test_docs.py": ":",
}

MakeDataset = Callable[..., Dataset]


def _images(patterns: torch.Tensor, counts: Sequence[int], generator: torch.Generator) -> Samples:
    """``counts[k]`` noisy copies of pattern k, shuffled."""
    slots = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    slots = slots[torch.randperm(len(slots), generator=generator)]
    noise = 45 * torch.randn(len(slots), *patterns.shape[1:], generator=generator)
    return Samples.from_arrays((patterns[slots] + noise).round().clamp(0, 255).byte(), slots)


def _make(
    train_counts: Sequence[int],
    test_counts: Sequence[int],
    size: int = 12,
    channels: int = 3,
    name: str = "toy",
    **settings: Any,
) -> Dataset:
    generator = torch.Generator().manual_seed(7)
    coarse = 60 + 135 * torch.rand(len(train_counts), channels, 3, 3, generator=generator)
    patterns = F.interpolate(coarse, size=(size, size))
    train, test = (_images(patterns, counts, generator) for counts in (train_counts, test_counts))
    return Dataset(name, train, test, [f"class {k}" for k in range(len(train_counts))], **settings)


def group_of(nodeid: str) -> str:
    """Tests of one group go to one worker, in order."""
    file, _, test = nodeid.partition("::")
    case = test.partition("[")[2].rstrip("]")
    return f"{file} {case.partition(PARTED[file])[0]}" if case and file in PARTED else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Groups by name, unless ``--dist`` says otherwise: marks are lost where pytest is newer (9.2 with xdist 3.8)."""
    from xdist.scheduler import LoadScopeScheduling

    if config.getvalue("dist") != "load":
        return None

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False  # the small groups come last, so that no worker waits for another
    return Together(config, log)


class OwnFiles(dict[tuple[str, ...], composition.Composition]):
    """Compositions of files of the repository, which no test changes; of others nothing is kept or answered."""

    def get(self, key: tuple[str, ...], default: Any = None) -> Any:
        return default if plugin_conf_dirs() else super().get(key, default)

    def __setitem__(self, key: tuple[str, ...], value: composition.Composition) -> None:
        files = [conf_dir() / f"{item.lstrip('+').replace('=', '/')}.yaml" for item in key[1:]]
        own = (file.is_file() or file.stem in ("null", composition.BLANK) for file in files)
        if not plugin_conf_dirs() and all(own):
            super().__setitem__(key, value)


composition._merged = OwnFiles()  # as in a command, for as long as the tests run


@pytest.fixture
def by_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compositions are Hydra's own, but in a command or under ``files_remembered``."""
    monkeypatch.setattr(composition, "_merged", None)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """``fsync`` returns at once: no test pulls the plug. One thread, whatever a test before this one chose."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_dataset() -> MakeDataset:
    """``make_dataset(train_counts, test_counts, size=12, channels=3)``: noisy 3x3 patterns, one a class, in memory."""
    return _make


@pytest.fixture(scope="session")
def embedded_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root for the embedded sets, so that slow ones are made once."""
    return tmp_path_factory.mktemp("data_root")


@pytest.fixture(scope="session")
def toy_stream() -> Stream:
    """3 experiences of 2 classes, 12 training and 8 test images each, 3x12x12; order by seed, so slot is not label."""
    dataset = _make([12] * 6, [8] * 6, augment=Augment(crop_padding=1, flip=True))
    return class_incremental(dataset, increment=2)


@pytest.fixture(scope="session")
def uneven_stream() -> Stream:
    """Experiences of 1, 2, 2 and 1 classes with 9, 2 + 7, 12 + 5 and 4 training images, 3x12x12; natural order.

    Batches of 8 leave a last one of a single image in the first three; one class has two images only.
    """
    dataset = _make([9, 2, 7, 12, 5, 4], [5, 3, 8, 2, 6, 4], name="uneven")
    return class_incremental(dataset, base=1, increment=2, order="natural")
