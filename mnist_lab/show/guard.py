"""Which requests a server on this machine answers: those of its own pages, and of no other site's."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


def objection(method: str, headers: Mapping[str, str], host: str, ports: tuple[int, int]) -> str | None:
    """Return why a request must not be answered; None where it may.

    A page of another site can have the browser ask this server, and read the answer where the site's name points here
    (DNS rebinding). Another user of this machine can connect to it.

    Args:
        method: of HTTP.
        headers: Host, and Origin, Sec-Fetch-Site and Sec-Fetch-Mode where the browser has sent them.
        host: the address that the server listens on.
        ports: the client's, and the server's.
    """
    if _is_of_another_user(*ports):
        return "another user of this machine has asked for this"
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


def _is_of_another_user(client: int, server: int) -> bool:
    """Return whether a connection within this machine is made by another user than this one and root.

    Known only on Linux: `/proc/net/tcp` lists each connection's both ends with the user id of the process that has it.
    """
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            _, here, there, _, _, _, _, user, *_ = line.split()
            if (int(here[-4:], 16), int(there[-4:], 16)) == (client, server):
                return int(user) not in (0, os.getuid())
    return False


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
        ports = int(environ["REMOTE_PORT"]), int(environ["SERVER_PORT"])
        if (why := objection(environ["REQUEST_METHOD"], headers, host, ports)) is None:
            return application(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [why.encode()]

    return answer
