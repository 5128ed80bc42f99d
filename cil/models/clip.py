"""CLIP models of open_clip as backbones: an image tower, and a text tower that turns sentences into class weights."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.errors import ConfigError
from cil.models.base import count_parameters, drop_counters, full_precision
from cil.models.timm_zoo import channel_statistics, fetch_from_hub
from cil.models.weights import file_mark, load_strictly, read_weights


@runtime_checkable
class TextEncoder(Protocol):
    """A backbone that also reads: its texts and its images lie in one space."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """(N, D) of unit length, D the length of an image's feature; with a gradient where something in it learns."""
        ...

    def logit_factor(self) -> float:
        """Factor of cosines in logits, 100 in the public models."""
        ...


class ClipBackbone(nn.Module):
    """A CLIP model whose features are the projected embeddings of images; use ``clip_backbone`` to make one.

    Attributes:
        model: The whole model, or without text its image tower.
        feature_dim: D, length of an embedding.
        survey_parameters: Parameters of the image tower.
        mean, std: Normalisation of images with public weights; None where weights are random.
    """

    model: Any

    def __init__(self, model: Any, architecture: str, in_channels: int, public: bool, text: bool) -> None:
        super().__init__()
        from open_clip import get_model_preprocess_cfg

        stated, visual = get_model_preprocess_cfg(model), model.visual
        self._architecture, self._text = architecture, text
        size = visual.image_size
        self._size = tuple(size) if isinstance(size, Sequence) else (size, size)
        self.model = drop_counters(model if text else visual)
        self.feature_dim = int(visual.output_dim)
        self.survey_parameters = count_parameters(visual)
        self.in_channels = in_channels
        self.mean = channel_statistics(stated["mean"], in_channels) if public else None
        self.std = channel_statistics(stated["std"], in_channels) if public else None

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Normalised images (N, C, H, W) to embeddings (N, D); no intermediate maps."""
        if images.shape[-2:] != torch.Size(self._size):
            images = F.interpolate(images, self._size, mode="bicubic", align_corners=False, antialias=True)
        if self.in_channels == 1:
            images = images.expand(-1, 3, -1, -1)
        return (self.model.visual if self._text else self.model)(images), ()

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """(N, D) of unit length.

        Raises:
            ConfigError: where the text tower was left out.
        """
        from open_clip import get_tokenizer

        if not self._text:
            raise ConfigError("this CLIP backbone has no text tower; set model.options.text to true")
        tokens = get_tokenizer(self._architecture)(list(texts)).to(next(self.model.parameters()).device)
        return F.normalize(full_precision(self.model.encode_text(tokens)))

    def logit_factor(self) -> float:
        """exp of the trained temperature; 100 without a text tower, and where there are no values (``meta``)."""
        if not self._text or self.model.logit_scale.is_meta:
            return 100.0
        return float(self.model.logit_scale.detach().exp())


@contextmanager
def _unheard_warnings() -> Iterator[None]:
    """Without what open_clip logs of a model it makes: that weights are random, which are loaded afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def clip_backbone(
    name: str,
    weights: str | Path | None = None,
    in_channels: int = 3,
    image_size: int | tuple[int, int] = 224,
    text: bool = True,
) -> ClipBackbone:
    """Build a CLIP model of open_clip as a backbone; images are resized to its input, bicubic.

    Args:
        name: ``ARCHITECTURE`` or ``ARCHITECTURE/TAG``, as open_clip knows them: ``ViT-B-16/openai``.
        weights: None for random ones, ``hub`` for the public ones of the tag, or the path of a file with open_clip's
            names.
        in_channels: 3, or 1: grey is given to all three channels.
        image_size: Not used: the input size is the model's own.
        text: Whether the text tower is there; without it, it is not carried either.

    Raises:
        ConfigError: without the extra ``clip``, for an unknown model or tag, or weights that do not fit.
    """
    try:
        import open_clip
    except ImportError as error:
        raise ConfigError(f"model clip:{name} needs open_clip: pip install 'cil[clip]'") from error
    architecture, _, tag = name.partition("/")
    known = open_clip.list_models()
    if architecture not in known:
        close = difflib.get_close_matches(architecture, known, n=3, cutoff=0.3)
        raise ConfigError(
            f"open_clip has no model '{architecture}'; near: {', '.join(close) or 'none'}; see model.name"
        )
    if in_channels not in (1, 3):
        raise ConfigError(f"clip:{name} takes images of 1 or 3 channels, not {in_channels}")
    stated = open_clip.pretrained.get_pretrained_cfg(architecture, tag) if tag else {}
    if tag and not stated:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise ConfigError(f"open_clip has no weights '{tag}' of {architecture}; tags: {tags}; see model.name")
    quick = bool(stated.get("quick_gelu", False))
    with _unheard_warnings():
        model = open_clip.create_model(
            architecture, load_weights=False, force_quick_gelu=quick, device=torch.get_default_device()
        )
    if weights is not None and not next(model.parameters()).is_meta:
        if weights == "hub":
            repository = str(stated.get("hf_hub", "")).strip("/")
            if not repository:
                raise ConfigError(f"open_clip names no hub for '{name}'; set model.weights to the path of a file")
            weights = fetch_from_hub(repository, "open_clip_model.safetensors", name)
        mark = file_mark(weights)
        tensors, _ = read_weights(weights)
        load_strictly(model, tensors, weights)
        model.visual.loaded_from = mark
    return ClipBackbone(model, architecture, in_channels, weights is not None, text)
