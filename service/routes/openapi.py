"""GET /openapi.json: the interface as OpenAPI 3.1, made of what the routes themselves use."""

from __future__ import annotations

import json
from collections.abc import Mapping

from flask import Blueprint, Response, request

from service.routes.fixed import FixedAnswer
from service.routes.openapi_answers import problem_schema, problems, told
from service.routes.openapi_audience import audience_operations, audience_schemas
from service.routes.openapi_facts import Facts, security_schemes
from service.routes.openapi_operations import Operation, operations
from service.routes.openapi_schemas import Schema, schemas

VERSION = "1"
"""Of the interface: it changes with what old clients can't live with."""

DESCRIPTION = (
    "Errors are `application/problem+json` (RFC 9457) with a stable `code`. When no stream can be"
    " opened, a client that accepts `text/event-stream` gets 200, a `retry:` and the end. What is"
    " not HTTP is `bad_request` with 400, 417 or 501. `OPTIONS` answers preflights."
    " Every answer to HTTP has a header `X-Request-Id`, by which the log tells of it."
)


def openapi_routes(document: Schema) -> Blueprint:
    """The route of the document."""
    routes = Blueprint("openapi", __name__)
    text = json.dumps(document, separators=(",", ":")) + "\n"
    answer = FixedAnswer(text, "application/json")

    @routes.get("/openapi.json")
    def openapi() -> Response:
        """The document."""
        return answer.to(request)

    return routes


def document(facts: Facts) -> Schema:
    """The whole interface."""
    paths: dict[str, Schema] = {}
    for one in (*operations(facts), *audience_operations(facts)):
        method, _, path = one.route.partition(" ")
        at = paths.setdefault(path, {})
        at[method.lower()] = _operation(one)
        if method == "GET":
            at["head"] = _head(one)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Pushline", "version": VERSION, "description": DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": {
                **schemas(facts.max_event_bytes),
                **audience_schemas(),
                "Problem": problem_schema(),
            },
            "responses": dict(problems()),
            "securitySchemes": security_schemes(facts.cookie_name),
        },
    }


def _operation(one: Operation) -> Schema:
    made: Schema = {
        "operationId": one.name,
        "tags": [one.tag],
        "summary": one.summary,
        "security": list(one.security),
        "parameters": list(one.parameters),
        "requestBody": one.body,
        "responses": _responses({**dict(told(one.errors)), **one.answers}),
    }
    return {name: value for name, value in made.items() if value is not None}


def _head(one: Operation) -> Schema:
    """What GET says, without the body."""
    answers = {
        **dict(told(one.errors if one.head_errors is None else one.head_errors)),
        **one.answers,
    }
    return {
        **_operation(one),
        "operationId": f"{one.name}Head",
        "summary": f"The headers of GET: {one.summary}",
        "responses": _responses(
            {status: {"description": answer["description"]} for status, answer in answers.items()}
        ),
    }


def _responses(answers: Mapping[int, Schema]) -> Schema:
    return {str(status): answers[status] for status in sorted(answers)}
