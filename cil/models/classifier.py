"""Whole classifiers from files: a backbone with the head that was trained on it, loaded strictly."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cil.errors import ConfigError
from cil.models.factory import NetFactory
from cil.models.growing import GrowingNet, Normalise
from cil.models.registry import build_backbone
from cil.models.weights import load_strictly, read_weights, save_weights

HEADS = ("fc", "linear", "classifier", "head")  # names of the last layer in public files


def load_classifier(
    name: str,
    weights: str | Path,
    image_shape: Sequence[int],
    *,
    head: str = "linear",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    channels_last: bool = True,
    options: Mapping[str, Any] | None = None,
) -> GrowingNet:
    """A trained network, head and all, that takes images in [0, 1].

    Args:
        name: Name of the backbone; see ``build_backbone``.
        weights: A file of ``save_classifier``; or one in the layout of the backbone's public weights with a linear
            last layer (``fc``, ``linear``, ...); or ``hub`` for a timm model.
        image_shape: (C, H, W).
        head: ``linear`` or ``cosine``.
        mean, std: One value a channel for images in [0, 1], those of training. None: the ones that the file (of
            ``save_classifier``) or timm states. A wrong one costs accuracy and raises nothing, so there is no default.
        channels_last: Memory layout of convolutions.
        options: Options of the backbone, by name.

    Raises:
        ConfigError: where the file has no classifier, does not fit, or nothing says how images are normalised; and for
            shortcuts that pad elsewhere (see ``load_weights``).
    """
    if weights != "hub" and not Path(weights).is_file():
        raise ConfigError(f"model.weights={weights} is no file; give the path of one, or hub for a timm model")
    timm = name.startswith("timm:")
    if (mean is None) != (std is None):
        raise ConfigError("model.mean and model.std go together: give both or neither")
    if mean is None and not timm:
        mean, std = _read_statistics(weights)
        if mean is None:
            raise ConfigError(
                f"{weights} does not say how its images were normalised: give mean and std by channel, as in "
                f"+model.mean=[0.5,0.5,0.5]"
            )
    tensors, padding = ({}, "") if timm else read_weights(weights)
    own = "head.weight" in tensors and any(key.startswith("backbone.") for key in tensors)  # of ``save_classifier``
    size = (image_shape[1], image_shape[2])
    make = partial(build_backbone, name, image_shape[0], size, None if own else weights, **(options or {}))
    net = NetFactory(make, head=head, mean=mean, std=std, channels_last=channels_last)()
    layer = next((layer for layer in HEADS if f"{layer}.weight" in tensors), "")
    last = _timm_head(net.backbone, name, weights) if timm else _head_tensors(tensors, layer)
    if "weight" not in last:
        raise ConfigError(f"{weights} has no classifier ({', '.join(HEADS)}), which a trained network needs")
    with torch.random.fork_rng(devices=[]):
        net.grow(len(last["weight"]))
    if own:
        load_strictly(net, tensors, weights, padding)
    else:
        load_strictly(net.head, last, f"the classifier of {weights}")
    return net.eval()


def save_classifier(net: GrowingNet, path: str | Path) -> None:
    """Write a network as safetensors, with the padding of its shortcuts and its normalisation as metadata."""
    stated = {}
    if isinstance(net.normalise, Normalise):
        values = {"mean": net.normalise.mean, "std": net.normalise.std}
        stated = {key: json.dumps(value.flatten().tolist()) for key, value in values.items()}
    save_weights(net, path, stated)


def _read_statistics(path: str | Path) -> tuple[list[float] | None, list[float] | None]:
    """Mean and std that a file of ``save_classifier`` states."""
    if Path(path).suffix != ".safetensors":
        return None, None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
    except SafetensorError:  # read_weights says it better
        return None, None
    if "mean" not in said or "std" not in said:
        return None, None
    return json.loads(said["mean"]), json.loads(said["std"])


def _head_tensors(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Weight and bias of the layer of that name; none where there is no such layer."""
    return {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}


def _timm_head(backbone: Any, name: str, weights: str | Path) -> dict[str, Tensor]:
    """The linear last layer of a timm model, from the file that its backbone was loaded from."""
    from cil.models.timm_zoo import _download, _layers, read_for

    model = backbone.model
    path = _download(model.pretrained_cfg, name) if weights == "hub" else Path(weights)
    tensors = read_for(model, path)
    names = _layers(model, "classifier")
    last = _head_tensors(tensors, names[0]) if len(names) == 1 else {}
    if "weight" in last and last["weight"].flatten(1).shape[1] != backbone.feature_dim:
        raise ConfigError(f"{name} has a classifier that is not one linear layer on its features; choose another model")
    return {key: value.flatten(1) if key == "weight" else value for key, value in last.items()}
