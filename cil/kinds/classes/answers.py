"""Several answers of one learner to the same images: its own, and those by other means that it carries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook

from cil.engine.answers_checked import checked_scores
from cil.engine.lifecycle import Learners
from cil.kinds.classes.evaluation import Predict
from cil.memory import FeatureMemory, Flops, class_means
from cil.models import Output
from cil.strategies import Strategy
from cil.strategies.parts import nearest_mean

NEAREST_MEAN = "nearest_mean"
OWN, FURTHER = "answer.own.", "answer.further."  # beginnings of names of counts
BEST = 5  # classes among which the right one is, for top-5 accuracy


class Answers:
    """Asks a learner, and counts what it says beside its own answer.

    Beside ``predict`` stand ``Strategy.further_answers`` and, where exemplars are carried, the nearest of their means.
    Both use what the network gave when ``predict`` asked it: no image passes it a second time. The exemplars pass it
    once, at the beginning. Of bounds, which keep all data, and of methods whose answers depend on the other images
    there is nothing further.

    Args:
        learner: Rebuilt from what was carried.
        learners: In whose precision and modes it is asked.
        learned: Experiences learned: images of later ones do not count.
        batch_size: Exemplars in a batch.
        which: ``all``, or the ``own`` alone.

    Attributes:
        flops: Of the pass over exemplars.
    """

    def __init__(
        self, learner: Strategy, learners: Learners, learned: int, batch_size: int = 500, which: str = "all"
    ) -> None:
        self.learner, self.learners, self.learned, self.own = learner, learners, learned, learner.answers_by
        self.several = which == "all" and not (learner.bound or learner.transductive)
        self._given: Mapping[str, Tensor] = {}  # of the last batch
        self._right: dict[str, Tensor] = {}
        flops = Flops()
        with flops.counting():
            self.means = self._means(batch_size) if self.several and self.own != NEAREST_MEAN else None
        self.flops = flops.count

    def listening(self, predict: Predict) -> Predict:
        """The same ``predict``, beside which the further answers to each batch are found."""

        def answered(images: Tensor) -> Tensor:
            with outputs_for(images) as outputs:
                scores = predict(images)
            self._given = {self.own: scores}
            if self.several and outputs:
                self._given = {**self._further(images, outputs[-1]), self.own: scores}
            return scores

        return answered

    def count(self, slots: Tensor, where: Tensor) -> None:
        for name, scores in self._given.items():
            place, known = ranks(scores, slots), where < self.learned
            right = torch.stack([((place < best) & known).sum() for best in (1, BEST)])
            self._right[name] = self._right[name] + right if name in self._right else right

    def counts(self) -> dict[str, Tensor]:
        """For each answer (2,) int64: images whose class is scored best, and is among the best five."""
        return {f"{OWN if name == self.own else FURTHER}{name}": right.cpu() for name, right in self._right.items()}

    def _further(self, images: Tensor, output: Output) -> dict[str, Tensor]:
        with self.learners.answering(self.learner):
            given = self.learner.further_answers(images, output)
            who = f"{type(self.learner).__name__}.further_answers"
            found = {name: checked_scores(scores, who) for name, scores in dict(given).items()}
            if self.means is not None:
                found[NEAREST_MEAN] = nearest_mean(output.features, self.means)
        return found

    def _means(self, batch_size: int) -> Tensor | None:
        """Unit mean of the unit features of each class's exemplars, (C, D); None where there are none."""
        features, slots = list[Tensor](), list[Tensor]()
        for memory in filter(len, self.learner.memories().values()):
            slots.append(memory.slots)
            if isinstance(memory, FeatureMemory):
                features.append(memory.features())
                continue
            for batch in memory.samples().batches(batch_size, self.learner.device):
                with outputs_for(batch.images) as outputs:
                    self.learners.scores(self.learner, batch.images)
                if not outputs:  # it answers by no network that gives any
                    return None
                features.append(outputs[-1].features.float().cpu())
        if not slots:
            return None
        return class_means(torch.cat(features), torch.cat(slots), self.learner.num_classes).to(self.learner.device)


@contextmanager
def outputs_for(images: Tensor) -> Iterator[list[Output]]:
    """Outputs that networks give for just these images meanwhile, one after the other."""
    met = list[Output]()

    def note(module: object, given: tuple[object, ...], output: object) -> None:
        if isinstance(output, Output) and given and given[0] is images:
            met.append(output)

    with register_module_forward_hook(note):
        yield met


def ranks(scores: Tensor, slots: Tensor) -> Tensor:
    """Classes that are scored higher than the true one, (N,); of equal scores the first class is the higher.

    A class without a score (minus infinity, or no number) comes after all others.

    >>> ranks(torch.tensor([[0.1, 0.7, 0.7], [0.5, 0.2, -torch.inf]]), torch.tensor([2, 2])).tolist()
    [1, 3]
    """
    true = scores.gather(1, slots[:, None])
    before = torch.arange(scores.shape[1], device=scores.device) < slots[:, None]
    ahead = ((scores > true) | ((scores == true) & before)).sum(1)
    return torch.where(true[:, 0] > -torch.inf, ahead, scores.shape[1])
