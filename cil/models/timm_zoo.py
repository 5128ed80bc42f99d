"""Any timm model as a backbone."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.errors import ConfigError
from cil.models.base import count_parameters, drop_counters
from cil.models.vit_layouts import to_timm
from cil.models.weights import file_mark, load_strictly, read_weights

PREPROCESS = ("timm", "unit_range")
HUB_SECONDS = 10.0  # to answer at all, before the hub is taken to be out of reach


class TimmBackbone(nn.Module):
    """A timm model without classifier; use ``timm_backbone`` to make one.

    Attributes:
        feature_dim: D, length of a pooled feature.
        survey_parameters: All parameters of the headless model (the survey charges 85,798,656 for ViT-B/16).
        mean, std: The normalisation of images with public weights, one value for each channel: by default the one they
            were trained with; None where weights are random, so that the stream's own statistics hold.
    """

    model: Any

    def __init__(
        self, model: Any, in_channels: int = 3, pretrained: bool = False, stages: bool = False, preprocess: str = "timm"
    ) -> None:
        super().__init__()
        self.model = drop_counters(model)
        self.feature_dim = int(getattr(model, "head_hidden_size", None) or model.num_features)
        self.survey_parameters = count_parameters(model)
        if preprocess not in PREPROCESS:
            raise ConfigError(f"model.options.preprocess is '{preprocess}'; allowed: {', '.join(PREPROCESS)}")
        trained = {name: model.pretrained_cfg[name] for name in ("mean", "std")}
        given = trained if preprocess == "timm" else {"mean": (0.0,), "std": (1.0,)}
        self.mean = channel_statistics(given["mean"], in_channels) if pretrained else None
        self.std = channel_statistics(given["std"], in_channels) if pretrained else None
        self._with_stages = stages

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Normalised images (N, C, H, W) to features (N, D), and the intermediate maps where asked for."""
        images = self.resized(images)
        if not self._with_stages:
            return self.model(images), ()
        last, maps = self.model.forward_intermediates(images)
        return self.model.forward_head(last, pre_logits=True), tuple(maps)

    def resized(self, images: Tensor) -> Tensor:
        """Images at the size that a model of fixed input size was built for (``model.options.img_size``), bicubic."""
        patches: Any = getattr(self.model, "patch_embed", None)
        size = getattr(patches, "img_size", None)
        if size is None or not getattr(patches, "strict_img_size", False) or images.shape[-2:] == torch.Size(size):
            return images
        return F.interpolate(images, size=tuple(size), mode="bicubic", align_corners=False, antialias=True)


def timm_backbone(
    name: str,
    weights: str | Path | None = None,
    in_channels: int = 3,
    image_size: int | tuple[int, int] = 224,
    stages: bool = False,
    preprocess: str = "timm",
    **options: Any,
) -> TimmBackbone:
    """Build a timm model as a backbone.

    Args:
        name: As timm knows it. Give the full tag (``vit_base_patch16_224.augreg_in21k``): what a bare name stands for
            has changed between timm versions.
        weights: None for random ones, ``hub`` for the public ones of that tag, or the path of a file in timm's
            layout, that of the original transformers (``.npz``), DeiT, DINO, DINOv2 or CLIP's image tower.
        in_channels: Channels of an image. Where a file has another number, its first convolution is adapted as timm
            does: summed for one channel, repeated for more.
        image_size: H, or (H, W); used by models of fixed input size.
        stages: Return intermediate maps too (feature distillation); costs memory.
        preprocess: With weights, images are normalised as ``timm`` says they were trained with, or stay in [0, 1],
            ``unit_range``, as PILOT's code for prompts has them.
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
    except (TypeError, ValueError, RuntimeError, AssertionError, ArithmeticError, LookupError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"timm cannot build '{name}' with {options}: {reason}; see the keys of model") from error
    if weights is not None and not next(model.parameters()).is_meta:
        path = _download(model.pretrained_cfg, name) if weights == "hub" else Path(weights)
        _load(model, path)
    return TimmBackbone(model, in_channels, weights is not None, stages, preprocess)


def full_name(name: str) -> str:
    """A timm model's name with the tag that a bare one stands for in this version of timm."""
    import timm

    config = None if "." in name else timm.get_pretrained_cfg(name, allow_unregistered=True)
    return f"{name}.{config.tag}" if config is not None and config.tag else name


def channel_statistics(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Statistics by channel; their mean for each channel of images that have another number of channels."""
    if len(values) == channels:
        return tuple(values)
    return (sum(values) / len(values),) * channels


def _load(model: nn.Module, path: Path) -> None:
    """Load a file in a known layout, without classifier, strictly."""
    mark = file_mark(path)
    tensors = read_for(model, path)
    own = model.state_dict()
    heads = tuple(f"{head}." for head in _layers(model, "classifier"))
    body = {name: value for name, value in tensors.items() if name in own or not name.startswith(heads)}
    for name in (f"{first}.weight" for first in _layers(model, "first_conv")):
        if name in body and name in own:
            body[name] = _for_channels(body[name], own[name].shape[1])
    load_strictly(model, body, path)
    model.loaded_from = mark  # type: ignore[assignment]


def read_for(model: nn.Module, path: str | Path) -> dict[str, Tensor]:
    """Tensors of a file by timm's names (``to_timm``), converted by timm where the model knows further layouts or the
    image size differs.

    Raises:
        ConfigError: where names or shapes are such that they cannot be converted.
    """
    tensors = read_weights(path)[0]
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        named = to_timm(tensors)
        return named if convert is None else dict(convert(named, model))
    except Exception as error:  # of a reshape, a name that is missing, a root: each has its own kind
        reason = f"{type(error).__name__} {error}".partition("\n")[0].strip()
        raise ConfigError(
            f"{path} does not fit {type(model).__name__}: its tensors cannot be converted ({reason}); see "
            f"model.weights and model.name"
        ) from error


def _for_channels(weight: Tensor, channels: int) -> Tensor:
    """A first convolution (O, I, H, W) for so many channels; as it is where timm cannot adapt it."""
    from timm.models import adapt_input_conv

    if weight.ndim != 4 or weight.shape[1] == channels:
        return weight
    try:
        adapted: Tensor = adapt_input_conv(channels, weight)
    except (NotImplementedError, AssertionError):  # loading it then says which shape it has
        return weight
    return adapted


def _layers(model: Any, role: str) -> tuple[str, ...]:
    """Names that timm's configuration of a model gives: one, several or none."""
    names = model.pretrained_cfg.get(role) or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _download(config: Any, name: str) -> Path:
    """The public weights of a timm model: from the cache, else from the hub."""
    repository, file = config.get("hf_hub_id"), config.get("hf_hub_filename") or "model.safetensors"
    if not repository:
        raise ConfigError(f"timm has no public weights for '{name}'; set model.weights to null or a path")
    return fetch_from_hub(repository, file, name)


def fetch_from_hub(repository: str, file: str, name: str) -> Path:
    """A public file: from the cache, else from the hub.

    Raises:
        ConfigError: where it cannot be had; ``name`` is the model's.
    """
    import huggingface_hub as hub

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
