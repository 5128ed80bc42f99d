"""How much a learner may carry beside networks and exemplars where nothing else makes it pay for that.

A cap on the number of exemplars says nothing of images that are kept as something else, and the survey's convention
charges nothing for them. Honest methods keep statistics there: an importance of each weight (one network), a mean and a
covariance of features a class. They fit; a data set does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from cil.memory import Budget, tensor_bytes
from cil.models import GrowingNet
from cil.streams import Signature

METADATA = 4096  # bytes: counters, orders of classes


@dataclass(frozen=True)
class SideLimit:
    """What may be carried after an experience.

    Attributes:
        bytes: Beside networks and exemplars; None: no cap.
        networks: Most bytes that count as networks: those of one plain network of this setting for each experience so
            far, and of one more. What a learner carries as parameters above that is beside them.
    """

    bytes: int | None
    networks: int

    @classmethod
    def of(cls, plain: GrowingNet, signature: Signature, budget: Budget, declared: int) -> SideLimit:
        """The limit under a budget.

        ``side_bytes: auto`` allows, with P bytes of the plain network, D features and C classes,

            max(P, C * 2 D (D + 1)) + C * (8 D + 16) + 4096

        an importance of each weight or a covariance a class, beside a mean and a variance; and what is declared.

        Args:
            plain: A network of this setting, grown to the classes seen.
            declared: Further bytes that the method holds by design (``Strategy.side_bytes``).
        """
        network = sum(map(tensor_bytes, plain.state_dict().values()))
        networks = (signature.index + 2) * network
        if not budget.caps_side:
            return cls(None, networks)
        if not isinstance(budget.side_bytes, str):
            return cls(budget.side_bytes, networks)
        features, classes = plain.feature_dim, signature.num_classes
        covariances = classes * 2 * features * (features + 1)
        own = max(network, covariances) + classes * (8 * features + 16) + METADATA
        return cls(own + declared, networks)
