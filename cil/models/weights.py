"""Weights from files: read without running any code, renamed where the layout is known, loaded strictly."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cil.errors import ConfigError
from cil.models.base import Backbone
from cil.models.blocks import paddings

VARIANCE = "running_var"
STATISTICS = ("running_mean", VARIANCE)  # of batch normalisation


def load_weights(backbone: nn.Module, path: str | Path) -> None:
    """Give a backbone the weights of a file, in place; on ``meta`` nothing is read.

    Args:
        backbone: Any module; a ``Backbone`` also takes files in the layout of torchvision and of the public CIFAR
            ResNets (``conv1``, ``bn1``, ``layer1`` ...), and those of AugMix and RobustBench for wide ResNets
            (``block1.layer.0`` ...) and ResNeXt-29 (``stage_1.0`` ...). Their classifier is left out, and so are mean
            and deviation of the images (``mu``, ``sigma``): set those as stream.mean and stream.std.
        path: A safetensors file, or a torch file of plain tensors.

    Raises:
        ConfigError: if the file is missing, is not plain tensors, does not fit, or belongs to a ResNet whose shortcuts
            pad elsewhere. Padding has no weights, so this is known only from the public CIFAR layout (zeros on both
            sides) and from files of ``save_weights``; a file that does not tell is refused too.
    """
    if next(backbone.parameters()).is_meta:
        return
    mark = file_mark(path)
    tensors, padding = read_weights(path)
    if isinstance(backbone, Backbone):
        layout = next((layout for layout in LAYOUTS if layout.mark in tensors), None)
        if layout is not None:
            tensors = layout.renamed(tensors, len(list(backbone.stages[-1].children())))
            padding = padding or layout.padding
    load_strictly(backbone, tensors, path, padding)
    backbone.loaded_from = mark  # type: ignore[assignment]


def save_weights(backbone: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a module's state dict as safetensors, with the padding of its shortcuts and further metadata."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.state_dict().items()}
    save_file(tensors, path, metadata={"shortcut": ",".join(sorted(paddings(backbone))), **(metadata or {})})


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], str]:
    """Tensors of a file by name, without ``module.`` and batch counters; and the padding it states, or ''.

    The file that was read last is not read again until it changes. The tensors are not to be written to.

    Raises:
        ConfigError: if there is no such file, or it holds more than plain tensors.
    """
    tensors, padding = _read(file_mark(path))
    return dict(tensors), padding


def file_mark(path: str | Path) -> tuple[str, int, int]:
    """Identity of the content of a weights file: path, time of the last change in ns, bytes.

    Raises:
        ConfigError: if there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no weights at {path}; model.weights is null, hub (timm models) or the path of a file")
    about = path.stat()
    return str(path.resolve()), about.st_mtime_ns, about.st_size


@lru_cache(maxsize=1)
def _read(mark: tuple[str, int, int]) -> tuple[dict[str, Tensor], str]:
    path, padding = Path(mark[0]), ""
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                padding = (file.metadata() or {}).get("shortcut", "")
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                content = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
            for key in ("state_dict", "model", "teacher"):
                content = content.get(key, content) if isinstance(content, Mapping) else content
        if not isinstance(content, Mapping):
            raise TypeError(f"it holds a {type(content).__name__} in place of tensors by name")
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    except Exception as error:  # each format has its own kinds
        reason = str(error).strip().partition("\n")[0]
        if " " not in reason:  # no sentence
            reason = "it is empty" if not path.stat().st_size else f"{type(error).__name__} {reason}".strip()
        if "hasRecord" in reason:  # of the library's own format
            reason = "it is no whole torch file"
        if type(error).__name__ == "UnpicklingError":  # torch tells how to read it without the safeguard
            reason = "it holds pickled objects, which are never read; save its tensors with safetensors"
        raise ConfigError(f"{path} is not a safetensors file or a torch file of plain tensors: {reason}") from error
    named = {name.removeprefix("module."): value for name, value in tensors.items()}
    return {name: value for name, value in named.items() if not name.endswith("num_batches_tracked")}, padding


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: object, padding: str = "") -> None:
    """Load tensors whose names and shapes are exactly those of the module.

    Args:
        padding: How the shortcuts of the network they belong to pad; '' where that is not known.

    Raises:
        ConfigError: one line that names what is missing, unexpected or of another shape, or the padding.
    """
    own = {name: value for name, value in module.state_dict().items() if not name.endswith("num_batches_tracked")}
    shapes = [
        f"{name} {tuple(tensors[name].shape)} in place of {tuple(own[name].shape)}"
        for name in own
        if name in tensors and own[name].shape != tensors[name].shape
    ]
    fitting = {name: tensors[name] for name in own if name in tensors}
    types = [
        f"{name} {str(value.dtype).removeprefix('torch.')} in place of {str(own[name].dtype).removeprefix('torch.')}"
        for name, value in fitting.items()
        if value.is_floating_point() != own[name].is_floating_point() or value.is_complex() != own[name].is_complex()
    ]
    variances = {name: value for name, value in fitting.items() if name.endswith(VARIANCE) and not value.is_complex()}
    numbers = {name for name, _ in module.named_parameters()} | {name for name in own if name.endswith(STATISTICS)}
    faults = [
        ("missing", [name for name in own if name not in tensors]),
        ("unexpected", [name for name in tensors if name not in own]),
        ("of another shape", shapes),
        ("of another type", types),
        ("not finite", [name for name, value in fitting.items() if name in numbers and not value.isfinite().all()]),
        ("below zero", [name for name, value in variances.items() if (value < 0).any()]),
    ]
    found = [f"{kind} {_shorten(names)}" for kind, names in faults if names]
    if found:
        kind = type(module).__name__
        raise ConfigError(f"{source} does not fit {kind}: {'; '.join(found)}; see model.weights and model.name")
    _check_padding(module, source, padding)
    module.load_state_dict(tensors)


def _check_padding(module: nn.Module, source: object, padding: str) -> None:
    """Names and shapes are the same for either padding, the accuracy is not: what is not known to fit is refused."""
    own = paddings(module)
    if not own or own == {padding}:
        return
    ours = " and ".join(sorted(own))
    if not padding:
        raise ConfigError(
            f"{source} does not say whether its shortcuts pad by append or centre (this network: {ours}): "
            "load it in Python into the right one and write it again with cil.models.save_weights"
        )
    raise ConfigError(
        f"{source} belongs to a ResNet whose shortcuts pad zeros by '{padding}', this one's by '{ours}': "
        f"set model.options.shortcut={padding}"
    )


@dataclass(frozen=True)
class Layout:
    """Names that public weights have, and those of ``Backbone``.

    Attributes:
        mark: A tensor that files of this layout hold.
        names: Beginnings of names and what they become; ``{last}`` is the place of the last norm in the last stage.
        stage: Pattern of a stage and its number, from 1.
        padding: How shortcuts of such files pad; '' where they have none.
    """

    mark: str
    names: Mapping[str, str]
    stage: str
    padding: str = ""

    def renamed(self, tensors: Mapping[str, Tensor], parts: int) -> dict[str, Tensor]:
        """The tensors of a backbone whose last stage has so many parts, without classifier and normalisation."""
        found = {}
        for name, value in tensors.items():
            if name in ("mu", "sigma") or name.startswith(("fc.", "linear.", "classifier.")):
                continue
            name = re.sub(self.stage, lambda match: f"stages.{int(match[1]) - 1}.", name)
            for old, new in self.names.items():
                if name.startswith(old):
                    name = new.format(last=parts - 2) + name.removeprefix(old)
                    break
            found[name.replace(".convShortcut.", ".shortcut.")] = value
        return found


LAYOUTS = (
    # torchvision
    Layout("layer1.0.conv1.weight", {"conv1.": "stem.0.", "bn1.": "stem.1."}, r"^layer(\d+)\.", "centre"),
    Layout("block1.layer.0.conv1.weight", {"conv1.": "stem.", "bn1.": "stages.2.{last}."}, r"^block(\d+)\.layer\."),
    Layout("stage_1.0.conv_reduce.weight", {"conv_1_3x3.": "stem.0.", "bn_1.": "stem.1."}, r"^stage_(\d+)\."),
)


def _shorten(names: Iterable[str], shown: int = 3) -> str:
    names = list(names)
    rest = f" (+{len(names) - shown} more)" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest
