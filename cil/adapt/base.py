"""The adapter contract: a trained network meets an unlabelled stream, predicts each image once, may change itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from cil.contract import Holder, Phase, Progress
from cil.data import Batch, Samples
from cil.memory import Reference
from cil.models import evaluating


@dataclass(frozen=True)
class Source:
    """A trained network, and what an adapter is told of it.

    Attributes:
        net: Images (N, C, H, W) float in [0, 1] to scores (N, K), or to an ``Output`` with ``logits``; it normalises
            by itself. It belongs to the adapter alone, which may change it.
        num_classes: K.
        image_shape: (C, H, W).
        name: Of the trained network (``cifar10_resnet20``, or a run), for methods whose defaults depend on the data.
        reference: Public weights that ``net`` is; a method that never changes it then carries the reference alone.
    """

    net: nn.Module
    num_classes: int
    image_shape: tuple[int, int, int]
    name: str = ""
    reference: Reference | None = None


class Adapter(Holder):
    """A method of continual test-time adaptation. Subclass it, write ``adapt_and_predict``.

    As with strategies, only what ``keep`` names lives on: at declared intervals (the end of each domain) the adapter is
    made anew and given its carried state. Everything that an update reads from an earlier batch is therefore kept:
    optimizer moments too (kind ``optimizer``, ``lifetime="carried"``).

    Args:
        source: The trained network. It is kept as ``net``, with kind ``parameters``.

    Order of calls: ``__init__``; ``phases`` and ``deploy`` where ``needs_source``; then ``adapt_and_predict`` for each
    batch, each image once.
    """

    net: Any
    needs_source: ClassVar[bool] = False  # reads clean, labelled source data before it is deployed
    toy: ClassVar[Mapping[str, Any]] = {}  # hyperparameters for toy runs
    toy_model: ClassVar[Mapping[str, Any]] = {}  # name and options of a backbone for toy runs, where any will not do

    def __init__(self, source: Source) -> None:
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
        """After the phases, before the first batch: statistics of source data (EATA's Fisher). Default: nothing."""

    def adapt_and_predict(self, images: Tensor) -> Tensor:
        """Scores (N, K) of a batch of (N, C, H, W) float in [0, 1]; may update what is kept.

        Called with gradients enabled and every module in the mode in which the adapter left it. Draw random numbers
        from ``self.generator(purpose)``: it is keyed by seed and batch, so that a resumed run draws the same.
        """
        raise NotImplementedError(f"{type(self).__name__} must write adapt_and_predict(images)")

    def fill(self, images: Tensor) -> None:
        """Bring state to where the next batch holds most; nothing by default.

        Asked on a throw-away adapter whose step is measured before a run. Write it where what an update holds grows
        with the images that were met, or where not every batch makes an update.

        Args:
            images: (N, C, H, W) float in [0, 1], to fill a memory with.
        """

    def learned_from(self, images: Tensor) -> Tensor:
        """The images that an update on a batch learns from, for the published accounting: the batch, by default."""
        return images

    def adjust_gradients(self, batch: Batch) -> None:
        """In source phases, after backward, before the optimizer."""

    def after_step(self, batch: Batch) -> None:
        """In source phases, after the optimizer."""

    def train_mode(self) -> None:
        """In source phases: put what is trained into training mode. Default: everything that is kept."""
        for module in self._trained_modules():
            module.train()

    def logits(self, images: Tensor, net: nn.Module | None = None) -> Tensor:
        """Scores of a network (``self.net`` where left out), whether it gives them plainly or in an ``Output``."""
        found: Any = (self.net if net is None else net)(images)
        return found if isinstance(found, Tensor) else found.logits

    def source_predict(self, images: Tensor) -> Tensor:
        """Scores of ``self.net`` in evaluation mode, without changing anything."""
        with evaluating(self.net):
            return self.logits(images)
