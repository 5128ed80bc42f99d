"""Blurry streams: some classes in one experience alone, the others spread over all of them; and the builder of all
streams that deal out a data set by a plan of arrival."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from cil.data import Dataset
from cil.errors import StreamError
from cil.streams.base import Stream
from cil.streams.image_pool import Rows, generator, image_pool
from cil.streams.options import MOST_EXPERIENCES, SplitOptions, accepts, check_integers, take
from cil.streams.registry import register_stream


class Arrival(Protocol):
    """Plan that says which image comes in which experience, and in which order."""

    @property
    def name(self) -> str:
        """Part of the name of the stream."""
        ...

    def deal(self, slots: Rows, num_classes: int, experiences: int, seed: int) -> list[Rows]:
        """Deal images out.

        Args:
            slots: (n,) place in the class order of each image.

        Returns:
            Row numbers of each experience in order of arrival, no image twice.

        Raises:
            CilError: where the plan does not fit the classes.
        """
        ...


@register_stream("blurry")
@accepts(SplitOptions)
def blurry(dataset: str | Sequence[Any] | Dataset, *, experiences: int, arrival: Arrival, **options: Any) -> Stream:
    """Deal out a data set so that classes re-appear. Images come in the order in which they arrive.

    An experience is a declared interval of the stream: a learner has outputs for all its classes from its start.
    Slots are numbered in the order in which classes are first met. Test data, and held-out training images, of a class
    belong to the experience that is the first to have an image of it: after each experience the accuracy is that on all
    classes exposed so far, and R[i, j] is on the classes first met in j.

    Args:
        dataset: A name that ``cil.data.load_dataset`` knows, or a data set.
        experiences: Number of intervals.
        arrival: ``IBlurry``, ``SiBlurry``, ``Gaussian``, ``Repetition``, ``LongTailed``, or another ``Arrival``.
        options: Fields of ``SplitOptions``, whose ``order_seed`` also draws what is dealt out and whose validation
            images are set apart before; and options of a data set that is given by name.

    Raises:
        CilError: as ``class_incremental`` does, and where the plan does not fit the classes.
    """
    check_integers(1, MOST_EXPERIENCES, experiences=experiences)
    chosen = take(SplitOptions, options)
    pool = image_pool(dataset, chosen, options)
    rows = arrival.deal(pool.slots, pool.num_classes, experiences, chosen.order_seed)
    return pool.deal(rows, f"{pool.name}_{arrival.name}_t{experiences}", repr(arrival))


@dataclass(frozen=True)
class _DisjointAndBlurry:
    """N % of the classes are disjoint, the others blurry; M % of the images of those leak to other experiences."""

    disjoint: int = 50
    leaking: int = 10
    prefix: ClassVar[str]

    def __post_init__(self) -> None:
        check_integers(0, 100, **{"arrival.disjoint": self.disjoint, "arrival.leaking": self.leaking})

    @property
    def name(self) -> str:
        return f"{self.prefix}{self.disjoint}-{self.leaking}"


@dataclass(frozen=True)
class IBlurry(_DisjointAndBlurry):
    """i-Blurry-N-M: N % of the classes disjoint, the rest blurry; M % of the images of those leak to other experiences.

    Args:
        disjoint: N, 0 to 100. With 100 this is the ordinary split.
        leaking: M, 0 to 100. With ``disjoint`` 0 and this 100, each experience is a mix of everything.

    Source: Koh, Kim, Ha, Choi. ICLR 2022, arXiv:2110.10031. Departures from the code: classes that do not divide evenly
    are refused, not dropped; images that leak are drawn at random and not the first of the file; the remainder of the
    pool is given out too.
    """

    prefix = "iblurry"

    def deal(self, slots: Rows, num_classes: int, experiences: int, seed: int) -> list[Rows]:
        disjoint, blurry = class_groups(num_classes, experiences, self.disjoint)
        sizes = [[many // experiences] * experiences for many in (disjoint, blurry)]
        main, is_blurry, draws = _main_experiences(sizes), slots >= disjoint, generator(seed, 1)
        own = [draws.permutation(np.flatnonzero(is_blurry & (main[slots] == e))) for e in range(experiences)]
        given = [len(rows) * self.leaking // 100 for rows in own]
        each, rest = divmod(sum(given), experiences)
        taken = [each + (e < rest) for e in range(experiences)]
        return _exchange(slots, main, is_blurry, own, given, taken, draws)


@dataclass(frozen=True)
class SiBlurry(_DisjointAndBlurry):
    """Si-Blurry-N-M: as i-Blurry, with groups of random size, and random numbers of images that leak.

    An experience may have no class of its own. It gives as many images to the pool as it takes from it.

    Args:
        disjoint, leaking: N and M of ``IBlurry``; M % of all blurry images leak, or fewer where the number that an
            experience shall give is more than it has.

    Source: Moon, Park, Kim, Park. ICCV 2023, arXiv:2308.09303; departures as in ``IBlurry``.
    """

    prefix = "siblurry"

    def deal(self, slots: Rows, num_classes: int, experiences: int, seed: int) -> list[Rows]:
        groups, draws = class_groups(num_classes, experiences, self.disjoint), generator(seed, 2)
        main = _main_experiences([cut_at_random(many, experiences, draws) for many in groups])
        is_blurry = slots >= groups[0]
        own = [draws.permutation(np.flatnonzero(is_blurry & (main[slots] == e))) for e in range(experiences)]
        wanted = cut_at_random(int(is_blurry.sum()) * self.leaking // 100, experiences, draws)
        given = [min(many, len(rows)) for many, rows in zip(wanted, own, strict=True)]
        return _exchange(slots, main, is_blurry, own, given, given, draws)


def class_groups(num_classes: int, experiences: int, disjoint: int) -> tuple[int, int]:
    """Disjoint and blurry classes: n_d = floor(floor(K N / 100) / T) T, and the rest.

    >>> class_groups(10, 5, 50), class_groups(100, 5, 50), class_groups(100, 10, 25)
    ((5, 5), (50, 50), (20, 80))

    Raises:
        StreamError: where the rest does not divide evenly either, as the reference code would leave classes out.
    """
    first = num_classes * disjoint // 100 // experiences * experiences
    rest = num_classes - first
    if experiences > num_classes:
        raise StreamError(f"stream.experiences is {experiences}; {num_classes} classes are for at most {num_classes}")
    if rest % experiences:
        raise StreamError(
            f"{num_classes} classes do not divide into stream.experiences={experiences} equal groups; set "
            f"stream.classes to a multiple of it, as {num_classes // experiences * experiences}, or change "
            f"stream.experiences"
        )
    return first, rest


def cut_at_random(many: int, parts: int, draws: np.random.RandomState) -> list[int]:
    """Sizes of parts, some of them 0, between ``parts`` - 1 sorted places that are uniform in 0 to ``many`` - 1."""
    places = np.sort(draws.randint(0, many, parts - 1)) if many else np.zeros(parts - 1, np.int64)
    sizes: list[int] = np.diff(places, prepend=0, append=many).tolist()
    return sizes


def _main_experiences(sizes: Sequence[Sequence[int]]) -> Rows:
    """The main experience of each class: disjoint classes, then blurry ones."""
    return np.concatenate([np.repeat(np.arange(len(own)), own) for own in sizes])


def _exchange(
    slots: Rows, main: Rows, is_blurry: Rows, own: Sequence[Rows], given: Sequence[int], taken: Sequence[int],
    draws: np.random.RandomState,
) -> list[Rows]:  # fmt: skip
    """Disjoint images, the blurry ones that are kept and a share of the pool, shuffled within each experience.

    Args:
        main: Experience of each class.
        is_blurry: True for images of a blurry class.
        own: Rows of the blurry images of each experience, shuffled.
        given, taken: Number of images that each experience gives to the pool and takes from it.
    """
    pool = draws.permutation(np.concatenate([rows[:many] for rows, many in zip(own, given, strict=True)]))
    shares = np.split(pool, np.cumsum(taken)[:-1])
    disjoint = [np.flatnonzero(~is_blurry & (main[slots] == e)) for e in range(len(own))]
    return [draws.permutation(np.concatenate([disjoint[e], own[e][given[e] :], shares[e]])) for e in range(len(own))]
