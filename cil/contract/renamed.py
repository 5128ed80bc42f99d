"""Old names of attributes: they work for one release and warn with the new name."""

from __future__ import annotations

import warnings
from typing import Any


def old_name(old: str, new: str) -> property:
    """An attribute ``old`` that is read and set as ``new``, with a warning.

    >>> class Renamed:
    ...     plain = 1
    ...     odd = old_name("odd", "plain")
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     Renamed().odd, str(caught[0].message)
    (1, 'odd is now called plain; the old name goes with the next release')
    """

    def read(self: Any) -> Any:
        warn_of(old, new)
        return getattr(self, new)

    def write(self: Any, value: Any) -> None:
        warn_of(old, new)
        setattr(self, new, value)

    return property(read, write)


def warn_of(old: str, new: str) -> None:
    """Say that a name has changed."""
    warnings.warn(f"{old} is now called {new}; the old name goes with the next release", DeprecationWarning, 3)
