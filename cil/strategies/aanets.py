"""AANets: a stable and a plastic branch, mixed after every stage by weights that balanced data train; host: LUCIR."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

from cil.data import Batch
from cil.memory import Budget, ExemplarMemory
from cil.models import AggregatedBackbone, GrowingNet, NetFactory, evaluating, frozen_copy
from cil.strategies.base import Strategy
from cil.strategies.parts import balanced_set, hold_rows, imprint, less_forget, margin_ranking, store_exemplars
from cil.strategies.phase import Phase
from cil.strategies.ranges import at_least, one_of
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("aanets")
class AANets(Strategy):
    """Adaptive aggregation networks on the losses of LUCIR.

    The first experience trains one network. From the second on there are two branches that start as that network: in
    the stable one a factor for each kernel and batch norm learn, in the plastic one everything does. After stage k the
    maps are mixed with the shares a_k and 1 - a_k. The branches learn from all data, the shares from a balanced set.

    Made for a backbone with signed features (``model=resnet32_cosine``), of stem and stages; whatever ``model.head``
    says, the head is a cosine one.

    Args:
        stable: What learns in the stable branch: ``scaled`` (factors and batch norm) or ``frozen`` (nothing).
        mixture_lr: Learning rate of the shares, on the schedule of the others; 0 leaves them at one half.
        strength: lambda_base of LUCIR's less-forget term, which weighs lambda_base sqrt(C_o / C_n); 0 leaves it out.
        ranking: Weight of LUCIR's margin ranking term; 0 leaves it out.
        margin: Of cosines, in that term.
        negatives: K, new classes that an old image is compared with.
        hold_old: Whether the rows of old classes stay as they are while the less-forget term is on.
        imprint: Whether new rows start at the mean features of their classes.
        selection: Rule that chooses exemplars.
        codec: How their pixels are kept.

    Raises:
        ConfigError: for a backbone that is not a stem and stages.

    Source:
        Liu, Schiele, Sun. CVPR 2021, arXiv:2010.05063; defaults as in the authors' code, which imprints, and whose rate
        of 1e-8 hardly moves the shares: raise it to see them learn. Departures: the two levels of the optimisation take
        turns at every step, not at every epoch: one step moves the branches by the gradient on all data and the shares
        by that on a balanced batch, in evaluation mode, neither gradient touching the other's parameters. Shares do not
        decay, which would draw them to the plastic branch.
    """

    memory: ExemplarMemory
    teacher: GrowingNet | None

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        stable: str = "scaled",
        mixture_lr: float = 1e-8,
        strength: float = 5.0,
        ranking: float = 1.0,
        margin: float = 0.5,
        negatives: int = 2,
        hold_old: bool = True,
        imprint: bool = True,
        selection: str = "herding",
        codec: str = "raw",
    ) -> None:
        super().__init__(make_net, budget)
        at_least(0, "aanets", mixture_lr=mixture_lr, strength=strength, ranking=ranking, margin=margin)
        at_least(1, "aanets", negatives=negatives)
        one_of(("scaled", "frozen"), "aanets", stable=stable)
        self.stable, self.mixture_lr = stable, mixture_lr
        self.strength, self.ranking, self.margin, self.negatives = strength, ranking, margin, negatives
        self.hold_old, self.imprint = hold_old, imprint
        self.keep("memory", ExemplarMemory(codec, selection), kind="exemplars")
        self.keep("teacher", None, kind="teacher")

    def build_net(self) -> GrowingNet:
        net = self.make_net(head="cosine")
        net.backbone = AggregatedBackbone(net.backbone)
        return net

    def grow_net(self, signature: Signature) -> None:
        if self.old_classes and not self.net.backbone.is_split:
            self.net.backbone.split(self.stable)
        self.net.grow(len(signature.new_slots))

    def before_experience(self, experience: Experience) -> None:
        if self.num_classes and self.strength:
            self.teacher = frozen_copy(self.net)

    def prepare(self, experience: Experience) -> None:
        if self.imprint:
            imprint(self, experience)

    def phases(self, experience: Experience) -> Iterator[Phase]:
        everything = self.training_set(experience)
        balanced = balanced_set(self, experience, rule="random") if self.old_classes else everything[:0]
        if not len(balanced) or not self.mixture_lr:
            yield Phase("main", everything, self.loss, parameters=self._branches())
            return
        shares = {"params": [self.net.backbone.mixture], "lr": self.mixture_lr, "weight_decay": 0.0}
        yield Phase(
            "main", {"everything": everything, "balanced": balanced}, self.loss,
            parameters=[{"params": self._branches()}, shares],
        )  # fmt: skip

    def loss(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        shares = self.net.backbone.mixture
        with constant([shares]):  # lower level: the branches, at these shares
            output = self.net(batch.images)
            terms = {"classes": F.cross_entropy(output.logits, batch.slots)}
            if self.teacher is not None:
                old, new = self.old_classes, self.num_classes - self.old_classes
                teacher = self.teacher(batch.images).features
                terms["features"] = less_forget(output.features, teacher, self.strength, old, new)
            if self.old_classes and self.ranking:
                cosines = self.net.head.similarities(output.features)
                terms["ranking"] = self.ranking * margin_ranking(
                    cosines, batch.slots, self.old_classes, self.negatives, self.margin
                )
        if "balanced" in batch.streams:
            with constant(self._branches()), evaluating(self.net):  # upper level: the shares, at these branches
                logits = self.net(batch.balanced.images).logits
            terms["mixture"] = F.cross_entropy(logits, batch.balanced.slots)
        return terms

    def adjust_gradients(self, batch: Batch) -> None:
        if self.hold_old and self.teacher is not None:
            hold_rows(self.net.head.weight, self.teacher.head.weight)

    def after_step(self, batch: Batch) -> None:
        if self.hold_old and self.teacher is not None:
            hold_rows(self.net.head.weight, self.teacher.head.weight)

    def after_experience(self, experience: Experience) -> None:
        store_exemplars(self, experience)

    def _branches(self) -> list[nn.Parameter]:
        """All that learns but the shares."""
        return [p for p in self.trainable() if p is not self.net.backbone.mixture]


@contextmanager
def constant(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """What is computed inside passes no gradient to these parameters."""
    learning = [p for p in parameters if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
