"""Some images of an evaluation are asked again, in other company: answers that depend on it are refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cil.engine.keys import key
from cil.errors import ContractError
from cil.streams import TaskKey

IMAGES = 32  # asked again after an evaluation, all of one batch
EVALUATIONS = 3  # of a run that are followed by it, on average, beside the last
TOLERANCE = 1e-3  # of the spread of the scores
ROUNDING = 4  # steps between neighbouring numbers at the largest score

Predict = Callable[..., Tensor]  # images, and the task where the stream tells it, to scores


@dataclass
class _Question:
    """Images of one batch, the rows that they had in it, and the scores that they got."""

    images: Tensor
    rows: list[int]
    size: int
    task: TaskKey | None
    scores: Tensor

    def repeated(self) -> Tensor:
        """A batch as large, with the images in the same rows, and copies of the first one in place of the others.

        The same shapes are computed by the same kernels, row by row: the scores of an image that is answered by itself
        are the same but for the last bits, at any precision and on any device.
        """
        batch = self.images[:1].repeat(self.size, 1, 1, 1)
        batch[self.rows] = self.images
        return batch


class Asked:
    """Keeps a few questions of an evaluation, to ask them again.

    They are images of one batch, which is the more likely to be chosen the more images it has.

    Args:
        place: What names the evaluation; no learner may know all of it.
    """

    def __init__(self, seed: int, *place: object) -> None:
        self._random = random.Random(key(seed, "ask again", *place))
        self._question: _Question | None = None
        self._met = 0

    def listening(self, predict: Predict) -> Predict:
        """The same ``predict``, of whose batches one is chosen."""

        def answered(images: Tensor, task: TaskKey | None = None) -> Tensor:
            size = len(images)
            self._met += size
            rows = list[int]()
            if size and self._random.random() < size / self._met:
                rows = sorted(self._random.sample(range(size), min(IMAGES, max(1, size // 2))))
            chosen = images[rows]  # before they are handed over, and perhaps changed
            scores: Tensor = predict(images) if task is None else predict(images, task)
            if rows and len(scores) == size:
                self._question = _Question(chosen, rows, size, task, scores[rows])
            return scores

        return answered

    def again(self, predict: Predict, who: str, place: str) -> None:
        """Ask once more what was kept.

        Args:
            predict: That of the learner as it was before the evaluation.

        Raises:
            ContractError: where an image gets other scores than it had.
        """
        first = self._question
        if first is None:  # there was no image
            return
        images = first.repeated()
        scores = (predict(images) if first.task is None else predict(images, first.task))[first.rows]
        step = torch.finfo(first.scores.dtype).eps if first.scores.is_floating_point() else 0.0
        differs, much = _difference(first.scores.cpu().double(), scores.cpu().double(), step)
        if differs:
            raise ContractError(
                f"{who}.predict answers differently when asked again {place}, in other company: {differs} of "
                f"{len(first.rows)} images got other scores, by up to {much:.1%} of their spread (rounding is below "
                f"{TOLERANCE:.1%}), or another best class; score each image by itself, or declare transductive = True "
                f"on the class {who}"
            )


def _difference(first: Tensor, second: Tensor, step: float) -> tuple[int, float]:
    """Rows of (n, K) scores that differ beyond rounding, and the largest difference as a part of the spread."""
    known = first[first.isfinite()]
    if first.shape != second.shape or not len(known):
        return (0, 0.0) if torch.equal(first, second) else (len(first), float("inf"))
    spread, largest = float(known.max() - known.min()), float(known.abs().max())
    off = torch.where(first == second, 0.0, (first - second).abs().nan_to_num(torch.inf, torch.inf))
    beyond = (off > TOLERANCE * spread + ROUNDING * step * largest).any(1) | _answered_otherwise(first, second, step)
    return int(beyond.sum()), float(off.max()) / (spread or 1.0)


def _answered_otherwise(first: Tensor, second: Tensor, step: float) -> Tensor:
    """Rows of (n, K) scores with another best class; a single one may have been the toss of the last bits.

    The spread of scores says nothing of it: a class that is scored very low makes it as large as one likes.
    """
    best, other = first.argmax(1, keepdim=True), second.argmax(1, keepdim=True)
    changed = (best != other).flatten()
    pair = first.gather(1, torch.cat([best, other], 1))
    close = pair[:, 0] - pair[:, 1] <= ROUNDING * step * pair.abs().amax(1)
    return changed if int(changed.sum()) > 1 else changed & ~close


def asks_again(seed: int, index: int, length: int, *place: object) -> bool:
    """True for the evaluations of a run that are followed by questions: the last, and others at keyed random."""
    chance = random.Random(key(seed, "ask again after", index, *place)).random()
    return index == length - 1 or chance < EVALUATIONS / length
