"""Manifests on disk: those that come with the package and those of a user, read and written as YAML."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cil.errors import ConfigError, StreamError, nearest
from cil.streams.manifest import Manifest, as_mapping
from cil.streams.manifest_rules import errors_in, parse
from cil.values import home_path

MOST_VALUES = 1_000_000  # of a YAML file
SHIPPED = Path(__file__).parent / "manifests"


def to_yaml(manifest: Manifest) -> str:
    """The manifest as text that ``read_manifest`` reads back."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(as_mapping(manifest)), sort_keys=False)


def manifest_path(name: str | Path) -> Path:
    """A file, or the name of a manifest that comes with the package (``embedded_tasks``).

    Raises:
        ConfigError: where there is neither.
    """
    given = home_path(name)
    if given.is_file():
        return given
    shipped = SHIPPED / f"{given.name.removesuffix('.yaml')}.yaml"
    if len(given.parts) == 1 and shipped.is_file():
        return shipped
    known = [path.stem for path in SHIPPED.glob("*.yaml")]
    raise ConfigError(f"no manifest '{name}': neither a file nor one that is built in; {nearest(str(name), known)}")


def read_yaml(path: Path) -> Any:
    """The plain content of a YAML file; no objects, no code.

    Raises:
        StreamError: where it is no YAML.
    """
    from omegaconf import OmegaConf

    try:
        _refuse_aliases(path)
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except RecursionError:
        raise StreamError(f"{path} cannot be read as YAML: it is nested too deep, or an alias names itself") from None
    except Exception as error:  # the YAML library and OmegaConf have no common root
        raise StreamError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None


def _refuse_aliases(path: Path) -> None:
    """Refuse a file of a few lines that aliases make endless.

    Raises:
        StreamError: naming how many values it would have.
        RecursionError: where it names itself.
    """
    import yaml

    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if id(node) not in sizes:
            inside = [] if isinstance(node, yaml.ScalarNode) or node is None else node.value
            parts = [part for item in inside for part in (item if isinstance(item, tuple) else (item,))]
            sizes[id(node)] = 1 + sum(map(size, parts))
        return sizes[id(node)]

    many = size(yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader))
    if many > MOST_VALUES:
        raise StreamError(f"with its aliases written out it has {many:,} values; at most {MOST_VALUES:,} are read")


def read_manifest(name: str | Path) -> Manifest:
    """Read a manifest by file or by name, and check its structure.

    Raises:
        ConfigError: where there is no such file.
        StreamError: naming the first errors.
    """
    path = manifest_path(name)
    manifest, problems = parse(read_yaml(path))
    errors = [str(problem) for problem in errors_in(problems)]
    if manifest is None or errors:
        more = f"; and {len(errors) - 3} more" if len(errors) > 3 else ""
        raise StreamError(f"{path}: {'; '.join(errors[:3])}{more} (cil stream validate {name} lists all)")
    return replace(manifest, path=path)
