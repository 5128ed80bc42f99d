"""How a run is called on a dashboard: by method, stream, budget and seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def labels(identity: Mapping[str, Any], method: str) -> dict[str, Any]:
    """What runs are searched and grouped by.

    >>> labels({"stream": {"name": "digits", "fingerprint": "ab"}, "budget": {"exemplars": 50}, "seed": 3}, "icarl")
    {'method': 'icarl', 'stream_name': 'digits', 'budget_words': '50 exemplars', 'seed': 3, 'fingerprint': 'ab'}
    """
    stream = identity.get("stream") or {}
    scale = f", scale={identity['scale']}" if identity.get("scale") else ""
    return {
        "method": method,
        "stream_name": f"{stream.get('name', 'stream')}{scale}",
        "budget_words": budget_label(identity.get("budget") or {}),
        "seed": identity.get("seed"),
        "fingerprint": stream.get("fingerprint"),
    }


def budget_label(budget: Mapping[str, Any]) -> str:
    """A budget in a few words, different for different budgets.

    >>> budget_label({"limits": [4000, 8000], "convention": "survey", "kind": "aligned", "to": "der"})
    '8,000 bytes (survey), as der'
    >>> budget_label({"limits": [8000], "kind": "aligned", "to": "der", "exemplars": 200})
    '8,000 bytes (exact), as der with 200 exemplars'
    >>> budget_label({})
    'no budget'
    """
    words = {"exemplars": "exemplars", "per_class": "exemplars a class", "flops": "FLOPs", "updates": "updates"}
    counted = {key: f"{budget[key]:,} {what}" for key, what in words.items() if budget.get(key) is not None}
    parts = []
    if budget.get("limits"):
        convention, to = budget.get("convention") or "exact", ""
        if budget.get("kind") == "aligned":
            of_that_one = counted.pop("exemplars", None)
            to = f", as {budget['to']}" + (f" with {of_that_one}" if of_that_one else "")
        parts.append(f"{budget['limits'][-1]:,} bytes ({convention}){to}")
    parts += counted.values()
    parts += [f"{name} up to {limit:,}" for name, limit in (budget.get("caps") or {}).items()]
    return ", ".join(parts) or "no budget"
