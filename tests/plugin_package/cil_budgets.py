"""Two further budgets for any strategy, each a number that is measured and capped (``cil.engine.caps.Cap``).

cil run strategy=der budget.caps.inference_parameters=50000
cil.train("der", stream, budget=cil.Budget(caps={"prediction_seconds": 0.001}))
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from cil import Strategy


class InferenceParameters:
    """Parameters of the networks that answer. Structure alone tells: what is over is refused before training."""

    unit = "parameters"
    static = True

    def measure(self, learner: Strategy, predict: Callable[[Tensor], Tensor]) -> float:
        modules = learner.modules()  # as the learner is rebuilt from what it carries: no teacher, no optimizer
        return float(sum(p.numel() for p in {id(p): p for module in modules for p in module.parameters()}.values()))


class PredictionSeconds:
    """Seconds for an image, the least of several batches of random ones after a warm-up."""

    unit = "s/image"
    static = False

    def __init__(self, images: int = 64, repeats: int = 3) -> None:
        self.images, self.repeats = images, repeats

    def measure(self, learner: Strategy, predict: Callable[[Tensor], Tensor]) -> float:
        generator = torch.Generator().manual_seed(0)  # of its own: nothing else is drawn from it
        images = torch.rand(self.images, *learner.image_shape, generator=generator).to(learner.device)
        predict(images)
        return min(self._timed(predict, images) for _ in range(self.repeats)) / self.images

    def _timed(self, predict: Callable[[Tensor], Tensor], images: Tensor) -> float:
        started = time.perf_counter()
        predict(images).sum().item()  # waits for the device
        return time.perf_counter() - started


INFERENCE_PARAMETERS = InferenceParameters()
PREDICTION_SECONDS = PredictionSeconds()
