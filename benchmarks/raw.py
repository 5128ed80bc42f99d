"""Class-incremental training as one would write it by hand: what the framework's cost is measured against.

The same work with nothing around it: finetune, replay and iCaRL on one uint8 tensor, batched augmentation,
channels-last networks, SGD with momentum and cosine decay, herded exemplars, one evaluation of all classes seen after
each experience.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Work:
    """What is trained: images (N, C, H, W) uint8, labels in order of arrival, and the recipe."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes_each: int
    experiences: int
    epochs: int
    batch_size: int
    exemplars: int
    lr: float = 0.1
    padding: int = 4
    bf16: bool = False


class Net(nn.Module):
    """A backbone that gives features, and a head that grows."""

    def __init__(self, backbone: nn.Module, dim: int) -> None:
        super().__init__()
        self.backbone, self.dim, self.head = backbone.to(memory_format=torch.channels_last), dim, nn.Linear(dim, 0)

    def grow(self, count: int) -> None:
        old, self.head = self.head, nn.Linear(self.dim, self.head.out_features + count)
        with torch.no_grad():
            self.head.weight[: old.out_features], self.head.bias[: old.out_features] = old.weight, old.bias

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone((images - 0.5) / 0.25)[0]
        return self.head(features), features


def augmented(padded: Tensor, rows: Tensor, side: int, padding: int, generator: torch.Generator) -> Tensor:
    """Crop and flip each image by itself: one gather. ``padded`` is (N, H, W, C) with a border of zeros."""
    count, place = len(rows), torch.arange(side)
    top = torch.randint(2 * padding + 1, (count, 1), generator=generator) + place
    left = torch.randint(2 * padding + 1, (count, 1), generator=generator) + place
    flip = torch.rand(count, generator=generator) < 0.5
    left = torch.where(flip[:, None], left.flip(1), left)
    return padded[rows[:, None, None], top[:, :, None], left[:, None, :]].permute(0, 3, 1, 2).float() / 255


def train(work: Work, method: str, make_backbone: Callable[[], tuple[nn.Module, int]]) -> float:
    """Run one method; the last accuracy in percent."""
    context = torch.autocast("cpu", torch.bfloat16) if work.bf16 else nullcontext()
    generator = torch.Generator().manual_seed(0)
    net = Net(*make_backbone())
    side = work.train[0].shape[-1]
    kept: dict[int, Tensor] = {}  # rows of the exemplars of each class
    accuracy = 0.0
    for experience in range(work.experiences):
        old, total = experience * work.classes_each, (experience + 1) * work.classes_each
        teacher = copy.deepcopy(net).eval().requires_grad_(False) if old and method == "icarl" else None
        net.grow(work.classes_each)
        labels = work.train[1]
        rows = ((labels >= old) & (labels < total)).nonzero().flatten()
        pool = torch.cat([rows, *kept.values()]) if method != "finetune" else rows
        padded = F.pad(work.train[0][pool], (work.padding,) * 4).permute(0, 2, 3, 1).contiguous()
        slots = labels[pool]
        optimizer = torch.optim.SGD(net.parameters(), work.lr, momentum=0.9, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, work.epochs)
        net.train()
        for _ in range(work.epochs):
            for picked in torch.randperm(len(pool), generator=generator).split(work.batch_size):
                images, target = augmented(padded, picked, side, work.padding, generator), slots[picked]
                with context:
                    logits, _ = net(images)
                    if method == "finetune":
                        loss = F.cross_entropy(logits[:, old:], target - old)
                    else:
                        loss = F.cross_entropy(logits, target)
                    if teacher is not None:
                        said = F.softmax(teacher(images)[0] / 2, 1)
                        loss = loss - (said * F.log_softmax(logits[:, :old] / 2, 1)).sum(1).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
        net.eval()
        with torch.inference_mode(), context:
            if method != "finetune":
                quota = work.exemplars // total
                kept = {label: found[:quota] for label, found in kept.items()}
                for label in range(old, total):
                    own = rows[labels[rows] == label]
                    kept[label] = own[_herd(_features(net, work.train[0][own]), quota)]
            accuracy = _evaluate(net, work, total, kept if method == "icarl" else None)
    return accuracy


def _features(net: Net, images: Tensor) -> Tensor:
    found = torch.cat([net(part.float() / 255)[1] for part in images.split(500)])
    return F.normalize(found.float())


def _herd(features: Tensor, count: int) -> Tensor:
    mean, total = features.mean(0), torch.zeros(features.shape[1])
    free, chosen = torch.zeros(len(features)), []
    for number in range(1, min(count, len(features)) + 1):
        pick = int((free - 2 * features @ (number * mean - total) + features.square().sum(1)).argmin())
        chosen.append(pick)
        total, free[pick] = total + features[pick], torch.inf
    return torch.tensor(chosen)


def _evaluate(net: Net, work: Work, total: int, kept: dict[int, Tensor] | None) -> float:
    images, labels = work.test
    seen = labels < total
    images, labels = images[seen], labels[seen]
    means = None
    if kept is not None:
        means = F.normalize(torch.stack([_features(net, work.train[0][kept[label]]).mean(0) for label in range(total)]))
    right = 0
    for part, target in zip(images.split(500), labels.split(500), strict=True):
        logits, features = net(part.float() / 255)
        scores = logits if means is None else -torch.cdist(F.normalize(features.float()), means)
        right += int((scores.argmax(1) == target).sum())
    return 100 * right / len(labels)
