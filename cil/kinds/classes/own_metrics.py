"""Metrics that other packages bring: from the accuracy matrix of a run to one number, by name."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np

from cil import plugins
from cil.errors import in_words

GROUP = "cil.metrics"
_say = logging.getLogger("cil.kinds")


def own_metrics(matrix: Any) -> dict[str, float | None]:
    """What each metric of another package says of a run; None where it is undefined, or fails.

    A metric is a function of the matrix R, (T, T) percent with NaN where an experience was not evaluated, to a number.
    One that fails is named in a warning with its line: a run that was trained is not lost to it.
    """
    found: dict[str, float | None] = {}
    for name in plugins.names(GROUP):
        try:
            value = float(plugins.find(GROUP, name)(np.array(matrix, dtype=float)))
        except Exception as error:  # whatever a function of others raises
            _say.warning(f"the metric {name} is left out: {in_words(error)}")
            value = math.nan
        found[name] = value if math.isfinite(value) else None
    return found
