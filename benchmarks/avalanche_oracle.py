"""Replay, LwF, EWC, DER and iCaRL in Avalanche and here, on one stream: do both worlds agree within noise over seeds?

    python benchmarks/avalanche_oracle.py --seeds 0 1 2 3 4 --out found.jsonl
    python benchmarks/avalanche_oracle.py --table --out found.jsonl

It needs the extra ``cil[avalanche]``. Two pairs. ``cil`` is our method, ``avalanche`` is its class in its own loop over
its own benchmark, with the settings of ours (see ``OURS`` and ``aligned``); ``bridge`` is its class under our boundary
and ledger, ``plain`` the same class in its own loop with its own defaults. Same images, class order, network, first
weights, optimizer, epochs and number of exemplars. Each line of the output is one run; what is there is not run again.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import statistics
import tempfile
import time
import warnings
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cil
from cil.api import networks
from cil.engine.recipe import Recipe, constant
from cil.interop.avalanche import to_avalanche
from cil.interop.avalanche.carried import Logits
from cil.interop.avalanche.library import library
from cil.metrics import paired
from cil.strategies import find
from cil.streams import Stream

CLASSES, INCREMENT, EXEMPLARS = 10, 2, 100
EPOCHS, BATCH, RATE, MOMENTUM = 10, 32, 0.02, 0.9
STRENGTH, TEMPERATURE = 3.0, 2.0  # of LwF
LAMBDA = 50.0  # of EWC, as in equation 3; Avalanche writes half of it, and sums over experiences where we take the mean
ALPHA, BETA = 0.3, 0.5  # of DER
MODEL = "smallconv"
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "Naive": ("finetune", {}),
    "Replay": ("replay", {"selection": "random"}),
    "LwF": ("lwf", {"strength": STRENGTH, "temperature": TEMPERATURE}),
    "EWC": ("ewc", {"strength": LAMBDA, "cap": 1e9, "batch_size": BATCH}),
    "DER": ("derpp", {"alpha": ALPHA, "beta": BETA, "mean_over": CLASSES}),
    "ICaRL": ("icarl", {}),
}
PAIRS = (("cil", "avalanche"), ("bridge", "plain"))
SIDES = tuple(side for pair in PAIRS for side in pair)
NO_BRIDGE = ("ICaRL",)
NEW_ONLY = ("Naive", "LwF", "EWC")  # whose cross-entropy is over the outputs of the new classes, on our side


def make_stream() -> Stream:
    """Digits of 8x8 pixels, two classes an experience, without augmentation."""
    return cil.class_incremental("digits", increment=INCREMENT, order_seed=1993)


def batch_sizes(stream: Stream) -> tuple[int, int]:
    """New images and exemplars in a batch of Avalanche, in the ratio in which we shuffle them together."""
    new = len(stream[1].train)
    mine = round(BATCH * new / (new + EXEMPLARS))
    return mine, BATCH - mine


# our side -----------------------------------------------------------------------------------------------------------


def ours(name: str, seed: int) -> list[float]:
    """Accuracies on all classes seen, of our own method."""
    strategy, options = OURS[name]
    return _trained(partial(find(strategy), **options), seed)


def bridge(name: str, seed: int) -> list[float]:
    """The same of Avalanche's class under our boundary; it has the criterion of its examples, over all outputs."""
    own = {"LwF": {"alpha": STRENGTH, "temperature": TEMPERATURE}, "DER": {"alpha": ALPHA, "beta": BETA},
           "EWC": {"ewc_lambda": LAMBDA / 2}}  # fmt: skip
    recipe = {"epochs": EPOCHS, "batch_size": BATCH, "lr": RATE, "momentum": MOMENTUM}
    return _trained(partial(find("avalanche"), name=name, options=own.get(name, {}), **recipe), seed)


def _trained(strategy: Any, seed: int) -> list[float]:
    sgd = partial(torch.optim.SGD, lr=RATE, momentum=MOMENTUM)
    recipe = Recipe(epochs=EPOCHS, batch_size=BATCH, optimizer=sgd, scheduler=constant)
    budget = cil.Budget(exemplars=EXEMPLARS, side_bytes=None)
    with tempfile.TemporaryDirectory() as folder:
        record = cil.train(
            strategy, make_stream(), MODEL, budget, recipe=recipe, seed=seed, run_dir=folder, progress=False
        )
        return list(record.results["accuracy_curve"])


# Avalanche's side -----------------------------------------------------------------------------------------------------


class Seen:
    """Cross-entropy over the outputs of the classes from ``first`` on that were seen, as our methods have it."""

    def __init__(self) -> None:
        self.first, self.seen = 0, 0

    def __call__(self, logits: Tensor, slots: Tensor) -> Tensor:
        return F.cross_entropy(logits[:, self.first : self.seen], slots - self.first)


def alone(name: str, seed: int, *, alike: bool) -> list[float]:
    """The same of Avalanche's class in its own loop: one object for the whole stream, a head of its final width.

    Args:
        alike: With the settings of our method; else with its own, as under the bridge.
    """
    stream, criterion = make_stream(), Seen()
    torch.manual_seed(seed)
    benchmark = to_avalanche(stream, normalise=False)
    make = networks(stream.image_shape, name=MODEL, mean=list(stream.mean), std=list(stream.std))
    net = make(seed=seed, device="cpu")()
    net.grow(CLASSES)
    strategy = (aligned if alike else default)(name, net, criterion)
    curve = []
    for index, experience in enumerate(benchmark.train_stream):
        criterion.seen = INCREMENT * (index + 1)
        criterion.first = INCREMENT * index if alike and name in NEW_ONLY else 0
        strategy.train(experience, eval_streams=[])
        for plugin in strategy.plugins:
            if alike and hasattr(plugin, "lwf"):  # Avalanche leaves the teacher's batch norm in training mode
                plugin.lwf.prev_model.eval()
        tests = [stream.test(place) for place in range(index + 1)]
        right = sum(_right(strategy.model, samples, criterion.seen) for samples in tests)
        curve.append(100 * right / sum(map(len, tests)))
    return curve


def common_to(net: nn.Module) -> dict[str, Any]:
    """Arguments of every class of Avalanche."""
    return {
        "optimizer": torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM), "train_epochs": EPOCHS,
        "train_mb_size": BATCH, "eval_mb_size": 256,
        "evaluator": library("training.plugins").EvaluationPlugin(loggers=[]),
    }  # fmt: skip


def default(name: str, net: nn.Module, criterion: Seen) -> Any:
    """The class of Avalanche as the bridge makes it."""
    own = {"LwF": {"alpha": STRENGTH, "temperature": TEMPERATURE}, "EWC": {"ewc_lambda": LAMBDA / 2},
           "DER": {"alpha": ALPHA, "beta": BETA, "mem_size": EXEMPLARS}, "Replay": {"mem_size": EXEMPLARS}}  # fmt: skip
    make = getattr(library("training.supervised"), name)
    return make(model=Logits(net), criterion=criterion, **own.get(name, {}), **common_to(net))


def aligned(name: str, net: nn.Module, criterion: Seen) -> Any:
    """The class of Avalanche with the settings of our method."""
    supervised, plugins = library("training.supervised"), library("training.plugins")
    if name == "ICaRL":
        return supervised.ICaRL(
            feature_extractor=Features(net), classifier=Classifier(net), memory_size=EXEMPLARS, buffer_transform=None,
            fixed_memory=True, **common_to(net),
        )  # fmt: skip
    if name == "Replay":
        new, stored = batch_sizes(make_stream())
        own = [plugins.ReplayPlugin(EXEMPLARS, batch_size=new, batch_size_mem=stored)]
    elif name == "EWC":

        class AllOutputs(library("core").SupervisedPlugin):  # type: ignore[misc]
            """The Fisher matrix is of all classes seen, as ours; it stands before the plugin that computes it."""

            def after_training_exp(self, strategy: Any, **rest: Any) -> None:
                criterion.first = 0

        own = [AllOutputs(), plugins.EWCPlugin(LAMBDA / 2, mode="online", decay_factor=1.0)]
    else:
        return default(name, net, criterion)
    return supervised.Naive(model=Logits(net), criterion=criterion, plugins=own, **common_to(net))


class Features(nn.Module):
    """The backbone of a network, with its normalisation."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.net(images).features
        return features


class Classifier(nn.Module):
    """Its head."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.head = net.head

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(features)
        return logits


@torch.no_grad()
def _right(model: Any, samples: Any, seen: int) -> int:
    model.eval()  # in which iCaRL answers by the nearest mean
    scores = model(samples.pixels.float() / 255)[:, :seen]
    return int((scores.argmax(1) == samples.slots).sum())


# all ----------------------------------------------------------------------------------------------------------------


def table(lines: list[dict[str, Any]]) -> None:
    """Average incremental and last accuracy of each pair, and the mean difference with its paired test over seeds."""
    print("| method | pair | seeds | average % | last % | average: difference | last: difference |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for name in OURS:
        found = {(line["side"], line["seed"]): line["curve"] for line in lines if line["method"] == name}
        for one, other in PAIRS:
            seeds = sorted(seed for side, seed in found if side == one and (other, seed) in found)
            if len(seeds) < 2:
                continue
            means, gaps = [], []
            for score in (statistics.mean, itemgetter(-1)):
                values = [[score(found[side, seed]) for seed in seeds] for side in (one, other)]
                means.append(" / ".join(f"{statistics.mean(v):.2f} ± {statistics.stdev(v):.2f}" for v in values))
                gap = statistics.mean(values[1]) - statistics.mean(values[0])
                gaps.append(f"{gap:+.2f} (p = {paired(values[1], values[0])['p']:.2g})")
            print(f"| {name} | {one} / {other} | {len(seeds)} | {' | '.join([*means, *gaps])} |")


def main() -> None:
    """Run what is missing, one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=[*OURS], choices=[*OURS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--sides", nargs="+", default=[*SIDES], choices=SIDES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    lines = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    if given.table:
        table(lines)
        return
    done = {(line["side"], line["method"], line["seed"]) for line in lines}
    sides = {"cil": ours, "avalanche": partial(alone, alike=True), "bridge": bridge,
             "plain": partial(alone, alike=False)}  # fmt: skip
    for seed in given.seeds:
        for name in given.methods:
            for side in given.sides:
                if (side, name, seed) in done or (side in PAIRS[1] and name in NO_BRIDGE):
                    continue
                begin = time.process_time()
                line = {"side": side, "method": name, "seed": seed, "curve": sides[side](name, seed)}
                with given.out.open("a") as file:
                    file.write(json.dumps({**line, "cpu_seconds": round(time.process_time() - begin, 1)}) + "\n")


if __name__ == "__main__":
    main()
