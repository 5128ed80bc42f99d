"""Contract checks of a stream."""

from __future__ import annotations

from cil.errors import ContractError, StreamError
from cil.streams import Stream
from cil.testing.compare import demand


def check_stream(stream: Stream) -> None:
    """Demand that a stream is what its signatures say, twice the same, and closed to training where it must be.

    Raises:
        ContractError: naming the experience and the rule.
    """
    seen = 0
    for index, (signature, experience) in enumerate(zip(stream.signatures, stream, strict=True)):
        where = f"experience {index} of '{stream.name}'"
        new = signature.new_slots
        demand(signature.index == index, f"{where} says that it is {signature.index}")
        demand(new == tuple(range(seen, seen + len(new))), f"{where}: new slots {new}, expected to start at {seen}")
        seen += len(new)
        demand(signature.num_classes == seen, f"{where}: num_classes is {signature.num_classes}, {seen} were met")
        demand(experience.train.counts() == signature.counts, f"{where}: counts differ from the training data")
        demand(set(signature.present) == set(signature.counts), f"{where}: present and counts differ")
        demand(max(signature.present, default=0) < seen, f"{where} has slots that were not announced")
        demand(experience.train.shape == signature.image_shape, f"{where}: images are {experience.train.shape}")
        test = stream.test(index)
        demand(len(test) > 0 or not new, f"{where} has new classes and no test data")
        demand(set(test.counts()) <= set(range(seen)), f"{where}: test data have slots that were not met")
        again = stream[index].train
        demand(bool((again.slots == experience.train.slots).all()), f"{where} is another one when asked for again")
        demand(bool((again[:4].pixels == experience.train[:4].pixels).all()), f"{where}: pixels change")
        try:
            stream.training_half().test(index)
        except StreamError:
            continue
        raise ContractError(f"{where}: the training half gives test data")
    demand(seen == len(stream.classes) == len(stream.order), f"{seen} slots, {len(stream.classes)} class names")
