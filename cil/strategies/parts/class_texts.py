"""Texts of classes for backbones that read: sentences around a name, or from a file, and the weights they make."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.errors import ConfigError
from cil.models.clip import TextEncoder


class ClassTexts:
    """Sentences of classes by name.

    Args:
        method: Name of the strategy, for messages.
        templates: Sentences with ``{}`` in the place of the class name, from which underscores and a WordNet number in
            front are removed.
        texts: Path of a JSON file with sentences by class name, in place of templates; None: none.

    Raises:
        ConfigError: for templates without a place for the name, or a file that is no such mapping.
    """

    def __init__(self, method: str, templates: Sequence[str], texts: str | None) -> None:
        if isinstance(templates, str) or not templates or not all(map(_has_place, templates)):
            raise ConfigError(
                f"strategy.templates of {method} is {templates!r}; it must be a list of sentences, each with {{}} for "
                f"the class name and no other braces"
            )
        self._method, self._templates = method, tuple(templates)
        self._sentences = None if texts is None else read_sentences(texts)

    @property
    def diagnostics(self) -> dict[str, str]:
        """SHA-256 of the sentences of a file, for the record."""
        if self._sentences is None:
            return {}
        return {"texts_sha256": hashlib.sha256(json.dumps(self._sentences, sort_keys=True).encode()).hexdigest()}

    def of(self, name: str) -> list[str]:
        """Sentences on a class.

        Raises:
            ConfigError: where the file has none.
        """
        if self._sentences is None:
            return [template.replace("{}", clean_name(name)) for template in self._templates]
        found = self._sentences.get(name) or self._sentences.get(clean_name(name))
        if not found:
            raise ConfigError(f"strategy.texts of {self._method} has no sentence for class '{name}'")
        return found


def _has_place(template: object) -> bool:
    """True of a sentence with a place for the class name, and no other braces.

    >>> _has_place("a {}."), _has_place("a."), _has_place("a {} of {kind}."), _has_place("{{}}")
    (True, False, False, False)
    """
    parts = str(template).split("{}")
    return len(parts) > 1 and not any(brace in part for part in parts for brace in "{}")


def reader(backbone: nn.Module, method: str) -> TextEncoder:
    """The backbone, if it reads.

    Raises:
        ConfigError: naming ``model``.
    """
    if not isinstance(backbone, TextEncoder):
        raise ConfigError(f"{method} reads class names, which the network cannot; set model=clip and model.weights=hub")
    return backbone


@torch.no_grad()
def class_weight(encoder: TextEncoder, sentences: Sequence[str]) -> Tensor:
    """(D,) unit mean of the unit embeddings of sentences."""
    return F.normalize(F.normalize(encoder.encode_texts(sentences)).mean(0), dim=0)


def clean_name(name: str) -> str:
    """A class name as a person would write it, without numbers of WordNet and CUB.

    >>> clean_name("n01440764_tench"), clean_name("n01440764"), clean_name("aquarium_fish")
    ('tench', 'tench', 'aquarium fish')
    >>> clean_name("001.Black_footed_Albatross")
    'Black footed Albatross'
    """
    if re.fullmatch(r"n\d{8}", name):
        name = wordnet_word(name)
    return re.sub(r"^(n\d{8}[ _-]+|\d{3}\.)", "", name).replace("_", " ").strip()


def wordnet_word(number: str) -> str:
    """The first word of an ImageNet class by its WordNet number, as timm knows it; else the number.

    ImageNet-R and ImageNet-A have such numbers alone as names of folders.
    """
    try:
        return str(_imagenet().label_name_to_description(number)).partition(",")[0]
    except KeyError:
        return number


@cache
def _imagenet() -> Any:
    from timm.data.imagenet_info import ImageNetInfo

    return ImageNetInfo()


def read_sentences(path: str | Path) -> dict[str, list[str]]:
    """Sentences by class name, of a JSON file.

    Raises:
        ConfigError: where there is no such file, or it holds something else.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=_each_once)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"strategy.texts: {path} is no JSON file ({type(error).__name__}: {error})") from error
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"strategy.texts: {path} must map each class name to a list of sentences")
    for name, own in found.items():
        if not (isinstance(own, list) and own and all(isinstance(one, str) and one.strip() for one in own)):
            raise ConfigError(
                f"strategy.texts: {path} has {json.dumps(own)[:60]} for class '{name}'; it must map each class name to "
                f"a list of sentences"
            )
    return dict(found)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of a JSON file; a key that is there twice is refused, as the last would hide the others."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{next(name for name in names if names.count(name) > 1)}' is there twice")
    return found
