"""The headers that every answer but a stream has, so that browsers make nothing else of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Response

HEADERS = {
    # An answer is of the type that it says, whatever it looks like.
    "X-Content-Type-Options": "nosniff",
    # No other site learns an address: a ticket may stand in it.
    "Referrer-Policy": "no-referrer",
    # No page of another site embeds it, to learn from its size or status.
    "Cross-Origin-Resource-Policy": "same-origin",
    # It is no page: nothing in it runs or loads, and nobody frames it. The demo page has its own.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}

STREAM_TYPE = "text/event-stream"
"""The table of streams is in routes/stream.py."""


def harden(response: Response) -> Response:
    """Add what `response` has not said otherwise."""
    if response.mimetype != STREAM_TYPE:
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
    return response
