"""ConViT for small images, and the network of task tokens that DyTox builds on its patches."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from cil.errors import ConfigError
from cil.models.base import MOST_SIZE, Output, check_sizes, count_parameters
from cil.models.frozen import freeze
from cil.models.heads import LinearHead
from cil.models.registry import ImageSize, register_model

STD = 0.02  # of weights, position embeddings and task tokens, truncated at two absolute units as is usual


class GatedAttention(nn.Module):
    """Gated positional self-attention: each head mixes attention by content with attention by place.

    Args:
        width: D, length of a token.
        heads: H; those of the largest square k k <= H start as the k k places of a convolution kernel.
        grid: Rows and columns of patches.

    Source: d'Ascoli et al., "ConViT", ICML 2021, arXiv:2103.10697, section 3: the gate is sigmoid(lambda), lambda
    starts at 1, values start as they are, and a head looks one patch away from its own in its direction (locality
    strength 1). Both parts sum to one, so their mixture needs no normalisation.
    """

    constants = ("relative",)  # not saved, and never changed
    relative: Tensor

    def __init__(self, width: int, heads: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.heads = heads
        self.qk = nn.Linear(width, 2 * width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.proj = nn.Linear(width, width)
        self.position = nn.Linear(3, heads)
        self.gate = nn.Parameter(torch.ones(heads))
        self.register_buffer("relative", relative_places(grid), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, P, D) to (N, P, D)."""
        queries, keys = (split_heads(part, self.heads) for part in self.qk(tokens).chunk(2, dim=-1))  # (N, H, P, D / H)
        content = (queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])).softmax(-1)  # (N, H, P, P)
        place = self.position(self.relative).permute(2, 0, 1).softmax(-1)  # (H, P, P), the same for all images
        gate = self.gate.sigmoid().view(-1, 1, 1)
        attention = (1 - gate) * content + gate * place
        mixed = attention @ split_heads(self.v(tokens), self.heads)
        found: Tensor = self.proj(mixed.transpose(-3, -2).flatten(-2))
        return found

    @torch.no_grad()
    def start_local(self) -> None:
        """Start as a convolution: head h prefers the patch at offset D_h, v = -(1, -2 D_h) on (|d|^2, d)."""
        nn.init.eye_(self.v.weight)
        side = math.isqrt(self.heads)
        for row in range(side):
            for column in range(side):
                weight = self.position.weight[row + side * column]
                weight[0] = 2 * (column - (side - 1) / 2)
                weight[1] = 2 * (row - (side - 1) / 2)
                weight[2] = -1


def relative_places(grid: tuple[int, int]) -> Tensor:
    """(P, P, 3): from each patch to each, steps along a row, along a column, and the squared distance.

    >>> relative_places((1, 2))[0].tolist()
    [[0.0, 0.0, 0.0], [1.0, 0.0, 1.0]]
    """
    rows, columns = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    across, down = (axis[None, :] - axis[:, None] for axis in (columns, rows))
    return torch.stack([across, down, across**2 + down**2], dim=-1).float()


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """(..., P, D) to (..., H, P, D / H)."""
    return torch.unflatten(tokens, -1, (heads, -1)).transpose(-3, -2)


def mlp(width: int, ratio: float) -> nn.Sequential:
    """Two layers with a GELU between them, ``ratio`` times as wide inside."""
    inside = int(width * ratio)
    return nn.Sequential(nn.Linear(width, inside), nn.GELU(), nn.Linear(inside, width))


class SelfAttentionBlock(nn.Module):
    """x + attention(norm x), then x + mlp(norm x); in training each branch is left out by chance (stochastic depth)."""

    def __init__(self, width: int, heads: int, ratio: float, grid: tuple[int, int], drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width)
        self.attention = GatedAttention(width, heads, grid)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = mlp(width, ratio)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, P, D) to (N, P, D)."""
        tokens = tokens + self._by_chance(self.attention(self.norm1(tokens)))
        return tokens.add(self._by_chance(self.mlp(self.norm2(tokens))))

    def _by_chance(self, branch: Tensor) -> Tensor:
        """Zeros for an image with probability ``drop_path``, all else over 1 - drop_path: (N, P, D) to the same."""
        if not self.drop_path or not self.training:
            return branch
        stays = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_path
        return branch * stays / (1 - self.drop_path)


@register_model("convit")
class ConViT(nn.Module):
    """Patches, and self-attention blocks that start as convolutions; no class token.

    As a backbone of its own the features are the mean of the last patches, and the one stage is their map.

    Args:
        image_size: H, or (H, W): whole patches.
        patch_size: Pixels along a side of a patch.
        width: D, length of a token.
        depth: Blocks, all of them gated.
        heads: Heads of every block; they divide the width.
        mlp_ratio: Hidden width of the two-layer networks over ``width``.
        drop_path: Chance in [0, 1) that a branch of the last block is left out in training; it rises evenly from 0.

    Attributes:
        feature_dim: D.
        survey_parameters: All parameters: 8,910,252 at the defaults and 32x32 pixels. DyTox charges its task-attention
            block too: 10,683,564.

    Raises:
        ConfigError: where patches do not fill the image, or heads not the width.

    Source: d'Ascoli et al. 2021, as in DyTox (Douillard et al. 2022, section 4): five blocks, 384 wide, 12 heads.
    """

    def __init__(
        self,
        in_channels: int = 3,
        image_size: ImageSize = 32,
        patch_size: int = 4,
        width: int = 384,
        depth: int = 5,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(patch_size=patch_size, width=width, depth=depth, heads=heads)
        if not 0 < mlp_ratio <= MOST_SIZE:
            raise ConfigError(f"model.options.mlp_ratio is {mlp_ratio}; it must be above 0, at most {MOST_SIZE:,}")
        if not 0 <= drop_path < 1:
            raise ConfigError(f"model.options.drop_path is {drop_path}; it must be 0 or more, and below 1")
        height, across = (image_size, image_size) if isinstance(image_size, int) else image_size
        if patch_size < 1 or min(height, across) < patch_size or height % patch_size or across % patch_size:
            raise ConfigError(
                f"patches of {patch_size} pixels do not fill images of {height}x{across}; see model.options.patch_size"
            )
        if width % heads:
            raise ConfigError(f"{heads} heads do not divide tokens of {width} numbers; see model.options.heads")
        self.grid = (height // patch_size, across // patch_size)
        self.heads, self.mlp_ratio, self.feature_dim = heads, mlp_ratio, width
        self.embed = nn.Conv2d(in_channels, width, kernel_size=patch_size, stride=patch_size)
        self.position = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], width))
        chances = [drop_path * place / max(1, depth - 1) for place in range(depth)]
        self.blocks = nn.Sequential(
            *(SelfAttentionBlock(width, heads, mlp_ratio, self.grid, chance) for chance in chances)
        )
        nn.init.trunc_normal_(self.position, std=STD)
        start_linear(self)
        for layer in self.modules():
            if isinstance(layer, GatedAttention):
                layer.start_local()
        self.survey_parameters = count_parameters(self)

    def tokens(self, images: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) to the last patches (N, P, D), row by row."""
        patches = self.embed(images).flatten(2).transpose(1, 2) + self.position
        found: Tensor = self.blocks(patches)
        return found

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Normalised images (N, C, H, W) to features (N, D), and the map (N, D, H', W') of the patches."""
        tokens = self.tokens(images)
        return tokens.mean(1), (torch.unflatten(tokens.transpose(1, 2), 2, self.grid),)


def start_linear(module: nn.Module) -> None:
    """Weights of all linear layers in ``module`` to a truncated normal, biases to 0, in place."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=STD)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class TaskAttention(nn.Module):
    """A block in which task tokens look at themselves and at the patches, and at no other task token.

    Args:
        ratio: Hidden width of its two-layer network over ``width``.

    Source: Douillard et al., "DyTox", CVPR 2022, arXiv:2111.11326, section 3: queries are of the task token alone, keys
    and values of [token, patches]; residual connections around attention and the two-layer network.
    """

    def __init__(self, width: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = mlp(width, ratio)
        start_linear(self)

    def forward(self, tokens: Tensor, patches: Tensor) -> Tensor:
        """Task tokens (T, D) and patches (N, P, D) to an embedding (N, T, D) for each image and task.

        All tokens are done at once: patches are projected once, and the softmax of a token runs over itself and them.
        """
        own, seen = self.norm1(tokens), self.norm1(patches)
        query, key, value = (split_heads(layer(own), self.heads) for layer in (self.q, self.k, self.v))  # (H, T, D / H)
        keys, values = (split_heads(layer(seen), self.heads) for layer in (self.k, self.v))  # (N, H, P, D / H)
        itself = (query * key).sum(-1, keepdim=True).expand(len(patches), -1, -1, -1)  # (N, H, T, 1)
        scores = torch.cat([itself, query @ keys.transpose(-2, -1)], dim=-1) / math.sqrt(query.shape[-1])
        attention = scores.softmax(-1)  # (N, H, T, 1 + P)
        mixed = attention[..., :1] * value + attention[..., 1:] @ values
        embedded: Tensor = tokens + self.proj(mixed.transpose(-3, -2).flatten(-2))
        return embedded.add(self.mlp(self.norm2(embedded)))


class TaskHead(nn.Module):
    """The classifier of one task: a norm, and a linear layer on its embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = LinearHead(width)

    def forward(self, embedding: Tensor) -> Tensor:
        """(N, D) to (N, outputs)."""
        return self.linear(self.norm(embedding))


class TaskTokenNet(nn.Module):
    """One encoder and one task-attention block, shared; a token and a classifier for each task, the last learns.

    Source: Douillard et al. 2022, section 3.
    """

    def __init__(self, encoder: ConViT, normalise: nn.Module | None = None) -> None:
        super().__init__()
        self.normalise = normalise or nn.Identity()
        self.encoder = encoder
        self.attention = TaskAttention(encoder.feature_dim, encoder.heads, encoder.mlp_ratio)
        self.tokens = nn.ParameterList()
        self.heads: Any = nn.ModuleList()
        self.attention.to(encoder.position.device)

    def grow(self, count: int) -> None:
        """Freeze the tokens and classifiers there are; unless ``count`` is 0, add a token and a classifier of so many.

        The token is drawn on the CPU from torch's global generator; on ``meta`` nothing is drawn.
        """
        self.tokens.requires_grad_(False)
        for head in self.heads:
            freeze(head)
        if not count:
            return
        where = self.encoder.position
        token = torch.empty(self.token_dim, device="meta" if where.is_meta else "cpu")
        self.tokens.append(nn.Parameter(nn.init.trunc_normal_(token, std=STD).to(where)))
        head = TaskHead(self.token_dim).to(where)
        head.linear.grow(count)
        self.heads.append(head.train(self.training))

    def forward(self, images: Tensor) -> Output:
        """Float images (N, C, H, W) in [0, 1] to logits, and the embeddings of all tasks side by side, oldest first."""
        patches = self.encoder.tokens(self.normalise(images))
        embeddings = self.attention(torch.stack(list(self.tokens)), patches)  # (N, T, D)
        parts = [head(embeddings[:, task]) for task, head in enumerate(self.heads)]
        return Output(torch.cat(parts, dim=1), embeddings.flatten(1))

    @property
    def token_dim(self) -> int:
        """D of one token: ``features[:, -token_dim:]`` is the embedding of the newest task."""
        return self.encoder.feature_dim

    @property
    def num_classes(self) -> int:
        """C, columns of the logits."""
        return sum(head.linear.num_classes for head in self.heads)

    @property
    def feature_dim(self) -> int:
        """T * D, columns of the features."""
        return len(self.tokens) * self.token_dim

    @property
    def survey_parameters(self) -> int:
        """Parameters that the survey charges: all but the classifiers."""
        return count_parameters(self) - count_parameters(self.heads)
