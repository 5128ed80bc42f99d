"""The survey's memory arithmetic (Zhou et al. 2024, section 5 and supplement): parameters against exemplars.

All sizes in bytes; one parameter is four bytes, one exemplar its raw pixels. The difference is converted first and
floored once.
"""

from __future__ import annotations

from collections.abc import Sequence

MIB = 2**20
FLOAT = 4


def exemplars_for(parameters: int, image_bytes: int) -> int:
    """Whole exemplars that weigh no more than so many parameters.

    >>> exemplars_for(463_504, 3 * 32 * 32)
    603
    """
    return FLOAT * parameters // image_bytes


def aligned_to_der(
    backbone: int, image_bytes: int, tasks: int, *, base: int = 2000, split: tuple[int, int] | None = None
) -> int:
    """Exemplars that bring a method to the size of DER with ``base`` exemplars at the end of the stream.

    Args:
        backbone: Parameters P of the benchmark backbone; DER has ``tasks`` of them.
        split: None for a method of one backbone; (g, s) for MEMO, which has g + s * tasks parameters.

    Source: Zhou et al. 2024, memory-aligned comparison.

    >>> aligned_to_der(463_504, 3072, 10), aligned_to_der(463_504, 3072, 10, split=(112_016, 351_488))
    (7431, 3312)
    """
    own = backbone if split is None else split[0] + tasks * split[1]
    return base + exemplars_for(backbone * tasks - own, image_bytes)


def budget_point(
    backbone: int, small: int, split: tuple[int, int], image_bytes: int, tasks: int, *, base: int = 2000
) -> dict[str, int]:
    """One point of the performance-memory curve: total bytes, and exemplars of single-network methods, DER and MEMO.

    Where T copies of the small backbone are lighter than one benchmark backbone (the smallest point), the benchmark
    backbone is the model budget; else the T copies are. Source: Zhou et al. 2024, supplement.
    """
    model = max(backbone, tasks * small)
    return {
        "bytes": FLOAT * model + base * image_bytes,
        "single": base + exemplars_for(model - backbone, image_bytes),
        "der": base + exemplars_for(model - tasks * small, image_bytes),
        "memo": base + exemplars_for(model - split[0] - tasks * split[1], image_bytes),
    }


def num_tasks(classes: int, base: int, increment: int) -> int:
    """Experiences of B-base Inc-increment; a remainder is one last, smaller one."""
    rest = classes - base
    return (1 if base else 0) + -(-rest // increment)


def equal_quota_totals(slots: int, class_counts: Sequence[Sequence[int]]) -> list[int]:
    """Exemplars stored after each experience: the sum over classes of min(floor(slots / C), images of the class).

    Args:
        slots: Exemplars allowed in all.
        class_counts: Training images of the classes that arrive, for each experience.

    >>> equal_quota_totals(7431, [[500] * 10] * 3)
    [5000, 7420, 7410]
    """
    totals, seen = [], []
    for counts in class_counts:
        seen += list(counts)
        totals.append(sum(min(slots // len(seen), count) for count in seen))
    return totals
