"""EcoTTA for classes that arrive: meta networks beside a frozen backbone learn, held to its maps and to their past."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.contract import Phase
from cil.data import Batch, Samples
from cil.errors import ConfigError
from cil.memory import Budget, ExemplarMemory, State
from cil.models import Head, NetFactory, Output, extract, frozen_copy
from cil.models.meta import GRAD_PATHS, GroupedNet, MetaNetworks, map_distance
from cil.models.partition import cut_network
from cil.strategies.base import check
from cil.strategies.parts import distillation, store_exemplars
from cil.strategies.parts.frozen_backbone import FrozenBackbone, class_sums, cosine_scores, fresh_head, to_float64
from cil.strategies.parts.frozen_heads import FeaturesAndHead, freeze_old_rows, grow_head, scoped_cross_entropy
from cil.strategies.parts.meta_networks import MetaNetworkSets, meta_network_groups, normalised_entropy, route
from cil.strategies.registry import register
from cil.streams import Experience, Signature

ME = "ecotta_cil"
CHOICES: Mapping[str, Sequence[object]] = {
    "rehearsal": (True, False),
    "train_old_head": (None, True, False),
    "scope": ("auto", "new", "all"),
    "head": ("auto", "linear", "ncm", "cosine"),
    "init": ("identity", "warmup"),
    "norm": ("freeze_after_base", "track", "groupnorm"),
    "grad_path": GRAD_PATHS,
    "sharing": ("one", "per_task"),
    "routing": ("entropy", "mean"),
}


@register(ME)
class EcoTTACIL(FrozenBackbone):
    """Only small meta networks phi and rows of the head learn; the backbone, its statistics included, never changes.

    x~_k = BN_k(x_k) + ReLU(BN'_k(Conv_k(x~_{k-1}))), where x_k = F_k(x~_{k-1}) is a part of the frozen backbone; the
    features f are those of x~_K. The objective, minimised over phi and the head:

        CE_scope(z, y) + anchor / K sum_k mean |x~_k - sg(x_k)| + previous / K sum_k mean |x~_k - sg(x~_k of phi_{t-1})|
        + distillation T^2 KL(softmax(z_{t-1} / T) || softmax(z / T) over old classes) + replay CE_all(exemplars)

    Args:
        rehearsal: Whether exemplars are kept; values of ``auto`` or null below follow from it.
        parts: K, number of parts of the backbone (``cil.models.partition``), or the blocks of each part.
        kernel: Kernel size of the meta networks' convolutions, odd; None: 1 beside bottlenecks, else 3.
        anchor: lambda_sd, weight of the distance to the frozen maps.
        previous: lambda_prev, weight of the distance to the maps of the last experience's meta networks, each of the
            network they are in: one more forward pass through the frozen parts.
        distillation: lambda_kd, over the old outputs; None: 1 with exemplars, else 0.
        temperature: T > 0.
        replay: lambda_rep; 0 leaves exemplars out of training.
        scope: Softmax of new data: ``new`` classes, ``all`` seen (with exemplars alone), or ``auto``: all with
            exemplars.
        head: The classifier: ``linear``; ``cosine``: scale times the cosine to a row, rows starting at class means;
            ``ncm``: the nearest class mean of f by cosine (trained by a linear head); ``auto``: linear with exemplars,
            else ncm. Means are those of exemplars, computed anew, or sums that are carried and charged.
        train_old_head: Whether rows of classes that are not here learn; None: with exemplars. The scale of a cosine
            head always does.
        init: ``identity``: x~_k starts as nearly x_k. ``warmup``: a fresh start, and epochs of cross-entropy on the
            first experience before the anchors hold.
        gamma: Scale of BN'_k at ``identity``; at 0 its ReLU lets no gradient through.
        warmup_epochs, warmup_lr: Epochs and learning rate of ``warmup``.
        norm: Statistics of the meta networks' norms: ``freeze_after_base``: the first experience's; ``track``: they go
            on with the batches; ``groupnorm``: BN'_k is a group norm, which has none.
        grad_path: How the gradient passes frozen parts: ``stop``, ``lean``, ``full``; see ``GroupedNet``.
        sharing: ``one`` phi for all experiences, or ``per_task``: one for each with new classes, fixed after it.
            Images of classes that come back are then left out; ``previous`` and ``distillation`` have no effect.
        routing: With ``per_task``, an image is answered by the task of least ``entropy``, H / ln |C_t| (1 for a task of
            one class), or of the nearest class ``mean`` in frozen features.
        consolidation: c: at each step phi_eval becomes c phi_eval + (1 - c) phi, and is kept; 0: phi itself.
        lr, weight_decay: Learning rate and decay of phi; convolutions alone decay.
        head_lr: Learning rate of the head, which does not decay.
        selection, codec, train_first, first_head: See ``linear_probe``.

    Raises:
        ConfigError: for a value out of range, or a backbone that is not made of residual blocks.

    Source:
        Architecture and anchor: Song, Lee, Kweon, Choi, "EcoTTA", CVPR 2023, arXiv:2303.01904, there for adaptation
        without labels; the class-incremental objective is this package's own. Frozen batch norms always use their
        stored statistics. With ``identity`` those of BN_k are measured over all images of the first experience and
        stay, so that an infinite anchor is a linear probe; BN'_k has those of its batches.
    """

    teacher_copies = {"previous_meta": "metas", "previous_head": "head"}
    toy = {"parts": 2, "warmup_epochs": 1}
    toy_model = {"name": "resnet14", "options": {"width": 4}}
    head: Head
    metas: MetaNetworkSets
    previous_meta: MetaNetworks | None
    previous_head: Head | None
    average: MetaNetworks | None  # phi_eval
    sums: Tensor | None  # (C, D), of f
    frozen_sums: Tensor | None  # (C, D), of the frozen backbone's features
    means: Tensor | None  # (C, D), of exemplars

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        rehearsal: bool = False,
        parts: int | Sequence[int] = 4,
        kernel: int | None = None,
        anchor: float = 0.5,
        previous: float = 1.0,
        distillation: float | None = None,
        temperature: float = 2.0,
        replay: float = 1.0,
        scope: str = "auto",
        head: str = "auto",
        train_old_head: bool | None = None,
        init: str = "identity",
        gamma: float = 0.01,
        warmup_epochs: int = 10,
        warmup_lr: float = 0.05,
        norm: str = "freeze_after_base",
        grad_path: str = "stop",
        sharing: str = "one",
        routing: str = "entropy",
        consolidation: float = 0.0,
        lr: float = 0.01,
        head_lr: float = 0.1,
        weight_decay: float = 5e-4,
        selection: str = "herding",
        codec: str = "raw",
        train_first: bool | str = "auto",
        first_head: str = "linear",
    ) -> None:
        check.choices(
            CHOICES, ME, rehearsal=rehearsal, train_old_head=train_old_head, scope=scope, head=head, init=init,
            norm=norm, grad_path=grad_path, sharing=sharing, routing=routing,
        )  # fmt: skip
        check.at_least(0, ME, anchor=anchor, previous=previous, distillation=distillation, replay=replay, gamma=gamma)
        check.at_least(0, ME, lr=lr, head_lr=head_lr, weight_decay=weight_decay, warmup_lr=warmup_lr)
        check.at_least(1, ME, warmup_epochs=warmup_epochs)
        check.at_least(0, ME, consolidation=consolidation)
        check.below(1, ME, consolidation=consolidation)
        check.above(0, ME, temperature=temperature)
        if scope == "all" and not rehearsal:  # it would only push old classes down
            raise ConfigError(f"strategy.scope of {ME} is 'all' without exemplars; set strategy.rehearsal=true")
        if sharing == "per_task" and rehearsal:  # old meta networks are fixed
            raise ConfigError(f"strategy.sharing of {ME} is 'per_task', which has no use for strategy.rehearsal=true")
        super().__init__(make_net, budget, train_first, first_head)
        self.parts, self.kernel, self.gamma, self.init, self.norm = parts, kernel, gamma, init, norm
        self.grad_path, self.anchor, self.previous, self.replay = grad_path, anchor, previous, replay
        self.distillation, self.temperature = rehearsal if distillation is None else distillation, temperature
        self.scope = ("all" if rehearsal else "new") if scope == "auto" else scope
        self.answer = ("linear" if rehearsal else "ncm") if head == "auto" else head
        self.answers_by = "class_means" if self.answer == "ncm" else "head"  # of features as they are: not iCaRL's rule
        self.old_rows_learn = rehearsal if train_old_head is None else train_old_head
        self.per_task, self.routing, self.consolidation = sharing == "per_task", routing, consolidation
        self.warmup_epochs, self.warmup_lr = warmup_epochs, warmup_lr
        self.lr, self.head_lr, self.weight_decay = lr, head_lr, weight_decay
        self.rehearses = rehearsal
        self.base = True  # whether the meta networks are new here
        self.lowest = 0  # first row that learns by its own class
        self.tasks: list[tuple[int, ...]] = []  # slots of each set of meta networks
        self._keep_parts()
        if rehearsal:
            self.keep("memory", ExemplarMemory(codec, selection), kind="exemplars")

    # structure ------------------------------------------------------------------------------------------------------

    def _keep_parts(self) -> None:
        self.keep("metas", MetaNetworkSets(), kind="parameters")
        self.keep("head", fresh_head(self, "cosine" if self.answer == "cosine" else "linear"), kind="parameters")
        self.keep("previous_meta", None, kind="teacher")
        self.keep("previous_head", None, kind="teacher")
        self.keep("average", None, kind="temporary")
        empty = self.net.head.weight.detach().new_zeros(0, self.net.feature_dim)
        by_sums, by_mean = self.answer == "ncm" and not self.rehearses, self.per_task and self.routing == "mean"
        self.keep("sums", empty if by_sums else None, kind="prototypes" if by_sums else "temporary")
        sums = empty.clone() if by_mean else None
        self.keep("frozen_sums", sums, kind="prototypes" if by_mean else "temporary")
        self.keep("means", None, kind="temporary")

    def grow_net(self, signature: Signature) -> None:
        super().grow_net(signature)
        self.lowest = self.old_classes if self.per_task else self.first_slot
        if not self.metas:
            self.cuts = cut_network(self.net, signature.image_shape, self.parts, "strategy.parts")
        self.base = not self.metas or (self.per_task and bool(signature.new_slots))
        if self.base:
            generator = self.generator(f"meta networks:{len(self.metas)}")
            norm = "group" if self.norm == "groupnorm" else "batch"
            made = MetaNetworks(self.cuts, self.kernel, generator, norm, "strategy")
            self.metas.add(made.to(self.head.weight.device))
            self.tasks.append(())
        self.tasks[-1] += signature.new_slots
        grow_head(self, self.head, signature)
        more = (0, 0, 0, len(signature.new_slots))
        if self.sums is not None:
            self.sums = F.pad(self.sums, more)
        if self.frozen_sums is not None:
            self.frozen_sums = F.pad(self.frozen_sums, more)

    def grouped(self, metas: MetaNetworks) -> GroupedNet:
        """The frozen backbone with meta networks beside it, all with stored statistics."""
        return GroupedNet(self.net, self.cuts, metas, self.grad_path, share=0.0)

    def features(self, images: Tensor, metas: MetaNetworks) -> Tensor:
        """f of images (N, C, H, W), (N, D)."""
        found: Tensor = self.grouped(metas)(images).features
        return found

    def _net_and_head(self) -> FeaturesAndHead:
        return FeaturesAndHead(
            lambda images: self.features(images, self.metas.latest), self.head, [self.net, self.metas]
        )

    # training -------------------------------------------------------------------------------------------------------

    def before_experience(self, experience: Experience) -> None:
        if self.num_classes and not self.per_task and (self.previous or self.distillation):
            self.previous_meta = frozen_copy(self.metas.latest)
            self.previous_head = frozen_copy(self.head) if self.distillation else None

    def phases(self, experience: Experience) -> Iterator[Phase]:
        yield from self.train_then_freeze(experience)
        own = self._images(experience)
        if not len(own):
            return
        if self.base and self.init == "identity":
            images = (batch.images for batch in own.batches(500, self.device))
            self.grouped(self.metas.latest).start_at_identity(images, self.gamma)
        if self.answer == "cosine":
            self._start_rows_at_means(experience, own)
        if self.base and self.init == "warmup":
            yield Phase(
                "warmup", own, self._warmup_loss, self._groups(self.warmup_lr, 0.0), main=False,
                epochs=self.warmup_epochs, train_mode=self._learning_mode,
            )  # fmt: skip
        if self.consolidation:
            self.average = frozen_copy(self.metas.latest)
        data: Samples | dict[str, Samples] = own
        if self.rehearses and self.replay and len(self.memories()["memory"]):
            data = {"new": own, "memory": self.memories()["memory"].samples()}
        groups = self._groups(self.lr, self.weight_decay)
        yield Phase("groups", data, self.loss, groups, fresh=False, train_mode=self._learning_mode)

    def _images(self, experience: Experience) -> Samples:
        """Images that the meta networks of this experience learn from."""
        train = experience.train
        return train[train.slots >= self.old_classes] if self.per_task else train

    def _groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        head = {"params": list(self.head.parameters()), "lr": self.head_lr, "weight_decay": 0.0}
        return [*meta_network_groups(self.metas.latest, lr, weight_decay), head]

    def _learning_mode(self) -> None:
        """Batch statistics where they are still to be learned, stored ones elsewhere."""
        self.metas.eval()
        tracks = self.norm == "track"
        each: Any
        for each in self.metas.latest:
            each.conv_norm.train(tracks or self.base)
            each.norm.train(tracks or (self.base and self.init == "warmup"))

    @torch.no_grad()
    def _start_rows_at_means(self, experience: Experience, own: Samples) -> None:
        sums = F.normalize(self._sums(own))
        for slot in experience.new_slots:
            if bool(sums[slot].any()):
                self.head.weight[slot] = sums[slot].to(self.head.weight)

    def _warmup_loss(self, batch: Batch) -> Tensor:
        logits = self.head(self.features(batch.images, self.metas.latest))
        return scoped_cross_entropy(logits, batch.slots, self.lowest, "new")

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of the objective, by name."""
        memory = batch.streams.get("memory")
        images = batch.images if memory is None else torch.cat([batch.images, memory.images])
        output, adapted, frozen = self.grouped(self.metas.latest).maps(images)
        logits = self.head(output.features)
        terms = {"classes": scoped_cross_entropy(logits[: len(batch)], batch.slots, self.lowest, self.scope)}
        if self.anchor:
            terms["anchor"] = self.anchor * _mean_apart(adapted, frozen)
        if self.previous_meta is not None:
            with torch.no_grad():
                output, before, _ = self.grouped(self.previous_meta).maps(images)
            if self.previous:
                terms["previous"] = self.previous * _mean_apart(adapted, before)
            if self.previous_head is not None:
                terms["distillation"] = self.distillation * self._kl_to_old(logits, self.previous_head(output.features))
        if memory is not None:
            terms["replay"] = self.replay * F.cross_entropy(logits[len(batch) :], memory.slots)
        return terms

    def _kl_to_old(self, logits: Tensor, old: Tensor) -> Tensor:
        """T^2 KL of the old softmax and the present one over old classes: cross-entropy less entropy."""
        old, heat = old.detach(), self.temperature
        return heat**2 * (distillation(logits[:, : old.shape[1]], old, heat) - distillation(old, old, heat))

    def adjust_gradients(self, batch: Batch) -> None:
        if not self.old_rows_learn:
            freeze_old_rows(self.head, self.lowest)

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        if self.average is not None:
            for held, learned in zip(self.average.parameters(), self.metas.latest.parameters(), strict=True):
                held.lerp_(learned, 1 - self.consolidation)

    # after training -------------------------------------------------------------------------------------------------

    def after_experience(self, experience: Experience) -> None:
        if self.average is not None:
            with torch.no_grad():
                for learned, held in zip(self.metas.latest.parameters(), self.average.parameters(), strict=True):
                    learned.copy_(held)
            self.average = None
        store_exemplars(self, experience, self._net_and_head())
        own = self._images(experience)
        if self.sums is not None:
            self.sums = self.sums + self._sums(own).to(self.sums)
        if self.frozen_sums is not None:
            sums, _ = class_sums(to_float64(extract(self.net, own)), own.slots, self.num_classes)
            self.frozen_sums = self.frozen_sums + sums.to(self.frozen_sums)

    def load_state(self, state: State) -> None:
        super().load_state(state)
        if self.rehearses and self.answer == "ncm" and len(self.memories()["memory"]):
            self.means = self._sums(self.memories()["memory"].samples()).to(self.device, torch.float32)

    def _sums(self, samples: Samples) -> Tensor:
        """Sum of f over the images of each class, (C, D) float64: its direction is that of their mean."""
        return class_sums(to_float64(extract(self._net_and_head(), samples)), samples.slots, self.num_classes)[0]

    # answers --------------------------------------------------------------------------------------------------------

    def predict(self, images: Tensor) -> Tensor:
        """Score each class seen, (N, ...) to (N, C): by the head or by class means.

        With meta networks of each task: probabilities or similarities in [0, 1] within a task, plus 1 in the task that
        the image is routed to.
        """
        if not self.per_task:
            return self._answers(self.features(images, self.metas.latest))
        scores, uncertainties = [], []
        sums = self.frozen_sums
        near = None if sums is None else cosine_scores(self.net(images).features, sums)  # (N, C)
        metas: Any
        for slots, metas in zip(map(list, self.tasks), self.metas, strict=True):
            features = self.features(images, metas)
            logits = self.head(features)[:, slots]  # (N, C_t)
            by_mean = self.answer == "ncm"
            scores.append((1 + self._answers(features)[:, slots]) / 2 if by_mean else logits.float().softmax(1))
            uncertainties.append(normalised_entropy(logits) if near is None else -near[:, slots].amax(1))
        return route(scores, torch.stack(uncertainties, 1), self.tasks)

    def further_answers(self, images: Tensor, output: Output) -> dict[str, Tensor]:
        return {"head": self.head(output.features)} if self.rehearses and self.answer == "ncm" else {}

    def _answers(self, features: Tensor) -> Tensor:
        means = self.means if self.sums is None else self.sums
        if self.answer != "ncm" or means is None:  # no room for a single exemplar: the head answers
            return self.head(features)
        return cosine_scores(features, means)


def _mean_apart(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """sum_k a_k mean |x~_k - fixed_k| with a_k = 1 / K."""
    return torch.stack([map_distance(one, other) for one, other in zip(ours, theirs, strict=True)]).mean()
