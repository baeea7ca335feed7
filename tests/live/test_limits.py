"""Every limit just below, at and above it: who is refused, how, and who is not."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.credentials import KEY, LIMITED_KEY, bearer, cookie, token
from tests.guarded import GUARDED, get_ticket, opened
from tests.live.test_nginx import Nginx
from tests.live_server import LiveService, until
from tests.proxies import need
from tests.raw_http import Answer, RawConnection, ask, chunked, request_bytes
from tests.sse_client import SseClient
from tests.valkey import Valkey

pytestmark = pytest.mark.live

EVENT_STREAM, ANY = {"Accept": "text/event-stream"}, {"Accept": "*/*"}
MAX_EVENT_BYTES = 1000
BODY_FACTOR = 16
"""How many times that a body of JSON may be."""

addresses = (f"127.1.{n // 250}.{n % 250 + 1}" for n in itertools.count())
"""Addresses of this machine, each new."""


@pytest.fixture(scope="module")
def limited(shared_valkey: Valkey) -> Iterator[LiveService]:
    """One worker with rates and sizes that a test can reach; streams are not counted."""
    settings = {
        **GUARDED,
        "PUBLISH_KEYS": f"{KEY} {LIMITED_KEY}",
        "MAX_CONNECTS_PER_SECOND_PER_IP": 1,
        "MAX_PUBLISHES_PER_SECOND": 1,
        "MAX_CHANNELS_PER_STREAM": 3,
        "MAX_EVENT_BYTES": MAX_EVENT_BYTES,
        "TRUSTED_PROXIES": "127.0.0.1",  # so that `ask` can say who it is
    }
    with LiveService(shared_valkey.url, **settings) as service:
        yield service


@pytest.fixture
def channel() -> str:
    """A public channel that nobody else uses."""
    return f"open.{uuid.uuid4()}"


Shown = dict[str, str]


def stream(
    service: LiveService,
    channel: str,
    shown: Shown | None = None,
    *,
    source: str = "",
    port: int = 0,
) -> SseClient:
    """Open a stream, from an address of its own unless `source` says from where."""
    url = f"http://127.0.0.1:{port or service.port}/stream?channel={channel}"
    return SseClient.connect(url, headers=shown, source=source or next(addresses))


def refused_softly(client: SseClient) -> None:
    """An EventSource is told to come back later, in words that it understands."""
    with client:
        assert (client.status, client.header("Content-Type")) == (200, "text/event-stream")
        assert client.header("Pushline-Stream") is None
        assert client.header("X-Content-Type-Options") == "nosniff"
        assert client.read_until_end(5) == []
        assert 5_000 <= (client.parser.retry or 0) <= 30_000


def refused(
    service: LiveService, channel: str, shown: Shown, status: int, code: str, source: str = ""
) -> None:
    """Neither an EventSource nor anybody else gets this stream, each in the way that suits it."""
    refused_softly(stream(service, channel, shown, source=source))
    with stream(service, channel, {**shown, **ANY}, source=source) as client:
        assert client.status == status
        assert int(client.header("Retry-After") or "") >= 1
        client.read_until_end(5)
        assert json.loads(client.body)["code"] == code


# ------------------------------------------------------------------------------- open streams


def of_user(user: str = "", *channels: str) -> Shown:
    """A token of this user, or of one whom nobody knows, to stream all channels or these."""
    return bearer(token(user or str(uuid.uuid4()), subscribe=channels or ["*"]))


@pytest.mark.parametrize(
    ("setting", "status", "code", "user", "source"),
    [
        ("MAX_CONNECTIONS", 503, "too_many_streams", "", ""),
        ("MAX_CONNECTIONS_PER_IP", 429, "too_many_streams_from_address", "", "127.2.0.1"),
        ("MAX_CONNECTIONS_PER_USER", 429, "too_many_streams_of_user", "ana", ""),
    ],
)
def test_open_streams(
    shared_valkey: Valkey,
    channel: str,
    setting: str,
    status: int,
    code: str,
    user: str,
    source: str,
) -> None:
    """Three streams fit, a fourth one does not; checks, refusals and streams of others don't count,
    and who leaves makes room.
    """
    with (
        LiveService(shared_valkey.url, **{**GUARDED, setting: 3}) as service,
        contextlib.ExitStack() as stack,
    ):
        clients: list[SseClient] = []
        for _ in range(3):
            for wrong in ("theirs", f"{channel}&ping=loud"):  # refused for another reason
                with stream(service, wrong, of_user(user, "mine"), source=source) as client:
                    assert client.status in (400, 403)
            client = stream(service, channel, of_user(user), source=source)
            clients.append(opened(stack.enter_context(client)))
        for _ in range(2):
            refused(service, channel, of_user(user), status, code, source)
        path = f"/stream?channel={channel}"
        assert ask(service, "HEAD", path, None, **of_user(user)).status == 200
        if user or source:
            opened(stack.enter_context(stream(service, channel, of_user())))
        clients.pop().close()

        def fits() -> bool:
            client = stream(service, channel, {**of_user(user), **ANY}, source=source)
            return stack.enter_context(client).status == 200

        until(fits, 5, "there is room again")
        refused(service, channel, of_user(user), status, code, source)


def test_streams_of_a_user_by_any_credential(shared_valkey: Valkey, channel: str) -> None:
    """Header, cookie and ticket of one user count together, tokens without a user not at all."""
    settings = {**GUARDED, "MAX_CONNECTIONS_PER_USER": 2}
    mine = token("ana", subscribe=["open.*"])
    with LiveService(shared_valkey.url, **settings) as service, contextlib.ExitStack() as stack:
        with_ticket = f"{channel}&ticket={get_ticket(service, channel, bearer(mine))}"
        opened(stack.enter_context(stream(service, with_ticket)))
        opened(stack.enter_context(stream(service, channel, cookie(mine))))
        for what, shown in ((with_ticket, {}), (channel, bearer(mine)), (channel, cookie(mine))):
            refused(service, what, shown, 429, "too_many_streams_of_user")
        for shown in ({}, bearer(token("", subscribe=["open.*"]))):
            for _ in range(3):
                opened(stack.enter_context(stream(service, channel, shown)))


# --------------------------------------------------------------------------------------- rates


def in_time(attempt: Callable[[], bool]) -> None:
    """Try until it was fast enough for its result to mean anything: buckets fill meanwhile."""
    until(attempt, 20, "an attempt is fast enough on this machine")


@pytest.mark.parametrize(
    ("method", "path", "shown"),
    [
        ("GET", "/stream?channel={}", {}),
        ("GET", "/stream?channel={}", bearer("guessed-by-somebody")),
        ("HEAD", "/stream?channel={}", {}),
        ("POST", "/tickets?channel={}", bearer("guessed-by-somebody")),
        ("GET", "/channels/{}/events", {}),
    ],
)
def test_attempts_to_connect(
    limited: LiveService, channel: str, method: str, path: str, shown: dict[str, str]
) -> None:
    """Two at once and one a second from each address, those that fail too: nobody guesses faster.
    What looks at no credential is not counted.
    """

    def status(source: str, **more: str) -> tuple[int, str]:
        with RawConnection(limited.port, source=source) as connection:
            connection.send(request_bytes(method, path.format(channel), None, **shown, **more))
            head = connection.sock.recv(4096).decode()
        return int(head.split()[1]), head

    def attempt() -> bool:
        source, started = next(addresses), time.monotonic()
        allowed = 401 if shown else 200
        first = [status(source)[0] for _ in range(2)]
        third, head = status(source)
        if time.monotonic() - started > 0.9:
            return False
        assert first == [allowed] * 2
        assert third == 429
        assert "Retry-After: 1\r\n" in head
        soft, head = status(source, **EVENT_STREAM)
        if time.monotonic() - started < 0.9:
            assert soft == (200 if method == "GET" else 429)
            assert "Pushline-Stream" not in head
        assert status(next(addresses))[0] == allowed, "others are let in"
        with RawConnection(limited.port, source=source) as connection:
            assert connection.ask(request_bytes("GET", "/livez")).status == 200
        until(lambda: status(source)[0] == allowed, 5, "who waits is let in")
        return True

    in_time(attempt)


def new_user() -> dict[str, str]:
    """A credential with a full bucket."""
    return bearer(token(str(uuid.uuid4()), publish=["*"]))


def post(service: LiveService, path: str, body: Any, **headers: str) -> Answer:
    """POST JSON."""
    return ask(service, "POST", path, json.dumps(body).encode(), **headers)


def kept(service: LiveService, channel: str) -> list[str]:
    """The data of all events of a channel."""
    path = f"/channels/{channel}/events?limit=1000"
    answer = ask(service, "GET", path, None, X_Forwarded_For=next(addresses))
    return [event["data"] for event in answer.json()["events"]]


def test_publishes_one_by_one(limited: LiveService, channel: str) -> None:
    """Two at once and one a second for each credential, by whatever route; a refused one is not
    published, and Retry-After says when it may come.
    """

    def attempt() -> bool:
        name, shown = f"{channel}-{uuid.uuid4()}", new_user()
        item, started = {"channel": name, "data": "x"}, time.monotonic()
        first, charged = post(limited, f"/channels/{name}", 1, **shown), time.monotonic()
        second = post(limited, "/publish", item, **shown)
        third = [
            post(limited, f"/channels/{name}", 3, **shown),
            post(limited, "/publish", item, **shown),
            post(limited, "/publish", [item], **shown),
            post(limited, f"/channels/{name}/end", None, **shown),
        ]
        if time.monotonic() - started > 0.9:
            return False
        assert (first.status, second.status) == (200, 200)
        for answer in third:
            answer.problem(429, "too_many_publishes")
            assert answer.header("Retry-After") == "1"
        assert kept(limited, name) == ["1", "x"]
        assert post(limited, f"/channels/{name}", 4, **new_user()).status == 200, "others may"
        time.sleep(max(0.0, charged + 1.05 - time.monotonic()))
        assert post(limited, f"/channels/{name}", 5, **shown).status == 200
        return True

    in_time(attempt)


def test_whose_publishes_count_together(limited: LiveService, channel: str) -> None:
    """All tokens of one user are one credential, and each key is one."""

    def attempt() -> bool:
        user, started = str(uuid.uuid4()), time.monotonic()
        same = [bearer(token(user, seconds=60 + n, publish=["*"])) for n in range(3)]
        statuses = [post(limited, f"/channels/{channel}", 1, **shown).status for shown in same]
        if time.monotonic() - started > 0.9:
            return False
        assert statuses == [200, 200, 429]
        return True

    in_time(attempt)
    statuses = [
        post(limited, f"/channels/{channel}", 1, **bearer(key)).status
        for key in (KEY, KEY, LIMITED_KEY, LIMITED_KEY)
    ]
    assert statuses == [200] * 4


def test_who_shows_nothing_pays_by_address(shared_valkey: Valkey, channel: str) -> None:
    """Where anyone may publish, nobody can use up what others may."""
    settings = {**GUARDED, "PUBLISH_OPEN": 1, "MAX_PUBLISHES_PER_SECOND": 1,
                "TRUSTED_PROXIES": "127.0.0.1"}  # fmt: skip
    with LiveService(shared_valkey.url, **settings) as service:

        def attempt() -> bool:
            one, other, started = next(addresses), next(addresses), time.monotonic()
            path, sources = f"/channels/{channel}", [one, one, one, other, other, other]
            statuses = [post(service, path, 1, X_Forwarded_For=who).status for who in sources]
            if time.monotonic() - started > 0.9:
                return False
            assert statuses == [200, 200, 429] * 2
            return True

        in_time(attempt)


def test_arrays_are_paid_for_afterwards(limited: LiveService, channel: str) -> None:
    """An array of any size goes through while a token is there; then its credential waits."""
    shown, items = new_user(), [{"channel": channel, "data": str(n)} for n in range(6)]
    assert post(limited, "/publish", items, **shown).status == 200
    answer = post(limited, "/publish", items, **shown)
    answer.problem(429, "too_many_publishes")
    assert 3 <= int(answer.header("Retry-After") or "") <= 5  # 6 tokens taken, 2 were there, 1 due
    assert kept(limited, channel) == [str(n) for n in range(6)]


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [("PUT", "/channels/{}", ""), ("PUT", "/publish", ""),
     ("POST", "/publish", "application/x-ndjson")],
)  # fmt: skip
def test_uploads_wait_instead(
    limited: LiveService, channel: str, method: str, path: str, kind: str
) -> None:
    """An upload that is over the limit is slowed down to it, and none of its lines is lost."""

    def attempt() -> bool:
        name = f"{channel}-{uuid.uuid4()}"
        shown = {**new_user(), **({"Content-Type": kind} if kind else {})}

        def upload(*texts: str) -> None:
            lines = [t if "{}" in path else json.dumps({"channel": name, "data": t}) for t in texts]
            body = "".join(f"{line}\n" for line in lines).encode()
            answer = ask(limited, method, path.format(name), body, **shown)
            assert answer.json()["events"] == len(texts)

        started = time.monotonic()
        upload("0", "1", "2")
        if time.monotonic() - started > 0.9:
            return False  # they may take what is there, and more; or was that slowed down?
        # Three tokens were taken where two were: the next one is there after two seconds.
        upload("3")
        assert 1.9 < time.monotonic() - started < 8
        assert kept(limited, name) == ["0", "1", "2", "3"]
        return True

    in_time(attempt)


# --------------------------------------------------------------------------------------- sizes


def test_channels_of_a_stream(limited: LiveService, channel: str) -> None:
    """Three fit, in a stream and a ticket, however often they are named; four are a 400, which
    tells an EventSource to give up.
    """
    for count in (2, 3):
        names = "&channel=".join(f"{channel}.{n % count}" for n in range(5))
        with stream(limited, names) as client:
            opened(client)
        get_ticket(limited, names, {"X_Forwarded_For": next(addresses)})
    names = "&channel=".join(f"{channel}.{n}" for n in range(4))
    for accept in ("text/event-stream", "*/*"):
        with stream(limited, names, {"Accept": accept}) as client:
            assert client.status == 400
            client.read_until_end(5)
            assert json.loads(client.body)["code"] == "bad_parameter"
    ask(limited, "POST", f"/tickets?channel={names}", b"").problem(400, "bad_parameter")


def sent(service: LiveService, method: str, path: str, body: bytes, framing: str) -> Answer:
    """Send a body with a Content-Length, or in chunks."""
    if framing == "length":
        return ask(service, method, path, body, **new_user())
    head = request_bytes(method, path, None, Transfer_Encoding="chunked", **new_user())
    with RawConnection(service.port) as connection:
        pieces = [body[start : start + 333] for start in range(0, len(body), 333)]
        return connection.send(head + chunked(*pieces)).answer(method)


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_sizes_of_events(limited: LiveService, channel: str, framing: str, more: int) -> None:
    """MAX_EVENT_BYTES holds for a body, for each item of an array and for each line; beyond it is
    413, and nothing of a body is published. JSON may be 16 times as long.
    """
    data = "x" * (MAX_EVENT_BYTES + more)
    item = {"channel": channel, "data": data}
    small, at_most = {"channel": channel, "data": ""}, BODY_FACTOR * MAX_EVENT_BYTES + more
    cases = [
        ("POST", f"/channels/{channel}", data.encode(), [data]),
        ("POST", "/publish", json.dumps(item).encode(), [data]),
        ("POST", "/publish", json.dumps([small, item]).encode(), ["", data]),
        ("POST", "/publish", json.dumps(small).encode().ljust(at_most), [""]),
        ("PUT", f"/channels/{channel}", data.encode(), [data]),
        ("PUT", "/publish", json.dumps(item).encode(), [data]),
        ("PUT", "/publish", json.dumps(small).encode().ljust(at_most), [""]),
    ]
    published: list[str] = []
    for method, path, body, events in cases:
        answer = sent(limited, method, path, body, framing)
        if more > 0:
            answer.problem(413, "event_too_large")
        else:
            assert answer.status == 200, answer.body
            published += events
    assert kept(limited, channel) == published


# ------------------------------------------------------------------------------------ behind nginx


@contextlib.contextmanager
def behind_nginx(
    valkey: Valkey, tmp_path: Path, **settings: object
) -> Iterator[tuple[LiveService, int]]:
    """A service with two streams for each address, and the port of a real nginx before it."""
    need("nginx")
    with LiveService(valkey.url, **{**GUARDED, "MAX_CONNECTIONS_PER_IP": 2, **settings}) as service:
        nginx = Nginx(tmp_path, service.url)
        try:
            yield service, nginx.new
        finally:
            nginx.stop()


def test_a_spoofed_address_counts_for_nothing(
    shared_valkey: Valkey, tmp_path: Path, channel: str
) -> None:
    """Behind a trusted nginx a client has the address that nginx has seen, whatever it claims; and
    around nginx nobody is believed.
    """
    trusting = {"TRUSTED_PROXIES": "127.0.0.1"}
    with (
        behind_nginx(shared_valkey, tmp_path, **trusting) as (service, port),
        contextlib.ExitStack() as stack,
    ):
        claims = ["10.0.0.1", "10.0.0.2, 127.0.0.1", "127.0.0.1", "garbage", "", "::1, unknown"]
        for direct in (0, port):
            source = next(addresses)
            for number, claim in enumerate(claims):
                shown = {**ANY, "X-Forwarded-For": claim}
                client = stream(service, channel, shown, source=source, port=direct)
                stack.enter_context(client)
                assert client.status == (200 if number < 2 else 429), (direct, claim)
            refused_softly(stream(service, channel, port=direct, source=source))
            opened(stack.enter_context(stream(service, channel, port=direct)))


def test_without_trust_all_of_nginx_is_one_client(
    shared_valkey: Valkey, tmp_path: Path, channel: str
) -> None:
    """That is why TRUSTED_PROXIES must name the proxy: else its address is everybody's."""
    with (
        behind_nginx(shared_valkey, tmp_path) as (service, port),
        contextlib.ExitStack() as stack,
    ):
        for number in range(4):
            shown = {**ANY, "X-Forwarded-For": f"10.0.0.{number}"}
            client = stack.enter_context(stream(service, channel, shown, port=port))
            assert client.status == (200 if number < 2 else 429)
        opened(stack.enter_context(stream(service, channel)))


def test_addresses_of_ipv6_count_by_network(
    shared_valkey: Valkey, tmp_path: Path, channel: str
) -> None:
    """One client owns a whole /64; an IPv4 address written as IPv6 is the same address. Rates are
    counted in the same way.
    """
    settings = {"TRUSTED_PROXIES": "127.0.0.0/8, 10.9.0.0/16", "MAX_CONNECTS_PER_SECOND_PER_IP": 2}
    with (
        behind_nginx(shared_valkey, tmp_path, **settings) as (service, port),
        contextlib.ExitStack() as stack,
    ):

        def status(claim: str) -> int:
            shown = {**ANY, "X-Forwarded-For": claim}
            return stack.enter_context(stream(service, channel, shown, port=port)).status

        network = ("2001:db8:1:2::1", "2001:db8:1:2:ffff::1", "[2001:db8:1:2::3]:443, 10.9.1.1")
        assert [status(claim) for claim in network] == [200, 200, 429]
        assert status("2001:db8:1:3::1") == 200
        same = ("192.0.2.7", "::ffff:192.0.2.7", "192.0.2.7:8080, 10.9.0.1")
        assert [status(claim) for claim in same] == [200, 200, 429]
        assert status("192.0.2.8") == 200
        codes = []
        started = time.monotonic()
        for host in range(8):
            path, claim = f"/stream?channel={channel}", f"2001:db8:1:4::{host}"
            with RawConnection(port) as connection:
                request = request_bytes("HEAD", path, None, X_Forwarded_For=claim)
                codes.append(connection.ask(request, "HEAD").status)
        allowed = codes.count(200)
        assert 4 <= allowed <= 4 + math.ceil(2 * (time.monotonic() - started))
        assert codes[:4] == [200] * 4
