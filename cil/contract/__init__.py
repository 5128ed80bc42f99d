"""What strategies and adapters share: what is held and carried, phases of training, what the engine lends."""

from cil.contract.holder import Holder, loaded_reference, reference_of
from cil.contract.phase import Desk, Phase, Progress

__all__ = ["Desk", "Holder", "Phase", "Progress", "loaded_reference", "reference_of"]
