"""The survey's memory arithmetic (Zhou et al. 2024, section 5 and supplement): parameters against exemplars.

All sizes in bytes; one parameter is four bytes, one exemplar its raw pixels. The difference is converted first and
floored once.
"""

from __future__ import annotations

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
