"""The same work in PyCIL, Mammoth, Avalanche and here: CPU seconds from start to end, and accuracies.

    python benchmarks/toolboxes.py --pycil DIR --mammoth DIR --avalanche --out found.jsonl     # DIR: checkouts
    python benchmarks/toolboxes.py --methods finetune icarl --seeds 0 1 2 --out found.jsonl    # here alone
    python benchmarks/toolboxes.py --table --out found.jsonl

Images of 20 classes of CIFAR-100, class order, ResNet, SGD with steps, epochs, batches and number of exemplars are the
same, on one thread; toolboxes are driven as they are (see ``pycil.py`` and ``mammoth.py``, Avalanche by its classes and
data loaders), so each augments, tests and chooses exemplars in its own way. Each run is a process of its own, timed
from after the import of torch; a round takes every toolbox in turn. What is in the output is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pycil import Setting, command

HERE = Path(__file__).parent
SETTING = Setting(epochs=3, batch=128, depth=32, milestones=(2,))
TABLE_NAMES = {
    "cil": "here",
    "cil-bf16": "here, bf16",
    "pycil": "PyCIL",
    "mammoth": "Mammoth",
    "avalanche": "Avalanche",
}


def ours(where: Path, method: str, seed: int, setting: Setting, precision: str = "fp32") -> list[float]:
    """Top-1 accuracy in percent after each experience, in the framework."""
    import torch

    import cil
    from cil.engine.recipe import Recipe, multistep
    from cil.strategies import find

    sgd = partial(torch.optim.SGD, lr=setting.rate, momentum=0.9, weight_decay=setting.decay)
    steps = partial(multistep, milestones=setting.milestones)
    recipe = Recipe(epochs=setting.epochs, batch_size=setting.batch, optimizer=sgd, scheduler=steps)
    budget = cil.Budget(exemplars=setting.exemplars)
    with tempfile.TemporaryDirectory() as folder:
        record = cil.train(
            find(method), setting.stream(), f"resnet{setting.depth}", budget,
            recipe=recipe, seed=seed, run_dir=folder, precision=precision, progress=False,
        )  # fmt: skip
        return list(record.results["accuracy_curve"])


def avalanche(where: Path, method: str, seed: int, setting: Setting) -> list[float]:
    """The same of Avalanche's ``Naive`` or ``ICaRL``, evaluation by its own plugin."""
    import torch
    from avalanche_oracle import Classifier, Features

    from cil.api import networks
    from cil.interop.avalanche import to_avalanche
    from cil.interop.avalanche.carried import Logits
    from cil.interop.avalanche.library import library

    stream = setting.stream()
    torch.manual_seed(seed)
    benchmark = to_avalanche(stream, normalise=False)  # the network does
    scale = {"mean": list(stream.mean), "std": list(stream.std), "channels_last": False}
    net = networks(stream.image_shape, f"resnet{setting.depth}", **scale)(seed=seed, device="cpu")()
    net.grow(setting.classes)
    plugins, metrics = library("training.plugins"), library("evaluation.metrics")
    accuracy = metrics.accuracy_metrics(stream=True)
    optimizer = torch.optim.SGD(net.parameters(), setting.rate, momentum=0.9, weight_decay=setting.decay)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(setting.milestones))
    own = {
        "optimizer": optimizer, "train_epochs": setting.epochs, "train_mb_size": setting.batch, "eval_mb_size": 500,
        "plugins": [plugins.LRSchedulerPlugin(schedule)], "evaluator": plugins.EvaluationPlugin(accuracy, loggers=[]),
    }  # fmt: skip
    supervised = library("training.supervised")
    if method == "icarl":
        strategy = supervised.ICaRL(
            feature_extractor=Features(net), classifier=Classifier(net), memory_size=setting.exemplars,
            buffer_transform=None, fixed_memory=True, **own,
        )  # fmt: skip
    else:
        strategy = supervised.Naive(model=Logits(net), criterion=torch.nn.CrossEntropyLoss(), **own)
    curve = []
    for index, experience in enumerate(benchmark.train_stream):
        strategy.train(experience, eval_streams=[], num_workers=0)
        found = strategy.eval(benchmark.test_stream[: index + 1], num_workers=0)
        (value,) = (number for name, number in found.items() if name.startswith("Top1_Acc_Stream"))
        curve.append(100 * float(value))
    return curve


def measured(toolbox: str, where: Path, method: str, seed: int) -> dict[str, Any]:
    """One run in a new process and an empty folder."""
    script = {"pycil": ["pycil.py"], "mammoth": ["mammoth.py"]}.get(toolbox, ["toolboxes.py", "--run", toolbox])
    words = [
        word
        for field in fields(Setting)
        if field.name != "milestones"
        for word in (f"--{field.name.replace('_', '-')}", str(getattr(SETTING, field.name)))
    ]
    asked = [str(where), "--methods", method, "--seeds", str(seed), *words]
    with tempfile.TemporaryDirectory() as folder:
        said = subprocess.run(
            [sys.executable, str(HERE / script[0]), *script[1:], *asked, "--milestones", *map(str, SETTING.milestones)],
            check=True, capture_output=True, text=True, cwd=folder,
        ).stdout  # fmt: skip
    line: dict[str, Any] = json.loads(next(line for line in said.splitlines() if line.startswith('{"method"')))
    return {"toolbox": toolbox, **line}


def table(lines: list[dict[str, Any]]) -> str:
    """A row for each method and toolbox; factors are medians over seeds."""
    rows = [
        "| method | | seeds | CPU, s | times ours | average % | last % |",
        "| :-- | :-- | --: | --: | --: | --: | --: |",
    ]
    found = {(line["method"], line["toolbox"], line["seed"]): line for line in lines}
    for method, toolbox in dict.fromkeys((line["method"], line["toolbox"]) for line in lines):
        own = [line for (m, t, _), line in found.items() if (m, t) == (method, toolbox)]
        factors = [
            line["cpu"] / found[method, "cil", line["seed"]]["cpu"]
            for line in own
            if (method, "cil", line["seed"]) in found
        ]
        numbers = (
            f"{statistics.median(line['cpu'] for line in own):.1f}",
            f"{statistics.median(factors):.2f}" if factors else "",
            f"{statistics.mean(statistics.mean(line['curve']) for line in own):.1f}",
            f"{statistics.mean(line['curve'][-1] for line in own):.1f}",
        )
        rows.append(f"| {method} | {TABLE_NAMES[toolbox]} | {len(own)} | {' | '.join(numbers)} |")
    return "\n".join(rows)


def main() -> None:
    """Measure what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["finetune", "icarl"], choices=["finetune", "icarl"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--bf16", action="store_true", help="also here in bf16, for processors with units for it")
    parser.add_argument("--pycil", type=Path)
    parser.add_argument("--mammoth", type=Path)
    parser.add_argument("--avalanche", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    lines = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    if given.table:
        print(table(lines))
        return
    done = {(line["toolbox"], line["method"], line["seed"]) for line in lines}
    places = {
        "cil": HERE,
        "cil-bf16": HERE if given.bf16 else None,
        "pycil": given.pycil,
        "mammoth": given.mammoth,
        "avalanche": HERE if given.avalanche else None,
    }
    for seed in given.seeds:
        for method in given.methods:
            for toolbox, where in places.items():
                if where is not None and (toolbox, method, seed) not in done:
                    line = measured(toolbox, where.resolve(), method, seed)
                    with given.out.open("a") as file:
                        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:  # one side, as ``measured`` asks for it
        sides = {"cil": ours, "cil-bf16": partial(ours, precision="bf16"), "avalanche": avalanche}
        run = sides[sys.argv[2]]
        del sys.argv[1:3]
        command(__doc__, run)
    else:
        main()
