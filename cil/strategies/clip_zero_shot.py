"""CLIP without training: an image is of the class whose text is nearest, among the classes that have arrived."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.contract import Phase
from cil.errors import ConfigError
from cil.memory import Budget
from cil.models import NetFactory
from cil.models.clip import TextEncoder
from cil.strategies.base import Strategy
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
    toy_model: ClassVar[Mapping[str, Any]] = {"name": "toy_clip"}

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
        if isinstance(templates, str) or not templates or not all("{}" in str(template) for template in templates):
            raise ConfigError(
                f"strategy.templates of clip_zero_shot is {templates!r}; it must be a list of sentences, each with "
                f"{{}} for the class name"
            )
        if not isinstance(self.net.backbone, TextEncoder):
            raise ConfigError(
                "clip_zero_shot reads class names, which the network cannot; set model=clip and model.weights=hub"
            )
        trains_first(self, False)
        self.templates, self.sentences = tuple(templates), None if texts is None else read_sentences(texts)
        self.keep("weights", self.net.head.weight.new_zeros(0, self.net.feature_dim), kind="prototypes")

    def build_net(self) -> Any:
        return features_only(self.make_net)

    def phases(self, experience: Experience) -> Iterator[Phase]:
        """None."""
        yield from ()

    def grow_net(self, signature: Signature) -> None:
        self.weights = F.pad(self.weights, (0, 0, 0, len(signature.new_slots)))

    def after_experience(self, experience: Experience) -> None:
        for slot, name in experience.class_names.items():
            self.weights[slot] = class_weight(self.net.backbone, self._sentences_of(name)).to(self.weights)
        if self.sentences is not None:
            text = json.dumps(self.sentences, sort_keys=True)
            self.diagnostics["texts_sha256"] = hashlib.sha256(text.encode()).hexdigest()

    def predict(self, images: Tensor) -> Tensor:
        """(N, ...) to (N, C)."""
        features = F.normalize(self.net(images).features.float())
        scores: Tensor = self.net.backbone.logit_factor() * features @ self.weights.T
        return scores

    def _sentences_of(self, name: str) -> Sequence[str]:
        if self.sentences is None:
            return [template.format(clean_name(name)) for template in self.templates]
        found = self.sentences.get(name) or self.sentences.get(clean_name(name))
        if not found:
            raise ConfigError(f"strategy.texts of clip_zero_shot has no sentence for class '{name}'")
        return found


@torch.no_grad()
def class_weight(encoder: TextEncoder, sentences: Sequence[str]) -> Tensor:
    """(D,) unit mean of the unit embeddings of sentences."""
    return F.normalize(F.normalize(encoder.encode_texts(sentences)).mean(0), dim=0)


def clean_name(name: str) -> str:
    """A class name as a person would write it.

    >>> clean_name("n01440764_tench"), clean_name("aquarium_fish")
    ('tench', 'aquarium fish')
    """
    return re.sub(r"^n\d{8}[ _-]+", "", name).replace("_", " ").strip()


def read_sentences(path: str | Path) -> dict[str, list[str]]:
    """Sentences by class name, of a JSON file.

    Raises:
        ConfigError: where there is no such file, or it holds something else.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"strategy.texts: {path} is no JSON file ({type(error).__name__})") from error
    allowed = isinstance(found, dict) and all(
        isinstance(own, list) and own and all(isinstance(sentence, str) for sentence in own) for own in found.values()
    )
    if not allowed:
        raise ConfigError(f"strategy.texts: {path} must map each class name to a list of sentences")
    return dict(found)
