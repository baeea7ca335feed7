"""Asks a service what its openapi.json allows and forbids, and compares the answers with it.

A program of its own, `python -m tests.conformance`, because schemathesis wants sockets and threads
that gevent has not patched: it reads a run from its input and prints what came of it.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import re
import sys
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import requests
import schemathesis
import urllib3
from schemathesis import Case, CheckContext, HookContext, Response, SerializationContext, engine
from schemathesis.core.failures import Failure
from schemathesis.engine import events
from schemathesis.engine.recorder import ScenarioRecorder

READING = ("/stream", "/channels/{channel}/events")
"""Routes where a ticket counts."""

CURSORS = frozenset({"last_event_id", "lastEventID", "lastEventId"})

TOO_LONG = ["414", "431"]
"""The request line and each header have at most 8190 bytes, whatever is in them."""

CHECKS: dict[str, Any] = {
    "negative_data_rejection": {
        "expected-statuses": ["400", "401", "403", "404", "405", "409", "413", "415", *TOO_LONG]
    },
    "positive_data_acceptance": {
        "expected-statuses": ["2xx", "3xx", "401", "403", "404", "409", "429", *TOO_LONG]
    },
    # A channel is there as soon as someone names it: a deleted one is an empty one.
    "use_after_free": {"enabled": False},
    "ensure_resource_availability": {"enabled": False},
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """What to ask: `examples` random requests of each operation, and those of the other phases.

    `bearer` is sent with all requests. `rubbish` are credentials that are none, each with its
    place, which is `header`, `cookie` or `ticket`: each request shows the next of them.
    """

    url: str
    seed: int
    examples: int
    phases: tuple[str, ...]
    bearer: str = ""
    rubbish: tuple[tuple[str, str], ...] = ()
    cookie_name: str = "pushline"


@dataclass
class Outcome:
    """What came of a run: how often each method of each route gave which status, and mistakes."""

    cases: int = 0
    statuses: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    mistakes: list[str] = field(default_factory=list)


def perform(run: Run) -> Outcome:
    """Carry out one run."""
    with urllib.request.urlopen(f"{run.url}/openapi.json", timeout=20) as answer:
        document = json.load(answer)
    Hooks(run, document["paths"]).install()
    settings: dict[str, Any] = {
        "base-url": run.url,
        "seed": run.seed,
        "continue-on-failure": True,
        "request-timeout": 30,
        "generation": {"max-examples": run.examples, "database": "none"},
        "phases": {
            name: {"enabled": name in run.phases}
            for name in ("examples", "coverage", "fuzzing", "stateful")
        },
        # It tries every operation without a credential, too; that is what other runs do.
        "checks": {**CHECKS, "ignored_auth": {"enabled": bool(run.bearer)}},
    }
    if run.bearer:
        settings["headers"] = {"Authorization": f"Bearer {run.bearer}"}
    config = schemathesis.Config.from_dict(settings)
    schema = schemathesis.openapi.from_dict(closed(document), config=config)
    outcome = Outcome()
    for event in engine.from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            note(event.recorder, outcome)
        elif isinstance(event, events.NonFatalError):
            outcome.mistakes.append(f"{event.label}: {event.value!r}")
        elif isinstance(event, events.FatalError):
            outcome.mistakes.append(repr(event.exception))
    return outcome


def note(recorder: ScenarioRecorder, outcome: Outcome) -> None:
    """Add what a scenario has shown."""
    for case_id, interaction in recorder.interactions.items():
        outcome.cases += 1
        path = recorder.cases[case_id].value.operation.path
        status = interaction.response.status_code if interaction.response else "no answer"
        outcome.statuses[f"{interaction.request.method} {path}"][str(status)] += 1
    for case_id, checks in recorder.checks.items():
        for check in checks:
            if check.failure_info is not None:
                failure = check.failure_info.failure
                response = recorder.find_response(case_id=case_id)
                said = "" if response is None else f"{response.status_code} {response.text[:300]}"
                outcome.mistakes.append(
                    f"{recorder.label}: {check.name}: {failure.title}: {failure.message}\n"
                    f"{check.failure_info.code_sample[:2000]}\n{said}"
                )


def closed(document: dict[str, Any]) -> dict[str, Any]:
    """The document with objects that have no members but those it names: so none is missing."""
    copy: dict[str, Any] = json.loads(json.dumps(document))
    waiting: list[Any] = [copy["components"]["schemas"]]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if value.get("type") == "object" and "properties" in value:
                value.setdefault("additionalProperties", False)
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return copy


# ------------------------------------------------------------------------------------- hooks


class Hooks:
    """Lets schemathesis do as a run wants. Its hooks are the process's, so that has one run."""

    def __init__(self, run: Run, paths: dict[str, Any]) -> None:
        self._run = run
        self._paths = paths
        self._rubbish = itertools.cycle(run.rubbish)

    def install(self) -> None:
        """From now on these count."""
        for method in (self.before_call, self.after_call, self.filter_failure):
            schemathesis.hook(method.__name__)(as_function(method))
        schemathesis.check(as_function(self.code_conformance))
        schemathesis.serializer("application/x-ndjson", "application/ndjson")(lines)

    def before_call(self, context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
        """Cut streams, and show rubbish."""
        kwargs["hooks"] = {"response": cut_stream}
        if self._run.rubbish:
            show(case, *next(self._rubbish), self._run.cookie_name)

    def after_call(self, context: HookContext, case: Case[Any], response: Response) -> None:
        """Forget a channel that is finished: all later publishes to it would be a 409."""
        if case.operation.path.endswith("/end") and response.status_code == 200:
            requests.delete(
                f"{self._run.url}/channels/{response.json()['channel']}",
                headers={"Authorization": f"Bearer {self._run.bearer}"},
                timeout=30,
            ).raise_for_status()

    def filter_failure(
        self, context: HookContext, failure: Failure, case: Case[Any], response: Response
    ) -> bool:
        """Whether the failure counts."""
        return not is_beyond_openapi(failure, case)

    def code_conformance(self, ctx: CheckContext, response: Response, case: Case[Any]) -> None:
        """An error's code is one that the operation lists for this status."""
        if response.headers.get("content-type") != ["application/problem+json"]:
            return
        method = str(response.request.method).lower()
        operation = self._paths[case.operation.path].get(method, {"responses": {}})
        listed = operation["responses"].get(str(response.status_code), {}).get("description")
        if listed is not None and response.text:  # HEAD has none
            assert response.json()["code"] in re.findall(r"`(\w+)`", listed), "not listed"


def as_function(method: Callable[..., Any]) -> Callable[..., Any]:
    """What schemathesis can set attributes on: not on methods."""

    @functools.wraps(method)
    def function(*args: Any) -> Any:
        return method(*args)

    return function


def lines(ctx: SerializationContext, value: Any) -> bytes:
    """A body of JSON lines; an example has them already."""
    if isinstance(value, str):
        return value.encode()
    items = value if isinstance(value, list) else [value]
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


def cut_stream(response: requests.Response, **_: Any) -> requests.Response:
    """Let a stream end with its opening block: by itself it ends never."""
    if response.headers.get("Content-Type") == "text/event-stream":
        opening = b""
        while not opening.endswith(b"\n\n") and (
            piece := response.raw.read1(65_536, decode_content=True)
        ):
            opening += piece
        response.raw.close()
        response.raw.headers.pop("Content-Encoding", None)  # which is undone
        response.raw = urllib3.HTTPResponse(
            io.BytesIO(opening),
            response.raw.headers,
            response.status_code,
            preload_content=False,
        )
    return response


def show(case: Case[Any], place: str, credential: str, cookie_name: str) -> None:
    """Send `credential` with the request of `case`."""
    if place == "header":
        case.headers["Authorization"] = credential
    elif place == "cookie" or case.operation.path not in READING:
        case.cookies[cookie_name] = credential
    else:
        case.query["ticket"] = credential


def is_beyond_openapi(failure: Failure, case: Case[Any]) -> bool:
    """Whether it is only what OpenAPI can't say.

    Exactly one of two parameters; and `last` and `since` don't matter to who has a cursor.
    """
    if failure.title == "Schema-valid request rejected":
        return str(case.operation.label) == "DELETE /streams"
    if failure.title == "Schema-violating request accepted" and case.operation.path == "/stream":
        cursors = {"Last-Event-ID"} & case.headers.keys() or CURSORS & case.query.keys()
        return bool(cursors) and bool(re.search(r"`(last|since)`", failure.message))
    return False


def main() -> None:
    """Read a run, carry it out and print its outcome."""
    said = json.load(sys.stdin)
    print(json.dumps(vars(perform(Run(**said)))))


if __name__ == "__main__":
    main()
