"""EcoTTA for classes that arrive: meta networks beside a frozen backbone learn, held to its maps and to their past."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.contract import Phase
from cil.data import Batch, Samples
from cil.errors import ConfigError
from cil.memory import Budget, ExemplarMemory, State
from cil.models import GrowingNet, Head, NetFactory, count_parameters, extract, freeze, frozen_copy
from cil.models.meta import GRAD_PATHS, GroupedNet, MetaNetworks, OnGroup, cut
from cil.strategies.base import Strategy
from cil.strategies.parts import class_sums, exact, features_only, first_head, store_exemplars, trains_first
from cil.strategies.parts.tuned import (
    Assembled,
    grow_small_rows,
    hold_old_rows,
    scoped_cross_entropy,
    then_frozen,
    tuned_head,
)
from cil.strategies.ranges import above, at_least, below, one_of
from cil.strategies.registry import register
from cil.streams import Experience, Signature

INITS = ("identity", "warmup")
NORMS = ("freeze_after_base", "track", "groupnorm")
SHARINGS = ("one", "per_task")
ROUTINGS = ("entropy", "mean")
ANSWERS = ("auto", "linear", "ncm", "cosine")


class Phis(nn.ModuleList):
    """The meta networks: one set, or one for each experience with new classes."""

    @property
    def survey_parameters(self) -> int:
        """All of them are needed at inference."""
        return count_parameters(self)


@register("ecotta_cil")
class EcoTTACIL(Strategy):
    """Only small meta networks and rows of the head learn; the backbone theta, its buffers included, never changes.

    x~_k = BN_k(x_k) + ReLU(BN'_k(Conv_k(x~_{k-1}))) with x_k = F_k(x~_{k-1}), a part of the frozen backbone; features f
    are those of x~_K. Over phi, and the head W:

        CE_scope + anchor / K sum_k mean |x~_k - sg(x_k)| + previous / K sum_k mean |x~_k - sg(x~_k of phi_{t-1})|
        + distillation T^2 KL(old softmax || softmax over old classes) + replay CE_all(exemplars)

    Args:
        rehearsal: Whether exemplars are kept; what is ``auto`` or null below follows from it.
        parts: K, into how many parts the backbone is cut (``cil.models.meta.partition``), or the blocks of each part.
        kernel: Of the meta networks' convolutions; None: 1 beside bottlenecks, else 3.
        anchor: lambda_sd, of the distance to the frozen maps.
        previous: lambda_prev, of the distance to the maps that the last experience's meta networks give. These are the
            previous network's own, so they cost a forward pass through the frozen parts, without gradient.
        distillation: lambda_kd, over the old outputs; None: 1 with exemplars, else 0.
        temperature: T > 0.
        replay: lambda_rep; 0 leaves exemplars out of training.
        scope: Softmax of the new data: ``new`` classes, ``all`` seen (with exemplars alone), or ``auto``: all with
            exemplars.
        head: What answers: ``linear``; ``cosine``: scale times the cosine to a row, rows starting at class means;
            ``ncm``: the nearest class mean of f by cosine (trained by a linear head); ``auto``: linear with exemplars,
            else ncm. Means are those of exemplars, computed anew, or sums that are carried and charged.
        train_old_head: Whether rows of classes that are not here learn; the scale of a cosine head always does.
        init: ``identity``: x~_k starts as nearly x_k. ``warmup``: a fresh start, and epochs of cross-entropy on the
            first experience before the anchors hold.
        gamma: Of BN'_k, at ``identity``; at 0 its ReLU lets no gradient through.
        warmup_epochs, warmup_lr: Of ``warmup``.
        norm: Statistics of the meta networks' norms: ``freeze_after_base``: the first experience's; ``track``: they go
            on with the batches; ``groupnorm``: BN'_k is a group norm, which has none.
        grad_path: How the gradient passes frozen parts: ``stop``, ``lean``, ``full``; see ``cil.models.meta``.
        sharing: ``one`` phi for all experiences, or ``per_task``: one for each with new classes, fixed after it.
            There images of classes that come back are left out, ``previous`` and ``distillation`` have no object.
        routing: Of ``per_task``: an image is answered by the task of least ``entropy``, H / ln |C_t| (1 for a task of
            one class), or of the nearest class ``mean`` in frozen features.
        consolidation: c: at each step phi_eval becomes c phi_eval + (1 - c) phi, and is what stays; 0: phi itself.
        lr, weight_decay: Of phi; convolutions alone decay.
        head_lr: Of the head, which does not decay.
        selection, codec: Of exemplars.
        train_first: Whether the first experience trains the backbone before it is frozen; ``auto``: only where
            ``model.weights`` gives no public weights.
        first_head: Head of that training, dropped after it; ``linear`` or ``cosine``.

    Raises:
        ConfigError: for a value out of range, or a backbone that is not made of residual blocks.

    Source:
        Architecture and anchor: Song, Lee, Kweon, Choi, "EcoTTA", CVPR 2023, arXiv:2303.01904, there for adaptation
        without labels; the class-incremental objective is this package's own (specification 12). Frozen batch norms
        always use their stored statistics. With ``identity`` those of BN_k are measured over all images of the first
        experience and stay, so that an infinite anchor is a linear probe; BN'_k has those of its batches.
    """

    toy: ClassVar[Mapping[str, Any]] = {"parts": 2, "warmup_epochs": 1}
    toy_model: ClassVar[Mapping[str, Any]] = {"name": "resnet14", "options": {"width": 4}}
    net: GrowingNet
    first_head: Head | None
    head: Head
    metas: Phis
    previous_meta: MetaNetworks | None
    previous_head: Head | None
    average: MetaNetworks | None
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
        train_old_head: bool = False,
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
        super().__init__(make_net, budget)
        me = "ecotta_cil"
        one_of((True, False), me, rehearsal=rehearsal, train_old_head=train_old_head)
        one_of(("auto", "new", "all"), me, scope=scope)
        one_of(ANSWERS, me, head=head)
        one_of(INITS, me, init=init)
        one_of(NORMS, me, norm=norm)
        one_of(GRAD_PATHS, me, grad_path=grad_path)
        one_of(SHARINGS, me, sharing=sharing)
        one_of(ROUTINGS, me, routing=routing)
        at_least(0, me, anchor=anchor, previous=previous, distillation=distillation, replay=replay, gamma=gamma)
        at_least(0, me, lr=lr, head_lr=head_lr, weight_decay=weight_decay, warmup_lr=warmup_lr)
        at_least(0, me, consolidation=consolidation)
        at_least(1, me, warmup_epochs=warmup_epochs)
        below(1, me, consolidation=consolidation)
        above(0, me, temperature=temperature)
        if isinstance(parts, str | float | bool) or parts is None:
            raise ConfigError(
                f"strategy.parts of {me} is {parts!r}; it must be a number of parts, or blocks of each part"
            )
        if kernel is not None and (kernel < 1 or kernel % 2 == 0):
            raise ConfigError(
                f"strategy.kernel of {me} is {kernel}; it must be odd, so that maps keep their size, or null"
            )
        if scope == "all" and not rehearsal:
            raise ConfigError(
                f"strategy.scope of {me} is 'all' without exemplars, which only pushes old classes down; set "
                f"strategy.rehearsal=true, or scope to new"
            )
        if sharing == "per_task" and rehearsal:
            raise ConfigError(
                f"strategy.sharing of {me} is 'per_task', where old meta networks are fixed and exemplars have nothing "
                f"to train; set strategy.rehearsal=false, or sharing to one"
            )
        self.parts = parts if isinstance(parts, int) else [int(size) for size in parts]
        self.kernel, self.gamma, self.init, self.norm, self.grad_path = kernel, gamma, init, norm, grad_path
        self.anchor, self.previous, self.replay, self.temperature = anchor, previous, replay, temperature
        self.distillation = float(rehearsal) if distillation is None else distillation
        self.scope = ("all" if rehearsal else "new") if scope == "auto" else scope
        self.answer = ("linear" if rehearsal else "ncm") if head == "auto" else head
        self.old_rows_learn, self.per_task, self.routing = train_old_head, sharing == "per_task", routing
        self.warmup_epochs, self.warmup_lr = warmup_epochs, warmup_lr
        self.consolidation, self.lr, self.head_lr, self.weight_decay = consolidation, lr, head_lr, weight_decay
        self.rehearses = rehearsal
        self.trained = trains_first(self, train_first)
        self.head_kind = first_head
        self.base = True  # whether the meta networks are new here
        self.lowest = 0  # first row that learns by its own class
        self.tasks: list[tuple[int, ...]] = []  # slots of each set of meta networks
        self.keep("first_head", None, kind="temporary")
        self.keep("metas", Phis(), kind="parameters")
        self.keep("head", tuned_head(self, "cosine" if self.answer == "cosine" else "linear"), kind="parameters")
        self.keep("previous_meta", None, kind="teacher")
        self.keep("previous_head", None, kind="teacher")
        self.keep("average", None, kind="temporary")
        blank = self.net.head.weight.detach().new_zeros(0, self.net.feature_dim)
        self.keep("sums", blank if self.answer == "ncm" and not rehearsal else None, kind="prototypes")
        self.keep("frozen_sums", blank.clone() if self.per_task and routing == "mean" else None, kind="prototypes")
        self.keep("means", None, kind="temporary")
        if rehearsal:
            self.keep("memory", ExemplarMemory(codec, selection), kind="exemplars")

    # structure ------------------------------------------------------------------------------------------------------

    def build_net(self) -> GrowingNet:
        return features_only(self.make_net)

    def grow_net(self, signature: Signature) -> None:
        self.first_head = first_head(self, signature, self.head_kind, self.trained)
        self.lowest = self.old_classes if self.per_task else self.first_slot
        self.base = signature.index == 0
        if not self.metas:
            self.cuts = cut(self.net, signature.image_shape, self.parts, "strategy.parts")
        if not self.metas or (self.per_task and signature.new_slots):
            self.base = True
            freeze(self.metas)
            self.metas.append(self._fresh())
            self.tasks.append(())
        self.tasks[-1] += signature.new_slots
        grow_small_rows(self, self.head, signature)
        more = (0, 0, 0, len(signature.new_slots))
        if self.sums is not None:
            self.sums = F.pad(self.sums, more)
        if self.frozen_sums is not None:
            self.frozen_sums = F.pad(self.frozen_sums, more)

    def _fresh(self) -> MetaNetworks:
        metas = MetaNetworks(self.cuts, self.kernel, self.generator(f"meta networks:{len(self.metas)}"))
        if self.norm == "groupnorm":
            each: Any
            for each in metas:
                each.conv_norm = nn.GroupNorm(_groups(each.conv_norm.num_features), each.conv_norm.num_features)
        return metas.to(self.net.head.weight.device)

    @property
    def meta(self) -> MetaNetworks:
        """Those that learn."""
        return self.metas[-1]  # type: ignore[return-value]

    # training -------------------------------------------------------------------------------------------------------

    def before_experience(self, experience: Experience) -> None:
        if self.num_classes and not self.per_task and (self.previous or self.distillation):
            self.previous_meta = frozen_copy(self.meta)
            self.previous_head = frozen_copy(self.head) if self.distillation else None

    def phases(self, experience: Experience) -> Iterator[Phase]:
        yield from then_frozen(self, experience)
        own = self._own(experience)
        if not len(own):
            return
        if self.base and self.init == "identity":
            images = (batch.images for batch in own.batches(500, self.device))
            self._grouped(self.meta).start_at_identity(images, self.gamma)
        if self.answer == "cosine":
            self._start_rows_at_means(experience, own)
        if self.base and self.init == "warmup":
            yield Phase(
                "warmup", own, self._warmup_loss, self._groups(self.warmup_lr, 0.0), main=False,
                epochs=self.warmup_epochs, train_mode=self._learning_mode,
            )  # fmt: skip
        if self.consolidation:
            self.average = frozen_copy(self.meta)
        data: Any = own
        if self.rehearses and self.replay and len(self.memories()["memory"]):
            data = {"new": own, "memory": self.memories()["memory"].samples()}
        groups = self._groups(self.lr, self.weight_decay)
        yield Phase("groups", data, self.loss, groups, fresh=False, train_mode=self._learning_mode)

    def _own(self, experience: Experience) -> Samples:
        """What the meta networks of this experience learn from."""
        train = experience.train
        return train[train.slots >= self.old_classes] if self.per_task else train

    def _groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        metas: list[Any] = list(self.meta)
        convolutions = [meta.conv.weight for meta in metas]
        norms = [p for meta in metas for layer in (meta.norm, meta.conv_norm) for p in layer.parameters()]
        return [
            {"params": convolutions, "lr": lr, "weight_decay": weight_decay},
            {"params": norms, "lr": lr, "weight_decay": 0.0},
            {"params": list(self.head.parameters()), "lr": self.head_lr, "weight_decay": 0.0},
        ]

    def _learning_mode(self) -> None:
        """Batch statistics where they are still to be learned, stored ones elsewhere."""
        self.metas.eval()
        tracks = self.norm == "track"
        meta: Any
        for meta in self.meta:
            meta.conv_norm.train(tracks or self.base)
            meta.norm.train(tracks or (self.base and self.init == "warmup"))

    def _warmup_loss(self, batch: Batch) -> Tensor:
        logits = self.head(self._features(batch.images, self.meta))
        return scoped_cross_entropy(logits, batch.slots, self.lowest, "new")

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The joint objective, specification 12.1, by name of its terms."""
        memory = batch.streams.get("memory")
        images = batch.images if memory is None else torch.cat([batch.images, memory.images])
        adapted: list[Tensor] = []
        frozen: list[Tensor] = []

        def on_group(k: int, ours: Tensor, theirs: Tensor) -> None:
            adapted.append(ours)
            frozen.append(theirs.detach())

        anchored = self.anchor or (self.previous and self.previous_meta is not None)
        logits = self.head(self._features(images, self.meta, on_group if anchored else None))
        terms = {"classes": scoped_cross_entropy(logits[: len(batch)], batch.slots, self.lowest, self.scope)}
        if self.anchor:
            terms["anchor"] = self.anchor * _apart(adapted, frozen)
        if self.previous_meta is not None:
            before: list[Tensor] = []
            with torch.no_grad():
                old = self._features(images, self.previous_meta, lambda k, ours, theirs: before.append(ours))
            if self.previous:
                terms["previous"] = self.previous * _apart(adapted, before)
            if self.previous_head is not None:
                terms["distillation"] = self.distillation * self._forgotten(logits, self.previous_head(old).detach())
        if memory is not None:
            terms["replay"] = self.replay * F.cross_entropy(logits[len(batch) :], memory.slots)
        return terms

    def _forgotten(self, logits: Tensor, old: Tensor) -> Tensor:
        """T^2 KL(softmax(old / T) || softmax(logits over the old classes / T))."""
        now = F.log_softmax(logits[:, : old.shape[1]] / self.temperature, 1)
        then = F.log_softmax(old / self.temperature, 1)
        return self.temperature**2 * F.kl_div(now, then, reduction="batchmean", log_target=True)

    def adjust_gradients(self, batch: Batch) -> None:
        if not self.old_rows_learn:
            hold_old_rows(self.head, self.lowest)

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        if self.average is not None:
            for held, learned in zip(self.average.parameters(), self.meta.parameters(), strict=True):
                held.lerp_(learned, 1 - self.consolidation)

    # what stays -----------------------------------------------------------------------------------------------------

    def after_experience(self, experience: Experience) -> None:
        if self.average is not None:
            with torch.no_grad():
                for learned, held in zip(self.meta.parameters(), self.average.parameters(), strict=True):
                    learned.copy_(held)
            self.average = None
        store_exemplars(self, experience, self._whole())
        own = self._own(experience)
        if self.sums is not None:
            self.sums = self.sums + self._sums(own).to(self.sums)
        if self.frozen_sums is not None:
            found, _ = class_sums(exact(extract(self.net, own)), own.slots, self.num_classes)
            self.frozen_sums = self.frozen_sums + found.to(self.frozen_sums)

    def load_state(self, state: State) -> None:
        super().load_state(state)
        if self.rehearses and self.answer == "ncm" and len(self.memories()["memory"]):
            self.means = self._sums(self.memories()["memory"].samples()).to(self.device, torch.float32)

    def _sums(self, samples: Samples) -> Tensor:
        """Sum of f over the images of each class, (C, D) float64: its direction is that of their mean."""
        return class_sums(exact(extract(self._whole(), samples)), samples.slots, self.num_classes)[0]

    @torch.no_grad()
    def _start_rows_at_means(self, experience: Experience, own: Samples) -> None:
        sums = F.normalize(self._sums(own))
        for slot in experience.new_slots:
            if bool(sums[slot].any()):
                self.head.weight[slot] = sums[slot].to(self.head.weight)

    # answers --------------------------------------------------------------------------------------------------------

    def predict(self, images: Tensor) -> Tensor:
        """Score each class seen, (N, ...) to (N, C): by the head or by class means.

        With meta networks of each task: probabilities or similarities in [0, 1] within a task, plus 1 in the task that
        the image is routed to.
        """
        if not self.per_task:
            return self._answers(self._features(images, self.meta))
        scores = images.new_zeros(len(images), self.num_classes)
        doubts = []
        for slots, meta in zip(self.tasks, self.metas, strict=True):
            own = torch.tensor(slots, device=images.device)
            features = self._features(images, meta)
            logs = F.log_softmax(self.head(features)[:, own].float(), 1)  # (N, |C_t|)
            doubts.append(
                -(logs.exp() * logs).sum(1) / math.log(len(slots)) if len(slots) > 1 else torch.ones_like(logs[:, 0])
            )
            inside = (1 + self._answers(features)[:, own]) / 2 if self.answer == "ncm" else logs.exp()
            scores[:, own] = inside.to(scores)
        doubt = torch.stack(doubts, 1)  # (N, T)
        if self.frozen_sums is not None:
            near = _cosines(self.net(images).features, self.frozen_sums)
            doubt = torch.stack([-near[:, list(slots)].amax(1) for slots in self.tasks], 1)
        chosen = doubt.argmin(1, keepdim=True)
        for number, slots in enumerate(self.tasks):
            scores[:, list(slots)] += (chosen == number).to(scores)
        return scores

    def _answers(self, features: Tensor) -> Tensor:
        means = self.means if self.sums is None else self.sums
        if self.answer != "ncm" or means is None:  # no room for a single exemplar: the head answers
            return self.head(features)  # type: ignore[no-any-return]
        return _cosines(features, means)

    def _features(self, images: Tensor, meta: Any, on_group: OnGroup | None = None) -> Tensor:
        return self._grouped(meta)(images, on_group).features  # type: ignore[no-any-return]

    def _grouped(self, meta: Any) -> GroupedNet:
        return GroupedNet(self.net, self.cuts, meta, self.grad_path, share=0.0)

    def _whole(self) -> Assembled:
        return Assembled(lambda images: self._features(images, self.meta), self.head, [self.net, self.metas])


def _apart(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """sum_k a_k mean |x~_k - fixed_k| with a_k = 1 / K."""
    return torch.stack([(one - other).abs().mean() for one, other in zip(ours, theirs, strict=True)]).mean()


def _cosines(features: Tensor, sums: Tensor) -> Tensor:
    """(N, D), (C, D) to (N, C); minus infinity for a class of which nothing was seen."""
    sums = exact(sums)
    scores = F.normalize(exact(features)) @ F.normalize(sums).T
    return scores.masked_fill((sums == 0).all(1), -torch.inf).to(features.device, torch.float32)


def _groups(channels: int) -> int:
    """Groups of a group norm: at most 32, of at least two channels where that is possible."""
    return next((g for g in (32, 16, 8, 4, 2) if channels % g == 0 and channels // g >= 2), 1)
