"""GET /docs: openapi.json as a page for readers, without scripts."""

from __future__ import annotations

from flask import Blueprint, Response, render_template, request

from service.routes.fixed import FixedAnswer
from service.routes.openapi_schemas import Schema
from service.routes.reference_model import error_codes, named_schemas, sections
from service.routes.reference_words import marked
from service.version import VERSION

HEADERS = {
    # Its own style sheet and icon, and nothing else: nothing runs, nobody frames it.
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


def reference_routes(document: Schema) -> Blueprint:
    """The route of the page, which is made when it is asked for first."""
    routes = Blueprint("reference", __name__, template_folder="templates")
    made: list[FixedAnswer] = []

    @routes.get("/docs")
    def reference() -> Response:
        """The page."""
        if not made:
            made.append(FixedAnswer(_page(document), "text/html; charset=utf-8", HEADERS))
        return made[0].to(request)

    return routes


def _page(document: Schema) -> str:
    return render_template(
        "reference.html",
        document=document,
        version=VERSION,
        sections=sections(document),
        logins=document["components"]["securitySchemes"],
        schemas=named_schemas(document),
        codes=error_codes(document),
        marked=marked,
    )
