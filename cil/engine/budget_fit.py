"""How a budget fits a setting: the largest method that it holds; warnings where it is too small or does not bind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

from cil.engine.dry_run import Bill, check_bills, dry_run
from cil.errors import BudgetExceeded, ConfigError
from cil.memory import Budget
from cil.models import NetFactory
from cil.streams import Signature

MUCH = 0.10  # share of a limit that is worth a word where it is not used
MOST = 2**28  # no hyperparameter of a method is larger; a matrix of that side can still be billed
GROWN = 4**4  # times the smallest: bytes that are still the same do not grow


@dataclass(frozen=True)
class Fitted:
    """The hyperparameter of a method that spends bytes, at the largest value that a budget holds.

    Attributes:
        key: Its name, without ``strategy.``.
        bytes, limit: What will be carried after the last experience, and the cap on it.
        convention: How bytes are counted.
        fits: False where it is the smallest value that the method takes, and too large all the same.
    """

    key: str
    value: int
    bytes: int
    limit: int
    convention: str
    fits: bool = True

    def words(self, name: str) -> str:
        """A sentence for a person.

        >>> Fitted("size", 50, 11_200, 11_500, "exact").words("ranpac")
        'ranpac: budget.fit sets strategy.size=50, the largest that fits: 11,200 of 11,500 bytes (exact)'
        """
        return (
            f"{name}: budget.fit sets strategy.{self.key}={self.value}, the largest that fits: {self.bytes:,} of "
            f"{self.limit:,} bytes ({self.convention})"
        )


def fitted(
    make_learner: Callable[..., Any], make_net: Callable[[], NetFactory], signatures: Sequence[Signature],
    budget: Budget, name: str,
) -> Fitted | None:  # fmt: skip
    """The largest value of the hyperparameter that a method names (``Strategy.fitted_key``), by bisection of dry runs.

    Where none fits it is the smallest, and the run is over its budget as that of any other method that does not fit.
    Nothing is trained, and no image is looked at. None where ``budget.fit`` is off, and for a method that names none:
    one with exemplars fills the budget with these anyway, one without is as large as it is.

    Args:
        make_learner: The strategy, a class or a partial of one, which leaves that hyperparameter open.

    Raises:
        ConfigError: where the value is given, or the bytes do not grow with it, or fall.
    """
    method: Any = getattr(make_learner, "func", make_learner)
    given: Mapping[str, Any] = getattr(make_learner, "keywords", {})
    key: str | None = method.fitted_key(given) if budget.fit else None
    if key is None:
        return None
    if key in given:
        raise ConfigError(
            f"strategy.{key} is {given[key]}, and budget.fit=true sets it to the largest that fits; leave one of them "
            f"out"
        )
    smallest = int(method.smallest_fit(given))
    held, factory = replace(budget, enforce="error"), make_net()

    def bill(value: int) -> tuple[int, BudgetExceeded | None]:
        """Bytes at the end of the stream, and why they do not fit."""
        bills = dry_run(partial(make_learner, **{key: value}), factory.fresh, signatures, held)
        try:
            check_bills(bills, held, name)
        except BudgetExceeded as error:
            return bills[-1].total[budget.convention], error
        return bills[-1].total[budget.convention], None

    assert budget.limits is not None
    limit, seen = int(budget.limits[-1]), dict[int, int]()

    def weigh(value: int) -> tuple[int, bool]:
        try:
            seen[value], error = bill(value)
        except ConfigError:  # the smallest can be had: this one is more than the method takes
            return limit + 1, False
        return seen[value], error is None

    least, error = bill(smallest)
    if error is not None:
        return Fitted(key, smallest, least, limit, budget.convention, fits=False)
    found = largest(weigh, smallest, limit)
    if found is None:
        raise ConfigError(
            f"budget.fit: {name} carries no more bytes ({budget.convention}) with a larger strategy.{key}, so that "
            f"none is the largest; set budget.fit=false, or another budget.convention"
        )
    for (less, before), (more, after) in pairwise(sorted(seen.items())):
        if after < before:
            raise ConfigError(
                f"budget.fit: {name} carries {after:,} bytes ({budget.convention}) with strategy.{key}={more}, and "
                f"{before:,} with {less}: fewer with more, so that none is found to be the largest; set "
                f"budget.fit=false and strategy.{key} itself"
            )
    return Fitted(key, found[0], found[1], limit, budget.convention)


def largest(weigh: Callable[[int], tuple[int, bool]], smallest: int, limit: int) -> tuple[int, int] | None:
    """The largest whole number that fits, and its bytes; None where all up to ``MOST`` fit, or bytes do not grow.

    By bisection, every other time at where a straight line between the ends meets the limit: bytes are mostly linear.

    Args:
        weigh: A number to its bytes, which do not fall, and whether it fits.
        smallest: A number that fits.
        limit: Bytes about at which numbers cease to fit.

    >>> largest(lambda n: (n * n, n * n <= 2000), 1, 2000), largest(lambda n: (3 * n, 3 * n <= 2000), 1, 2000)
    ((44, 1936), (666, 1998))
    >>> largest(lambda n: (1, True), 1, 2000), largest(lambda n: (n // 2**20, True), 1, 2**9)
    (None, None)
    """
    low, below = smallest, weigh(smallest)[0]
    high, fewest, enough = 4 * max(1, smallest), below, GROWN * max(1, smallest)
    while (found := weigh(high))[1]:
        low, below = high, found[0]
        if 4 * high > MOST or (high >= enough and below == fewest):
            return None
        high *= 4
    above, straight = found[0], True
    while high - low > 1:
        middle = (low + high) // 2
        if straight and above > below:
            middle = low + (limit - below) * (high - low) // (above - below)
            middle = min(max(middle, low + 1), high - 1)
        total, fits = weigh(middle)
        low, below, high, above = (middle, total, high, above) if fits else (low, below, middle, total)
        straight = not straight
    return low, below


def fit_warnings(bills: Sequence[Bill], budget: Budget, signatures: Sequence[Signature], name: str) -> Iterator[str]:
    """Sentences on the end of the stream, for a learner that rehearses."""
    stored, classes = bills[-1].exemplars, signatures[-1].num_classes
    images = sum(sum(signature.counts.values()) for signature in signatures)
    limit = None if budget.limits is None else int(budget.limits[-1])
    if not budget.counts and limit is None:
        return
    if limit is not None and bills[-1].fixed[budget.convention] > limit:  # refused, with its bytes
        return
    counted = "exemplars" if budget.per_class is None else "per_class"
    asked = f"budget.{counted}={getattr(budget, counted)}" if limit is None else f"budget.limit={limit:,}"
    if stored < classes and 0 not in (budget.exemplars, budget.per_class):
        yield (
            f"{name}: {asked} leaves {stored} exemplars for {classes} classes after the last experience, so "
            f"{classes - stored} of them or more have none; raise it{f' to {classes} or more' if limit is None else ''}"
        )
    if stored >= images:
        yield f"{name}: {asked} does not bind, every one of {images:,} training images is kept; lower it"
    if limit is not None and stored:
        unused = 1 - bills[-1].total[budget.convention] / limit
        if unused >= MUCH:
            yield f"{name}: {unused:.0%} of {asked} is unused after the last experience; rivals may use it"
