"""Names and shapes that public files of vision transformers have, turned into timm's."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_BLOCK = re.compile(r"(?:Transformer/)?encoderblock_(\d+)/")
_NPZ = {
    "cls": "cls_token",
    "embedding/kernel": "patch_embed.proj.weight",
    "embedding/bias": "patch_embed.proj.bias",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "Transformer/encoder_norm/scale": "norm.weight",
    "Transformer/encoder_norm/bias": "norm.bias",
    "head/kernel": "head.weight",
    "head/bias": "head.bias",
}
_NPZ_BLOCK = {
    "LayerNorm_0/scale": "norm1.weight",
    "LayerNorm_0/bias": "norm1.bias",
    "LayerNorm_2/scale": "norm2.weight",
    "LayerNorm_2/bias": "norm2.bias",
    "MultiHeadDotProductAttention_1/out/kernel": "attn.proj.weight",
    "MultiHeadDotProductAttention_1/out/bias": "attn.proj.bias",
    "MlpBlock_3/Dense_0/kernel": "mlp.fc1.weight",
    "MlpBlock_3/Dense_0/bias": "mlp.fc1.bias",
    "MlpBlock_3/Dense_1/kernel": "mlp.fc2.weight",
    "MlpBlock_3/Dense_1/bias": "mlp.fc2.bias",
}
_QKV = re.compile(r"MultiHeadDotProductAttention_1/(query|key|value)/(kernel|bias)")


def to_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a file, with timm's names where the layout is another known one; else as they are.

    Known: the arrays of the original vision transformers (``.npz``, names as ``Transformer/encoderblock_0/...``), and a
    DINO teacher or student (``backbone....``, with a projection head that is left out). DeiT and DINO backbones have
    timm's names already; CLIP's and DINOv2's are converted by timm itself.
    """
    if "embedding/kernel" in tensors:
        return _from_arrays(tensors)
    if any(name.startswith("backbone.") for name in tensors):
        inner = {n.removeprefix("backbone."): t for n, t in tensors.items() if n.startswith("backbone.")}
        return {name: value for name, value in inner.items() if not name.startswith(("fc.", "head."))}
    return dict(tensors)


def _from_arrays(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}  # query, key and value of a block
    for name, value in tensors.items():
        block = _BLOCK.match(name)
        if block is None:
            if not name.startswith("pre_logits/"):
                found[_NPZ.get(name, name)] = _turned(name, value)
            continue
        inner = name[block.end() :]
        attention = _QKV.fullmatch(inner)
        if attention is None:
            found[f"blocks.{block[1]}.{_NPZ_BLOCK.get(inner, inner)}"] = _turned(name, value)
        else:  # (D, heads, D / heads), or (heads, D / heads)
            matrix = value.flatten(1).T if attention[2] == "kernel" else value.flatten()
            parts.setdefault((block[1], attention[2]), {})[attention[1]] = matrix
    for (block_number, kind), own in parts.items():
        what = "weight" if kind == "kernel" else "bias"
        found[f"blocks.{block_number}.attn.qkv.{what}"] = torch.cat([own[key] for key in ("query", "key", "value")])
    return found


def _turned(name: str, value: Tensor) -> Tensor:
    """Outputs first: (H, W, I, O) to (O, I, H, W), (heads, D / heads, O) to (O, D), (I, O) to (O, I)."""
    if not name.endswith("/kernel"):
        return value
    if value.ndim == 4:
        return value.permute(3, 2, 0, 1).contiguous()
    return value.flatten(0, -2).T.contiguous()
