"""Serve the page of a run, an atlas, a comparison or a publication to the browsers of this machine."""

from __future__ import annotations

import os
import shutil
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from captum_mfv.errors import RunError
from captum_mfv.storage.untrusted import inside, is_file, read_json

__all__ = ["Site", "find_site", "serve"]

_HOST = "127.0.0.1"
_NAMES = (_HOST, "localhost")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json; charset=utf-8",
    ".png": "image/png",
    ".webp": "image/webp",
}
"""Content type by suffix; files of other types are not served."""

_HEADERS = {
    "Cache-Control": "no-cache",
    "Cross-Origin-Resource-Policy": "same-origin",  # other sites' pages can't embed the files
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_SECONDS = 30  # that a connection may be idle


@dataclass(frozen=True)
class Site:
    """A folder's files that are served, and the page among them.

    Args:
        folder: its files alone are served.
        page: the page's name in the folder.
        alone: serve no file but the page.
    """

    folder: Path
    page: str
    alone: bool = False

    def find(self, target: str) -> Path | None:
        """Return the file of a request's target, None if there is none to be served."""
        try:
            name = unquote(urlsplit(target).path).removeprefix("/") or self.page
            parts = name.replace("\\", "/").split("/")
            hidden = any(part.startswith(".") or not part for part in parts)
            if hidden or Path(name).suffix not in _TYPES or (self.alone and name != self.page):
                return None
            found = inside(self.folder, name)
        except (OSError, ValueError):
            return None
        return found if is_file(found) else None


def find_site(folder: str | os.PathLike[str]) -> Site:
    """Return what is served of a folder.

    Raises:
        RunError: if the folder holds no run, atlas, comparison or publication, or its page is missing.
    """
    path = Path(folder)
    kinds = {_kind(path, name) for name in ("publication.json", "manifest.json")}
    if kinds & {"publication", "atlas"}:
        site, remedy = Site(path, "index.html"), "captum-mfv report writes it"
    elif "run" in kinds:
        site, remedy = Site(path, "report.html", alone=True), "rerun the command that started the run"
    else:  # the folder may hold anything else too
        site = Site(path, "compare.html", alone=True)
        remedy = "a run, an atlas, a comparison (compare.html) or a publication can be viewed"
    if site.find("/") is None:
        raise RunError(f"{path} has no {site.page}; {remedy}")
    return site


def _kind(folder: Path, name: str) -> str | None:
    """Return what a folder holds, by its manifest or record; None if that can't be read."""
    try:
        record = read_json(inside(folder, name))
        return str(record.get("kind", "run")) if "format" in record else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


class _Server(socketserver.ThreadingTCPServer):
    """A server of this machine's browsers; http.server's own looks up the machine's name."""

    allow_reuse_address = os.name == "posix"  # elsewhere, another program could take over the port
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that the browser closed; a server must not print to a terminal that shows its address."""


@contextmanager
def serve(site: Site, port: int = 0) -> Iterator[str]:
    """Serve files on 127.0.0.1 and yield the address; the server ends with the context.

    Args:
        site: what is served.
        port: the port; 0: any that is free.

    Raises:
        RunError: if the port can't be used.
    """

    class Handler(_Handler):
        served = site

    try:
        server = _Server((_HOST, port), Handler)
    except OSError as error:
        raise RunError(f"port {port} can't be used: {error}; --port 0 takes any that is free") from error
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    try:
        yield f"http://{_HOST}:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    """Answer GET and HEAD with files of a site."""

    served: Site
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "captum-mfv", ""
    timeout = _SECONDS

    def do_GET(self) -> None:
        """Send a file."""
        self._send(body=True)

    def do_HEAD(self) -> None:
        """Send the headers of a file."""
        self._send(body=False)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def _send(self, *, body: bool) -> None:
        port = f":{self.connection.getsockname()[1]}"
        hosts = [host.removesuffix(port) for host in self.headers.get_all("Host") or ()]
        if len(hosts) != 1 or hosts[0] not in _NAMES:
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST)  # a page of another site whose name leads here
            return
        path = self.served.find(self.path)
        if path is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        with path.open("rb") as file:
            self.send_response(HTTPStatus.OK)
            self._head(_TYPES[path.suffix], os.fstat(file.fileno()).st_size)
            if body:
                shutil.copyfileobj(file, self.wfile)

    def _refuse(self, status: HTTPStatus) -> None:
        self.send_response(status)
        self._head("text/plain; charset=utf-8", 0)

    def _head(self, kind: str, length: int) -> None:
        for name, value in {"Content-Type": kind, "Content-Length": str(length), **_HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
