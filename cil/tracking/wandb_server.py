"""The server of wandb: its key, and if it can be reached; known in seconds, without asking anybody."""

from __future__ import annotations

import netrc
import os
import socket
import threading
from contextlib import suppress
from pathlib import Path
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

SECONDS = 5.0  # to reach it, names included
_PORTS = {"http": 80, "https": 443}


def server() -> SplitResult:
    return urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))


def has_key() -> bool:
    """True if wandb would find a key without asking for one."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = server().netloc
    named = os.environ.get("NETRC")
    for path in [Path(named).expanduser()] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            if netrc.netrc(str(path)).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def reachable(seconds: float = SECONDS) -> bool:
    """True if something listens at the server, or at the proxy on the way to it."""
    place = server()
    proxy = getproxies().get(place.scheme)
    if proxy and not proxy_bypass(place.hostname or ""):
        place = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    found: list[bool] = []

    def ask() -> None:
        with suppress(OSError, ValueError):
            port = place.port or _PORTS.get(place.scheme, 80)
            socket.create_connection((place.hostname or "", port), timeout=seconds).close()
            found.append(True)

    asking = threading.Thread(target=ask, daemon=True)  # looking up a name knows no limit of its own
    asking.start()
    asking.join(seconds)
    return bool(found)
