"""Learned tokens beside those of a frozen vision transformer: a pool of prompts with keys, and the forward pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.errors import ConfigError
from cil.models.base import full_precision, in_full_precision
from cil.models.timm_zoo import TimmBackbone

POSITIONS = ("class", "none")


class Selected(NamedTuple):
    """Prompts that a pool gives for a batch of queries.

    Attributes:
        prompts: (N, K L, D), the K chosen prompts of each image, the most similar first.
        similarities: (N, K), cosines between the query and the keys of the chosen ones.
        chosen: (N, K) int64, their numbers in the pool.
    """

    prompts: Tensor
    similarities: Tensor
    chosen: Tensor


class PromptPool(nn.Module):
    """M prompts of L tokens, each with a key that is matched with the images.

    Args:
        size: M.
        length: L, tokens of one prompt.
        top: K <= M, prompts chosen for an image.
        width: D, length of a token, and of a query.

    Source: Wang et al., "Learning to Prompt for Continual Learning", CVPR 2022, section 4. Prompts and keys U(-1, 1).
    No gradient reaches what was not chosen.
    """

    def __init__(self, size: int, length: int, top: int, width: int) -> None:
        super().__init__()
        self.top = top
        self.prompts = nn.Parameter(torch.empty(size, length, width).uniform_(-1, 1))
        self.keys = nn.Parameter(torch.empty(size, width).uniform_(-1, 1))

    def forward(self, queries: Tensor, majority: bool = False) -> Selected:
        """Choose prompts for queries (N, D).

        Args:
            majority: Give all images the K prompts that most of them would choose. The prompts of an image then depend
                on the others in its batch, so it is for training alone.
        """
        similarities = cosines(queries, self.keys)  # (N, M)
        chosen = _first(similarities, self.top)
        if majority:
            votes = torch.bincount(chosen.flatten(), minlength=len(self.keys))
            chosen = _first(votes[None], self.top).expand(len(queries), -1)
        return Selected(self.prompts[chosen].flatten(1, 2), similarities.gather(1, chosen), chosen)


def cosines(queries: Tensor, keys: Tensor) -> Tensor:
    """(N, M) of queries (N, D) and keys (M, D), in float32 under autocast too: half precision would choose others."""
    with in_full_precision(queries):
        return F.normalize(full_precision(queries), dim=1) @ F.normalize(keys, dim=1).T


def _first(values: Tensor, count: int) -> Tensor:
    """Columns of the largest values of each row, ties to the lowest column."""
    return values.sort(dim=1, descending=True, stable=True).indices[:, :count]


def vision_transformer(backbone: nn.Module, user: str) -> TimmBackbone:
    """The backbone, if prompts can be put before its blocks.

    Raises:
        ConfigError: naming ``model.name`` if it is not a timm vision transformer that ends in a token or a mean.
    """
    kind = type(getattr(backbone, "model", backbone)).__name__
    if isinstance(backbone, TimmBackbone):
        from timm.models.vision_transformer import VisionTransformer

        if isinstance(backbone.model, VisionTransformer) and backbone.model.attn_pool is None:
            return backbone
    raise ConfigError(
        f"{user} needs a timm vision transformer, not a {kind}: set model=timm, model.name to one of them (say "
        f"timm:vit_base_patch16_224.augreg_in21k) and model.weights=hub"
    )


def forward_with_prompts(backbone: TimmBackbone, images: Tensor, prompts: Tensor, position: str = "class") -> Tensor:
    """Output tokens of a vision transformer that gets prompts before the patches.

    Args:
        backbone: A vision transformer; see ``vision_transformer``.
        images: Normalised, (N, C, H, W).
        prompts: (N, P, D); P = 0 is the transformer's own forward, bit for bit.
        position: ``class`` adds the position embedding of the class token to every prompt (where there is one),
            ``none`` adds nothing.

    Returns:
        (N, F + P + patches, D): the F class and register tokens, the prompts, the patches, after the last norm.
    """
    vit = backbone.model
    x = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(backbone.resized(images)))))
    if position == "class" and vit.pos_embed is not None and vit.has_class_token and not vit.no_embed_class:
        prompts = prompts + vit.pos_embed[:, :1]
    first = vit.num_prefix_tokens
    x = torch.cat([x[:, :first], prompts.to(x.dtype), x[:, first:]], dim=1) if prompts.shape[1] else x
    found: Tensor = vit.norm(vit.blocks(x))
    return found


def prompt_features(backbone: TimmBackbone, images: Tensor, prompts: Tensor, position: str = "class") -> Tensor:
    """(N, D): the mean output at the places of the prompts; see ``forward_with_prompts``."""
    vit = backbone.model
    first = vit.num_prefix_tokens
    tokens = forward_with_prompts(backbone, images, prompts, position)[:, first : first + prompts.shape[1]]
    found: Tensor = vit.fc_norm(tokens.mean(1))  # an identity where the last norm comes before the mean
    return found
