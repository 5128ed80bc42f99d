"""AANets: a stable and a plastic branch, mixed after every stage with learned shares, around a host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from cil.contract import Phase, Search
from cil.data import Batch, Samples
from cil.errors import ConfigError
from cil.memory import Budget
from cil.models import AggregatedBackbone, GrowingNet, NetFactory, evaluating
from cil.models.frozen import constant
from cil.strategies.base import Strategy, check
from cil.strategies.parts import balanced_set
from cil.strategies.parts.wrappers import Wrapper
from cil.strategies.registry import register
from cil.streams import Experience, Signature

DEFAULTS: Mapping[str, Mapping[str, Any]] = {"lucir": {"imprint": True}}  # options of hosts, as in the authors' code


@register("aanets")
class AANets(Wrapper):
    """Adaptive aggregation networks: losses, exemplars and answers are the host's.

    The first experience trains one network. From the second on there are two branches that start as that network: in
    the stable one a factor for each kernel and batch norm learn, in the plastic one everything does. After stage k the
    maps are mixed with the shares a_k and 1 - a_k. The branches learn from all data by the loss of the host, the shares
    from a balanced set by cross-entropy. A second stage of the host (PODNet's tuning) leaves the shares alone.

    Made for a backbone with signed features (``model=resnet32_cosine``), of stem and stages.

    Args:
        host: Name of the wrapped method: ``lucir``, ``podnet``, ``icarl`` or another one with a single network that
            rehearses.
        host_options: Hyperparameters of the host that differ from its defaults; LUCIR imprints new rows here by
            default.
        stable: Parts of the stable branch that learn: ``scaled`` (factors and batch norm) or ``frozen`` (none).
        mixture_lr: Learning rate of the shares, on the schedule of the others; 0 leaves them at one half.
        share_gradients: The shares follow the gradient of a balanced batch alone, ``fresh`` at each step; or, as in the
            authors' runs on LUCIR, the sum of all gradients of the experience so far, those on all data too, which that
            code never clears: ``accumulated``.

    Raises:
        ConfigError: for a backbone that is not a stem and stages, a host that is not possible, or an option that it
            does not have.

    Source:
        Liu, Schiele, Sun. CVPR 2021, arXiv:2010.05063; defaults as in the authors' code, which imprints. Its rate of
        1e-8 moves the shares by some hundredths, as their gradients accumulate there over an experience; ``fresh`` ones
        hardly move at it: raise it to see them learn. Departures: the two levels of the optimisation take
        turns at every step, not at every epoch: one step moves the branches by the gradient on all data and the shares
        by that on a balanced batch, in evaluation mode, neither gradient touching the other's parameters. Shares do not
        decay, which would draw them to the plastic branch.
    """

    pull: Tensor | None
    host = "lucir"
    hosts = "lucir, podnet or icarl"

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        host: str = "lucir",
        host_options: Mapping[str, Any] | None = None,
        stable: str = "scaled",
        mixture_lr: float = 1e-8,
        share_gradients: str = "fresh",
    ) -> None:
        given = {**DEFAULTS.get(host, {}), **(host_options or {})}
        super().__init__(make_net, budget, **self.options(host, given))
        if "memory" not in self.memories():
            raise ConfigError(
                f"strategy.host of aanets is '{host}', which keeps no exemplars to balance; take {self.hosts}"
            )
        check.at_least(0, "aanets", mixture_lr=mixture_lr)
        check.one_of(("scaled", "frozen"), "aanets", stable=stable)
        check.one_of(("fresh", "accumulated"), "aanets", share_gradients=share_gradients)
        self.stable, self.mixture_lr, self.accumulates = stable, mixture_lr, share_gradients == "accumulated"
        self.keep("pull", None, kind="temporary")  # (S,), the sum of the gradients of the shares

    @classmethod
    def refusals(cls, host: type[Strategy]) -> dict[str, bool]:
        return super().refusals(host) | {
            "whose network is not one backbone and one head all along": host.grow_net is not Strategy.grow_net,
            "which holds out images that would teach the shares": host.holds_out,
        }

    def build_net(self) -> GrowingNet:
        net: GrowingNet = super().build_net()  # type: ignore[assignment]
        net.backbone = AggregatedBackbone(net.backbone)
        return net

    def grow_net(self, signature: Signature) -> None:
        if self.old_classes and not self.net.backbone.is_split:
            self.net.backbone.split(self.stable)
        super().grow_net(signature)

    def phases(self, experience: Experience) -> Iterator[Phase | Search]:
        for phase in super().phases(experience):
            if isinstance(phase, Phase) and phase.main and phase.loss == self.loss:
                phase = self._with_shares(phase, experience)
            yield phase

    def _with_shares(self, phase: Phase, experience: Experience) -> Phase:
        """The host's phase, with shares that learn beside it where there is balanced data."""
        given = self._branches() if phase.parameters is None else phase.parameters
        balanced = balanced_set(self, experience, rule="random") if self.old_classes else None
        if not balanced or not self.mixture_lr:
            return replace(phase, parameters=given)
        shares = {"params": [self.net.backbone.mixture], "lr": self.mixture_lr, "weight_decay": 0.0}
        streams = {"everything": phase.data} if isinstance(phase.data, Samples) else dict(phase.data)
        return replace(phase, data={**streams, "balanced": balanced}, parameters=[{"params": list(given)}, shares])

    def loss(self, batch: Batch) -> Tensor | Mapping[str, Tensor]:
        shares = [] if self.accumulates else [self.net.backbone.mixture]
        with constant(shares):  # lower level of the bilevel problem: the branches
            loss = super().loss(batch)
        if "balanced" not in batch.streams:
            return loss
        terms = dict(loss) if isinstance(loss, Mapping) else {"loss": loss}
        with constant(self._branches()), evaluating(self.net):  # upper level: the shares
            logits = self.net(batch.balanced.images).logits
        return terms | {"mixture": F.cross_entropy(logits, batch.balanced.slots)}

    def adjust_gradients(self, batch: Batch) -> None:
        super().adjust_gradients(batch)
        shares = self.net.backbone.mixture
        if self.accumulates and shares.grad is not None:
            self.pull = shares.grad.clone() if self.pull is None else self.pull + shares.grad
            shares.grad = self.pull.clone()

    def _branches(self) -> list[nn.Parameter]:
        """Parameters that learn, without the shares."""
        return [p for p in self.trainable() if p is not self.net.backbone.mixture]
