"""The adapter contract: a trained network predicts each image of an unlabelled stream once, and may change itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from cil.contract import Checks, Holder, Phase, Progress
from cil.data import Batch, Samples
from cil.memory import Reference
from cil.models import Output, evaluating

check = Checks("adapter")


@dataclass(frozen=True)
class SourceModel:
    """A trained network, and the facts about it that an adapter is given.

    Attributes:
        net: Images (N, C, H, W) float in [0, 1] to scores (N, K), or to an ``Output`` with ``logits``; it normalises
            by itself. It belongs to the adapter alone, which may change it.
        num_classes: K.
        image_shape: (C, H, W).
        name: Name of the trained network (``cifar10_resnet20``, or a run), for defaults that depend on the data.
        reference: Public weights of ``net``; a method that never changes it then carries the reference alone.
    """

    net: nn.Module
    num_classes: int
    image_shape: tuple[int, int, int]
    name: str = ""
    reference: Reference | None = None


class Adapter(Holder):
    """A method of continual test-time adaptation. A subclass writes ``adapt_and_predict``.

    As with strategies, only what ``keep`` names lives on: at declared intervals (the end of each domain) the adapter is
    made anew and given its carried state. Everything that an update reads from an earlier batch is therefore kept:
    optimizer moments too (kind ``optimizer``, ``lifetime="carried"``).

    Args:
        source: The trained network. It is kept as ``net``, with kind ``parameters``.

    Raises:
        ConfigError: in every adapter, for a hyperparameter out of range.

    Order of calls: ``__init__``; ``phases`` and ``deploy`` where ``needs_source``; then ``adapt_and_predict`` for each
    batch, each image once.
    """

    net: nn.Module
    needs_source: ClassVar[bool] = False  # reads clean, labelled source data before it is deployed
    toy: ClassVar[Mapping[str, Any]] = {}  # hyperparameters for toy runs
    toy_model: ClassVar[Mapping[str, Any]] = {}  # name and options of a backbone for toy runs, where any will not do

    def __init__(self, source: SourceModel) -> None:
        super().__init__()
        self.source_name = source.name
        self.num_classes = source.num_classes
        self.image_shape = source.image_shape
        self.progress = Progress()
        self.keep("net", source.net, kind="parameters")

    def phases(self, source: Samples) -> Iterator[Phase]:
        """Training on source data before deployment (EcoTTA's warm-up), run by the engine. Default: none."""
        return iter(())

    def deploy(self, source: Samples | None) -> None:
        """Take statistics of source data (EATA's Fisher), after the phases and before the first batch."""

    def adapt_and_predict(self, images: Tensor) -> Tensor:
        """Scores (N, K) of a batch of (N, C, H, W) float in [0, 1]; may update what is kept.

        Called with gradients enabled and every module in the mode in which the adapter left it. Draw random numbers
        from ``self.generator(purpose)``: it is keyed by seed and batch, so that a resumed run draws the same.
        """
        raise NotImplementedError(f"{type(self).__name__} must write adapt_and_predict(images)")

    def fill(self, images: Tensor) -> None:
        """Bring the state to where the next batch holds most memory. Default: nothing.

        Called on a throw-away adapter whose step is measured before a run. Needed where an update grows with the number
        of images seen, or where not every batch makes an update.
        """

    def learned_from(self, images: Tensor) -> Tensor:
        """Images that an update on a batch learns from, for the published accounting. Default: the batch."""
        return images

    def adjust_gradients(self, batch: Batch) -> None:
        """In source phases, after backward, before the optimizer."""

    def after_step(self, batch: Batch) -> None:
        """In source phases, after the optimizer."""

    def train_mode(self) -> None:
        """In source phases: put trained modules into training mode. Default: all that are kept."""
        for module in self._trained_modules():
            module.train()

    def logits(self, images: Tensor, net: nn.Module | None = None) -> Tensor:
        """Scores of a network (``self.net`` if None), whether it returns them plainly or in an ``Output``."""
        return logits_of((self.net if net is None else net)(images))

    def source_predict(self, images: Tensor) -> Tensor:
        """Scores of ``self.net`` in evaluation mode, without changing anything."""
        with evaluating(self.net):
            return self.logits(images)


def logits_of(output: Tensor | Output) -> Tensor:
    """The scores in what a network returns."""
    return output if isinstance(output, Tensor) else output.logits
