"""A vision transformer's forward pass in which a function runs each block: prefixes, tokens and adapters go there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.errors import ConfigError
from cil.models.prompts import vision_transformer
from cil.models.timm_zoo import TimmBackbone

RunBlock = Callable[[int, Any, Tensor], Tensor]  # number, block, tokens (N, T, D) to tokens


def plain_transformer(backbone: nn.Module, user: str) -> TimmBackbone:
    """The backbone, if its blocks are attention and then an MLP, each behind a norm.

    Raises:
        ConfigError: naming ``model.name`` for another kind.
    """
    found = vision_transformer(backbone, user)  # first: timm is imported where it is needed
    from timm.models.vision_transformer import Block

    other = next((type(block).__name__ for block in found.model.blocks if not isinstance(block, Block)), None)
    if other:
        raise ConfigError(f"{user} reaches into plain transformer blocks, and these are {other}: set model.name")
    return found


def run_blocks(backbone: TimmBackbone, images: Tensor, run: RunBlock) -> Tensor:
    """(N, D) features of normalised images (N, C, H, W), where ``run`` gives the output of each block.

    Tokens that ``run`` leaves at the end are cut off after the last block.
    """
    vit = backbone.model
    x = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(backbone.resized(images)))))
    count = x.shape[1]
    for index, block in enumerate(vit.blocks):
        x = run(index, block, x)
    found: Tensor = vit.forward_head(vit.norm(x[:, :count]), pre_logits=True)
    return found


def prefixed_block(block: Any, x: Tensor, keys: Tensor, values: Tensor, whole: bool = False) -> Tensor:
    """Output of a block whose attention has a prefix; see ``prefixed_attention``."""
    attended = prefixed_attention(block.attn, block.norm1(x), keys, values, whole)
    x = x + block.drop_path1(block.ls1(attended))
    found: Tensor = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    return found


def prefixed_attention(attention: Any, x: Tensor, keys: Tensor, values: Tensor, whole: bool = False) -> Tensor:
    """Attention in which all tokens also look at L further keys and values: K <- [P_K; K], V <- [P_V; V].

    Args:
        attention: Of a timm block.
        x: Normed tokens, (N, T, D); their number stays.
        keys, values: (L, D), or of each image (N, L, D); L = 0 is plain attention.
        whole: Whether the weights of the prefix are divided by their sum, so that it is not outweighed by the tokens.

    Source: Li and Liang, "Prefix-tuning", ACL 2021; Wang et al., "DualPrompt", ECCV 2022; ``whole``: Gao et al.,
    "LAE", ICCV 2023, and its code (gqk/LAE).
    """
    heads, width = attention.num_heads, attention.head_dim

    def by_head(tokens: Tensor) -> Tensor:
        tokens = tokens.to(x.dtype).expand(len(x), *tokens.shape[-2:])
        split: Tensor = tokens.unflatten(2, (heads, width))
        return split.transpose(1, 2)  # (N, heads, L, D / heads)

    q, k, v = attention.qkv(x).unflatten(2, (3, heads, width)).permute(2, 0, 3, 1, 4)
    q, k = attention.q_norm(q), attention.k_norm(k)
    drop = attention.attn_drop.p if attention.training else 0.0
    k, v = torch.cat([by_head(keys), k], dim=2), torch.cat([by_head(values), v], dim=2)
    if whole:
        weights = attention.attn_drop((attention.scale * q @ k.mT).softmax(-1))
        first, rest = weights.tensor_split([keys.shape[-2]], dim=-1)
        first = first / first.sum(-1, keepdim=True).clamp(min=1e-12)
        made = torch.cat([first, rest], dim=-1) @ v
    else:
        made = F.scaled_dot_product_attention(q, k, v, dropout_p=drop)
    made = made.transpose(1, 2).flatten(2)
    found: Tensor = attention.proj_drop(attention.proj(getattr(attention, "norm", nn.Identity())(made)))
    return found
