"""What the page at /docs shows: the parts of openapi.json in a reader's order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from service.routes.openapi_schemas import Schema
from service.routes.reference_curl import commands, examples
from service.routes.reference_words import about, kind

METHODS = ("get", "post", "put", "delete")
"""In this order; HEAD stands with GET."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of a table: a parameter, a member of an object or a header. Texts have markup."""

    name: str
    kind: str
    about: str
    needed: bool = False
    place: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a status means; `codes` are those of errors that it may have."""

    status: str
    about: str
    types: tuple[str, ...] = ()
    schemas: tuple[str, ...] = ()
    headers: tuple[Row, ...] = ()
    codes: tuple[str, ...] = ()
    example: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An operation."""

    name: str
    method: str
    path: str
    summary: str
    head: str
    logins: tuple[str, ...]
    parameters: tuple[Row, ...]
    body: str
    bodies: tuple[tuple[str, str], ...]
    answers: tuple[Answer, ...]
    commands: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedSchema:
    """A schema of the document, with its members if it is an object."""

    name: str
    kind: str
    about: str
    members: tuple[Row, ...]


def sections(document: Schema) -> dict[str, list[Entry]]:
    """The operations by tag, as the document has them."""
    found: dict[str, list[Entry]] = {}
    for path, methods in document["paths"].items():
        for method in METHODS:
            if method in methods:
                entry = _entry(path, method, methods)
                found.setdefault(methods[method]["tags"][0], []).append(entry)
    return found


def _entry(path: str, method: str, methods: Schema) -> Entry:
    operation = methods[method]
    body = operation.get("requestBody", {})
    return Entry(
        name=operation["operationId"],
        method=method.upper(),
        path=path,
        summary=operation["summary"],
        head=methods["head"]["operationId"] if method == "get" else "",
        logins=tuple(name or "nothing" for name in _logins(operation)),
        parameters=tuple(map(_parameter, operation["parameters"])),
        body=body.get("description", ""),
        bodies=tuple(
            (media_type, kind(content["schema"]))
            for media_type, content in body.get("content", {}).items()
        ),
        answers=tuple(_answers(operation)),
        commands=tuple(commands(method.upper(), path, operation)),
    )


def _logins(operation: Schema) -> Iterator[str]:
    """The credentials of which one is wanted; an empty one stands for none."""
    for one in operation["security"]:
        yield next(iter(one), "")


def _parameter(parameter: Schema) -> Row:
    schema = parameter["schema"]
    told = [parameter.get("description", ""), about(schema)]
    return Row(
        name=parameter["name"],
        kind=kind(schema),
        about=". ".join(filter(None, told)),
        needed=parameter.get("required", False),
        place=parameter["in"],
    )


def _answers(operation: Schema) -> Iterator[Answer]:
    for status, answer in operation["responses"].items():
        if "$ref" in answer:
            codes = tuple(answer["description"].replace("`", "").split(", "))
            yield Answer(status=status, about="", codes=codes)
            continue
        contents = answer.get("content", {})
        schemas = dict.fromkeys(kind(one["schema"]) for one in contents.values())
        shown = [one for content in contents.values() for one in examples(content)]
        yield Answer(
            status=status,
            about=answer["description"],
            types=tuple(contents),
            schemas=tuple(schemas),
            headers=tuple(
                Row(name=name, kind=kind(one["schema"]), about=one.get("description", ""))
                for name, one in answer.get("headers", {}).items()
            ),
            example=_shown(shown[0]) if shown else "",
        )


def _shown(example: Any) -> str:
    return example.rstrip() if isinstance(example, str) else json.dumps(example, indent=2)


def named_schemas(document: Schema) -> list[NamedSchema]:
    """The schemas that have names."""
    return [
        NamedSchema(
            name=name,
            kind=kind(schema),
            about=about(schema),
            members=tuple(_members(schema)),
        )
        for name, schema in document["components"]["schemas"].items()
    ]


def _members(schema: Schema, prefix: str = "") -> Iterator[Row]:
    """The members of an object, and of the objects in its lists."""
    for name, member in schema.get("properties", {}).items():
        yield Row(
            name=prefix + name,
            kind=kind(member),
            about=about(member),
            needed=name in schema.get("required", ()),
        )
        yield from _members(member.get("items", {}), f"{prefix}{name}[].")


def error_codes(document: Schema) -> list[tuple[str, str, str]]:
    """Each code of errors with its status and what it means."""
    found = []
    for answer in document["components"]["responses"].values():
        status = answer["content"]["application/problem+json"]["schema"]["allOf"][1]
        number = str(status["properties"]["status"]["const"])
        for line in answer["description"].splitlines():
            codes, _, meaning = line.removeprefix("- `").partition("`: ")
            found += [(code, number, meaning) for code in codes.split(", ")]
    return found
