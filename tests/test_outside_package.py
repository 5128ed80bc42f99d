"""A package outside the tree brings one of each kind of plugin, and one run uses them all."""

from __future__ import annotations

import sys
from functools import partial

import pytest

from cil import Budget, Recipe, plugins, train
from cil.cli.names import known
from cil.report import table, to_text
from cil.strategies import find
from cil.streams import stream_builder
from cil.testing.shifts import toy_adaptation, toy_shifts
from cil.tracking import Record

CODE = '''
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from cil import Adapter, Samples, Stream, Strategy, class_incremental
from cil.data import Dataset
from cil.kinds.classes import Classes
from cil.kinds.classes.record_types import ClassIdentity
from cil.memory import ExemplarMemory
from cil.models import Backbone
from cil.strategies.parts import store_exemplars


class Again(Strategy):
    """New images and exemplars together."""

    def __init__(self, make_net, budget, *, selection: str = "farthest", codec: str = "raw") -> None:
        super().__init__(make_net, budget)
        self.keep("memory", ExemplarMemory(codec, selection), kind="exemplars")

    def loss(self, batch):
        return F.cross_entropy(self.net(batch.images).logits, batch.slots)

    def after_experience(self, experience):
        store_exemplars(self, experience)


class Prior(Adapter):
    """Divides the scores by how often each class was predicted."""

    def __init__(self, source, *, memory: float = 0.9):
        super().__init__(source)
        self.memory = memory
        self.net.eval()
        self.keep("mean", torch.full((self.num_classes,), 1 / self.num_classes), kind="statistics")

    @torch.no_grad()
    def adapt_and_predict(self, images):
        shares = self.logits(images).softmax(1)
        scores = shares / self.mean
        self.mean = self.memory * self.mean + (1 - self.memory) * shares.mean(0)
        return scores


def bars(root) -> Dataset:
    """Noisy stripes of four widths."""
    def samples(count, seed):
        slots = torch.arange(count) % 4
        rows = (torch.arange(12)[None] // (slots[:, None] + 1) % 2 * 200)[:, None, None, :].expand(-1, 1, 12, 12)
        noise = torch.randint(0, 56, (count, 1, 12, 12), generator=torch.Generator().manual_seed(seed))
        return Samples.from_arrays((rows + noise).byte(), slots)

    return Dataset("bars", samples(32, 0), samples(16, 1), list("abcd"))


class QuietStream(Stream):
    """A stream of the kind below."""

    kind = "quiet"


def striped(*, increment: int = 2):
    return QuietStream.of(class_incremental("bars", increment=increment, root="."), "striped")


def outside_layers(in_channels, image_size, *, width: int = 4):
    stem = nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU())
    stage = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU())
    return Backbone(stem, [stage], feature_dim=2 * width)


def spread(matrix):
    last = matrix[-1][~np.isnan(matrix[-1])]
    return float(last.max() - last.min())


def farthest(features, count, generator):
    return (features - features.mean(0)).norm(dim=1).argsort(descending=True, stable=True)[:count]


class Half:
    """Sixteen grey levels, a byte each."""

    fixed, lossless = True, False

    def stored_shape(self, shape):
        return shape

    def encode(self, pixels):
        kept = (pixels & 240).flatten(1)
        return kept.flatten(), torch.full((len(pixels),), kept.shape[1], dtype=torch.int32)

    def decode(self, data, sizes, shape):
        return data.reshape(len(sizes), *shape)


class Printing:
    """Keeps what it hears."""

    heard = []

    def start(self, identity, run_dir, name, group):
        self.heard.append(name)

    def log(self, kind, values, axes):
        if kind == "boundary":
            self.heard.append(values["accuracy"])

    def table(self, name, columns, rows): ...

    def finish(self, status):
        self.heard.append(status)


class Trained:
    """Parameters that still learn."""

    unit, static = "parameters", True

    def measure(self, learner, predict):
        return float(sum(p.numel() for p in learner.trainable()))


class QuietIdentity(ClassIdentity):
    kind: Literal["quiet"]


class Quiet(Classes):
    """Runs of classes under another name."""

    name = "quiet"
    identity = "outside:QuietIdentity"


TRAINED, QUIET = Trained(), Quiet()
'''
POINTS = {
    "strategies": ("again", "Again"), "adapters": ("prior", "Prior"), "streams": ("striped", "striped"),
    "datasets": ("bars", "bars"), "models": ("outside_layers", "outside_layers"), "metrics": ("spread", "spread"),
    "selections": ("farthest", "farthest"), "codecs": ("half", "Half"), "loggers": ("printing", "Printing"),
    "budgets": ("trained", "TRAINED"), "kinds": ("quiet", "QUIET"),
}  # fmt: skip


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """The package on the path, with the metadata of an installed one."""
    site = tmp_path / "site"
    info = site / "outside-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "outside.py").write_text(CODE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "".join(f"[cil.{group}]\n{name} = outside:{thing}\n" for group, (name, thing) in POINTS.items())
    )
    monkeypatch.syspath_prepend(str(site))
    plugins.forget()
    yield
    plugins.forget()
    sys.modules.pop("outside", None)


def test_one_of_each_kind_of_plugin_is_listed_and_works_in_one_run(outside, tmp_path):
    for group, (name, _) in POINTS.items():
        assert known(group)[name].origin == "outside-package", group
    assert "outside" not in sys.modules  # listing imports nothing

    record = train(
        partial(find("again"), codec="half"), stream_builder("striped")(), "outside_layers",
        Budget(exemplars=8, caps={"trained": 10_000}), recipe=Recipe(epochs=1, batch_size=8), loggers="printing",
        run_dir=tmp_path / "run", progress=False,
    )  # fmt: skip
    assert (record.kind, record.status, record.identity["stream"]["name"]) == ("quiet", "finished", "striped")
    results = Record.load(tmp_path / "run").results
    assert results["exemplars"] == [8, 8] and results["caps"]["trained"]["measured"][-1] > 0
    last = results["accuracy_matrix"][-1]
    assert results["metrics"]["spread"] == max(last) - min(last)
    heard = sys.modules["outside"].Printing.heard
    assert heard[-1] == "finished" and heard[-2] == results["last_accuracy"]
    assert "again" in to_text(table([record])) and "trained (parameters)" in to_text(table([record]))

    adapted = toy_adaptation("prior", toy_shifts(), tmp_path / "adapted").execute()
    assert adapted.status == "finished" and adapted.identity["adapter"].lower() == "prior"
