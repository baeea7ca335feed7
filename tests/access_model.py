"""Who may do what, written down once more: a small model that shares no code with the service.

`python -m tests.access_model` prints the table of docs/security.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

PUBLIC, BOTH, GRANTED, FOREIGN = "public", "public and granted", "granted", "foreign"
"""Kinds of channels: anybody may stream the public ones; tokens and limited keys are for others."""

KINDS = (PUBLIC, BOTH, GRANTED, FOREIGN)
MINE = frozenset({BOTH, GRANTED})
ALL = frozenset(KINDS)
NONE: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Shown:
    """A kind of credential: where it is shown, what it grants, or why it is no good."""

    place: str
    publish: frozenset[str] = NONE
    subscribe: frozenset[str] = NONE
    admin: bool = False
    fault: str = ""
    metrics: bool = False


CREDENTIALS = {
    "none": Shown("nowhere"),
    "publish key": Shown("authorization", publish=ALL),
    "publish key with patterns": Shown("authorization", publish=MINE),
    "METRICS_TOKEN": Shown("authorization", fault="bad_credential", metrics=True),
    "unknown key": Shown("authorization", fault="bad_credential"),
    "token to publish": Shown("authorization", publish=MINE),
    "token to stream": Shown("authorization", subscribe=MINE),
    "token to publish and stream": Shown("authorization", publish=MINE, subscribe=MINE),
    "token to administrate": Shown("authorization", admin=True),
    "token with Mercure's claim": Shown("authorization", publish=MINE, subscribe=MINE),
    "expired token": Shown("authorization", fault="expired_credential"),
    "forged token": Shown("authorization", fault="bad_credential"),
    "user and password (Basic)": Shown("authorization", fault="bad_credential"),
    "token in the cookie": Shown("cookie", publish=MINE, subscribe=MINE, admin=True),
    "expired token in the cookie": Shown("cookie", fault="expired_credential"),
    "forged token in the cookie": Shown("cookie", fault="bad_credential"),
    "ticket": Shown("ticket", subscribe=MINE),
    "ticket that is over": Shown("ticket", fault="bad_credential"),
    "unknown ticket": Shown("ticket", fault="bad_credential"),
    "session that `AUTHORIZE_URL` lets in": Shown("session", subscribe=ALL),
    "session with rights of `AUTHORIZE_URL`": Shown("session", subscribe=MINE),
    "session that it doesn't know": Shown("session", fault="no_credential"),
    "session that it refuses": Shown("session", fault="not_granted"),
    "session of which it can't tell": Shown("session", fault="cannot_authorize"),
}

REFUSALS = {"not_granted": 403, "cannot_authorize": 503}
"""The status of a refusal, where it isn't 401."""


@dataclass(frozen=True)
class Mode:
    """How a service is set up: with credentials or without, and what is open to anybody.

    With `asks` there is an application that knows sessions, and nobody without one.
    """

    credentials: bool
    publish: frozenset[str] = NONE
    subscribe: frozenset[str] = frozenset({PUBLIC, BOTH})
    admin: bool = False
    asks: bool = False


MODES = {
    "production": Mode(credentials=True),
    "AUTHORIZE_URL": Mode(credentials=True, asks=True),
    "PUBLISH_OPEN": Mode(credentials=True, publish=ALL),
    "PUBLISH_OPEN alone": Mode(credentials=False, publish=ALL),
    "local": Mode(credentials=False, publish=ALL, subscribe=ALL, admin=True),
    "local with credentials": Mode(credentials=True, publish=ALL, subscribe=ALL, admin=True),
}


@dataclass(frozen=True)
class Route:
    """A request: what it takes to be let in, and the status then. `{c}` stands for a channel.

    `strict` ones refuse query parameters that they don't know, such as a ticket.
    """

    method: str
    rule: str
    right: str
    status: int
    query: str = ""
    body: str = ""
    kind: str = ""
    strict: bool = False

    @property
    def name(self) -> str:
        """What tells it from all others."""
        return " ".join(filter(None, (self.method, self.rule, self.query, self.body, self.kind)))

    @property
    def of_channel(self) -> bool:
        """Whether it names a channel."""
        return "{c}" in self.rule + self.query + self.body or "<channel>" in self.rule


CHANNEL = "/channels/<channel>"
METRICS = "/metrics"
ITEM, PRIVATE_ITEM = '{"channel":"{c}","data":1}', '{"channel":"{c}","data":1,"private":true}'
JSON, NDJSON = "application/json", "application/x-ndjson"


def routes() -> Iterator[Route]:
    """All requests: every route and method, and each way to publish."""
    yield Route("GET", "/stream", "stream", 200, "channel={c}&last_event_id=earliest")
    yield Route("HEAD", "/stream", "stream", 200, "channel={c}")
    yield Route("GET", f"{CHANNEL}/events", "stream", 200)
    yield Route("HEAD", f"{CHANNEL}/events", "stream", 200)
    for method in ("GET", "HEAD"):
        yield Route(method, CHANNEL, "count", 200)
        yield Route(method, f"{CHANNEL}/presence", "count", 200)
        yield Route(method, "/channels", "list", 200)
    yield Route("POST", "/tickets", "ticket", 200, "channel={c}")
    for method in ("POST", "PUT"):
        yield Route(method, CHANNEL, "publish", 200, body="x", strict=True)
        yield Route(method, CHANNEL, "publish", 200, "private=1", body="x", strict=True)
    for item in (ITEM, PRIVATE_ITEM):
        yield Route("POST", "/publish", "publish", 200, body=item, kind=JSON)
        yield Route("POST", "/publish", "publish", 200, body=f"[{item},{item}]", kind=JSON)
        yield Route("POST", "/publish", "publish", 200, body=f"{item}\n{item}\n", kind=NDJSON)
        yield Route("PUT", "/publish", "publish", 200, body=f"{item}\n{item}\n", kind=NDJSON)
    yield Route("POST", f"{CHANNEL}/end", "publish", 200)
    yield Route("DELETE", CHANNEL, "publish", 204)
    yield Route("DELETE", "/streams", "admin", 202, "user=nobody", strict=True)
    yield Route("DELETE", "/streams", "admin", 202, "stream=00-1", strict=True)
    for method in ("GET", "HEAD"):
        yield Route(method, METRICS, "admin", 200)
    yield Route("OPTIONS", METRICS, "none", 200)
    own = ("/stream", "/publish", "/tickets", "/streams", "/channels", CHANNEL)
    for rule in (*own, f"{CHANNEL}/end", f"{CHANNEL}/events", f"{CHANNEL}/presence"):
        yield Route("OPTIONS", rule, "none", 204)
    for rule in (
        "/",
        "/dashboard",
        "/docs",
        "/static/<path:name>",
        "/livez",
        "/readyz",
        "/openapi.json",
    ):
        for method in ("GET", "HEAD", "OPTIONS"):
            yield Route(method, rule, "none", 200)


ROUTES = {route.name: route for route in routes()}


def expected(mode: Mode, shown: Shown, route: Route, channel: str) -> tuple[int, str]:
    """The status of the answer, and the code of a refusal."""
    if route.right == "none" or (route.rule == METRICS and shown.metrics):
        return route.status, ""
    if route.right == "ticket" and shown.place == "ticket":
        return 400, "bad_parameter"
    asked = mode.asks and route.right in ("stream", "ticket", "count", "list")
    code = (refusal_after_asking if asked else refusal)(mode, shown, route, channel)
    if code:
        return REFUSALS.get(code, 401), code
    if route.strict and shown.place == "ticket":
        return 400, "bad_parameter"
    return route.status, ""


def refusal(mode: Mode, shown: Shown, route: Route, channel: str) -> str:
    """Why a request is refused; empty if it isn't."""
    if not counts(mode, shown, route):
        return "" if may(mode, route, channel) else "no_credential"
    if shown.fault:
        return shown.fault
    allowed = may(shown, route, channel)
    if route.right in ("stream", "ticket", "count"):
        allowed = allowed or channel in mode.subscribe
    return "" if allowed else "not_granted"


def refusal_after_asking(mode: Mode, shown: Shown, route: Route, channel: str) -> str:
    """The same for a stream or ticket where an application is asked.

    What is shown may be meant for the application, unless it was good and has expired.
    """
    if shown.fault == "expired_credential":
        return shown.fault
    if route.right == "list":  # nobody is asked
        good = not shown.fault and shown.place not in ("nowhere", "session")
        return "" if good else "no_credential"
    if shown.fault == "cannot_authorize":
        return shown.fault
    if channel in mode.subscribe or may(shown, route, channel):
        return ""
    if shown.place == "session":
        return shown.fault or "not_granted"
    return "no_credential"


def counts(mode: Mode, shown: Shown, route: Route) -> bool:
    """Whether what is shown is looked at: only the header publishes and administrates.

    Without any credentials headers and cookies are somebody else's. Tickets always count.
    """
    if shown.place == "ticket":
        return route.right in ("stream", "count", "list")
    if shown.place in ("cookie", "session") and route.right in ("publish", "admin"):
        return False
    if shown.place == "session":
        return mode.asks
    return mode.credentials and shown.place != "nowhere"


def may(whose: Mode | Shown, route: Route, channel: str) -> bool:
    """Whether somebody's rights cover a route and a channel."""
    if route.right == "admin":
        return whose.admin
    if route.right == "list":
        return whose.admin or isinstance(whose, Shown)
    if route.right == "count":  # that anybody may publish is no reason to tell anybody
        publish = whose.publish if isinstance(whose, Shown) else NONE
        return whose.admin or channel in whose.subscribe | publish
    return channel in (whose.publish if route.right == "publish" else whose.subscribe)


def sees_private(mode: Mode, shown: Shown, route: Route, channel: str) -> bool:
    """Whether whoever is let in gets private events: it takes a grant, also for what is public."""
    return counts(mode, shown, route) and channel in shown.subscribe


def is_sent_unasked(mode: Mode, shown: Shown) -> bool:
    """Whether what counts is what browsers send from any page."""
    return shown.place == "cookie" or (shown.place == "session" and mode.asks)


def refuses_foreign_pages(mode: Mode, shown: Shown, route: Route) -> bool:
    """Whether a page of an origin that is neither the service's own nor listed is turned away.

    From all that changes anything, whatever it shows, as it may reach a service that its server
    can't; and from what a cookie opens, because browsers send that from any page.
    """
    if route.method == "OPTIONS":
        return route.rule in ("/publish", "/tickets", "/streams", CHANNEL)
    return route.method in ("POST", "PUT", "DELETE") or (
        route.right in ("stream", "count", "list") and is_sent_unasked(mode, shown)
    )


def refuses_embedding(mode: Mode, shown: Shown, route: Route) -> bool:
    """The same for a page of another site that embeds something, which tells no origin."""
    asks_for = ("stream", "ticket", "count", "list")
    return route.right in asks_for and is_sent_unasked(mode, shown)


def tells_pages(route: Route) -> bool:
    """Whether pages of listed origins may read the answer, a refusal too."""
    if route.rule == METRICS:
        return False
    return route.right != "none" or (route.method == "OPTIONS" and route.status == 204)


# ------------------------------------------------------------------------------------- the table

COLUMNS = (
    ("publish", "POST /channels/<channel> x", GRANTED),
    ("publish elsewhere", "POST /channels/<channel> x", FOREIGN),
    ("stream public", "HEAD /stream channel={c}", PUBLIC),
    ("stream granted", "HEAD /stream channel={c}", GRANTED),
    ("stream others", "HEAD /stream channel={c}", FOREIGN),
    ("`POST /tickets`", "POST /tickets channel={c}", GRANTED),
    ("`DELETE /streams`", "DELETE /streams user=nobody", ""),
    ("`/metrics`", "GET /metrics", ""),
)

MODE_TITLES = {"PUBLISH_OPEN": "with `PUBLISH_OPEN=1`", "local": "in local mode"}


def table() -> list[str]:
    """The rows of the table in docs/security.md: each kind of credential in production, sessions
    where an application is asked, then who shows none where more is open. Credentials that all
    get the same share a row.
    """
    rows: dict[tuple[str, ...], list[str]] = {}
    for name, shown in CREDENTIALS.items():
        if shown.place != "session":
            rows.setdefault(_cells(MODES["production"], shown), []).append(name)
    lines = [["; ".join(names), *cells] for cells, names in rows.items()]
    for name, shown in CREDENTIALS.items():
        if shown.place == "session":
            lines.append([name, *_cells(MODES["AUTHORIZE_URL"], shown)])
    for mode, title in MODE_TITLES.items():
        lines.append([f"none, {title}", *_cells(MODES[mode], CREDENTIALS["none"])])
    titles = ["credential", *(title for title, _, _ in COLUMNS), "private events"]
    return [f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *lines)]


def _cells(mode: Mode, shown: Shown) -> tuple[str, ...]:
    cells = []
    for _, name, channel in COLUMNS:
        status, _ = expected(mode, shown, ROUTES[name], channel)
        cells.append("yes" if status < 300 else str(status))
    private = sees_private(mode, shown, ROUTES["HEAD /stream channel={c}"], BOTH)
    return (*cells, "yes" if private else "no")


if __name__ == "__main__":
    print(*table(), sep="\n")
