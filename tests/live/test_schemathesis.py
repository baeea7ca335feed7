"""What openapi.json says, asked of real gunicorn by schemathesis: random, odd and bad requests."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import jwt
import pytest

from tests.credentials import SECRET, token
from tests.live_server import LiveService
from tests.valkey import Valkey

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]
SEED = 20_261_122
UNAVAILABLE = re.compile(r"\b503\b")


def good_token(seconds: float = 7200, signed_with: str = SECRET) -> str:
    """A token with all rights."""
    rights: dict[str, Any] = {"publish": ["*"], "subscribe": ["*"], "admin": True}
    return token(seconds=seconds, signed_with=signed_with, **rights)


def rubbish() -> list[tuple[str, str]]:
    """Credentials that are none, and where they are shown."""
    good = good_token()
    headers = ["Bearer", "Basic YW5hOnNlY3JldA==", f"Token {good}", good, f"Bearer, {good}"]
    bad = [
        good[:-2],
        good_token(signed_with=SECRET[::-1]),
        good_token(seconds=-3600),
        jwt.encode({"sub": "ana", "exp": 2**33}, "", "none"),
        "x" * 8000,
        "../../etc/passwd",
    ]
    tokens = [(place, one) for one in bad for place in ("cookie", "ticket")]
    return tokens + [("header", one) for one in [*headers, *(f"Bearer {one}" for one in bad)]]


@pytest.fixture
def service(own_valkey: Valkey) -> Iterator[LiveService]:
    """A service where one channel, that of the examples, is public, and all else wants rights."""
    with LiveService(
        own_valkey.url,
        JWT_SECRET=SECRET,
        PUBLISH_OPEN=0,
        PUBLIC_CHANNELS="news",
        PRESENCE_CHANNELS="*",
        MAX_CONNECTIONS_PER_USER=0,
        MAX_EVENT_BYTES=2000,
        MAX_CHANNELS_PER_STREAM=8,
        WEB_CONCURRENCY=2,
    ) as service:
        yield service.wait_workers()


def runs(
    service: LiveService, examples: int, *, right: list[str], wrong: list[str]
) -> dict[str, dict[str, Any]]:
    """What each kind of client asks, in the phases for those with rights and for the others."""
    common = {"url": service.url, "seed": SEED, "examples": examples, "phases": wrong}
    return {
        "with all rights": {**common, "phases": right, "bearer": good_token()},
        "without a credential": common,
        "with rubbish": {**common, "rubbish": rubbish()},
    }


def perform(run: dict[str, Any]) -> dict[str, Any]:
    """Carry out a run in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.conformance"],
        input=json.dumps(run),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def check(service: LiveService, outcomes: dict[str, dict[str, Any]]) -> int:
    """No run shows a mistake, and nobody got what wants another credential.

    Returns the number of cases.
    """
    mistakes = [f"{who}: {one}" for who, run in outcomes.items() for one in run["mistakes"]]
    assert not mistakes, "\n\n".join(mistakes[:20])
    for who, run in outcomes.items():
        print(f"{who}: {run['cases']} cases: {run['statuses']}")
        for operation, statuses in run["statuses"].items():
            assert all("200" <= status < "500" for status in statuses), (who, operation, statuses)
    paths = json.loads(service.get("/openapi.json")[1])["paths"]
    wanted = {
        f"{method.upper()} {path}": operation["security"]
        for path, methods in paths.items()
        for method, operation in methods.items()
    }
    assert succeeded(outcomes["with all rights"]) >= wanted.keys()
    for operation in succeeded(outcomes["without a credential"]) & wanted.keys():
        assert not wanted[operation] or {} in wanted[operation], operation
    for operation in succeeded(outcomes["with rubbish"]) & wanted.keys():
        assert not wanted[operation], operation
    return sum(run["cases"] for run in outcomes.values())


def succeeded(outcome: dict[str, Any]) -> set[str]:
    """The operations that were carried out at least once."""
    return {
        operation
        for operation, statuses in outcome["statuses"].items()
        if any(status.startswith("2") for status in statuses)
    }


def perform_unhindered(run: dict[str, Any]) -> dict[str, Any]:
    """Carry out a run, and once more if nothing but a 503 was wrong: Redis, or this machine, may
    have stood still for a moment.
    """
    outcome = perform(run)
    if outcome["mistakes"] and all(UNAVAILABLE.search(one) for one in outcome["mistakes"]):
        return perform(run)
    return outcome


def perform_all(runs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Carry out all runs at the same time."""
    with ThreadPoolExecutor(len(runs)) as pool:
        return dict(zip(runs, pool.map(perform_unhindered, runs.values()), strict=True))


def test_the_service_keeps_to_its_document(service: LiveService) -> None:
    """With all rights, none and rubbish: no 5xx, only what the document has, as it has it.

    Who has rights tries each limit, from both sides, and each missing part; others something.
    """
    asked = runs(service, 6, right=["examples", "coverage"], wrong=["examples", "fuzzing"])
    cases = check(service, perform_all(asked))

    assert cases >= 1000


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_service_keeps_to_its_document_at_length(service: LiveService) -> None:
    """The same with over 5 000 requests: random ones and sequences of them too."""
    phases = ["examples", "coverage", "fuzzing", "stateful"]
    cases = check(service, perform_all(runs(service, 100, right=phases, wrong=phases)))

    assert cases >= 5000


# ------------------------------------------------------------------------------- the oracle

LIVE = ("application/json", {"live": True})
LIES: dict[str, tuple[int, str, object]] = {
    "/true": (200, *LIVE),
    "/stream": (200, "text/event-stream", "retry: 1\n\n"),
    "/broken": (500, *LIVE),
    "/another-status": (418, *LIVE),
    "/another-type": (200, "text/html", "<p>hello"),
    "/another-shape": (200, "application/json", {"live": "yes"}),
    "/another-member": (200, "application/json", {"live": True, "secret": 1}),
    "/another-code": (404, "application/problem+json", {"code": "unlisted"}),
}
"""What a lying service answers; the first two are true."""


def lying_document() -> dict[str, Any]:
    """What it says that it answers."""
    live = {"schema": {"$ref": "#/components/schemas/Live"}}
    answers = {
        "200": {"description": "It", "content": {"application/json": live}},
        "404": {
            "description": "`not_found`",
            "content": {"application/problem+json": {"schema": {}}},
        },
    }
    stream = {"200": {"description": "It", "content": {"text/event-stream": {}}}}
    schema = {"type": "object", "required": ["live"], "properties": {"live": {"const": True}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Liar", "version": "1"},
        "paths": {
            path: {"get": {"responses": stream if path == "/stream" else answers}} for path in LIES
        },
        "components": {"schemas": {"Live": schema}},
    }


class Liar(BaseHTTPRequestHandler):
    """A service that does not keep to its document."""

    def do_GET(self) -> None:
        """Lie; a stream doesn't end before its client does."""
        said: object = lying_document()
        status, kind = 200, "application/json"
        if self.path != "/openapi.json":
            status, kind, said = LIES.get(self.path, (404, *LIVE))
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write((said if isinstance(said, str) else json.dumps(said)).encode())
        if self.path == "/stream":
            self.rfile.read()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_lies_are_found() -> None:
    """The checks aren't blind: each answer that is not as documented is a mistake."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Liar) as liar:
        liar.daemon_threads = True
        thread = Thread(target=liar.serve_forever, args=(0.01,))
        thread.start()
        try:
            url = f"http://127.0.0.1:{liar.server_port}"
            outcome = perform({"url": url, "seed": 1, "examples": 1, "phases": ["fuzzing"]})
        finally:
            liar.shutdown()
            thread.join()

    found = {one.split(":")[0] for one in outcome["mistakes"]}
    assert found == {f"GET {path}" for path in list(LIES)[2:]}
    assert outcome["statuses"]["GET /stream"] == {"200": 1}
