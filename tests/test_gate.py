"""What a request has to show before anybody looks at what it asks for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from werkzeug.test import TestResponse

from tests.applications import Application, Make, check_problem, making
from tests.valkey import Valkey

KEY = "a-key-to-publish-with"


@pytest.fixture
def make(valkey: Valkey) -> Iterator[Make]:
    """Make applications on the shared Valkey."""
    with making(valkey.url) as one:
        yield one


def ask(app: Application, route: str, address: str) -> TestResponse:
    """Ask for something that streaming rights are wanted for."""
    method, _, path = route.partition(" ")
    return app.client.open(path, method=method, environ_base={"REMOTE_ADDR": address})


@pytest.mark.parametrize(
    "route", ["HEAD /stream?channel=a", "GET /channels/a/events", "POST /tickets?channel=a"]
)
def test_every_question_counts_for_its_address(make: Make, route: str) -> None:
    """Streams, histories and tickets of one address share its rate: each of them may cost a look
    at Redis or a question to somebody else. Another address has its own.
    """
    app = make(max_connects_per_second_per_ip=2)
    for other in ("HEAD /stream?channel=a", "GET /channels/a/events", "POST /tickets?channel=a"):
        assert ask(app, other, "192.0.2.1").status_code == 200
    assert ask(app, route, "192.0.2.1").status_code == 200
    response = ask(app, route, "192.0.2.1")
    assert response.status_code == 429
    assert int(response.headers["Retry-After"]) >= 1
    assert ask(app, route, "192.0.2.2").status_code == 200


def test_publishers_without_a_credential_pay_by_address(make: Make) -> None:
    """One who publishes too much leaves the others alone; who shows a key pays for itself."""
    app = make(max_publishes_per_second=2, publish_keys=((KEY, ("*",)),))
    items = [{"channel": "a", "data": "x"}] * 100

    def publish(address: str, **headers: str) -> TestResponse:
        base = {"REMOTE_ADDR": address}
        return app.client.post("/publish", json=items, environ_base=base, headers=headers)

    assert publish("192.0.2.1").status_code == 200
    check_problem(publish("192.0.2.1"), 429, "too_many_publishes")
    assert publish("192.0.2.2").status_code == 200
    assert publish("192.0.2.1", Authorization=f"Bearer {KEY}").status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Origin": "https://page.example"}, 401),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 401),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://page.example"}, 401),
    ],
)
def test_a_cookie_counts_for_known_pages_only(
    make: Make, headers: dict[str, str], status: int
) -> None:
    """What a foreign page asks for, or embeds, is refused before the cookie is looked at (which is
    a bad one here: 401 tells that it was).
    """
    app = make(jwt_secret=(("", "s" * 32),), cors_origins=("https://page.example",))
    app.client.set_cookie("pushline", "forged")
    for route in ("/stream?channel=a", "/channels/a/events"):
        assert app.client.get(route, headers=headers).status_code == status
    assert app.client.get("/livez", headers=headers).status_code == 200
