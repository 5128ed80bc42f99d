"""PODNet: pooled outputs of every stage stay near the old ones, several proxies a class, a balanced last phase."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.contract import Phase
from cil.data import Batch
from cil.errors import ConfigError
from cil.memory import Budget, ExemplarMemory
from cil.models import GrowingNet, NetFactory, frozen_copy
from cil.strategies.base import Strategy, check
from cil.strategies.parts import balanced_set, cosine_distance, store_exemplars
from cil.strategies.parts.heads import freeze_rows
from cil.strategies.parts.setup_warnings import cosine_net
from cil.strategies.registry import register
from cil.streams import Experience

MARGIN = 0.6  # delta


@register("podnet")
class PODNet(Strategy):
    """Pooled outputs distillation on a local similarity classifier, then tuning on as many images of each class.

    Made for a backbone with signed features (``model=resnet32_cosine``); whatever ``model.head`` says, the head is a
    cosine one.

    Args:
        spatial: lambda_c, weight of the distance between pooled maps; 0 leaves it out.
        flat: lambda_f, weight of the distance between features; 0 leaves it out.
        proxies: K, rows of the head for each class; 1 is a plain cosine head.
        margin: delta.
        margin_on: ``all``: as the survey's code and the authors' have it, where it cancels, and the loss is 0 or more
            and smooth (see ``nca``); ``similarity``: sigma (s_y - delta), as the paper writes it, with the hinge;
            ``target``: z_y - delta.
        hinge: Whether the classification loss of an image is at least 0, as the paper writes it. Without it ``target``
            and ``similarity`` have no lower bound, and the scale of the head grows without end.
        tune_epochs: Epochs of the balanced phase; 0 leaves it out.
        tune_lr: Its learning rate, decayed by a cosine.
        tuned: It trains the ``network``, old proxies held as before, or the whole ``head`` alone (the authors' code, at
            0.05).
        selection, codec: See ``ExemplarMemory``.

    Source:
        Douillard, Cord, Ollion, Robert, Valle. ECCV 2020, arXiv:2004.13513, sections 3.1 and 3.2. Departures: factors
        and tuning as in the survey's code, the factor of distillation is sqrt(C / C_n); new proxies start at random
        instead of by k-means; the margin cancels, as in both codes (the paper's loss is ``margin_on=similarity`` with
        ``hinge``).
        Without a new class C_n counts as 1; with one class in all there is nothing to tell apart, and the loss is 0.
    """

    toy = {"tune_epochs": 2}
    memory: ExemplarMemory
    teacher: GrowingNet | None

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        spatial: float = 5.0,
        flat: float = 1.0,
        proxies: int = 10,
        margin: float = MARGIN,
        margin_on: str = "all",
        hinge: bool = False,
        tune_epochs: int = 20,
        tune_lr: float = 0.005,
        tuned: str = "network",
        selection: str = "herding",
        codec: str = "raw",
    ) -> None:
        super().__init__(make_net, budget)
        check.at_least(0, "podnet", spatial=spatial, flat=flat, margin=margin, tune_epochs=tune_epochs, tune_lr=tune_lr)
        check.at_least(1, "podnet", proxies=proxies)
        check.one_of(("target", "similarity", "all"), "podnet", margin_on=margin_on)
        check.one_of(("network", "head"), "podnet", tuned=tuned)
        self.spatial, self.flat = spatial, flat
        self.margin, self.margin_on, self.hinge = margin, margin_on, hinge
        self.tune_epochs, self.tune_lr, self.tuned = tune_epochs, tune_lr, tuned
        self.holding = False  # whether old proxies are kept from moving: set by ``phases``
        self.net.head.proxies = proxies  # before the first row is grown
        self.keep("memory", ExemplarMemory(codec, selection), kind="exemplars")
        self.keep("teacher", None, kind="teacher")
        if margin_on != "all" and not hinge:
            self.warnings.append(
                f"podnet: with strategy.margin_on={margin_on} and no hinge the loss has no lower bound, and the scale "
                f"of the head grows without end: set strategy.hinge=true (the paper) or strategy.margin_on=all"
            )
        if margin_on == "all" and margin != MARGIN:
            self.warnings.append(
                f"podnet: strategy.margin={margin} has no effect with strategy.margin_on=all, where it cancels; for "
                "the paper's margin set strategy.margin_on=similarity strategy.hinge=true"
            )

    def build_net(self) -> GrowingNet:
        return cosine_net(self)

    def before_experience(self, experience: Experience) -> None:
        if self.num_classes:
            self.teacher = frozen_copy(self.net)

    def prepare(self, experience: Experience) -> None:
        if self.spatial and experience.index == 0:
            with torch.no_grad():  # a network without maps is refused now, not after its first training
                stages = self.net(torch.zeros(1, *self.image_shape, device=self.device)).stages  # no look at an image
            pod_spatial(stages, stages)

    def phases(self, experience: Experience) -> Iterator[Phase]:
        self.holding = True
        yield Phase("main", self.training_set(experience), self.loss)
        self.holding = self.tuned == "network"  # the head alone is tuned whole, old proxies too
        if self.teacher is None or not self.tune_epochs or not len(self.memory):
            return
        head = self.tuned == "head"
        yield Phase(
            "tune", balanced_set(self, experience), self.loss, main=False, epochs=self.tune_epochs, lr=self.tune_lr,
            schedule="cosine", parameters=list(self.net.head.parameters()) if head else None,
            train_mode=self.net.eval if head else None,
        )  # fmt: skip

    def loss(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        output = self.net(batch.images)
        margin = self.margin * self.net.head.scale if self.margin_on == "similarity" else self.margin
        each = nca(output.logits, batch.slots, margin, on_all=self.margin_on == "all")
        # L_LSC, section 3.2: local similarity classifier
        terms = {"classes": (each.clamp(min=0) if self.hinge else each).mean()}
        if self.teacher is not None and (self.spatial or self.flat):
            old = self.teacher(batch.images)
            factor = math.sqrt(self.num_classes / max(1, self.num_classes - self.old_classes))
            if self.spatial:  # section 3.1, POD-spatial
                terms["spatial"] = factor * self.spatial * pod_spatial(output.stages, old.stages)
            if self.flat:  # section 3.1, POD-flat
                terms["flat"] = factor * self.flat * cosine_distance(output.features, old.features)
        return terms

    def adjust_gradients(self, batch: Batch) -> None:
        if self.teacher is not None and self.holding:
            freeze_rows(self.net.head.weight, self.teacher.head.weight)

    after_step = adjust_gradients

    def after_experience(self, experience: Experience) -> None:
        store_exemplars(self, experience)


def nca(logits: Tensor, slots: Tensor, margin: float | Tensor, on_all: bool = False) -> Tensor:
    """Loss of each image by neighbourhood component analysis, (N,): -log(exp(z_y - margin) / sum_{j != y} exp(z_j)).

    Args:
        logits: (N, C).
        slots: (N,).
        margin: Subtracted from the logit of the own class.
        on_all: Subtract the margin from every logit instead, so that it cancels, shift the largest logit to 0, and let
            the own class count as exp(0) in the denominator: the loss of the survey's code and the authors'.

    >>> nca(torch.tensor([[0.9, 0.1, 0.3]]), torch.tensor([0]), 0.6).item()  # doctest: +ELLIPSIS
    0.598138...
    """
    own = logits.gather(1, slots[:, None])
    target = F.one_hot(slots, logits.shape[1]).bool()
    if on_all:
        top = logits.amax(1, keepdim=True)
        return (logits - top).masked_fill(target, 0).logsumexp(1) - (own - top).squeeze(1)
    if logits.shape[1] == 1:
        return 0 * own.squeeze(1)
    return logits.masked_fill(target, -torch.inf).logsumexp(1) - (own - margin).squeeze(1)


def pod_spatial(stages: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean over the stages of the distance between the pooled squares of two maps, at most sqrt(2).

    The squares of a map (N, C, H, W) are summed over W (C H values) and over H (C W values), and both together scaled
    to unit length.

    Raises:
        ConfigError: where the backbone gives no maps.
    """
    if not stages:
        raise ConfigError("podnet needs the maps of stages; set model.options.stages=true, or strategy.spatial=0")
    pooled = zip(map(_pooled, stages), map(_pooled, teacher), strict=True)
    return torch.stack([(u - old).norm(dim=1).mean() for u, old in pooled]).mean()


def _pooled(stage: Tensor) -> Tensor:
    """(N, C, H, W) to unit (N, C (H + W))."""
    squares = stage.float().square()
    return F.normalize(torch.cat([squares.sum(3).flatten(1), squares.sum(2).flatten(1)], dim=1))
