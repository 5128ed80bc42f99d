"""``cil list``: what there is, and where it is from."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from cil.cli.names import KINDS, known
from cil.errors import ConfigError, nearest

HELP = f"""
usage: cil list [{" | ".join(KINDS)}]

Names that the configuration takes, and who brings them: what is built in, and the packages that are installed beside.
Any timm model is known too: model=timm model.name=timm:NAME; CLIP: model=clip model.name=clip:ARCHITECTURE/TAG.
"""


def main(arguments: Sequence[str]) -> int:
    """Print the names."""
    for kind in arguments:
        if kind not in KINDS:
            raise ConfigError(f"cil list has no kind '{kind}'; {nearest(kind, KINDS)}")
    columns = shutil.get_terminal_size((160, 24)).columns
    for kind in arguments or KINDS:
        print(kind)
        found = known(kind)
        wide = max(map(len, found), default=0)
        mine = max((len(item.origin) for item in found.values()), default=0)
        for name, item in found.items():
            print(f"  {name.ljust(wide)}  {item.origin.ljust(mine)}  {item.about}".rstrip()[:columns])
    return 0
