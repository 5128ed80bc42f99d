"""A checkout of PyCIL (https://github.com/LAMDA-CL/PyCIL), driven from outside on images of ours.

    python benchmarks/pycil.py DIR --base 10 --each 2 --methods icarl wa --seeds 0 1

Neither part of this project nor a dependency. Lengths, data and random seed are set from here; the rules of a method
stay as they are. As a command it trains one method after the other, in one process, and prints a line of JSON a run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

import cil
from cil.data import Augment
from cil.streams import Stream

HEADS = {"icarl": "nearest mean"}  # what it reports and we compare with; else the head
NETWORKS = {"podnet": "cosine_resnet32", "coil": "cosine_resnet32", "memo": "memo_resnet32"}
RMM_RATES = [0.4, 0.4, 0.4, 0.5, 0.5]  # m_b and c_b of five experiences, as in the survey's benchmark
RMM_TILTS = [0.0, 0.0, 0.0, 0.1, 0.1]
OF_METHOD: dict[str, dict[str, Any]] = {  # settings of its own file of a method
    "rmm": {"model_name": "rmm-foster", "beta1": 0.97, "m_rate_list": RMM_RATES, "c_rate_list": RMM_TILTS},
    "coil": {"sinkhorn": 0.464, "calibration_term": 1.5, "norm_term": 3.0, "reg_term": 1e-3},
}


@dataclass(frozen=True)
class Setting:
    """The work of both sides: classes of CIFAR-100 in the survey's order, and SGD on a small residual network.

    Args:
        classes: Of the stream.
        base: Classes of the first experience.
        each: Classes of every later one.
        per_class, test_per_class: Images of each class.
        exemplars: In all.
        epochs: Of every phase.
        tune: Epochs of the balanced tuning of methods that have one.
        batch: Images.
        rate: Of learning.
        decay: Of weights.
        milestones: Epochs after which the rate is divided by ten, for methods with steps.
        depth: Of the residual network.
    """

    classes: int = 20
    base: int = 4
    each: int = 4
    per_class: int = 100
    test_per_class: int = 100
    exemplars: int = 200
    epochs: int = 20
    tune: int = 5
    batch: int = 32
    rate: float = 0.1
    decay: float = 5e-4
    milestones: tuple[int, ...] = (12, 17)
    depth: int = 14

    def stream(self, augment: Augment | None = None) -> Stream:
        """The images, augmented as the survey does unless told otherwise."""
        return cil.class_incremental(
            "cifar100", base=0 if self.base == self.each else self.base, increment=self.each, order_seed=1993,
            classes=self.classes, train_per_class=self.per_class, test_per_class=self.test_per_class,
            mean=[0.5071, 0.4867, 0.4408], std=[0.2675, 0.2565, 0.2761],
            augment=augment,
        )  # fmt: skip

    def arrays(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Pixels (N, H, W, C) uint8 and slots of all training images, and of all test images."""
        stream, sets = self.stream(), []
        for test in (False, True):
            parts = [stream.test(index) if test else stream[index].train for index in range(len(stream))]
            pixels = torch.cat([part.pixels for part in parts]).permute(0, 2, 3, 1).contiguous().numpy()
            sets.append((pixels, torch.cat([part.slots for part in parts]).numpy()))
        return sets


def curve(where: Path, method: str, seed: int, setting: Setting, distinct: bool = False) -> list[float]:
    """Top-1 accuracy in percent after each experience.

    Args:
        distinct: Images that rmm takes of a new class are other ones each; as it is, it draws with replacement.
    """
    sys.path.insert(0, str(where))
    loader = torch.utils.data.DataLoader
    begin = loader.__init__
    loader.__init__ = lambda self, *given, **named: begin(self, *given, **named | {"num_workers": 0})  # type: ignore
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]  # it puts some tensors there by hand
    nets: Any = importlib.import_module("utils.inc_net")
    plain, cosine, parts = (
        importlib.import_module(f"convs.{name}") for name in ("cifar_resnet", "ucir_cifar_resnet", "memo_cifar_resnet")
    )
    nets.resnet32 = getattr(plain, f"resnet{setting.depth}")
    nets.cosine_resnet32 = lambda: cosine.CifarResNet(cosine.ResNetBasicblock, setting.depth)
    if setting.depth == 14:
        nets.get_memo_resnet32 = parts.get_resnet14_a2fc
    code = importlib.import_module(f"models.{method}")
    epochs = setting.epochs
    milestones = list(setting.milestones)
    lengths: dict[str, Any] = {
        "init_epoch": epochs, "epochs": epochs, "ft_epochs": setting.tune, "batch_size": setting.batch,
        "num_workers": 0,
        "init_milestones": milestones, "milestones": milestones, "init_weight_decay": setting.decay,
        "weight_decay": setting.decay, "init_lr": setting.rate, "lrate": setting.rate,
    }  # fmt: skip
    for name, value in lengths.items():
        if hasattr(code, name):
            setattr(code, name, value)
    if method == "coil":
        code.memory_size = setting.exemplars
    if method == "fetril":  # it brings its own augmentation: both sides are to have the same
        code.transforms.ColorJitter = code.CIFAR10Policy = code.Cutout = lambda *_, **__: torch.nn.Identity()
    base: Any = importlib.import_module("models.base")
    base.batch_size = 500
    given: dict[str, Any] = {
        **lengths, "model_name": method, "memory_size": setting.exemplars, "fixed_memory": False,
        "device": [torch.device("cpu")],
        "convnet_type": NETWORKS.get(method, "resnet32"),
        "init_epochs": epochs, "boosting_epochs": epochs, "compression_epochs": epochs, "lr": setting.rate, "T": 2,
        "beta1": 0.96, "beta2": 0.97, "oofc": "ft", "is_teacher_wa": False, "is_student_wa": False, "wa_value": 1,
        "lambda_okd": 1, "scheduler": "cosine", "t_max": epochs, "init_lr_decay": 0.1, "lrate_decay": 0.1,
        "alpha_aux": 1.0, "train_base": True, "train_adaptive": False, "debug": False, "skip": False,
        "dataset": "cifar100", "init_cls": setting.base, "increment": setting.each, "prefix": "", "seed": seed,
        **OF_METHOD.get(method, {}),
    }  # fmt: skip
    if method == "rmm":  # it counts 500 images a class whatever there are
        code.RMMBase.memory_size = property(partial(_rmm_memory, setting=setting))
    data = _their_data(seed, setting)
    if distinct:
        data._select_rmm = partial(_select_distinct, data)
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    learner = importlib.import_module("utils.factory").get_model(given["model_name"], given)
    if method == "gem":  # it asks every weight for its gradient, also this layer's, which nothing uses
        learner._network.convnet.fc = torch.nn.Identity()
    learner.topk, learner._evaluate = 2, _top_one  # it also wants the top five, of four classes
    found = []
    for _ in range(data.nb_tasks):
        learner.incremental_train(data)
        head, nearest = learner.eval_task()
        learner.after_task()
        found.append(float((nearest if HEADS.get(method) == "nearest mean" else head)["top1"]))
    return found


def _rmm_memory(learner: Any, setting: Setting) -> int:
    """Its own property, for as many images a class as there are."""
    rate = learner._m_rate_list[learner._cur_task]
    if rate:
        images = setting.each * setting.per_class
        most = learner._total_classes * setting.per_class - 1
        learner._memory_size = min(most, setting.exemplars + int(rate * images))
    return int(learner._memory_size)


def _select_distinct(manager: Any, x: Any, y: Any, low_range: int, high_range: int, m_rate: float) -> tuple[Any, Any]:
    """As rmm's, without replacement."""
    rows = np.where((y >= low_range) & (y < high_range))[0]
    kept = np.sort(np.random.permutation(rows)[: int((1 - m_rate) * len(rows))])  # noqa: NPY002
    return x[kept], y[kept]


def _top_one(predicted: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Accuracy in percent of the first of the classes predicted for each image, under all names that are asked for."""
    percent = 100 * float((predicted.T[0] == labels).mean())
    return {"grouped": {"total": percent}, "top1": percent, "top5": percent}


def _their_data(seed: int, setting: Setting) -> Any:
    """Its data manager over our images; the labels are the slots already, so that its order is the natural one."""
    sets = setting.arrays()
    data = importlib.import_module("utils.data")
    kind = data.iCIFAR100
    kind.class_order = list(range(setting.classes))

    def given(self: Any) -> None:
        (self.train_data, self.train_targets), (self.test_data, self.test_targets) = sets

    kind.download_data = given
    manager: Any = importlib.import_module("utils.data_manager")
    return manager.DataManager("cifar100", False, seed, setting.base, setting.each)


def command(described: str | None, curve: Callable[[Path, str, int, Setting], list[float]]) -> None:
    """The command line of a toolbox: a line of JSON for each method and seed, with its CPU seconds."""
    parser = argparse.ArgumentParser(description=described, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("where", type=Path)
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    for field in fields(Setting):
        if field.name == "milestones":
            parser.add_argument("--milestones", nargs="*", type=int, default=Setting.milestones)
        else:
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    given = vars(parser.parse_args())
    where, methods, seeds = (given.pop(name) for name in ("where", "methods", "seeds"))
    setting = Setting(**given | {"milestones": tuple(given["milestones"])})
    torch.set_num_threads(1)
    for method in methods:
        for seed in seeds:
            began = time.process_time()
            line = {"method": method, "seed": seed, "curve": curve(where, method, seed, setting)}
            print(json.dumps({**line, "cpu": time.process_time() - began}), flush=True)


if __name__ == "__main__":
    command(__doc__, curve)
