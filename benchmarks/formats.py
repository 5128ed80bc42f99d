"""What memory layout, folded batch norm, bf16 and torch's compiler gain here: a training step and an evaluation.

    python benchmarks/formats.py
    python benchmarks/formats.py --model resnet18 --batch 64 --rounds 5

CPU seconds on one thread. Each round takes every way once, so that what else the machine does falls on all of them; a
row has the median over rounds of the ratio to the plain way of the same round. Also said: what the first step and the
first answer took, in which the compiler works, and for how many images the answer is that of the plain way.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import copy
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from cil.models import build_backbone

LAST, CLASSES = torch.channels_last, 100


class Classifier(nn.Module):
    """A backbone of the framework and a linear head: logits alone."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__()
        self.backbone: Any = build_backbone(name, 3, size)
        self.head = nn.Linear(self.backbone.feature_dim, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, CLASSES)."""
        return self.head(self.backbone(images)[0])


class Way:
    """One way to train and to answer: a layout, a type, folded or compiled.

    Args:
        net: Copied.
        last: Channels last.
        half: Under bf16 autocast.
        fold: Batch norm goes into the convolutions before it; answers only.
        compiled: By ``torch.compile``; its first call is timed apart.
    """

    def __init__(self, net: Classifier, *, last=False, half=False, fold=False, compiled=False) -> None:
        layout = LAST if last else torch.contiguous_format
        self.layout, self.half = layout, half
        self.net = copy.deepcopy(net).to(memory_format=layout)
        answers: nn.Module = copy.deepcopy(self.net).eval().requires_grad_(False)
        answers = fuse(answers).to(memory_format=layout) if fold else answers
        self.answers = torch.compile(answers) if compiled else answers
        self.optimizer = torch.optim.SGD(self.net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
        self.trained = torch.compile(self.net) if compiled else self.net

    def _autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16) if self.half else nullcontext()

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One step of SGD."""
        with self._autocast():
            loss = F.cross_entropy(self.trained(images.contiguous(memory_format=self.layout)).float(), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    @torch.inference_mode()
    def answer(self, images: Tensor) -> Tensor:
        """Logits."""
        with self._autocast():
            return self.answers(images.contiguous(memory_format=self.layout)).float()


def cpu_seconds(work: Callable[..., Any], *given: Any) -> float:
    """What ``work(*given)`` takes, in all threads of the process."""
    began = time.process_time()
    work(*given)
    return time.process_time() - began


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet32")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--answers", type=int, default=500, help="images of a batch of an evaluation")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = Classifier(given.model, given.size)
    train = torch.randn(given.batch, 3, given.size, given.size), torch.randint(CLASSES, (given.batch,))
    trained = Way(net)
    for _ in range(3):  # running statistics and a head that are not the first ones
        trained.step(*train)
    net = trained.net
    asked = torch.randn(given.answers, 3, given.size, given.size)
    ways = {
        "as it comes": Way(net),
        "channels last (here always)": Way(net, last=True),
        "and folded": Way(net, last=True, fold=True),
        "and compiled": Way(net, last=True, compiled=True),
        "channels last, bf16": Way(net, last=True, half=True),
        "and folded, bf16": Way(net, last=True, half=True, fold=True),
        "and compiled, bf16": Way(net, last=True, half=True, compiled=True),
    }
    first = {name: (cpu_seconds(way.step, *train), cpu_seconds(way.answer, asked)) for name, way in ways.items()}
    classes = {name: way.answer(asked).argmax(1) for name, way in ways.items()}
    steps: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.rounds):
        for name, way in ways.items():
            steps[name].append(cpu_seconds(way.step, *train))
            answers[name].append(cpu_seconds(way.answer, asked))
    plain = "as it comes"
    step_ms, answer_ms = (1e3 * statistics.median(found[plain]) for found in (steps, answers))
    print(f"{given.model}, {given.size} pixels: a step of {given.batch} images takes {step_ms:.0f} ms as it comes,")
    print(f"an answer to {given.answers} {answer_ms:.0f} ms\n")
    print("| way | step: times as fast | answer: times as fast | first step and answer, s | same class |")
    print("| :-- | --: | --: | --: | --: |")
    for name in ways:
        gains = [
            statistics.median(base / own for base, own in zip(found[plain], found[name], strict=True))
            for found in (steps, answers)
        ]
        same = float((classes[name] == classes[plain]).double().mean())
        words = "" if "folded" in name else f"{gains[0]:.2f}"
        print(f"| {name} | {words} | {gains[1]:.2f} | {sum(first[name]):.1f} | {same:.1%} |")


if __name__ == "__main__":
    main()
