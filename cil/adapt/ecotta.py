"""EcoTTA: meta networks beside a frozen network, adapted by entropy and held to the frozen maps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.adapt.base import Adapter, SourceModel, check, logits_of
from cil.adapt.parts.colours import colour_views
from cil.adapt.parts.losses import any_true, entropy, gradients, mean_where
from cil.adapt.parts.optimizer import CarriedOptimizer, default_by_classes
from cil.adapt.registry import register
from cil.contract import Phase
from cil.data import Batch, Samples
from cil.models import freeze
from cil.models.meta import GRAD_PATHS, GroupedNet, MetaNetworks, map_distance
from cil.models.partition import cut_network

CHOICES: Mapping[str, Sequence[object]] = {
    "update": ("two_step", "joint"),
    "reg_reduction": ("mean", "sum_per_sample"),
    "predict_from": ("pass2", "pre_update", "post_update"),
    "grad_path": GRAD_PATHS,
    "mask_bits": (1, 8),
    "bn_mode": ("batch", "mixed", "source"),
    "warmup_schedule": (None, "multistep", "cosine"),
}


@register("ecotta")
class EcoTTA(Adapter):
    """Memory-efficient continual adaptation: only small meta networks learn, and little is kept for the backward pass.

    x~_k = BN_k(x_k) + ReLU(BN'_k(Conv_k(x~_{k-1}))), where x_k = F_k(x~_{k-1}) is a part of the frozen network. The
    source network never changes, its batch-norm statistics included; where the source names public weights, it is
    carried as a reference. Before it is deployed the meta networks are warmed up on source data.

    Args:
        parts: K, number of parts of the network (``cil.models.partition``), or the blocks of each part.
        kernel: Kernel size of the meta networks' convolutions; None: 1 beside bottlenecks (ResNet-50), else 3.
        regularisation: lambda, weight of the distance to the frozen maps; 0 leaves its pass out.
        threshold: H0 / ln K: only predictions of less entropy count.
        lr, momentum: Learning rate and momentum of SGD without decay. The momentum is carried, and charged.
        update: ``two_step``: a step on the regularisation, then a second forward pass and a step on the entropy; both
            share the momentum. ``joint``: one pass, one step on their sum.
        reg_reduction: ``mean`` over all elements of a map, or ``sum_per_sample``: the L1 norm of each image's map,
            averaged over the batch.
        reg_detach_input: Whether the regularisation of group k reaches meta network k alone.
        predict_from: ``pass2``: the scores of the entropy pass, before its step; ``pre_update``: before any step;
            ``post_update``: after all, by one more pass. With ``joint`` the first two are the same.
        grad_path: How the entropy's gradient passes frozen parts: ``full``, ``lean``, ``stop``; see
            ``cil.models.meta.GroupedNet``.
        mask_bits: Bits of ReLU masks in ``lean``: 1 or 8.
        bn_mode: Statistics of all batch norms: ``batch``, ``source``, or ``mixed``: (1 - alpha) source + alpha batch.
            The source statistics of the meta networks are those of the warm-up.
        alpha: Share of the batch with ``mixed``.
        warmup_epochs, warmup_batch_size, warmup_schedule: None: 10, 64, ``multistep`` (a linear rise over the first
            epoch; times 0.2 at 30, 60 and 80 % of the epochs); for about 1000 classes 3, 256, ``cosine``.
        warmup_lr: Learning rate of SGD without decay.
        warmup_augment: Colours, blur and grey, as published.

    Raises:
        ConfigError: for a network that is not made of residual blocks.

    Source:
        Song, Lee, Kweon, Choi, CVPR 2023, arXiv:2303.01904, equations by number; lambda and the rest of the settings as
        in section 4 there and in its public reimplementation, whose lambda is 0.25.
        Departures from the latter: running statistics stay as they are at test time (it lets those of frozen layers
        drift); no step at all where no prediction is sure (there the momentum still moves the weights); kernel 1 and
        parts 4, 4, 4, 4 for ResNet-50, which alone give the megabytes reported; ``lean`` gradients in place of ``full``
        ones; the rise of the learning rate acts on gradients.
    """

    needs_source = True
    toy = {"parts": 2, "warmup_epochs": 1, "warmup_batch_size": 16}
    toy_model = {"name": "resnet14", "options": {"width": 4}}
    meta: MetaNetworks
    optimizer: CarriedOptimizer

    def __init__(
        self,
        source: SourceModel,
        *,
        parts: int | Sequence[int] = 4,
        kernel: int | None = None,
        regularisation: float = 0.5,
        threshold: float = 0.4,
        lr: float = 5e-3,
        momentum: float = 0.9,
        update: str = "two_step",
        reg_reduction: str = "mean",
        reg_detach_input: bool = True,
        predict_from: str = "pass2",
        grad_path: str = "lean",
        mask_bits: int = 1,
        bn_mode: str = "batch",
        alpha: float = 0.1,
        warmup_epochs: int | None = None,
        warmup_batch_size: int | None = None,
        warmup_lr: float = 5e-2,
        warmup_schedule: str | None = None,
        warmup_augment: bool = True,
    ) -> None:
        super().__init__(source)
        check.at_least(0, "ecotta", regularisation=regularisation, threshold=threshold, lr=lr, momentum=momentum)
        check.at_least(0, "ecotta", warmup_lr=warmup_lr, warmup_epochs=warmup_epochs)
        check.between(0, 1, "ecotta", alpha=alpha)
        check.below(1, "ecotta", momentum=momentum)
        check.at_least(1, "ecotta", warmup_batch_size=warmup_batch_size)
        check.choices(
            CHOICES, "ecotta", update=update, reg_reduction=reg_reduction, predict_from=predict_from,
            grad_path=grad_path, mask_bits=mask_bits, bn_mode=bn_mode, warmup_schedule=warmup_schedule,
        )  # fmt: skip
        self.regularisation, self.bound = regularisation, threshold * math.log(self.num_classes)  # H0, section 3.2
        self.update, self.reduction, self.local = update, reg_reduction, reg_detach_input
        self.predict_from = predict_from
        self.epochs = default_by_classes(warmup_epochs, self.num_classes, {10: 10, 100: 10, 1000: 3})
        self.batch_size = default_by_classes(warmup_batch_size, self.num_classes, {10: 64, 100: 64, 1000: 256})
        published = {10: "multistep", 100: "multistep", 1000: "cosine"}
        self.schedule = default_by_classes(warmup_schedule, self.num_classes, published)
        self.warmup_lr, self.augment = warmup_lr, warmup_augment

        freeze(self.net)
        self.keep("net", self.net, kind="parameters", reference=source.reference)
        cuts = cut_network(self.net, self.image_shape, parts)
        made = MetaNetworks(cuts, kernel, self.generator("meta networks"))
        self.keep("meta", made.to(next(self.net.parameters()).device), kind="parameters")
        carried = CarriedOptimizer(list(self.meta.parameters()), "sgd", lr, momentum)
        self.keep("optimizer", carried, kind="optimizer", lifetime="carried")
        share = {"batch": 1.0, "mixed": alpha, "source": 0.0}[bn_mode]
        self.adapted = GroupedNet(self.net, cuts, self.meta, grad_path, share, packed=mask_bits == 1)
        self.warmed = GroupedNet(self.net, cuts, self.meta, "full")

    # before deployment ----------------------------------------------------------------------------------------------

    def phases(self, source: Samples) -> Iterator[Phase]:
        """The warm-up: cross-entropy on source data, meta networks alone, statistics of the batch everywhere."""
        self.meta.reset(self.generator("meta networks"))
        if self.epochs:
            # the code's third, sixth and eighth epoch of ten, counted from one
            places = [max(1, round(share * self.epochs) - 1) for share in (0.3, 0.6, 0.8)]
            steps: dict[str, Any] = {"milestones": places, "gamma": 0.2}
            yield Phase(
                "warmup",
                source,
                self._warmup_loss,
                parameters=list(self.meta.parameters()),
                main=False,
                epochs=self.epochs,
                batch_size=self.batch_size,
                lr=self.warmup_lr,
                weight_decay=0.0,
                **(steps if self.schedule == "multistep" else {"schedule": "cosine"}),
            )

    def _warmup_loss(self, batch: Batch) -> Tensor:
        images = batch.images
        if self.augment:
            images = colour_views(images, self.generator(f"colours:{self.progress.step}"))
        return F.cross_entropy(logits_of(self.warmed(images)), batch.slots)

    def train_mode(self) -> None:
        self.meta.train()

    def adjust_gradients(self, batch: Batch) -> None:
        """The linear rise over the first epoch of the warm-up."""
        if self.schedule == "multistep" and self.progress.epoch == 0:
            share = (self.progress.step + 1) * self.progress.epochs / self.progress.steps
            for parameter in self.meta.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(min(1.0, share))

    def deploy(self, source: Samples | None) -> None:
        self.meta.eval()

    # at test time ---------------------------------------------------------------------------------------------------

    def adapt_and_predict(self, images: Tensor) -> Tensor:
        self.meta.eval()
        scores = self._two_steps(images) if self.update == "two_step" else self._joint_step(images)
        if self.predict_from == "post_update":
            with torch.no_grad():
                scores = logits_of(self.adapted(images))
        return scores.detach()

    def _two_steps(self, images: Tensor) -> Tensor:
        """Algorithm 1: a step on equation 5's second term, then one on its first."""
        before = self._regularise(images) if self.regularisation else None
        logits = logits_of(self.adapted(images))
        uncertainty = self._entropy(logits)
        if uncertainty is not None:
            self.optimizer.step(gradients(uncertainty, self.optimizer.tuned))
        return before if before is not None and self.predict_from == "pre_update" else logits

    def _regularise(self, images: Tensor) -> Tensor:
        """A step on lambda sum_k L_k; the logits before it.

        With inputs detached each L_k goes backward at once, so that only one group's graph is there at a time.
        """
        steps: list[Tensor] = []
        terms: list[Tensor] = []

        def on_group(k: int, adapted: Tensor, frozen: Tensor) -> None:
            term = self.regularisation * self._distance(adapted, frozen)
            if self.local:
                steps.extend(gradients(term, list(self.meta[k].parameters())))
            else:
                terms.append(term)

        logits = logits_of(self.adapted(images, on_group, local=self.local))
        if not self.local:
            steps = gradients(torch.stack(terms).sum(), self.optimizer.tuned)
        self.optimizer.step(steps)
        return logits

    def _joint_step(self, images: Tensor) -> Tensor:
        """One step on L_ent + lambda sum_k L_k, of one forward pass."""
        output, *maps = self.adapted.maps(images)
        logits = logits_of(output)
        uncertainty = self._entropy(logits)
        pairs = list(zip(*maps, strict=True)) if self.regularisation else []
        terms = [self.regularisation * self._distance(adapted, frozen) for adapted, frozen in pairs]
        total = [torch.zeros_like(p) for p in self.optimizer.tuned]
        if terms and self.local:  # asking for phi_k alone stops the gradient of L_k at the group's input
            parts = [
                torch.autograd.grad(term, list(meta.parameters()), retain_graph=True)
                for term, meta in zip(terms, self.meta, strict=True)
            ]
            total = [gradient for part in parts for gradient in part]
            terms = []
        terms += [] if uncertainty is None else [uncertainty]
        if terms:
            rest = gradients(torch.stack(terms).sum(), self.optimizer.tuned)
            total = [one + other for one, other in zip(total, rest, strict=True)]
        if terms or pairs:
            self.optimizer.step(total)
        return logits

    def _entropy(self, logits: Tensor) -> Tensor | None:
        """L_ent, equation 3: the mean entropy of sure predictions; None where there is none."""
        each = entropy(logits)  # (N,)
        sure = each.detach() < self.bound
        return mean_where(each, sure) if any_true(sure) else None

    def _distance(self, adapted: Tensor, frozen: Tensor) -> Tensor:
        """L_k, equation 4."""
        return map_distance(adapted, frozen, per_sample=self.reduction == "sum_per_sample")
