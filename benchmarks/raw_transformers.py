"""Prompts and low-rank sums as one would train them by hand, and what the framework costs beside that.

    python benchmarks/raw_transformers.py
    python benchmarks/raw_transformers.py --method sd_lora --width 192 --depth 12 --patch 4 --epochs 2

L2P and SD-LoRA on a frozen timm transformer with random weights, over noise: the time does not depend on what is seen.
The hand-written loops have nothing around them: images augmented in batches, SGD with cosine decay over what learns,
one evaluation of all classes seen after each experience. Each pair trains both, in alternating order, on one thread,
for one epoch an experience and for some more, and compares CPU seconds of the process: what the further epochs take,
and what is left, which is planning, forecast, metering and the record, once a run.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from overhead import CLASSES, EXPERIENCES, TEST, images, make_stream
from raw import Work, augmented
from torch import Tensor, nn

import cil
from cil.engine.recipe import Recipe

PROMPTS, LENGTH, TOP, PULL, RANK, RATE = 10, 5, 5, 0.1, 10, 0.01


class Prompts(nn.Module):
    """L2P: each image chooses prompts by keys; the head is on the mean of the output at the prompts."""

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.frozen = [vit]
        self.prompts = nn.Parameter(torch.empty(PROMPTS, LENGTH, vit.embed_dim).uniform_(-1, 1))
        self.keys = nn.Parameter(torch.empty(PROMPTS, vit.embed_dim).uniform_(-1, 1))

    def grow(self) -> None:
        """The pool stays as it is."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, D) and the second term of the loss."""
        (vit,) = self.frozen
        with torch.no_grad():
            query = vit.norm(vit.blocks(vit._pos_embed(vit.patch_embed(x))))[:, 0]
        near, chosen = (F.normalize(query) @ F.normalize(self.keys).T).topk(TOP)
        tokens = vit._pos_embed(vit.patch_embed(x))
        prompts = self.prompts[chosen].flatten(1, 2) + vit.pos_embed[:, :1]
        tokens = vit.norm(vit.blocks(torch.cat([tokens[:, :1], prompts, tokens[:, 1:]], dim=1)))
        return tokens[:, 1 : 1 + TOP * LENGTH].mean(1), -PULL * near.sum(1).mean()


class Sums(nn.Module):
    """SD-LoRA: queries and values get a low-rank sum an experience; all magnitudes learn."""

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.frozen = [vit]
        self.layers = nn.ModuleList(Layer(block.attn.qkv) for block in vit.blocks)
        for block, layer in zip(vit.blocks, self.layers, strict=True):
            block.attn.qkv = layer

    def grow(self) -> None:
        """One more sum; those before it have length 1 and stop learning."""
        for layer in self.layers:
            layer.grow()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, D), and no second term."""
        return self.frozen[0].forward_head(self.frozen[0].forward_features(x), pre_logits=True), x.new_zeros(())


class Layer(nn.Module):
    """Frozen queries, keys and values, and the sums of two of them along their low-rank path."""

    def __init__(self, qkv: nn.Linear) -> None:
        super().__init__()
        self.frozen, self.width = [qkv], qkv.in_features
        self.down, self.up, self.alpha = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()

    def grow(self) -> None:
        with torch.no_grad():
            for number in range(len(self.up)):
                for factors in (self.down[number], self.up[number]):
                    factors.div_(factors.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)).requires_grad_(False)
        bound = self.width**-0.5
        self.down.append(nn.Parameter(torch.empty(2, RANK, self.width).uniform_(-bound, bound)))
        self.up.append(nn.Parameter(torch.zeros(2, self.width, RANK)))
        self.alpha.append(nn.Parameter(torch.ones(2, 1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        down = torch.cat(list(self.down), dim=1)
        up = torch.cat([alpha * up for alpha, up in zip(self.alpha, self.up, strict=True)], dim=2)
        query, key, value = self.frozen[0](x).chunk(3, dim=-1)
        added = [F.linear(F.linear(x, down[part]), up[part]) for part in range(2)]
        return torch.cat([query + added[0], key, value + added[1]], dim=-1)


METHODS: dict[str, Callable[[Any], nn.Module]] = {"l2p": Prompts, "sd_lora": Sums}


def by_hand(method: str, shape: dict[str, int], work: Work) -> None:
    """The whole stream in one loop."""
    (train, labels), (tests, wanted) = work.train, work.test
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, **shape).eval().requires_grad_(False)
    learns, head = METHODS[method](vit), nn.Linear(vit.embed_dim, 0)
    generator = torch.Generator().manual_seed(0)
    for experience in range(EXPERIENCES):
        old, total = experience * CLASSES, (experience + 1) * CLASSES
        learns.grow()  # type: ignore[operator]
        before, head = head, nn.Linear(vit.embed_dim, total)
        with torch.no_grad():
            head.weight[:old], head.bias[:old] = before.weight, before.bias
        rows = ((labels >= old) & (labels < total)).nonzero().flatten()
        padded = F.pad(train[rows], (work.padding,) * 4).permute(0, 2, 3, 1).contiguous()
        own = [value for value in (*learns.parameters(), *head.parameters()) if value.requires_grad]
        optimizer = torch.optim.SGD(own, work.lr, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, work.epochs)
        for _ in range(work.epochs):
            for picked in torch.randperm(len(rows), generator=generator).split(work.batch_size):
                x = (augmented(padded, picked, 32, work.padding, generator) - 0.5) / 0.25
                features, more = learns(x)
                loss = F.cross_entropy(head(features)[:, old:], labels[rows[picked]] - old) + more
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
        with torch.inference_mode():
            seen = wanted < total
            for part in tests[seen].split(500):
                head(learns((part.float() / 255 - 0.5) / 0.25)[0]).argmax(1)


def here(method: str, shape: dict[str, int], work: Work) -> None:
    """The same in the framework, with its record, ledger, snapshots and log."""
    sgd = partial(torch.optim.SGD, lr=work.lr, momentum=0.9)
    recipe = Recipe(epochs=work.epochs, batch_size=work.batch_size, optimizer=sgd)  # cosine decay is its default
    model = {"name": "timm:vit_tiny_patch16_224", "options": dict(shape)}
    with tempfile.TemporaryDirectory() as folder:
        cil.train(method, make_stream(work), model, cil.Budget(exemplars=0), recipe=recipe, run_dir=folder)


def main() -> None:
    """One line a method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--images", type=int, default=100, help="training images of a class")
    parser.add_argument("--epochs", type=int, default=6, help="an experience, beyond the first one")
    parser.add_argument("--batch", type=int, default=32)
    for name, usual in (("width", 96), ("depth", 6), ("heads", 3), ("patch", 8)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    given = parser.parse_args()
    torch.set_num_threads(1)
    shape = {
        "patch_size": given.patch, "embed_dim": given.width, "depth": given.depth, "num_heads": given.heads
    }  # fmt: skip
    data = images(given.images, 0), images(TEST, 1)
    works = [Work(*data, CLASSES, EXPERIENCES, 1 + more, given.batch, 0, lr=RATE) for more in (0, given.epochs)]
    sides = (by_hand, here)
    for method in given.method:
        for side in sides:  # warms up
            side(method, shape, works[0])
        ratios, starts = [], []
        for number in range(given.pairs):
            spent = {}
            for side in sides if number % 2 else sides[::-1]:
                for work in works:
                    began = time.process_time()
                    side(method, shape, work)
                    spent[side, work.epochs] = time.process_time() - began
            short, long = ({side: spent[side, work.epochs] for side in sides} for work in works)
            ratios.append((long[here] - short[here]) / (long[by_hand] - short[by_hand]))
            starts.append(short[here] - short[by_hand])
        each = " ".join(f"{ratio:.3f}" for ratio in ratios)
        print(f"{method:8s} an epoch more: {statistics.median(ratios):.3f} times by hand  [{each}]; "
              f"once: {statistics.median(starts):.1f} s more", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
