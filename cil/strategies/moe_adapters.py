"""MoE-Adapters: experts in both towers of a frozen CLIP, mixed by a router of each experience."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.contract import Phase
from cil.data import Batch
from cil.errors import ConfigError
from cil.memory import Budget, tensor_bytes
from cil.models import GrowingNet, NetFactory, evaluating
from cil.models.base import drawn_for, full_precision, in_full_precision
from cil.models.block_experts import BlockExperts
from cil.models.known import backbone_output
from cil.strategies.base import Strategy, check
from cil.strategies.parts.class_texts import ClassTexts, reader
from cil.strategies.parts.frozen_backbone import features_only, trains_first
from cil.strategies.registry import register
from cil.streams import Experience, Signature

NAME = 96  # bytes of a class name that is carried


@register("moe_adapters")
class MoEAdapters(Strategy):
    """z_c = exp(tau) cos(image, text c), where both towers of a frozen CLIP have experts in each block.

    Cross-entropy over the texts of the experience's classes; answers are over those of all classes, made anew in each
    pass as the text tower learns too: class names are carried, 96 bytes each. With a router an experience an image goes
    through that of the experience whose autoencoder knows its plain features best: as many passes as experiences, and
    one. What spends bytes is ``experts``.

    Args:
        templates: Sentences with ``{}`` in the place of the class name; several are averaged.
        experts: E, of each block.
        top: Experts that are mixed for an image or text, by its first token.
        rank: r of an expert.
        routers: ``each``: one an experience. ``one``: one for all, which needs no autoencoders.
        freeze: Most chosen experts of each block that no longer change after an experience; 0: none.
        code: Hidden numbers of an autoencoder.
        selector_epochs, selector_lr: Of its training.
        threshold: Error of all autoencoders above which plain CLIP answers; null: it never does.

    Raises:
        ConfigError: for a value out of range, a backbone without transformer blocks or one that does not read, or a
            name of more bytes.

    Source:
        Yu, Zhuge, Zhang, Hu, Wang, Lu, He. "Boosting continual learning of vision-language models via
        mixture-of-experts adapters", CVPR 2024, arXiv:2403.11549. Departures: autoencoders see the plain features of
        CLIP, where the paper has those of an AlexNet (and a threshold of 0.0655 for them); experts are counted over the
        images and texts of the experience when it has been learned. The authors' code for class-incremental learning
        has ``experts=2 routers=one freeze=0``.
    """

    answers_by = "texts"
    fits = "experts"
    toy = {"experts": 3, "rank": 2, "freeze": 1, "code": 4}
    toy_model = {"name": "toy_clip_transformer"}

    net: GrowingNet
    experts: BlockExperts
    selectors: Any  # an Autoencoder for each experience
    names: Tensor  # (C, NAME) uint8
    stopped: Tensor  # (blocks, E) bool

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        templates: Sequence[str] = ("a bad photo of a {}.",),
        experts: int = 22,
        top: int = 2,
        rank: int = 64,
        routers: str = "each",
        freeze: int = 2,
        code: int = 100,
        selector_epochs: int = 1,
        selector_lr: float = 0.01,
        threshold: float | None = None,
    ) -> None:
        super().__init__(make_net, budget)
        check.at_least(1, "moe_adapters", top=top, rank=rank, code=code, selector_epochs=selector_epochs)
        check.at_least(top, "moe_adapters", experts=experts)
        check.at_least(0, "moe_adapters", freeze=freeze)
        check.above(0, "moe_adapters", selector_lr=selector_lr, threshold=threshold)
        check.one_of(("each", "one"), "moe_adapters", routers=routers)
        self.texts = ClassTexts("moe_adapters", templates, None)
        self.factor = reader(self.net.backbone, "moe_adapters").logit_factor()
        self.each, self.freeze, self.code, self.threshold = routers == "each", freeze, code, threshold
        self.selector: dict[str, Any] = {"epochs": selector_epochs, "lr": selector_lr}
        self.present: list[int] = []
        trains_first(self, False)
        self.keep("experts", BlockExperts(self.net.backbone, experts, top, rank), kind="parameters")
        self.keep("selectors", nn.ModuleList(), kind="parameters")
        blank = self.net.head.weight
        self.keep("names", blank.new_zeros(0, NAME, dtype=torch.uint8), kind="other")
        blocks = len(self.experts.widths)
        self.keep("stopped", blank.new_zeros(blocks, experts, dtype=torch.bool), kind="other")

    @classmethod
    def smallest_fit(cls, hyperparameters: Mapping[str, Any]) -> int:
        """As many as are mixed."""
        return int(hyperparameters.get("top", 2))

    def build_net(self) -> GrowingNet:
        return features_only(self.make_net)

    def grow_net(self, signature: Signature) -> None:
        self.present = sorted(signature.present)
        self.names = F.pad(self.names, (0, 0, 0, len(signature.new_slots)))
        if self.each or not signature.index:
            self.experts.grow(self.net.head.weight)
        if self.each:
            self.selectors.requires_grad_(False)
            made = partial(Autoencoder, self.net.feature_dim, self.code)
            self.selectors.append(drawn_for(self.net.head.weight, made))

    def side_bytes(self) -> int:
        """Experts with their routers, and the autoencoders."""
        return sum(tensor_bytes(p) for part in (self.experts, self.selectors) for p in part.state_dict().values())

    def prepare(self, experience: Experience) -> None:
        self.experts.stop(self.stopped)
        for slot, name in experience.class_names.items():
            self.names[slot] = as_bytes(name).to(self.names)

    def phases(self, experience: Experience) -> Iterator[Phase]:
        learned = [p for p in self.experts.parameters() if p.requires_grad]
        yield Phase("main", experience.train, self.loss, parameters=learned)
        if self.each:
            own = list(self.selectors[-1].parameters())
            yield Phase(
                "selector", experience.train, self.selector_loss, parameters=own, main=False, schedule="constant",
                **self.selector,
            )  # fmt: skip

    def loss(self, batch: Batch) -> Tensor:
        here = torch.tensor(self.present, device=self.device)
        scores = self.scores(self.net.normalise(batch.images), len(self.experts.routers) - 1, self.present)
        return F.cross_entropy(scores, torch.searchsorted(here, batch.slots))

    def selector_loss(self, batch: Batch) -> Tensor:
        """Mean square of what an autoencoder gets wrong."""
        found: Tensor = self.selectors[-1](self.plain_features(self.net.normalise(batch.images))).mean()
        return found

    @torch.no_grad()
    def after_experience(self, experience: Experience) -> None:
        """Stop the experts that were chosen most often."""
        if not self.freeze:
            return
        router = len(self.experts.routers) - 1
        with evaluating(self.experts), self.experts.inside(self.net.backbone, router) as counts:
            self.class_weights(self.present)
            for batch in experience.train.batches(500, self.device):
                self.net.backbone(self.net.normalise(batch.images))
        often = counts.sort(dim=1, descending=True, stable=True).indices[:, : self.freeze]
        self.stopped = self.stopped.scatter(1, often.to(self.stopped.device), True)

    def predict(self, images: Tensor) -> Tensor:
        x, classes = self.net.normalise(images), range(self.num_classes)
        if not self.each:
            return self.scores(x, 0, classes)
        features = self.plain_features(x)
        errors = torch.stack([selector(features) for selector in self.selectors], dim=1)  # (N, T)
        by_router = torch.stack([self.scores(x, router, classes) for router in range(len(self.selectors))], dim=1)
        found = by_router[torch.arange(len(x)), errors.argmin(1)]
        if self.threshold is not None:
            plain = self.cosines(features, self.class_weights(classes))
            found = torch.where(errors.amin(1, keepdim=True) > self.threshold, plain, found)
        return found

    def scores(self, x: Tensor, router: int, classes: Sequence[int]) -> Tensor:
        """Logits of normalised images over some classes, through the experts that a router mixes."""
        with self.experts.inside(self.net.backbone, router):
            features = self.net.backbone(x)[0]
            weights = self.class_weights(classes)
        return self.cosines(features, weights)

    def cosines(self, features: Tensor, weights: Tensor) -> Tensor:
        """Those of features (N, D) and unit texts (C, D) times exp(tau)."""
        with in_full_precision(features):
            return self.factor * F.normalize(full_precision(features)) @ full_precision(weights).T

    def plain_features(self, x: Tensor) -> Tensor:
        """(N, D) of normalised images by CLIP alone, without gradient."""
        with torch.no_grad():
            found: Tensor = backbone_output(self.net.backbone, x)[0]
            return found

    def class_weights(self, classes: Sequence[int]) -> Tensor:
        """(C, D) unit means of the texts of some classes, as the text tower is now."""
        sentences = [self.texts.of(name) for name in map(from_bytes, self.names[list(classes)].cpu())]
        encoder = reader(self.net.backbone, "moe_adapters")
        found = encoder.encode_texts([sentence for own in sentences for sentence in own])
        return F.normalize(found.unflatten(0, (len(sentences), -1)).mean(1))


class Autoencoder(nn.Module):
    """Its error on features (N, D), (N,): mean square of sigmoid(phi) - sigmoid(V relu(U phi')), phi' = sigmoid(phi).

    Source: Yu et al., "MoE-Adapters4CL", CVPR 2024, section 3.3 (DDAS).
    """

    def __init__(self, width: int, code: int) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(width, code), nn.Linear(code, width)

    def forward(self, features: Tensor) -> Tensor:
        with in_full_precision(features):  # the smallest error chooses a router
            target = full_precision(features).sigmoid()
            found: Tensor = (self.decoder(self.encoder(target).relu()).sigmoid() - target).square().mean(1)
            return found


def as_bytes(name: str) -> Tensor:
    """(NAME,) uint8 of a class name.

    Raises:
        ConfigError: where it is longer.
    """
    written = name.encode()
    if len(written) > NAME:
        raise ConfigError(f"moe_adapters carries class names of at most {NAME} bytes; '{name}' has {len(written)}")
    return torch.tensor(list(written.ljust(NAME, b"\0")), dtype=torch.uint8)


def from_bytes(row: Tensor) -> str:
    """The name again.

    >>> from_bytes(as_bytes("sea lion"))
    'sea lion'
    """
    return bytes(row.tolist()).rstrip(b"\0").decode()
