"""GET /, /dashboard and /static: the demo page and the dashboard."""

from __future__ import annotations

from pathlib import Path

from flask import Blueprint, Response, send_from_directory

from service.errors import BadRequest

STATIC = Path(__file__).resolve().parents[2] / "static"

PAGE_HEADERS = {
    # The page loads its own files only and can't be framed; nothing inline runs.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
}


def page_routes() -> Blueprint:
    """The pages and their files. No secret is in them: the dashboard streams what it shows."""
    routes = Blueprint("page", __name__)

    @routes.get("/")
    def demo() -> Response:
        """The demo page."""
        return _file("index.html")

    @routes.get("/dashboard")
    def dashboard() -> Response:
        """The dashboard."""
        return _file("dashboard.html")

    @routes.get("/static/<path:name>")
    def static_file(name: str) -> Response:
        """A file of a page."""
        return _file(name)

    @routes.after_request
    def harden(response: Response) -> Response:
        response.headers.update(PAGE_HEADERS)
        return response

    return routes


def _file(name: str) -> Response:
    try:
        return send_from_directory(STATIC, name)
    except OverflowError:  # Werkzeug reads If-Modified-Since and If-Range
        raise BadRequest("the year of a date in the headers is out of range") from None
