"""Any timm model as a backbone."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cil.errors import ConfigError
from cil.models.base import count_parameters, drop_counters
from cil.models.weights import load_strictly, read_weights

HUB_SECONDS = 10.0  # to answer at all, before the hub is taken to be out of reach


class TimmBackbone(nn.Module):
    """A timm model without classifier; use ``timm_backbone`` to make one.

    Attributes:
        model: The timm model.
        feature_dim: D, length of a pooled feature.
        survey_parameters: All parameters of the headless model (the survey charges 85,798,656 for ViT-B/16).
        mean, std: The normalisation its weights were trained with, by channel.
    """

    def __init__(self, model: Any, stages: bool = False) -> None:
        super().__init__()
        self.model = drop_counters(model)
        self.feature_dim = int(getattr(model, "head_hidden_size", None) or model.num_features)
        self.survey_parameters = count_parameters(model)
        self.mean: tuple[float, ...] = tuple(model.pretrained_cfg["mean"])
        self.std: tuple[float, ...] = tuple(model.pretrained_cfg["std"])
        self._with_stages = stages

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Normalised images (N, C, H, W) to features (N, D), and the intermediate maps where asked for."""
        model: Any = self.model
        if not self._with_stages:
            return model(images), ()
        last, maps = model.forward_intermediates(images)
        return model.forward_head(last, pre_logits=True), tuple(maps)


def timm_backbone(
    name: str,
    weights: str | Path | None = None,
    in_channels: int = 3,
    image_size: int | tuple[int, int] = 224,
    stages: bool = False,
    **options: Any,
) -> TimmBackbone:
    """Build a timm model as a backbone.

    Args:
        name: As timm knows it. Give the full tag (``vit_base_patch16_224.augreg_in21k``): what a bare name stands for
            has changed between timm versions.
        weights: None for random ones, ``hub`` for the public ones of that tag, or the path of a file in timm's layout.
        in_channels: Channels of an image.
        image_size: H, or (H, W); used by models of fixed input size.
        stages: Return intermediate maps too (feature distillation); costs memory.
        **options: For ``timm.create_model``.

    Raises:
        ConfigError: for an unknown model or option, weights that do not fit, or a hub that cannot be reached.
    """
    import timm

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.3)
        raise ConfigError(f"timm {timm.__version__} has no model '{name}'; near: {', '.join(close) or 'none'}")
    try:
        config = timm.get_pretrained_cfg(name)
        if config is not None and config.fixed_input_size:
            options.setdefault("img_size", image_size)
        model = timm.create_model(name, pretrained=False, num_classes=0, in_chans=in_channels, **options)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"timm cannot build '{name}' with {options}: {reason}; see the keys of model") from error
    if weights is not None and not next(model.parameters()).is_meta:
        path = _download(model.pretrained_cfg, name) if weights == "hub" else Path(weights)
        _load(model, path)
    return TimmBackbone(model, stages)


def _load(model: nn.Module, path: Path) -> None:
    """Load a file in timm's layout: converted by timm where the image size differs, without classifier, strictly."""
    tensors, _ = read_weights(path)
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        tensors = convert(tensors, model)
    classifier = model.pretrained_cfg.get("classifier") or ()  # type: ignore[operator, union-attr]
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    own = model.state_dict()
    body = {
        name: value
        for name, value in tensors.items()
        if name in own or not name.startswith(tuple(f"{head}." for head in heads))
    }
    load_strictly(model, body, path)


def _download(config: Any, name: str) -> Path:
    """The public weights of a timm model: from the cache, else from the hub."""
    import huggingface_hub as hub

    repository, file = config.get("hf_hub_id"), config.get("hf_hub_filename") or "model.safetensors"
    if not repository:
        raise ConfigError(f"timm has no public weights for '{name}'; set model.weights to null or a path")
    cached = hub.try_to_load_from_cache(repository, file)
    if isinstance(cached, str):
        return Path(cached)
    try:
        hub.HfApi().model_info(repository, timeout=HUB_SECONDS)  # answers at once where the download would retry
        return Path(hub.hf_hub_download(repository, file))
    except Exception as error:  # the client has one kind for each way to fail
        raise ConfigError(
            f"cannot fetch {file} of {repository} for '{name}' ({type(error).__name__}); "
            "set model.weights to null or to the path of a downloaded file"
        ) from error
