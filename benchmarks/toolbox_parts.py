"""What toolboxes with pretrained backbones are given: images, a small transformer, and the draws of a run here."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


class LabelledImages(Dataset[Any]):
    """Rows of (number, image, label), as these toolboxes read them."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels.numpy()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, Tensor, int]:
        return index, self.images[index], int(self.labels[index])


class Manager:
    """What they call a data manager, over float images that are normalised already and labelled by slot.

    Args:
        train, test: Images (N, C, H, W) and slots (N,).
        each: Classes of an experience.
    """

    dataset_name = "cifar"

    def __init__(self, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], each: int) -> None:
        self.splits, self.each = {"train": train, "test": test}, each
        self.nb_classes = int(train[1].max()) + 1
        self.nb_tasks = self.nb_classes // each

    def get_task_size(self, task: int) -> int:
        """New classes of an experience."""
        return self.each

    def get_dataset(
        self, indices: Sequence[int], source: str, mode: str, appendent: Any = None, ret_data: bool = False
    ) -> Any:
        """Images of some classes, class after class; nothing is augmented."""
        images, slots = self.splits[source]
        rows = torch.cat([(slots == index).nonzero().flatten() for index in indices])
        found = LabelledImages(images[rows], slots[rows])
        return (found.images, found.labels, found) if ret_data else found


class GivenOrder:
    """Batches of a data set in an order that is given; each pass is the next epoch.

    Args:
        images: Of one experience, class after class.
        orders: (epochs, N) int64, rows of ``images``.
        size: Of a batch.
    """

    def __init__(self, images: LabelledImages, orders: Tensor, size: int) -> None:
        self.dataset, self.orders, self.size, self.epoch = images, orders, size, 0

    def __len__(self) -> int:
        return len(self.orders[0].split(self.size))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        order, self.epoch = self.orders[self.epoch], self.epoch + 1
        labels = torch.from_numpy(self.dataset.labels)
        for rows in order.split(self.size):
            yield rows, self.dataset.images[rows], labels[rows]


class Draws:
    """What was drawn for a run of this project: values at the start of each experience, orders of images.

    Args:
        path: A file that pretrained_parity.py wrote: names are ``EXPERIENCE/NAME``.
    """

    def __init__(self, path: Path) -> None:
        self.tensors = load_file(path) if path.exists() else {}

    def of(self, task: int) -> dict[str, Tensor]:
        """Those of one experience."""
        return {name.partition("/")[2]: value for name, value in self.tensors.items() if name.startswith(f"{task}/")}


class Instead:
    """A module of which some functions are others."""

    def __init__(self, module: Any, **own: Any) -> None:
        self._module = module
        vars(self).update(own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class SmallTransformers:
    """Makes the transformers that a toolbox asks timm for: all at one size, with the weights of one file.

    Args:
        shape: Arguments of a vision transformer: ``img_size``, ``patch_size``, ``embed_dim``, ``depth``, ``num_heads``.
        weights: By the names of timm.
    """

    def __init__(self, shape: dict[str, Any], weights: dict[str, Tensor]) -> None:
        self.shape, self.weights = shape, weights
        self.width = int(shape["embed_dim"])

    def create(self, name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        """In place of ``timm.create_model``; the end of a name says which method's transformer it is."""
        ends = {"l2p": "vit_l2p", "dualprompt": "vit_dualprompt", "coda_prompt": "vit_coda_promtpt"}
        own = next((module for end, module in ends.items() if name.endswith(end)), None)
        code = importlib.import_module(f"backbone.{own}" if own else "timm.models.vision_transformer")
        options.pop("drop_block_rate", None)
        if own == "vit_coda_promtpt":  # adds to a leaf in place, which only works where .to() makes a copy
            code.torch = Instead(torch, zeros=lambda *size, **_: torch.zeros(*size))
        return self.loaded(code.VisionTransformer(**self.shape, **options), getattr(code, "checkpoint_filter_fn", None))

    def loaded(self, net: nn.Module, convert: Callable[[Any, Any], Any] | None = None) -> nn.Module:
        """The weights put into a transformer, all of which must find a place."""
        given = dict(self.weights) if convert is None else convert(dict(self.weights), net)
        missing, unknown = net.load_state_dict(given, strict=False)
        if unknown:
            raise ValueError(f"weights without a place: {unknown}")
        self.added = set(missing)
        return net

    def with_adapters(self, code: Any, **options: Any) -> nn.Module:
        """A transformer of PILOT's adapters, whose attention has three layers in place of one; all else is frozen."""
        options["tuning_config"].d_model = self.width
        net = code.VisionTransformer(
            **self.shape, mlp_ratio=4, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6), **options
        )
        split = {}
        for name, value in self.weights.items():
            if ".qkv." in name:
                parts = zip("qkv", value.chunk(3), strict=True)
                split |= {name.replace("qkv", f"{letter}_proj"): part for letter, part in parts}
            else:
                split[name.replace("mlp.fc", "fc")] = value
        missing, unknown = net.load_state_dict(split, strict=False)
        if unknown:
            raise ValueError(f"weights without a place: {unknown}")
        for name, parameter in net.named_parameters():
            parameter.requires_grad = name in missing
        return net


@cache
def prepare(where: Path, checkout: str) -> None:
    """Make a checkout importable on a machine without accelerator; one in a process, as their modules share names."""
    for name in ("timm.models.maxxvit", "ipdb"):  # the first is not for this Python, the second is a debugger
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.path[:0] = [str(where / "packages"), str(where / checkout)]
    begin = DataLoader.__init__
    DataLoader.__init__ = lambda self, *given, **named: begin(self, *given, **named | {"num_workers": 0})  # type: ignore


def _start_head(head: Any, start: Mapping[str, Tensor], first: int) -> None:
    """Rows of the classes that arrive, of a head that has room for all."""
    stop = len(start["net.weight"])
    head.weight[first:stop] = start["net.weight"][first:]
    head.bias[first:stop] = start["net.bias"][first:]


def _start_l2p(net: Any, start: Mapping[str, Tensor], task: int, first: int) -> None:
    if task == 0:
        net.backbone.prompt.prompt.copy_(start["pool.prompts"])
        net.backbone.prompt.prompt_key.copy_(start["pool.keys"])
    _start_head(net.backbone.head, start, first)


def _start_dualprompt(net: Any, start: Mapping[str, Tensor], task: int, first: int) -> None:
    pool = net.backbone.e_prompt
    if task == 0:
        net.backbone.g_prompt.copy_(start["general.tokens"].view_as(net.backbone.g_prompt))
        own = pool.prompt[:, :, 0]
        own.copy_(start["experts.0.tokens"].view_as(own))
    pool.prompt_key[task] = start[f"experts.{task}.key"]
    _start_head(net.backbone.head, start, first)


def _start_coda(net: Any, start: Mapping[str, Tensor], task: int, first: int) -> None:
    for letter, name in (("p", "prompts"), ("k", "keys"), ("a", "attention")):
        for block, values in enumerate(start[f"pool.{task}.{name}"]):
            rows = slice(task * len(values), (task + 1) * len(values))
            getattr(net.prompt, f"e_{letter}_{block}")[rows] = values
    _start_head(net.fc, start, first)


def _start_adapters(adapters: Sequence[Any], start: Mapping[str, Tensor], prefix: str) -> None:
    for block, adapter in enumerate(adapters):
        for number, layer in ((0, adapter.down_proj), (3, adapter.up_proj)):
            layer.weight.copy_(start[f"{prefix}.{block}.{number}.weight"])
            layer.bias.copy_(start[f"{prefix}.{block}.{number}.bias"])


def _start_ease(net: Any, start: Mapping[str, Tensor], task: int, first: int) -> None:
    _start_adapters(net.backbone.cur_adapter, start, f"adapters.{task}.adapters")
    net.proxy_fc.weight.copy_(start["head.weight"])


def _start_tuned(net: Any, start: Mapping[str, Tensor], task: int, first: int) -> None:
    _start_adapters([block.adaptmlp for block in net.backbone.blocks], start, "tuner.adapters")
    net.fc.weight.copy_(start["first_head.weight"])


def _start_slca(net: Any, start: Mapping[str, Tensor], task: int, first: int) -> None:
    own = net.fc.heads[task][0]
    own.weight.copy_(start["head.weight"][first:])
    own.bias.copy_(start["head.bias"][first:])


def _start_inflora(net: Any, start: Mapping[str, Tensor], task: int, first: int) -> None:
    own = net.classifier_pool[task]
    own.weight.copy_(start["net.weight"][first:])
    own.bias.copy_(start["net.bias"][first:])


STARTS: dict[str, Callable[[Any, Mapping[str, Tensor], int, int], None]] = {
    "l2p": _start_l2p, "dualprompt": _start_dualprompt, "coda_prompt": _start_coda, "ease": _start_ease,
    "aper_adapter": _start_tuned, "ranpac": _start_tuned, "slca": _start_slca, "inflora": _start_inflora,
}  # fmt: skip
