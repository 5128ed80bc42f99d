"""Records of earlier versions, brought up to the one that is written today. Each step is one function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

SCHEMA_VERSION = 2


def upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a ``record.json`` as this version writes it. What is no record stays as it is.

    Args:
        content: With a ``schema_version`` that ``UPGRADES`` knows, or the one of today.
    """
    for version in range(content["schema_version"], SCHEMA_VERSION):
        content = UPGRADES[version](content) | {"schema_version": version + 1}
    return content


def _say_the_kind(content: dict[str, Any]) -> dict[str, Any]:
    """Version 1 to 2: ``identity.kind`` of every run, and what the first releases did not write."""
    identity, results = content.get("identity"), content.get("results")
    if isinstance(identity, dict):
        stream, budget = identity.get("stream"), identity.get("budget")
        told = (isinstance(stream, dict) and stream.get("tasks")) or (isinstance(results, dict) and "events" in results)
        identity = {"kind": "tasks" if told else "classes", **identity}
        if isinstance(budget, dict):
            identity["budget"] = {"flops": None, "updates": None, **budget}
    if isinstance(results, dict) and "given_up" in results:  # a strategy's
        results = {"peak_parameters": None, **results}
    return {**content, "identity": identity, "results": results}


UPGRADES: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _say_the_kind}
