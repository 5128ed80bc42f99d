"""The JSON Schema of ``record.json``: ``python -m cil.tracking.schema`` writes ``docs/record.schema.json``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

from cil import plugins
from cil.tracking.upgrades import SCHEMA_VERSION
from cil.tracking.validation import content_type

FILE = Path("docs/record.schema.json")


def record_schema(kinds: Iterable[str] = tuple(plugins.BUILT_IN["cil.kinds"])) -> dict[str, Any]:
    """One alternative for each kind of run and for whether it has finished; by default of the built-in kinds."""
    from pydantic import TypeAdapter

    found = [plugins.find("cil.kinds", name) for name in kinds]
    types = [content_type(kind, finished) for kind in found for finished in (True, False)]
    schema: dict[str, Any] = _without_titles(TypeAdapter(reduce(or_, types)).json_schema())
    for definition in schema["$defs"].values():
        if "schema_version" in definition["properties"]:
            definition["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "record.json of a run"}
    return about | schema


def _without_titles(schema: Any) -> Any:
    """Without the names of keys, written once more in capitals; a property that is called ``title`` stays."""
    if isinstance(schema, list):
        return [_without_titles(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _without_titles(value) for key, value in schema.items() if key != "title" or not isinstance(value, str)
    }


def main(arguments: list[str]) -> None:
    """Write the file; an argument says where."""
    path = Path(arguments[0]) if arguments else FILE
    path.write_text(json.dumps(record_schema(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
