"""The same small setting in a public toolbox and here: do our methods reach what the reference implementations reach?

    python benchmarks/reference.py DIR --methods icarl wa bic podnet der foster memo --seeds 0 1 2 --out found.jsonl
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

import importlib
import json
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cil
from cil.engine.recipe import Recipe, multistep
from cil.strategies import find
from cil.streams import Stream

CLASSES, EACH, PER_CLASS, EXEMPLARS = 20, 4, 100, 200
EPOCHS, BATCH, RATE, DECAY, MILESTONES, DEPTH = 20, 32, 0.1, 5e-4, (12, 17), 14
SCHEDULE = {"icarl": "steps", "wa": "steps", "bic": "steps", "der": "steps"}  # else cosine
COSINE = ("podnet",)
HEADS = {"icarl": "nearest mean"}  # what the toolbox reports and we compare with; else the head
OPTIONS: dict[str, dict[str, Any]] = {  # what the toolbox does, where the default here is another
    "wa": {"strength": "balanced"},
    "bic": {"second_stage": "survey"},
    "podnet": {"tune_epochs": 5},
    "foster": {"keep": "teacher"},
}


def make_stream() -> Stream:
    """Twenty classes of CIFAR-100 in the survey's order, a part of the training images."""
    return cil.class_incremental(
        "cifar100", increment=EACH, order_seed=1993, classes=CLASSES, train_per_class=PER_CLASS,
        mean=[0.5071, 0.4867, 0.4408], std=[0.2675, 0.2565, 0.2761],
    )  # fmt: skip


def ours(method: str, seed: int) -> list[float]:
    """The accuracy curve in the framework."""
    steps = SCHEDULE.get(method) == "steps"
    recipe = Recipe(
        epochs=EPOCHS, batch_size=BATCH,
        optimizer=partial(torch.optim.SGD, lr=RATE, momentum=0.9, weight_decay=DECAY),
        **({"scheduler": partial(multistep, milestones=MILESTONES)} if steps else {}),
    )  # fmt: skip
    model = {"name": f"resnet{DEPTH}_cosine" if method in COSINE else f"resnet{DEPTH}"}
    strategy = partial(find(method), **OPTIONS.get(method, {}))
    with tempfile.TemporaryDirectory() as folder:
        record = cil.train(
            strategy, make_stream(), model, cil.Budget(exemplars=EXEMPLARS), recipe=recipe, seed=seed, run_dir=folder
        )
        return list(record.results["accuracy_curve"])


def toolbox(where: Path, method: str, seed: int) -> list[float]:
    """The accuracy curve in the toolbox."""
    sys.path.insert(0, str(where))
    loader = torch.utils.data.DataLoader
    begin = loader.__init__
    loader.__init__ = lambda self, *given, **named: begin(self, *given, **named | {"num_workers": 0})  # type: ignore
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]  # it puts some tensors there by hand
    nets = importlib.import_module("utils.inc_net")
    plain, cosine, parts = (
        importlib.import_module(f"convs.{name}") for name in ("cifar_resnet", "ucir_cifar_resnet", "memo_cifar_resnet")
    )
    nets.resnet32 = plain.resnet14
    nets.cosine_resnet32 = lambda: cosine.CifarResNet(cosine.ResNetBasicblock, DEPTH)
    nets.get_memo_resnet32 = parts.get_resnet14_a2fc
    code = importlib.import_module(f"models.{method}")
    lengths: dict[str, Any] = {"init_epoch": EPOCHS, "epochs": EPOCHS, "ft_epochs": 5, "batch_size": BATCH,
        "num_workers": 0, "init_milestones": list(MILESTONES), "milestones": list(MILESTONES),
        "init_weight_decay": DECAY, "weight_decay": DECAY, "init_lr": RATE, "lrate": RATE}  # fmt: skip
    for name, value in lengths.items():
        if hasattr(code, name):
            setattr(code, name, value)
    importlib.import_module("models.base").batch_size = 500
    given: dict[str, Any] = {
        **lengths, "model_name": method, "memory_size": EXEMPLARS, "fixed_memory": False,
        "device": [torch.device("cpu")],
        "convnet_type": {"podnet": "cosine_resnet32", "memo": "memo_resnet32"}.get(method, "resnet32"),
        "init_epochs": EPOCHS, "boosting_epochs": EPOCHS, "compression_epochs": EPOCHS, "lr": RATE, "T": 2,
        "beta1": 0.96, "beta2": 0.97, "oofc": "ft", "is_teacher_wa": False, "is_student_wa": False, "wa_value": 1,
        "lambda_okd": 1, "scheduler": "cosine", "t_max": EPOCHS, "init_lr_decay": 0.1, "lrate_decay": 0.1,
        "alpha_aux": 1.0, "train_base": True, "train_adaptive": False, "debug": False, "skip": False,
        "dataset": "cifar100", "init_cls": EACH, "increment": EACH, "prefix": "", "seed": seed,
    }  # fmt: skip
    data = _their_data(seed)
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    learner = importlib.import_module("utils.factory").get_model(method, given)
    learner.topk, learner._evaluate = 2, _top_one  # it also wants the top five, of four classes
    curve = []
    for _ in range(data.nb_tasks):
        learner.incremental_train(data)
        head, nearest = learner.eval_task()
        learner.after_task()
        curve.append(float((nearest if HEADS.get(method) == "nearest mean" else head)["top1"]))
    return curve


def _top_one(predicted: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Accuracy in percent of the first of the classes predicted for each image, under all names that are asked for."""
    percent = 100 * float((predicted.T[0] == labels).mean())
    return {"grouped": {"total": percent}, "top1": percent, "top5": percent}


def _their_data(seed: int) -> Any:
    """Its data manager over our images; the labels are the slots already, so that its order is the natural one."""
    stream = make_stream()
    sets = []
    for test in (False, True):
        parts = [stream.test(index) if test else stream[index].train for index in range(len(stream))]
        pixels = torch.cat([part.pixels for part in parts]).permute(0, 2, 3, 1).contiguous().numpy()
        sets.append((pixels, torch.cat([part.slots for part in parts]).numpy()))
    data = importlib.import_module("utils.data")
    kind = data.iCIFAR100
    kind.class_order = list(range(CLASSES))

    def given(self: Any) -> None:
        (self.train_data, self.train_targets), (self.test_data, self.test_targets) = sets

    kind.download_data = given
    manager: Any = importlib.import_module("utils.data_manager")
    return manager.DataManager("cifar100", False, seed, EACH, EACH)


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
    parser.add_argument("--methods", nargs="+", default=["icarl", "wa", "bic", "podnet", "der", "foster", "memo"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--sides", nargs="+", default=["cil", "toolbox"], choices=["cil", "toolbox"])
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
                curve = ours(method, seed) if side == "cil" else toolbox(given.where, method, seed)
                with given.out.open("a") as file:
                    file.write(json.dumps({"side": side, "method": method, "seed": seed, "curve": curve}) + "\n")


if __name__ == "__main__":
    main()
