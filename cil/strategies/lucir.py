"""LUCIR: a cosine head, features that keep their direction, old images kept away from new classes."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from cil.contract import Phase
from cil.contract.plain import not_at_first, plain_at_first
from cil.data import Batch
from cil.memory import Budget, ExemplarMemory
from cil.models import GrowingNet, NetFactory, frozen_copy
from cil.strategies.base import Strategy, check
from cil.strategies.parts import balanced_set, less_forget, margin_ranking, store_exemplars
from cil.strategies.parts.heads import freeze_rows, imprint
from cil.strategies.parts.setup_warnings import cosine_net
from cil.strategies.registry import register
from cil.streams import Experience


@register("lucir")
class LUCIR(Strategy):
    """Learning a unified classifier by rebalancing: CE on eta cos(w, phi), less-forget and margin ranking terms.

    Made for a backbone with signed features (``model=resnet32_cosine``); whatever ``model.head`` says, the head is a
    cosine one.

    Args:
        strength: lambda_base of the less-forget term, which weighs lambda_base sqrt(C_o / C_n); 0 leaves it out.
        ranking: Weight of the margin ranking term; 0 leaves it out.
        margin: Margin between cosines in that term.
        negatives: K, new classes that an old image is compared with.
        hold_old: Whether the rows of old classes stay as they are while the less-forget term is on.
        imprint: Whether new rows start at the mean features of their classes.
        tune_epochs: Epochs of a last phase that trains the head by cross-entropy on as many images of each class; 0:
            none.
        tune_lr: Its learning rate, decayed by a cosine.
        selection, codec: See ``ExemplarMemory``.

    Source:
        Hou, Pan, Loy, Wang, Lin. CVPR 2019, less-forget constraint, inter-class separation and integrated objective;
        defaults as in FACIL for CIFAR. Departures: so many exemplars in all instead of 20 a class; without a new class
        C_n counts as 1. Imprinting and balanced tuning are in the authors' code, and off here as in FACIL.
    """

    memory: ExemplarMemory
    teacher: GrowingNet | None

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        strength: float = 5.0,
        ranking: float = 1.0,
        margin: float = 0.5,
        negatives: int = 2,
        hold_old: bool = True,
        imprint: bool = False,
        tune_epochs: int = 0,
        tune_lr: float = 0.01,
        selection: str = "herding",
        codec: str = "raw",
    ) -> None:
        super().__init__(make_net, budget)
        check.at_least(
            0, "lucir", strength=strength, ranking=ranking, margin=margin, tune_epochs=tune_epochs, tune_lr=tune_lr
        )
        check.at_least(1, "lucir", negatives=negatives)
        self.strength, self.ranking, self.margin, self.negatives = strength, ranking, margin, negatives
        self.hold_old, self.imprint = hold_old, imprint
        self.tune_epochs, self.tune_lr = tune_epochs, tune_lr
        self.holding = False  # whether old rows are kept from moving: set by ``phases``
        self.keep("memory", ExemplarMemory(codec, selection), kind="exemplars")
        self.keep("teacher", None, kind="teacher")

    def build_net(self) -> GrowingNet:
        return cosine_net(self)

    def before_experience(self, experience: Experience) -> None:
        if self.num_classes and self.strength:
            self.teacher = frozen_copy(self.net)

    def prepare(self, experience: Experience) -> None:
        if self.imprint:
            imprint(self, experience)

    def phases(self, experience: Experience) -> Iterator[Phase]:
        self.holding = self.hold_old and self.teacher is not None
        yield Phase("main", self.training_set(experience), self.loss)
        self.holding = False
        if self.tune_epochs and self.old_classes and len(self.memory):
            yield Phase(
                "tune", balanced_set(self, experience), self.classes, main=False, epochs=self.tune_epochs,
                lr=self.tune_lr, schedule="cosine", parameters=list(self.net.head.parameters()),
                train_mode=self.net.eval,
            )  # fmt: skip

    @plain_at_first("classes")
    def loss(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        output = self.net(batch.images)
        terms = {"classes": F.cross_entropy(output.logits, batch.slots)}
        if self.teacher is not None:  # the less-forget constraint
            old, new = self.old_classes, self.num_classes - self.old_classes
            teacher = self.teacher(batch.images).features
            terms["features"] = less_forget(output.features, teacher, self.strength, old, new)
        if self.old_classes and self.ranking:  # inter-class separation, on unscaled cosines
            cosines = self.net.head.similarities(output.features)
            terms["ranking"] = self.ranking * margin_ranking(
                cosines, batch.slots, self.old_classes, self.negatives, self.margin
            )
        return terms

    def classes(self, batch: Batch) -> Tensor:
        """Cross-entropy alone."""
        return F.cross_entropy(self.net(batch.images).logits, batch.slots)

    @not_at_first
    def adjust_gradients(self, batch: Batch) -> None:
        if self.holding and self.teacher is not None:
            freeze_rows(self.net.head.weight, self.teacher.head.weight)

    after_step = adjust_gradients

    def after_experience(self, experience: Experience) -> None:
        store_exemplars(self, experience)
