"""ACIL: random hidden features of a frozen backbone, and a ridge classifier that never forgets an image."""

from __future__ import annotations

from cil.memory import Budget
from cil.models import NetFactory
from cil.strategies.parts.analytic import RandomAnalytic
from cil.strategies.registry import register


@register("acil")
class ACIL(RandomAnalytic):
    """h = relu(W_r phi); W = (sum h h' + gamma I)^-1 sum h y', whatever the order of images, classes and experiences.

    As classes may come back, it is G-ACIL (GACL) as well: their recursion is the same. What spends bytes is ``size``.

    Args:
        size: E, length of h.
        ridge: gamma > 0.
        carries: ``sums``: the triangle of G, and Q. ``recursion``: R and W, as published; twice the bytes, same
            answers.
        statistics: Type of what is carried, ``float64`` or ``float32``.
        train_first, first_head: See ``FrozenBackbone``.

    Source:
        Zhuang, Weng, Wei, Xie, Toh, Lin. "ACIL: analytic class-incremental learning with absolute memorization and
        privacy protection", NeurIPS 2022, arXiv:2205.14922, equations 5 to 9; Zhuang et al., "GACL", NeurIPS 2024.
        Departure: ``carries: sums`` is the default.
    """

    toy = {"size": 32}

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        size: int = 8192,
        ridge: float = 0.1,
        carries: str = "sums",
        statistics: str = "float64",
        train_first: bool | str = "auto",
        first_head: str = "linear",
    ) -> None:
        super().__init__(make_net, budget, size, ridge, carries, statistics, train_first, first_head)
