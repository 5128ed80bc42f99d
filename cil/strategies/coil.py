"""Coil: optimal transport between class means carries classifier weights to new classes, and back to old ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.contract.plain import plain_at_first
from cil.data import Batch, Samples
from cil.memory import Budget, ExemplarMemory, class_means
from cil.models import GrowingNet, NetFactory, frozen_copy
from cil.strategies.base import Strategy, check
from cil.strategies.parts import distillation, features, store_exemplars
from cil.strategies.parts.setup_warnings import cosine_net
from cil.strategies.registry import register
from cil.streams import Experience


def transport_plan(cost: Tensor, regulariser: float, tolerance: float = 1e-9, rounds: int = 10_000) -> Tensor:
    """Plan (A, B) of least cost plus entropy whose rows sum to 1 / A and whose columns sum to 1 / B.

    min_G sum G_ij Q_ij + regulariser * sum G_ij log G_ij

    Args:
        cost: Q, (A, B).
        regulariser: > 0; the larger, the nearer the plan is to 1 / (A B).
        tolerance: Largest departure of a sum.

    Returns:
        Float64, on the CPU.

    Source: Cuturi, NIPS 2013, in the log domain.

    >>> transport_plan(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), 0.464)[0].tolist()  # doctest: +ELLIPSIS
    [0.448075..., 0.051924...]
    """
    kernel = -cost.double().cpu() / regulariser
    rows, columns = kernel.shape
    plan = kernel
    for _ in range(rounds):
        plan = plan - plan.logsumexp(1, keepdim=True) - torch.tensor(rows, dtype=torch.float64).log()
        plan = plan - plan.logsumexp(0, keepdim=True) - torch.tensor(columns, dtype=torch.float64).log()
        if (plan.logsumexp(1).exp() - 1 / rows).abs().max() <= tolerance:
            break
    return plan.exp()


def transport_rows(weights: Tensor, means: Tensor, to: Tensor, regulariser: float, norm: float) -> Tensor:
    """Classifier rows for other classes: directions mixed by transport between class means, at the old mean norm.

    V = A G' normalised(W),  W_hat = gamma V,  gamma = mean ||w|| / mean ||v||

    Args:
        weights: W, (A, D), rows of the classes that are carried over.
        means: (A, D), their unit means.
        to: (B, D), unit means of the classes to carry to.
        regulariser: Entropy weight of the plan.
        norm: Norm of the distance between means.

    Source: Zhou et al. 2021, semantic transport in both directions; the factor gamma as in the reference code.
    """
    plan = transport_plan(torch.cdist(means.double(), to.double(), p=norm), regulariser)
    exact = weights.cpu().double()  # which autocast does not round
    rows = len(exact) * plan.T @ F.normalize(exact)
    scaled: Tensor = rows * exact.norm(dim=1).mean() / rows.norm(dim=1).mean()
    return scaled.to(weights)


def cosines(features: Tensor, rows: Tensor) -> Tensor:
    """Cosines of features (N, D) and rows (C, D): (N, C)."""
    return F.linear(F.normalize(features), F.normalize(rows))


@register("coil")
class Coil(Strategy):
    """Co-transport for class-incremental learning, on a cosine head.

    Args:
        temperature: Temperature of all three distillations; > 0.
        prospective: Weight of the prospective term, in the first epoch; >= 0.
        retrospective: Weight of the retrospective term, which grows with the square of the epoch; >= 0.
        refresh: Steps between two transports to the old classes, besides the one at the start of each epoch; >= 1.
        sinkhorn: Entropy regulariser of the plan; > 0.
        norm: Norm of the distance between class means; >= 1.
        selection, codec: See ``ExemplarMemory``.

    Source:
        Zhou, Ye, Zhan. ACM MM 2021, arXiv:2107.12654, section 4. Departures from the reference code: both marginals of
        a plan are uniform with mass 1 (there, both have weights 1 / C_o); means of old classes come from exemplars
        alone, and the data of an experience are seen when it arrives (there, from all old data, at the end of the
        experience before); the prospective target gets no gradient. As there, cosines with transported rows are not
        scaled. An old class without exemplars takes no part in a transport. Cross-entropy weighs C_n / C, and where old
        classes re-appear they count as new ones there.
    """

    net: GrowingNet
    memory: ExemplarMemory
    teacher: GrowingNet | None
    forward_rows: Tensor | None  # W_hat_new, (C_n, D)
    backward_rows: Tensor | None  # W_hat_old, (old classes with exemplars, D)
    refreshed: list[int]
    data: Samples
    rehearsed: list[int]  # old classes with images here
    old_share: float

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        temperature: float = 2.0,
        prospective: float = 1e-3,
        retrospective: float = 1e-3,
        refresh: int = 200,
        sinkhorn: float = 0.464,
        norm: float = 3.0,
        selection: str = "herding",
        codec: str = "raw",
    ) -> None:
        super().__init__(make_net, budget)
        check.above(0, "coil", temperature=temperature, sinkhorn=sinkhorn)
        check.at_least(0, "coil", prospective=prospective, retrospective=retrospective)
        check.at_least(1, "coil", refresh=refresh, norm=norm)
        self.temperature, self.refresh, self.sinkhorn, self.norm = temperature, refresh, sinkhorn, norm
        self.prospective, self.retrospective = prospective, retrospective
        self.keep("memory", ExemplarMemory(codec, selection), kind="exemplars")
        self.keep("teacher", None, kind="teacher")
        self.keep("forward_rows", None, kind="temporary")
        self.keep("backward_rows", None, kind="temporary")
        self.keep("data", None, kind="temporary")
        self.keep("refreshed", [0, 0], kind="temporary")  # epoch and step of the last transport to the old classes

    def build_net(self) -> GrowingNet:
        return cosine_net(self)

    def before_experience(self, experience: Experience) -> None:
        if self.num_classes:
            self.teacher = frozen_copy(self.net)

    def prepare(self, experience: Experience) -> None:
        """Prospective transport: old rows, and means by the old backbone, give the first rows of new classes."""
        arriving = experience.train.slots.unique()
        self.old_share = 1 - len(arriving) / self.num_classes  # lambda_b, C_o / C where no class re-appears
        self.data = self.training_set(experience)
        present = self.data.slots.unique()
        self.rehearsed = present[present < self.old_classes].tolist()
        complete = len(present) - len(self.rehearsed) == self.num_classes - self.old_classes > 0
        if self.rehearsed and complete:
            means, weight = self._means(), self.net.head.weight.detach()
            self.forward_rows = self._transport(weight[self.rehearsed], means[0], means[1])
            weight[self.old_classes :] = self.forward_rows

    @plain_at_first()
    def loss(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        output, old, epoch = self.net(batch.images), self.old_classes, self.progress.epoch
        classes = F.cross_entropy(output.logits, batch.slots)
        if self.teacher is None:
            return classes
        known = self.teacher(batch.images).logits  # (N, C_o)
        terms = {
            "classes": (1 - self.old_share) * classes,
            "distillation": self.old_share * distillation(output.logits[:, :old], known, self.temperature),
        }
        if self.forward_rows is not None and epoch == 0:  # prospective transport, section 4
            target = cosines(output.features.detach(), self.forward_rows)
            terms["prospective"] = self.prospective * distillation(output.logits[:, old:], target, self.temperature)
        elif self.forward_rows is not None and self.retrospective:  # retrospective transport, section 4
            hat = cosines(output.features, self._rows_of_old_classes())  # (N, old classes with exemplars)
            again = distillation(hat, known[:, self.rehearsed], self.temperature)
            terms["retrospective"] = self.retrospective * (epoch / self.progress.epochs) ** 2 * again
        return terms

    @torch.no_grad()
    def _rows_of_old_classes(self) -> Tensor:
        """Retrospective transport, by the network as it is: at the start of an epoch and every ``refresh`` steps."""
        epoch, step = self.progress.epoch, self.progress.step
        if self.backward_rows is None or self.refreshed[0] != epoch or step - self.refreshed[1] >= self.refresh:
            with self.context.flops.counting():
                means, weight = self._means(), self.net.head.weight
                self.backward_rows = self._transport(weight[self.old_classes :], means[1], means[0])
            self.refreshed = [epoch, step]
        return self.backward_rows

    def _means(self) -> tuple[Tensor, Tensor]:
        """Unit class means of the images here: of old classes that have any, and of new ones."""
        means = class_means(features(self, self.data), self.data.slots, self.num_classes)
        return means[self.rehearsed], means[self.old_classes :]

    def _transport(self, weights: Tensor, means: Tensor, to: Tensor) -> Tensor:
        return transport_rows(weights, means, to, self.sinkhorn, self.norm)

    def after_experience(self, experience: Experience) -> None:
        store_exemplars(self, experience)
