"""Which requests a server on this machine answers: those of its own pages, and of no other site's."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit


def objection(method: str, headers: Mapping[str, str], host: str) -> str | None:
    """Return why a request must not be answered; None where it may.

    A page of another site can have the browser ask this server, and read the answer where the site's name points here
    (DNS rebinding).

    Args:
        method: of HTTP.
        headers: Host, and Origin, Sec-Fetch-Site and Sec-Fetch-Mode where the browser has sent them.
        host: the address that the server listens on.
    """
    asked = headers.get("Host", "")
    name = asked[1:].partition("]")[0] if asked.startswith("[") else asked.partition(":")[0]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        if name.lower() not in ("localhost", host.lower(), socket.gethostname().lower()):
            return f"this is {host}, not {name or 'nothing'}"
    origin, site = headers.get("Origin"), headers.get("Sec-Fetch-Site", "none")
    followed_link = method in ("GET", "HEAD") and headers.get("Sec-Fetch-Mode") == "navigate"
    if (origin is not None and urlsplit(origin).netloc != asked) or (
        site not in ("same-origin", "none") and not followed_link
    ):
        return f"a page of another site, {origin or site}, has asked for this"
    return None


def guarded(application: Callable[..., Iterable[bytes]], host: str) -> Callable[..., Iterable[bytes]]:
    """Return a WSGI application that refuses what has an `objection`, with status 403.

    Args:
        application: answers the other requests.
        host: the address that the server listens on.
    """

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        names = ("Host", "Origin", "Sec-Fetch-Site", "Sec-Fetch-Mode")
        keys = {name: f"HTTP_{name.upper().replace('-', '_')}" for name in names}
        headers = {name: environ[key] for name, key in keys.items() if key in environ}
        if (why := objection(environ["REQUEST_METHOD"], headers, host)) is None:
            return application(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [why.encode()]

    return answer
