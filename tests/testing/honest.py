"""Honest strategies of five unlike designs: no rule may raise an alarm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.data import Batch
from cil.models import extract, freeze, frozen_copy
from cil.strategies import Phase, Strategy
from cil.strategies.replay import Replay
from cil.streams import Experience, Signature


class Averaged(Replay):
    """An exponential moving average of the weights, carried, is the teacher and the one that answers."""

    def grow(self, signature: Signature) -> None:
        super().grow(signature)
        if not signature.index:
            self.keep("average", frozen_copy(self.net), kind="teacher", lifetime="carried")
        else:
            self.average.grow(len(signature.new_slots))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            soft = self.average(batch.images).logits.softmax(1)
        logits = self.net(batch.images).logits
        return {"classes": F.cross_entropy(logits, batch.slots), "pull": 0.1 * F.cross_entropy(logits, soft)}

    def after_step(self, batch: Batch) -> None:
        with torch.no_grad():
            for mean, value in zip(self.average.state_dict().values(), self.net.state_dict().values(), strict=True):
                mean.copy_(0.9 * mean + 0.1 * value if mean.is_floating_point() else value)

    def predict(self, images: Tensor) -> Tensor:
        logits: Tensor = self.average(images).logits
        return logits


class Prototypes(Strategy):
    """No exemplars: sums of features by class, which answer by distance; the last update lies in plain numbers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep("sums", torch.zeros(0, self.net.feature_dim), kind="prototypes")
        self.keep("counts", [], kind="other")

    def grow(self, signature: Signature) -> None:
        super().grow(signature)
        self.sums = F.pad(self.sums, (0, 0, 0, len(signature.new_slots)))
        self.counts = [*self.counts, *(signature.counts.get(slot, 0) for slot in signature.new_slots)]

    def loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.net(batch.images).logits, batch.slots)

    def after_experience(self, experience: Experience) -> None:
        features = extract(self.net, experience.train)
        self.sums = self.sums.index_add(0, experience.train.slots.to(features.device), features)

    def predict(self, images: Tensor) -> Tensor:
        means = self.sums / torch.tensor(self.counts, device=self.sums.device).clamp(min=1)[:, None]
        return -torch.cdist(self.net(images).features, means)


class TwoGroups(Replay):
    """Backbone and head with rates of their own, in the first of two phases; the second tunes the head."""

    def phases(self, experience: Experience) -> Iterator[Phase]:
        data = self.training_set(experience)
        groups = [
            {"params": list(self.net.backbone.parameters()), "lr": 0.01},
            {"params": list(self.net.head.parameters()), "lr": 0.1},
        ]
        yield Phase("both", data, self.loss, groups)
        yield Phase("head", data, self.loss, list(self.net.head.parameters()), main=False, epochs=1)


class FrozenTimm(Strategy):
    """A frozen transformer of timm, and a head on its features."""

    toy_model: ClassVar[Any] = {
        "name": "timm:vit_tiny_patch16_224",
        "options": {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2},
    }

    def build_net(self) -> nn.Module:
        net = self.make_net()
        freeze(net.backbone)
        return net

    def loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.net(batch.images).logits, batch.slots)


class LowRank(Replay):
    """The backbone is frozen after the first experience; a low-rank map of its features is trained for each one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep("maps", nn.ModuleList(), kind="parameters")

    def grow(self, signature: Signature) -> None:
        super().grow(signature)
        wide, device = self.net.feature_dim, self.device
        pair = nn.Sequential(nn.Linear(wide, 2, bias=False), nn.Linear(2, wide, bias=False)).to(device)
        nn.init.zeros_(pair[1].weight)
        self.maps.append(pair)

    def before_experience(self, experience: Experience) -> None:
        if experience.index:
            freeze(self.net.backbone)

    def adapted(self, images: Tensor) -> Tensor:
        features = self.net(images).features
        return features + sum((pair(features) for pair in self.maps), torch.zeros_like(features))

    def loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.net.head(self.adapted(batch.images)), batch.slots)

    def predict(self, images: Tensor) -> Tensor:
        scores: Tensor = self.net.head(self.adapted(images))
        return scores


DESIGNS = (Averaged, Prototypes, TwoGroups, FrozenTimm, LowRank)
