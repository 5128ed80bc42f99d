"""What the options move by which a method differs from a reference code: old against new, on real images.

    python benchmarks/method_options.py --out experiments/method_options.jsonl              # goes on where it stood
    python benchmarks/method_options.py --table --out experiments/method_options.jsonl

The setting of ``reference.py``: 20 classes of CIFAR-100, five experiences, 100 training images a class, 200 exemplars,
ResNet-14, 20 epochs. Each line of the output is one run. ``old`` is what the method did before the option.
"""

from __future__ import annotations

import argparse
import json
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import tempfile
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from pycil import Setting

import cil
from cil.data import Augment
from cil.engine.recipe import Recipe, cosine, multistep
from cil.strategies import find
from cil.strategies.dytox import DyTox
from cil.strategies.gem import GEM
from cil.strategies.rmm import RMM
from cil.strategies.si import SI


class FirstGivesUp(RMM):
    """The first experience loses its share too."""

    def accepts(self, signature: Any) -> dict[int, int]:
        share = 1 - self.rates[min(signature.index, len(self.rates) - 1)]
        return {slot: max(1, int(share * count + 1e-9)) for slot, count in signature.counts.items()}

    def in_advance(self, signature: Any) -> int:
        return 0


class BatchFirst(GEM):
    """Gradients of old tasks after the batch's own forward pass."""

    def loss(self, batch: Any) -> Any:
        self.constrained = True  # not yet
        return super().loss(batch)

    def adjust_gradients(self, batch: Any) -> None:
        tasks = [task for task in pairwise(self.bounds) if task[1] <= self.old_classes]
        rows = [row for row in (self._gradient_of(*task) for task in tasks) if row is not None]
        self.constraints = torch.stack(rows) if rows else None
        super().adjust_gradients(batch)


class OldHeadsDecay(SI):
    """Nothing holds the rows of old classes: the optimizer lets them decay."""

    def prepare(self, experience: Any) -> None:
        super().prepare(experience)
        self.rows = {}


class DivergenceInTuning(DyTox):
    """The second phase has the divergence loss too."""

    def tuning_loss(self, batch: Any) -> dict[str, torch.Tensor]:
        return dict(self.loss(batch)) if self.tuning_teacher else self._classes(batch)[1]


PAIRS: dict[str, tuple[Any, Any]] = {  # method: old, new; each a dict of options or a partial of a class
    "podnet": ({"margin_on": "target", "tune_epochs": 5}, {"tune_epochs": 5}),
    "bic": ({}, {"second_stage": "survey"}),
    "ewc": ({}, {"fisher_mode": "training"}),
    "gem": (partial(BatchFirst, constraint_batch=64), {"constraint_batch": 64}),
    "rmm": (partial(FirstGivesUp, host="icarl"), {"host": "icarl"}),
    "foster": ({}, {"keep": "teacher"}),
    "aanets": ({}, {"share_gradients": "accumulated"}),
    "mas": ({"strength": 0.5, "merge": "half"}, {}),
    "derpp": ({}, {"mean_over": 20, "insert": "each_epoch"}),
    "pass": ({"pseudo_by_classes": True}, {}),
    "gdumb": ({}, {"cutmix": 0.5}),
    "fetril": ({}, {"similarity": "euclidean"}),
    "si": (partial(OldHeadsDecay), {}),
    "dytox": (partial(DivergenceInTuning, tuning_lr=5e-5), {"tuning_lr": 1.25e-5}),
}
SETTING = Setting()
COSINE = ("podnet", "aanets")
SLOWER = {"pass": 100, "mas": 10}  # rates are divided by: mas diverges at the rate of the others


def recipe_of(method: str, side: str) -> Recipe:
    """How a method is trained; dytox as ``recipe=survey`` has it and had it, for fewer epochs."""
    if method == "dytox":
        rate, first, minimum = (1.25e-4, 0.008, 1e-5) if side == "new" else (5e-4, 0.002, 0.0)
        return Recipe(
            epochs=100, batch_size=128, optimizer=partial(torch.optim.AdamW, lr=rate, weight_decay=1e-6),
            scheduler=partial(cosine, warmup=5, warmup_factor=first, minimum=minimum),
        )  # fmt: skip
    rate = SETTING.rate / SLOWER.get(method, 1)
    return Recipe(
        epochs=SETTING.epochs, batch_size=SETTING.batch, scheduler=partial(multistep, milestones=SETTING.milestones),
        optimizer=partial(torch.optim.SGD, lr=rate, momentum=0.9, weight_decay=SETTING.decay),
    )  # fmt: skip


def model_of(method: str, side: str) -> Any:
    """The network of a method."""
    if method == "dytox":  # narrower and shallower: the whole one takes an hour a run
        options = {"width": 96, "depth": 3, "drop_path": 0.1 if side == "new" else 0.0}
        return {"name": "convit", "options": options}
    return f"resnet{SETTING.depth}_cosine" if method in COSINE else f"resnet{SETTING.depth}"


def curve(method: str, side: str, seed: int, precision: str) -> list[float]:
    """The accuracy curve of one run."""
    given = PAIRS[method][side == "new"]
    strategy = partial(find(method), **given) if isinstance(given, dict) else given
    scope = "carried+incoming" if method == "rmm" else "carried"
    budget = cil.Budget(exemplars=SETTING.exemplars, scope=scope)
    other = method == "dytox" and side == "new"
    stream = SETTING.stream(augment=Augment(crop_padding=4, flip=True, policy="rand_m9") if other else None)
    with tempfile.TemporaryDirectory() as folder:
        record = cil.train(
            strategy, stream, model_of(method, side), budget,
            recipe=recipe_of(method, side), seed=seed, run_dir=folder, precision=precision, progress=False,
        )  # fmt: skip
        return list(record.results["accuracy_curve"])


def table(lines: list[dict[str, Any]]) -> None:
    """Average incremental and last accuracy, old and new, as Markdown."""
    print(
        "| method | runs | old | new | difference | old last | new last |\n| :-- | --: | --: | --: | --: | --: | --: |"
    )
    for method in PAIRS:
        found = {(line["side"], line["seed"]): line["curve"] for line in lines if line["method"] == method}
        seeds = sorted(seed for side, seed in found if side == "old" and ("new", seed) in found)
        if not seeds:
            continue
        means = [statistics.mean(statistics.mean(found[side, seed]) for seed in seeds) for side in ("old", "new")]
        last = [statistics.mean(found[side, seed][-1] for seed in seeds) for side in ("old", "new")]
        print(f"| {method} | {len(seeds)} | {means[0]:.2f} | {means[1]:.2f} | {means[1] - means[0]:+.2f} "
              f"| {last[0]:.1f} | {last[1]:.1f} |")  # fmt: skip


def main() -> None:
    """Run what is missing, one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"], help="of all runs of an output")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    if given.table:
        table(lines)
        return
    done = {(line["method"], line["side"], line["seed"]) for line in lines}
    for seed, method, side in product(given.seeds, given.methods, ("old", "new")):
        if (method, side, seed) not in done:
            found = curve(method, side, seed, given.precision)
            line = {"method": method, "side": side, "seed": seed, "precision": given.precision, "curve": found}
            with given.out.open("a") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
