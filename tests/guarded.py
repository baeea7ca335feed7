"""A service that wants credentials, and what tests do with it."""

from __future__ import annotations

from typing import Any

from tests.credentials import KEY, SECRET, bearer, token
from tests.live_server import LiveService, until
from tests.raw_http import Answer, ask
from tests.secrets_used import secret
from tests.sse_client import End, SseClient

PAGE = "https://app.example"
REVOKED = ("$end", '{"reason": "revoked"}')
EXPIRED = ("$end", '{"reason": "expired"}')
TICKET_SECONDS = 4

GUARDED: dict[str, object] = {
    "PUBLISH_OPEN": 0,
    "PUBLISH_KEYS": KEY,
    "JWT_SECRET": SECRET,
    "JWT_LEEWAY_SECONDS": 0,
    "PUBLIC_CHANNELS": "open.*",
    "CORS_ORIGINS": PAGE,
    "TICKET_SECONDS": TICKET_SECONDS,
    "LOG_LEVEL": "debug",
}


def stream(
    service: LiveService, channel: str, shown: dict[str, str] | None = None, **options: Any
) -> SseClient:
    """Open a stream; `query` is what more stands in its address."""
    query = options.pop("query", "")
    url = f"{service.url}/stream?channel={channel}{query}"
    return SseClient.connect(url, headers=shown or {}, **options)


def opened(client: SseClient) -> SseClient:
    """Wait until a new stream is live; a soft refusal has no name."""
    assert client.status == 200, client.head
    assert client.header("Pushline-Stream"), client.head
    client.wait_body(b"\n\n", 10)
    return client


def publish(service: LiveService, channel: str, data: str, query: str = "") -> str:
    """Publish with the key, and return the id."""
    answer = ask(service, "POST", f"/channels/{channel}{query}", data.encode(), **bearer(KEY))
    assert answer.status == 200, answer.body
    return str(answer.json()["id"])


def get_ticket(service: LiveService, channel: str, shown: dict[str, str]) -> str:
    """Turn a credential into a ticket."""
    answer = ask(service, "POST", f"/tickets?channel={channel}", b"", **shown)
    assert answer.status == 200, answer.body
    assert answer.json()["expires_in"] == TICKET_SECONDS
    return secret(answer.json()["ticket"])


def last_words(client: SseClient) -> tuple[str, str]:
    """Name and data of the last event of a stream, which must end now, and cleanly."""
    event = client.read_until_end(10)[-1]
    assert client.ended is (End.TERMINATED if client.head.version == "1.1" else End.FIN)
    assert not client.parser.inside_block
    assert client.parser.retry is not None
    assert client.body.endswith(b"retry: %d\n\n" % client.parser.retry), "it says when to come back"
    return event.type, event.data


def ended(service: LiveService, client: SseClient) -> str:
    """Why the stream has ended, by the log: its one line has the name that the client was told."""
    name = client.header("Pushline-Stream")
    lines = until(lambda: service.log_lines(path="/stream", stream=name), 5, "it is logged")
    (line,) = lines
    return str(line["reason"])


def close_streams(service: LiveService, query: str, **shown: str) -> Answer:
    """DELETE /streams as an administrator, unless something else is shown."""
    return ask(service, "DELETE", f"/streams?{query}", None, **(shown or bearer(token(admin=True))))
