"""Follows runs while they are made: the page is written anew, or served on this machine, when a record has changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cil.errors import CilError, ConfigError
from cil.report.runs import run_directories
from cil.tracking.files import RECORD

PAUSE = 2.0  # seconds between two looks at the records
RELOAD = 10  # seconds after which a browser asks again
HOST = "127.0.0.1"  # no other machine reaches it


def follow(paths: Sequence[Path], make: Callable[[], None], pause: float = PAUSE, rounds: int | None = None) -> None:
    """Call ``make`` at once, and again whenever a record has changed, until Ctrl-C.

    Args:
        rounds: Looks at the records; None for no end.
    """
    before: set[tuple[Path, int]] | None = None
    done = 0
    while rounds is None or done < rounds:
        time.sleep(pause if done else 0)
        records = [directory / RECORD for path in paths for directory in run_directories(path)]
        now = {(record, record.stat().st_mtime_ns) for record in records}
        if now != before:
            make()
        before, done = now, done + 1


@contextmanager
def served(page: Callable[[], bytes], port: int) -> Iterator[str]:
    """Serve one page on this machine while the block runs; browsers ask for it again every few seconds.

    Args:
        port: 0 for any that is free.

    Yields:
        Its address.

    Raises:
        ConfigError: where the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path in ("/", "/index.html")
            data = page() if found else b"there is one page, at /\n"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8" if found else "text/plain")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cache-Control", "no-store")
            if found:
                self.send_header("Refresh", str(RELOAD))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """The terminal stays quiet."""

    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--serve {port} cannot be used ({error}); choose another port, or 0 for any") from error
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


def waiting_page(error: CilError) -> bytes:
    """What is served while there is nothing to report."""
    from html import escape

    return f"<!DOCTYPE html><title>cil report</title><p>{escape(str(error))}</p>".encode()
