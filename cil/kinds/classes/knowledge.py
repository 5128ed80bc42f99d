"""Rules about what a strategy cannot know: the future, test data, other weights than those it is given."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from cil.data import Samples
from cil.engine.lifecycle import enter
from cil.kinds.classes.subject import StrategySubject
from cil.memory.tensor_bits import same_bits
from cil.strategies import Search, Strategy
from cil.testing.compare import demand, difference

RANDOM = 256  # values of a parameter from which on two draws of it cannot be alike by chance
ALIKE = 0.9  # correlation of two tensors that have one origin


def the_future_is_not_known(subject: StrategySubject) -> None:
    """Streams that differ in the last experience alone, and in what follows, give equal states before it."""
    one = subject.on_long()
    first = one.finished()
    if one.target.uses_horizon or first.work.budget.reserve == "final":
        return  # it says so, and tables show it
    before = first.boundaries[:-1]
    with one.fresh(stream=one.long(longer=True), until=len(before)) as second:
        for index in before:
            named = difference(first.state(index), second.state(index))
            demand(
                not named,
                f"with another last experience and one more after it, {named} differs after experience {index} "
                f"already; allowed is what has arrived: say uses_horizon = True on the class where more is needed",
            )


def test_data_play_no_part_in_training(subject: StrategySubject) -> None:
    """With other test images of the same names and counts, exactly the same is learned."""
    one = subject.on_toy()
    first = one.finished()
    with one.fresh(stream=subject.toy(test_seed=2)) as second:
        for index in first.boundaries:
            named = difference(first.state(index), second.state(index))
            demand(not named, f"with other test images, {named} differs after experience {index}")
        counts = (run.record.results["exemplars"] for run in (first, second))
        demand(next(counts) == next(counts), "the number of exemplars differs")


def test_labels_play_no_part_in_answers(subject: StrategySubject) -> None:
    """With other labels on the same test images, ``predict`` gives the same scores."""
    one = subject.on_toy()
    first, second = (_answers(one, stream) for stream in (one.stream, one.stream.with_tests(_relabelled)))
    demand(
        len(first) == len(second) and all(same_bits(a, b) for a, b in zip(first, second, strict=True)),
        "with other labels on the same test images predict gives other scores; allowed are the images alone",
    )


def _relabelled(samples: Samples) -> Samples:
    """The same images under each other's labels."""
    targets = None if samples.targets is None else samples.targets.flip(0)
    return Samples.from_arrays(samples.pixels, samples.slots.flip(0), targets)


def _answers(subject: StrategySubject, stream: object) -> list[Tensor]:
    """All scores of the last evaluation, done once more on a stream with the same training data."""
    finished, found = subject.finished(), list[Tensor]()

    def recording(make: type[Strategy]) -> object:
        def made(*args: object) -> Strategy:
            learner = make(*args)  # type: ignore[arg-type]
            predict = learner.predict

            def predicted(*given: Tensor) -> Tensor:
                found.append(predict(*given))
                return found[-1]

            object.__setattr__(learner, "predict", predicted)
            return learner

        return made

    with TemporaryDirectory(prefix="cil-check-") as folder:
        again = subject.run(Path(folder), stream=stream, wrap=recording)
        finished.copy_before(len(finished.boundaries), again, evaluated=False)
        again.run.execute()
    return found


def training_starts_from_what_the_factory_gives(subject: StrategySubject) -> None:
    """With another seed the weights before the first step are others: they are drawn, and come from nowhere else."""
    if subject.target.starts_from:
        return  # it says so, and the record does
    first, second = (_first_weights(subject, seed) for seed in (0, 1))
    for name in first.keys() & second.keys():
        one, other = (values[name].detach().double().flatten() for values in (first, second))
        if len(one) != len(other) or len(one) < RANDOM or len(one.unique()) < 16:
            continue
        alike = float(torch.corrcoef(torch.stack([one, other]))[0, 1])
        demand(
            alike < ALIKE,
            f"before the first step {name} is the same whatever the seed (correlation {alike:.2f}); allowed are "
            f"weights of make_net() and draws of self.generator(...): name a file by model.weights, keep public "
            f"weights with reference=, or say starts_from = '...' on the class",
        )


def _first_weights(subject: StrategySubject, seed: int) -> dict[str, Tensor]:
    """Parameters that are trained, by name, when the first phase of the first experience begins."""
    with TemporaryDirectory(prefix="cil-check-") as folder:
        learners = subject.on_toy().run(Path(folder), seed=seed).work.learners
    learner, experience = learners.fresh(0), subject.on_toy().stream.training_half()[0]
    learners.admit(learner, 0)
    enter(learner, experience, lambda: learners.grow(learner, 0), lambda hook: nullcontext(), lambda: None)
    phase = next(iter(learner.phases(experience)), None)
    if phase is not None and not isinstance(phase, Search):
        (phase.train_mode or learner.train_mode)()
    trained = {id(value) for value in learner.trainable()}
    return {
        f"{name}.{key}": value
        for name, module in learner.held().items()
        if isinstance(module, torch.nn.Module)
        for key, value in module.named_parameters()
        if id(value) in trained
    }


RULES = (
    the_future_is_not_known,
    test_data_play_no_part_in_training,
    test_labels_play_no_part_in_answers,
    training_starts_from_what_the_factory_gives,
)
