"""openapi.json: valid, complete, true to the code and to docs/http.md, and served for caches."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from werkzeug.test import TestResponse

from service import errors
from service.channels import check_channel
from service.errors import PushlineError
from service.event import MAX_NAME_BYTES, Event, EventId, check_name
from service.publication import Publication
from service.routes import items, openapi
from service.routes.openapi_facts import Facts
from service.routes.openapi_schemas import KEY_PATTERN
from service.settings import Settings
from tests.applications import Application, making
from tests.credentials import SECRET, bearer, token
from tests.live_server import until
from tests.valkey import Valkey

ROOT = Path(__file__).resolve().parents[1]
FACTS = Facts(max_event_bytes=262_144, max_channels=64, cookie_name="pushline")
DOCUMENT: dict[str, Any] = json.loads(json.dumps(openapi.document(FACTS)))
NOWHERE = "redis://127.0.0.1:1"

OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}
ANSWERED = {name: one for name, one in OPERATIONS.items() if not name.startswith("HEAD ")}


@pytest.fixture
def app(valkey: Valkey) -> Iterator[Application]:
    """A service, once it is ready, whose tests have all rights."""
    with making(valkey.url) as make:
        app = make(publish_open=False, jwt_secret=(("", SECRET),), presence_channels=("*",))
        until(lambda: app.client.get("/readyz").status_code == 200, 10, "it is ready")
        yield app


@pytest.fixture
def page() -> Iterator[Application]:
    """A service without Redis, which the document doesn't need."""
    with making(NOWHERE) as make:
        yield make()


def parameters(operation: dict[str, Any], place: str) -> set[str]:
    """The names of an operation's parameters in query, header or path."""
    return {one["name"] for one in operation["parameters"] if one["in"] == place}


def braced(path: str) -> str:
    """A path with its variables as OpenAPI writes them."""
    return re.sub(r"<(?:path:)?(\w+)>", r"{\1}", path)


def validator(schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    """What checks a value of one of the document's schemas."""
    whole = {**schema, "components": DOCUMENT["components"]}
    return jsonschema_rs.Draft202012Validator(whole, validate_formats=True)


# ------------------------------------------------------------------------------------ whole


def test_it_is_valid() -> None:
    """It is OpenAPI 3.1 by the rules of the specification's own schema, and more."""
    validate(DOCUMENT, cls=OpenAPIV31SpecValidator)


def test_every_route_is_in_it(page: Application) -> None:
    """It has each route with each method but OPTIONS and the page's files, and nothing else."""
    routes = {
        f"{method} {braced(rule.rule)}"
        for rule in page.client.application.url_map.iter_rules()
        for method in (rule.methods or set()) - {"OPTIONS"}
        if not rule.rule.startswith("/static/")
    }
    assert routes == OPERATIONS.keys()


def test_operations_have_names_of_their_own() -> None:
    """What generators call functions is unique."""
    names = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(names)) == len(names)


def test_nothing_is_left_over() -> None:
    """Each component is used."""
    text = json.dumps(DOCUMENT)
    for kind in ("schemas", "responses"):
        for name in DOCUMENT["components"][kind]:
            assert f'"#/components/{kind}/{name}"' in text, name


# ----------------------------------------------------------------------------------- errors

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, PushlineError) and kind is not errors.ConfigError
]


def codes() -> dict[str, int]:
    """Each code that an answer may have, with its status."""
    found = {kind.code: kind.status for kind in KINDS}
    return found | dict.fromkeys(errors.RedisRefused.codes, errors.RedisRefused.status)


def test_every_error_is_in_it() -> None:
    """The problem document's codes are those of errors.py."""
    problems = {code for code, status in codes().items() if status >= 400}
    assert (
        set(DOCUMENT["components"]["schemas"]["Problem"]["properties"]["code"]["enum"]) == problems
    )


def test_every_error_is_the_answer_of_some_operation() -> None:
    """Each code is listed, with its status, by an operation that may tell it; and no other code."""
    listed = {
        (code, int(status))
        for operation in OPERATIONS.values()
        for status, answer in operation["responses"].items()
        if answer.get("$ref") or status == "204"
        for code in re.findall("`([a-z_]+)`", answer["description"])
    }
    too_long = {("bad_request", 414), ("bad_request", 431)}  # gunicorn's
    assert listed - too_long == set(codes().items())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))
def test_the_headers_of_errors_are_in_it(kind: type[PushlineError]) -> None:
    """What an error answers besides its document is documented for its status."""
    if kind.status < 400:
        return
    headers = DOCUMENT["components"]["responses"][f"Problem{kind.status}"]["headers"]
    assert ("Retry-After" in headers) == (kind.retry_after_seconds is not None)
    assert ("WWW-Authenticate" in headers) == (kind.challenge is not None)


# --------------------------------------------------------------------------------- contents


def test_limits_are_the_services_own() -> None:
    """The document of a service tells its own limits and its own cookie."""
    facts = Facts.of_settings(
        Settings(
            redis_url=NOWHERE, max_event_bytes=777, max_channels_per_stream=5, cookie_name="biscuit"
        )
    )
    made = openapi.document(facts)

    channel = made["paths"]["/stream"]["get"]["parameters"][0]
    assert (channel["name"], channel["schema"]["maxItems"]) == ("channel", 5)
    body = made["paths"]["/channels/{channel}"]["post"]["requestBody"]["content"]["text/plain"]
    assert body["schema"]["maxLength"] == 777
    assert (
        str(777 * items.MAX_BATCH_FACTOR)
        in made["paths"]["/publish"]["put"]["requestBody"]["description"]
    )
    assert made["components"]["securitySchemes"]["cookie"]["name"] == "biscuit"


@pytest.mark.parametrize(
    ("changes", "publishing", "streaming", "administrating"),
    [
        ({}, False, False, False),
        ({"publish_open": True}, True, False, False),
        ({"public_channels": ("news",)}, False, True, False),
        ({"embedded": True}, True, True, True),
    ],
)
def test_who_wants_a_credential_is_the_services_own(
    changes: dict[str, Any], publishing: bool, streaming: bool, administrating: bool
) -> None:
    """Where anyone may do something, its operation can do without a credential; else not."""
    made = openapi.document(Facts.of_settings(Settings(redis_url=NOWHERE, **changes)))["paths"]

    assert ({} in made["/publish"]["post"]["security"]) == publishing
    assert ({} in made["/stream"]["get"]["security"]) == streaming
    assert ({} in made["/streams"]["delete"]["security"]) == administrating
    assert ({} in made["/channels"]["get"]["security"]) == administrating
    assert made["/livez"]["get"]["security"] == []


def test_items_have_the_fields_that_the_code_takes() -> None:
    """No field of an item, and no parameter of a text, is missing or made up."""
    assert DOCUMENT["components"]["schemas"]["Item"]["properties"].keys() == items.FIELDS
    for name in ("POST /channels/{channel}", "PUT /channels/{channel}"):
        assert parameters(OPERATIONS[name], "query") == items.PARAMETERS


def takes(check: Callable[[str], object], text: str) -> bool:
    """Whether `check` raises nothing."""
    try:
        check(text)
    except (PushlineError, ValueError):
        return False
    return True


ODD = st.text(st.sampled_from("aZ0_.:-$*!~ \n\r\t\0\x7f\x80\x9f\xa0é€😀openrrr1"), max_size=140)


EDGES = ["open", "error", "message", "1-2", *(f"{'1' * n}-{'2' * n}" for n in (15, 16))]
EDGES += ["a" * n for n in (128, 129)]

RULES: list[tuple[jsonschema_rs.Draft202012Validator, Callable[[str], object]]] = [
    (validator(schema), check)
    for schema, check in (
        (DOCUMENT["components"]["schemas"]["ChannelName"], check_channel),
        (DOCUMENT["components"]["schemas"]["EventId"], EventId.parse),
        (DOCUMENT["components"]["schemas"]["EventName"], check_name),
        (
            {"type": "string", "pattern": KEY_PATTERN},
            lambda text: Publication(Event(""), ("a",), key=text),
        ),
    )
]


@settings(deadline=None)
@given(ODD | st.text(max_size=20))
def test_patterns_are_those_of_the_code(text: str) -> None:
    """A text is right by the document exactly when the code takes it."""
    agree(text)


@pytest.mark.parametrize("text", EDGES)
def test_patterns_have_the_limits_of_the_code(text: str) -> None:
    """The same for the longest and what is just too long."""
    agree(text)


def agree(text: str) -> None:
    """What the document and the code think of `text` is the same."""
    for rule, check in RULES:
        if check is check_name and len(text) <= MAX_NAME_BYTES < len(text.encode()):
            continue  # a limit in bytes is more than JSON Schema can say
        assert rule.is_valid(text) == takes(check, text), check


# --------------------------------------------------------------------------------- examples


def examples(holder: dict[str, Any]) -> list[Any]:
    """The examples of a parameter, or of a body of one type."""
    named = [one["value"] for one in holder.get("examples", {}).values()]
    return named + ([holder["example"]] if "example" in holder else [])


def holders() -> Iterator[tuple[str, dict[str, Any]]]:
    """Everything that has an example, and a schema that it must fit."""
    for name, operation in OPERATIONS.items():
        for parameter in operation["parameters"]:
            yield f"{name}: {parameter['name']}", parameter
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for body in bodies:
            for kind, content in body.get("content", {}).items():
                if not kind.endswith("ndjson"):  # its example is text, its schema one of values
                    yield f"{name}: {kind}", content


@pytest.mark.parametrize(("name", "holder"), list(holders()))
def test_examples_fit_their_schemas(name: str, holder: dict[str, Any]) -> None:
    """No example is of another form than what it is an example of."""
    schema = holder["schema"]
    for example in examples(holder) + schema.get("examples", []):
        validator(schema).validate(example)


@pytest.mark.parametrize(("name", "operation"), list(ANSWERED.items()))
def test_examples_work(name: str, operation: dict[str, Any], app: Application) -> None:
    """What the document shows can be sent, and gets the good answer that it promises."""
    method, _, path = name.partition(" ")
    query: dict[str, Any] = {}
    for parameter in operation["parameters"]:
        for example in examples(parameter)[:1]:
            if parameter["in"] == "path":
                path = path.replace(f"{{{parameter['name']}}}", example)
            elif parameter["in"] == "query":
                query[parameter["name"]] = example
    contents = operation.get("requestBody", {}).get("content", {"": {"example": None}})
    for kind, content in contents.items():
        for body in examples(content):
            data = body if isinstance(body, str | None) else json.dumps(body)
            headers = bearer(token(publish=["*"], subscribe=["*"], admin=True))
            headers |= {"Content-Type": kind} if kind else {}
            response = app.client.open(
                path, method=method, query_string=query, data=data, headers=headers
            )
            check_answer(operation, response)


def check_answer(operation: dict[str, Any], response: TestResponse) -> None:
    """The response is the first one that the operation lists, and as it says."""
    status, expected = next(iter(operation["responses"].items()))
    assert response.status_code == int(status), response.text
    sometimes = {"Mercure-Last-Event-ID", "Content-Encoding"}
    assert expected.get("headers", {}).keys() - sometimes <= set(response.headers.keys())
    content = expected.get("content", {"": {}})
    assert response.mimetype in content or not response.data
    if response.mimetype == "application/json":
        validator(content[response.mimetype]["schema"]).validate(response.get_json())
    response.close()


# ------------------------------------------------------------------------------------- docs


def sections() -> dict[str, str]:
    """Each operation of docs/http.md with what its section says."""
    found: dict[str, str] = {}
    for section in re.split("^## ", (ROOT / "docs" / "http.md").read_text(), flags=re.M)[1:]:
        heading, _, text = section.partition("\n")
        for method, path in re.findall(r"`([A-Z]+) (/[^`?]*)`", heading):
            found[f"{method} {braced(path)}"] = text
    return found


def told(text: str) -> set[str]:
    """The parameters that a section tells of: in a table of them, or as `?name=`."""
    rows = re.findall(r"^\| ((?:`\w+`(?:, | or )?)+) \|", text.partition("| field |")[0], re.M)
    queries = re.findall(r"`\?([^`\s]*)`", text)
    return set(re.findall(r"`(\w+)`", " ".join(rows))) | {
        pair.partition("=")[0] for query in queries for pair in query.split("&")
    }


SAME_QUERY = {"PUT /channels/{channel}": "POST /channels/{channel}"}
"""Where the page says that the query is that of another."""


@pytest.mark.parametrize("name", list(ANSWERED))
def test_the_page_tells_the_same_parameters(name: str) -> None:
    """docs/http.md has each parameter of the document in the section of its route, and no other."""
    text = sections()[SAME_QUERY.get(name, name)]

    # Where tickets count is told once for all routes.
    assert told(text) - {"ticket"} == parameters(OPERATIONS[name], "query")
    for header in parameters(OPERATIONS[name], "header"):
        assert f"`{header}`" in text


def test_the_page_tells_the_same_fields() -> None:
    """docs/http.md has each field of an item, and no other."""
    _, _, table = sections()["POST /publish"].partition("| field |")
    cells = re.findall(r"^\| ((?:`\w+`(?:, | or )?)+) \|", table, re.M)
    assert set(re.findall(r"`(\w+)`", " ".join(cells))) == items.FIELDS


def test_the_page_tells_the_same_headers() -> None:
    """docs/http.md has each header of an answer."""
    text = (ROOT / "docs" / "http.md").read_text()
    answers = [answer for one in OPERATIONS.values() for answer in one["responses"].values()]
    answers += DOCUMENT["components"]["responses"].values()
    for name in {name for answer in answers for name in answer.get("headers", {})}:
        assert re.search(rf"`{name}\b", text), name


def test_the_page_tells_the_same_credentials() -> None:
    """docs/http.md has each way to show a credential, and the document has where each counts."""
    text = (ROOT / "docs" / "http.md").read_text()
    for told in ("`Authorization: Bearer", "cookie `pushline`", "`?ticket=`"):
        assert told in text
    assert DOCUMENT["components"]["securitySchemes"].keys() == {"bearer", "cookie", "ticket"}
    for name, operation in OPERATIONS.items():
        counts = {scheme for one in operation["security"] for scheme in one}
        route = name.partition(" ")[2]
        reads = name.startswith(("GET /channels", "HEAD /channels"))
        if route == "/stream" or reads:
            assert counts == {"bearer", "cookie", "ticket"}, name
        elif route == "/tickets":
            assert counts == {"bearer", "cookie"}, name
        elif "channel" in route or route in ("/publish", "/streams", "/metrics"):
            assert counts == {"bearer"}, name
        else:
            assert counts == set(), name


# ----------------------------------------------------------------------------------- served


def test_it_is_served(page: Application) -> None:
    """Anyone gets it as JSON that caches ask for anew."""
    response = page.client.get("/openapi.json")

    assert (response.status_code, response.content_type) == (200, "application/json")
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.get_json()["openapi"] == "3.1.0"
    assert page.client.head("/openapi.json").headers["ETag"] == response.headers["ETag"]


def test_a_client_that_has_it_is_told_so(page: Application) -> None:
    """304 without a body for its ETag, weakened by a proxy or not; else the whole."""
    etag = page.client.get("/openapi.json").headers["ETag"]

    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        response = page.client.get("/openapi.json", headers={"If-None-Match": known})
        assert (response.status_code, response.data) == (304, b"")
        assert response.headers["ETag"] == etag
    for other in ('"other"', "other", ""):
        assert page.client.get("/openapi.json", headers={"If-None-Match": other}).status_code == 200


def test_absurd_dates_do_no_harm(page: Application) -> None:
    """A date that no calendar has is not looked at."""
    date = "Sun, 06 Nov 19941994199419941994 08:49:37 GMT"
    response = page.client.get("/openapi.json", headers={"If-Modified-Since": date})
    assert response.status_code == 200


def test_it_is_made_once(page: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request makes nothing; two services of the same settings have the same ETag."""
    monkeypatch.setattr(openapi, "operations", lambda _: pytest.fail("it is made again"))
    first = page.client.get("/openapi.json")
    monkeypatch.undo()
    with making(NOWHERE) as make:
        assert make().client.get("/openapi.json").headers["ETag"] == first.headers["ETag"]
        other = make(max_event_bytes=5).client.get("/openapi.json")
    assert other.headers["ETag"] != first.headers["ETag"]
