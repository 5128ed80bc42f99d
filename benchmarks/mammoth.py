"""A checkout of Mammoth (https://github.com/aimagelab/mammoth), driven from outside on images of ours.

    python benchmarks/mammoth.py DIR --depth 32 --methods finetune icarl --seeds 0

Neither part of this project nor a dependency; it wants kornia and onedrivedownloader. Lengths, data and random seed are
set from here; the rules of a method stay as they are. As a command it prints a line of JSON a run.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from pycil import Setting, command

NAMES = {"finetune": "sgd"}  # else as here


def curve(where: Path, method: str, seed: int, setting: Setting) -> list[float]:
    """Top-1 accuracy in percent after each experience."""
    if setting.base != setting.each:
        raise SystemExit(f"Mammoth's experiences have equally many classes, not {setting.base} and then {setting.each}")
    sys.path.insert(0, str(where))
    sys.modules["open_clip"] = MagicMock()  # its data sets of CLIP, which are not used, download weights on import
    importlib.import_module("utils.globals")
    _give_images(setting)
    name = NAMES.get(method, method)
    given: dict[str, Any] = {
        "model": name, "dataset": "seq-cifar100", "backbone": "resnet32", "lr": setting.rate, "optim_mom": 0.9,
        "opt_wd" if name == "icarl" else "optim_wd": setting.decay, "seed": seed, "n_epochs": setting.epochs,
        "batch_size": setting.batch, "num_workers": 0, "non_verbose": 1, "disable_log": 0,
        "lr_scheduler": "multisteplr", **({} if name == "sgd" else {"buffer_size": setting.exemplars}),
    }  # fmt: skip
    words = [f"--{key}={value}" for key, value in given.items()]
    milestones = [str(epoch) for epoch in setting.milestones or (setting.epochs + 1,)]
    code: Any = importlib.import_module("main")
    model, data, given_all = code.initialize(code.parse_args([*words, "--lr_milestones", *milestones]))
    torch.set_num_threads(1)  # it takes two when it is imported
    found: list[float] = []
    after = model.meta_end_eval

    def remember(evaluated: Any, accuracies: Any) -> Any:
        found.append(float(sum(accuracies[0]) / len(accuracies[0])))  # equally many test images of each experience
        return after(evaluated, accuracies)

    model.meta_end_eval = remember
    importlib.import_module("utils.training").train(model, data, given_all)
    return found


def _give_images(setting: Setting) -> None:
    """Its CIFAR-100 has our images; the labels are the slots already, so that its order is the natural one."""
    code: Any = importlib.import_module("datasets.seq_cifar100")
    kind = code.SequentialCIFAR100
    kind.N_CLASSES, kind.N_CLASSES_PER_TASK = setting.classes, setting.each
    kind.N_TASKS = setting.classes // setting.each
    kind.get_class_names = lambda self: [str(slot) for slot in range(setting.classes)]
    images = setting.arrays()

    def given(self: Any, root: str, train: bool = True, transform: Any = None, **rest: Any) -> None:
        self.data, self.targets = images[0 if train else 1]
        self.transform, self.target_transform = transform, None
        self.not_aug_transform = importlib.import_module("torchvision.transforms").ToTensor()

    code.MyCIFAR100.__init__ = code.TCIFAR100.__init__ = given


if __name__ == "__main__":
    command(__doc__, curve)
