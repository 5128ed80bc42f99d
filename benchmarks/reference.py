"""The same small setting in a public toolbox and here: do our methods reach what the reference implementations reach?

    python benchmarks/reference.py DIR --methods icarl wa --seeds 0 1 2 --out found.jsonl
    python benchmarks/reference.py --table --out found.jsonl

DIR is a checkout of PyCIL (https://github.com/LAMDA-CL/PyCIL), which is neither part of this project nor a dependency;
it is driven as it is, with its lengths, its data and its random seed set from here. Same images, class order, backbone,
optimizer, schedule, epochs and exemplars on both sides; both start from fresh weights. Each line of the output is one
run; what is already there is not run again, so the command may be interrupted.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pycil
import torch
from pycil import Setting

import cil
from cil.engine.recipe import Recipe, multistep
from cil.strategies import find

SETTING = Setting()  # 20 classes in experiences of four, 20 epochs on ResNet-14, 200 exemplars
HALF = {"fetril": Setting(base=10, each=2, exemplars=0)}  # a first half of all classes
STEPS = ("icarl", "wa", "bic", "der", "ewc", "gem", "finetune", "replay", "lwf", "coil")  # else cosine
COSINE = ("podnet", "coil")
METHODS = ["icarl", "wa", "bic", "podnet", "der", "foster", "memo", "ewc", "gem", "rmm"]
METHODS += ["finetune", "replay", "lwf", "coil", "fetril"]
OPTIONS: dict[str, dict[str, Any]] = {  # what the toolbox does, where the default here is another
    "wa": {"strength": "balanced"},
    "bic": {"second_stage": "survey"},
    "podnet": {"tune_epochs": SETTING.tune},
    "foster": {"keep": "teacher"},
    "ewc": {"fisher_mode": "training"},
    "rmm": {
        "host": "foster", "host_options": {"beta1": 0.97, "beta2": 0.97, "keep": "teacher"},
        "rates": pycil.RMM_RATES, "tilts": pycil.RMM_TILTS,
    },
}  # fmt: skip


def ours(method: str, seed: int) -> list[float]:
    """The accuracy curve in the framework."""
    setting = HALF.get(method, SETTING)
    recipe = Recipe(
        epochs=setting.epochs, batch_size=setting.batch,
        optimizer=partial(torch.optim.SGD, lr=setting.rate, momentum=0.9, weight_decay=setting.decay),
        **({"scheduler": partial(multistep, milestones=setting.milestones)} if method in STEPS else {}),
    )  # fmt: skip
    model = {"name": f"resnet{setting.depth}_cosine" if method in COSINE else f"resnet{setting.depth}"}
    strategy = partial(find(method), **OPTIONS.get(method, {}))
    with tempfile.TemporaryDirectory() as folder:
        record = cil.train(
            strategy,
            setting.stream(),
            model,
            cil.Budget(exemplars=setting.exemplars, scope="carried+incoming" if method == "rmm" else "carried"),
            recipe=recipe,
            seed=seed,
            run_dir=folder,
        )
        return list(record.results["accuracy_curve"])


def table(lines: list[dict[str, Any]]) -> None:
    """Average incremental accuracy on both sides, and the mean difference with its 95 % interval (paired by seed)."""
    quantile = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # of Student's t, by number of seeds
    for method in dict.fromkeys(line["method"] for line in lines):
        found = {
            (line["side"], line["seed"]): statistics.mean(line["curve"]) for line in lines if line["method"] == method
        }
        seeds = sorted(seed for side, seed in found if side == "cil" and ("toolbox", seed) in found)
        gaps = [found["cil", seed] - found["toolbox", seed] for seed in seeds]
        if not gaps:
            continue
        sides = [statistics.mean(found[side, seed] for seed in seeds) for side in ("toolbox", "cil")]
        half = quantile[len(gaps)] * statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
        print(f"{method:10s} toolbox {sides[0]:5.2f}  here {sides[1]:5.2f}  difference {statistics.mean(gaps):+5.2f} "
              f"+- {half:4.2f}  ({len(gaps)} seeds)")  # fmt: skip


def main() -> None:
    """Run what is missing, one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("where", nargs="?", type=Path)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--sides", nargs="+", default=["cil", "toolbox"], choices=["cil", "toolbox", "toolbox, distinct"]
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    if given.table:
        table(lines)
        return
    done = {(line["side"], line["method"], line["seed"]) for line in lines}
    for seed in given.seeds:
        for method in given.methods:
            for side in given.sides:
                if (side, method, seed) in done:
                    continue
                distinct = side == "toolbox, distinct"
                setting = HALF.get(method, SETTING)
                curve = (
                    ours(method, seed) if side == "cil" else pycil.curve(given.where, method, seed, setting, distinct)
                )
                with given.out.open("a") as file:
                    file.write(json.dumps({"side": side, "method": method, "seed": seed, "curve": curve}) + "\n")


if __name__ == "__main__":
    main()
