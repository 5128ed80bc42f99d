"""CLIP without training: an image is of the class whose text is nearest, among the classes that have arrived."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from cil.contract import Phase
from cil.memory import Budget
from cil.models import NetFactory
from cil.models.base import full_precision, in_full_precision
from cil.strategies.base import Strategy
from cil.strategies.parts.class_texts import ClassTexts, class_weight, reader
from cil.strategies.parts.frozen_backbone import features_only, trains_first
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("clip_zero_shot")
class ClipZeroShot(Strategy):
    """z_c = exp(tau) cos(image, w_c), w_c the unit mean of unit embeddings of sentences on class c.

    Nothing learns, so it tells what public weights know already, which may include the classes: not a result in
    learning. Carried are both towers, as a reference, and 4 D bytes of a class text.

    Args:
        templates: Sentences with ``{}`` in the place of the class name, from which underscores and a WordNet number in
            front are removed.
        texts: Path of a JSON file with sentences by class name, in place of templates; null: none.

    Raises:
        ConfigError: for templates without a place for the name, a file that is no such mapping, or a backbone that
            does not read.

    Source:
        Thengane, Khan, Hayat, Khan. "CLIP model is an efficient continual learner" (Continual-CLIP), 2022,
        arXiv:2210.03114, equation 2; Radford et al., ICML 2021.
    """

    answers_by = "texts"
    toy_model = {"name": "toy_clip"}

    weights: Tensor  # (C, D), w

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        templates: Sequence[str] = ("a bad photo of a {}.",),
        texts: str | None = None,
    ) -> None:
        super().__init__(make_net, budget)
        self.texts = ClassTexts("clip_zero_shot", templates, texts)
        reader(self.net.backbone, "clip_zero_shot")
        trains_first(self, False)
        self.keep("weights", self.net.head.weight.new_zeros(0, self.net.feature_dim), kind="prototypes")

    def build_net(self) -> Any:
        return features_only(self.make_net)

    def phases(self, experience: Experience) -> Iterator[Phase]:
        yield from ()

    def grow_net(self, signature: Signature) -> None:
        self.weights = F.pad(self.weights, (0, 0, 0, len(signature.new_slots)))

    def after_experience(self, experience: Experience) -> None:
        self.diagnostics.update(self.texts.diagnostics)
        for slot, name in experience.class_names.items():
            self.weights[slot] = class_weight(self.net.backbone, self.texts.of(name)).to(self.weights)

    def predict(self, images: Tensor) -> Tensor:
        features = F.normalize(full_precision(self.net(images).features))
        with in_full_precision(features):
            found: Tensor = self.net.backbone.logit_factor() * features @ self.weights.T
            return found
