"""Toy runs on frozen backbones: with public weights, and in other orders and splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from small_runs import Done, Fixed, signatures
from torch import Tensor

from cil.api import networks
from cil.data import Samples
from cil.models import build_backbone, save_weights
from cil.models.base import count_parameters
from cil.streams import Experience, Stream, class_incremental
from cil.testing.toy import toy_dataset, toy_run

UNTRAINED = {"train_first": False}
P = count_parameters(build_backbone("smallconv", 3, 12))  # of the toy backbone
B, D = 2 * (16 + 32), 32  # statistics of batch normalisation, length of a feature


def split(increment: int, order: Sequence[int] | str = "natural", **options: Any) -> Stream:
    """The toy images, so many classes an experience; images are normalised alike whatever comes first."""
    return class_incremental(toy_dataset(), increment=increment, order=order, mean=[0.5] * 3, std=[0.25] * 3, **options)


def public_weights(folder: Path) -> Path:
    """A file of weights for the toy backbone, with batch statistics of its own."""
    torch.manual_seed(5)
    backbone = build_backbone("smallconv", 3, 12)
    backbone.train()(torch.rand(32, 3, 12, 12) * 4 - 2)
    save_weights(backbone, folder / "toy_public.safetensors")
    return folder / "toy_public.safetensors"


def public_run(strategy: str, stream: Stream, folder: Path, **options: Any) -> Done:
    """A run that starts from public weights, executed, all boundaries kept."""
    weights = public_weights(folder)
    run = toy_run(strategy, stream, folder / "run", keep="all", **options)
    given = {"name": "smallconv", "weights": str(weights), "mean": [0.5] * 3, "std": [0.25] * 3}
    run.work.learners.make_factory = networks(stream.image_shape, **given)
    return Done(run, run.execute())


def scores_by_label(done: Done) -> Tensor:
    """The final scores of all test images, both in order of the labels: (N, labels)."""
    stream, learner = done.stream, done.learner(len(done.stream) - 1)
    tests = [stream.test(i) for i in range(len(stream))]
    images = torch.cat([test.images for test in tests])
    labels = torch.tensor(stream.order)[torch.cat([test.slots for test in tests])]
    return done.run.work.learners.scores(learner, images)[labels.argsort(stable=True)][
        :, torch.tensor(stream.order).argsort()
    ]


def experience(points: Sequence[Sequence[float]], slots: Sequence[int], learner: Any, index: int = 0) -> Experience:
    """Images of these slots; ``learner`` sees the points, in this order, as their features."""
    learner.net = Shown(points)
    rows = torch.arange(len(points), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 12, 12)
    signature = signatures([learner.num_classes] * (index + 1))[index]
    return Experience(signature, Samples.from_arrays(rows.clone(), torch.tensor(slots)))


class Shown(Fixed):
    """A network whose feature of an image is the point whose number its pixels are."""

    num_classes = 0

    def __init__(self, points: Sequence[Sequence[float]]) -> None:
        super().__init__([[]] * len(points), points)
        self.requires_grad_(False)
        self.feature_dim = len(points[0])

    def forward(self, images: Tensor) -> Any:
        rows = (images[:, 0, 0, 0] * 255).round().long()
        return type(super().forward(images))(self.logits[rows], self.features[rows])
