"""Which streams are compressed, and what their answers say of it (RFC 9110, section 12.5.3)."""

from __future__ import annotations

import functools

from werkzeug.datastructures import Accept
from werkzeug.http import parse_accept_header
from werkzeug.wrappers import Request

from service.routes.headers import header

STRICT_CLIENTS = (
    "Go-http-client/",
    "okhttp/",
    "Ruby",
    "Apache-HttpClient/",
    "Deno/",
    "Bun/",
    "got (",
)
"""User agents of libraries that accept gzip without being told to, and take the end of a stream
without a gzip trailer for an error: docs/decisions.md has the evidence."""

RUBY = "gzip;q=1.0,deflate;q=0.6,identity;q=0.3"
"""What Ruby's Net::HTTP accepts, also for libraries that give it another name."""


def accepts_gzip(request: Request) -> bool:
    """Whether the client prefers gzip to plain text, and takes a stream's end for an end."""
    accepted = header(request, "Accept-Encoding")
    if not accepted:
        return False
    forwarded = any(header(request, name) for name in ("Via", "X-Forwarded-For", "Forwarded"))
    return _takes_gzip(accepted, header(request, "User-Agent") or "", forwarded)


@functools.lru_cache(maxsize=1000)
def _takes_gzip(accepted: str, agent: str, forwarded: bool) -> bool:
    if agent.startswith(STRICT_CLIENTS) or accepted == RUBY:
        return False
    if forwarded and accepted == "gzip":
        return False  # a proxy in Go, such as Caddy, asks for itself, whatever its client takes
    codings = parse_accept_header(accepted, Accept)
    return "gzip" in accepted.lower() and codings.best_match(["gzip", "identity"]) == "gzip"


def coding_headers(gzip: bool) -> dict[str, str]:
    """What the answer to a request says that might have been answered with gzip."""
    return {**({"Content-Encoding": "gzip"} if gzip else {}), "Vary": "Accept-Encoding"}


def joined_headers(*tables: dict[str, str]) -> dict[str, str]:
    """All of `tables`; what answers vary by is joined."""
    varying = [table["Vary"] for table in tables if "Vary" in table]
    vary = {"Vary": ", ".join(varying)} if varying else {}
    return {name: value for table in (*tables, vary) for name, value in table.items()}
