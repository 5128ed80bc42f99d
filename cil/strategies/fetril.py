"""FeTrIL: a frozen backbone; features of new classes, moved to the means of old ones, stand for the old classes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.contract import Phase
from cil.contract.plain import PlainLoss
from cil.data import ArrayStore, Batch, Samples
from cil.memory import Budget
from cil.models import GrowingNet, LinearHead, NetFactory, freeze
from cil.strategies.base import Strategy, check
from cil.strategies.parts.frozen_backbone import class_sums, features_only, float64_features, to_float64, trains_first
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("fetril")
class FeTrIL(Strategy):
    """An old class o is replaced by the present class n of the most similar mean: phi(x) - mu_n + mu_o, x of n.

    Args:
        classifier: ``linear``: cross-entropy on real and moved features, one phase an experience. ``svm``: a linear
            support vector machine on their unit vectors, fitted after it.
        svm_c: C of that machine; > 0.
        cached_features: Whether the head is trained on features extracted once, without augmentation, as in the public
            code; if not, augmented images pass the frozen backbone at each step.
        similarity: The most similar class is that whose mean has the largest ``cosine`` (the paper, PyCIL), or the
            smallest distance, ``euclidean`` (the authors' code), with an old one: the same class in three cases of four
            on toys.
        train_first: See ``FrozenBackbone``.

    Source:
        Petit, Popescu, Schindler, Picard, Delezoide. "FeTrIL: feature translation for exemplar-free class-incremental
        learning", WACV 2023, arXiv:2211.13131, section 3. Departures: counts of the classes are carried too, so that
        the mean of a class that comes back is that of all its images; the first experience is augmented as the stream
        says, by AutoAugment and Cutout only where ``stream.augment.policy`` and ``stream.augment.cutout`` ask for them.
    """

    net: GrowingNet
    head: LinearHead
    means: Tensor  # (C, D)
    counts: Tensor  # (C,) int32
    cache: Tensor | None  # (N, D), features of this experience
    shift: Tensor | None  # (C, D), mu_o - mu_n(o) of an old class, 0 of a present one

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        classifier: str = "linear",
        svm_c: float = 1.0,
        cached_features: bool = True,
        similarity: str = "cosine",
        train_first: bool | str = "auto",
    ) -> None:
        super().__init__(make_net, budget)
        check.one_of(("linear", "svm"), "fetril", classifier=classifier)
        check.one_of(("cosine", "euclidean"), "fetril", similarity=similarity)
        check.above(0, "fetril", svm_c=svm_c)
        self.similarity = similarity
        self.classifier, self.svm_c, self.cached_features = classifier, svm_c, cached_features
        self.trained = trains_first(self, train_first)
        blank, d = self.net.head.weight, self.net.feature_dim
        self.keep("head", LinearHead(d).to(blank), kind="parameters")
        self.keep("means", blank.new_zeros(0, d), kind="prototypes")
        self.keep("counts", blank.new_zeros(0, dtype=torch.int32), kind="statistics")
        self.keep("cache", None, kind="temporary")
        self.keep("shift", None, kind="temporary")

    def build_net(self) -> GrowingNet:
        return features_only(self.make_net)

    def grow_net(self, signature: Signature) -> None:
        if signature.index:
            freeze(self.net)
        new = len(signature.new_slots)
        self.head.grow(new)
        self.means, self.counts = F.pad(self.means, (0, 0, 0, new)), F.pad(self.counts, (0, new))

    def phases(self, experience: Experience) -> Iterator[Phase]:
        if self._trains_backbone(experience):
            yield Phase("main", experience.train, PlainLoss(self.net, head=self.head))
        elif self.classifier == "linear" and len(experience.train):
            features, donors = self._update_means(experience)
            data = experience.train
            if self.cached_features:  # the images are not needed again
                self.cache = features.to(self.means)
                blank = ArrayStore(torch.zeros(len(data), 1, 1, 1, dtype=torch.uint8))
                data = Samples(blank, data.slots, extras={"row": torch.arange(len(data))})
            rows, slots = _stand_ins(data.slots, donors)
            head = list(self.head.parameters())  # trained as later heads are, also where there is no backbone to train
            yield Phase("head", data[rows].with_slots(slots), self.loss, parameters=head, fresh=False)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy over all outputs; of plain features before there is an old class."""
        features = self.net(batch.images).features if self.cache is None else self.cache[batch.extras["row"]]
        if self.shift is not None:
            features = features + self.shift[batch.slots]
        return F.cross_entropy(self.head(features), batch.slots)

    def after_experience(self, experience: Experience) -> None:
        if self._trains_backbone(experience) or self.classifier == "svm":  # else the means are up to date
            features, donors = self._update_means(experience)
            if self.classifier == "svm" and len(features):
                rows, slots = _stand_ins(experience.train.slots, donors)
                assert self.shift is not None
                self._fit_svm(features[rows] + to_float64(self.shift)[slots], slots)

    def predict(self, images: Tensor) -> Tensor:
        """Score each class seen; one without data by minus infinity: (N, ...) to (N, C)."""
        features = self.net(images).features
        scores: Tensor = self.head(F.normalize(features) if self.classifier == "svm" else features)
        return scores.masked_fill(self.counts == 0, -torch.inf)

    def _trains_backbone(self, experience: Experience) -> bool:
        return self.trained and experience.index == 0

    def _update_means(self, experience: Experience) -> tuple[Tensor, Tensor]:
        """Update the means and set ``shift``.

        Returns:
            (N, D) features, and (C,) the present class whose features stand for each class: itself where it is present,
            -1 where a class has no images at all.
        """
        features = float64_features(self, experience.train)
        sums, here = class_sums(features, experience.train.slots, self.num_classes)
        own, means, counts = sums / here.clamp(min=1)[:, None], to_float64(self.means), to_float64(self.counts)
        euclidean = self.similarity == "euclidean"
        likeness = -torch.cdist(means, own) if euclidean else F.normalize(means) @ F.normalize(own).T  # (C, C)
        donors = likeness.masked_fill(here == 0, -torch.inf).argmax(1)
        donors = torch.where(here > 0, torch.arange(len(donors)).to(donors), donors)
        donors = torch.where((here > 0) | (counts > 0), donors, -1)
        # section 3, feature translation: phi(x) - mu_n + mu_o
        self.shift = torch.where(here[:, None] > 0, 0.0, means - own[donors]).to(self.means)
        share = here / (counts + here).clamp(min=1)
        self.means = torch.lerp(means, own, share[:, None]).to(self.means)
        self.counts = (counts + here).to(self.counts)
        return features, donors.cpu()

    def _fit_svm(self, features: Tensor, slots: Tensor) -> None:
        """Fit the machine; its rows become those of the head. A single class leaves the head as it is."""
        from sklearn.svm import LinearSVC

        known = slots.unique()
        if len(known) < 2:
            return
        machine = LinearSVC(C=self.svm_c, random_state=0).fit(F.normalize(features).cpu().numpy(), slots.numpy())
        rows, bias = torch.from_numpy(machine.coef_), torch.from_numpy(machine.intercept_)
        if len(known) == 2:  # one row, for the second
            rows, bias = torch.cat([-rows, rows]), torch.cat([-bias, bias])
        weight, offset = self.head.weight, self.head.bias
        with torch.no_grad():
            weight.zero_()[known] = rows.to(weight)
            offset.zero_()[known] = bias.to(offset)


def _stand_ins(slots: Tensor, donors: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and classes of the training set: images of their own class, and again of the old classes they stand for.

    Args:
        slots: (N,) of the images.
        donors: (C,) the class whose images stand for each class, -1 for none.

    Returns:
        (R,) rows of images, and (R,) the slots they stand for.
    """
    rows, stand = [torch.arange(len(slots))], [slots]
    present = torch.bincount(slots, minlength=len(donors)) > 0
    for old in (~present & (donors >= 0)).nonzero().flatten().tolist():
        own = (slots == donors[old]).nonzero().flatten()
        rows.append(own)
        stand.append(torch.full_like(own, old))
    return torch.cat(rows), torch.cat(stand)
