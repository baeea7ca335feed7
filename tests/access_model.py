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


CREDENTIALS = {
    "none": Shown("nowhere"),
    "publish key": Shown("authorization", publish=ALL),
    "publish key with patterns": Shown("authorization", publish=MINE),
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
}


@dataclass(frozen=True)
class Mode:
    """How a service is set up: with credentials or without, and what is open to anybody."""

    credentials: bool
    publish: frozenset[str] = NONE
    subscribe: frozenset[str] = frozenset({PUBLIC, BOTH})
    admin: bool = False


MODES = {
    "production": Mode(credentials=True),
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
ITEM, PRIVATE_ITEM = '{"channel":"{c}","data":1}', '{"channel":"{c}","data":1,"private":true}'
JSON, NDJSON = "application/json", "application/x-ndjson"


def routes() -> Iterator[Route]:
    """All requests: every route and method, and each way to publish."""
    yield Route("GET", "/stream", "stream", 200, "channel={c}&last_event_id=earliest")
    yield Route("HEAD", "/stream", "stream", 200, "channel={c}")
    yield Route("GET", f"{CHANNEL}/events", "stream", 200)
    yield Route("HEAD", f"{CHANNEL}/events", "stream", 200)
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
    own = ("/stream", "/publish", "/tickets", "/streams", CHANNEL)
    for rule in (*own, f"{CHANNEL}/end", f"{CHANNEL}/events"):
        yield Route("OPTIONS", rule, "none", 204)
    for rule in ("/", "/static/<path:name>", "/livez", "/readyz", "/openapi.json"):
        for method in ("GET", "HEAD", "OPTIONS"):
            yield Route(method, rule, "none", 200)


ROUTES = {route.name: route for route in routes()}


def expected(mode: Mode, shown: Shown, route: Route, channel: str) -> tuple[int, str]:
    """The status of the answer, and the code of a refusal."""
    if route.right == "none":
        return route.status, ""
    if route.right == "ticket" and shown.place == "ticket":
        return 400, "bad_parameter"
    if counts(mode, shown, route):
        if shown.fault:
            return 401, shown.fault
        allowed = may(shown, route, channel)
        if route.right in ("stream", "ticket"):
            allowed = allowed or channel in mode.subscribe
        refusal = 403, "not_granted"
    else:
        allowed, refusal = may(mode, route, channel), (401, "no_credential")
    if not allowed:
        return refusal
    if route.strict and shown.place == "ticket":
        return 400, "bad_parameter"
    return route.status, ""


def counts(mode: Mode, shown: Shown, route: Route) -> bool:
    """Whether what is shown is looked at: only the header publishes and administrates.

    Without any credentials headers and cookies are somebody else's. Tickets always count.
    """
    if shown.place == "ticket":
        return route.right == "stream"
    if shown.place == "cookie" and route.right in ("publish", "admin"):
        return False
    return mode.credentials and shown.place != "nowhere"


def may(whose: Mode | Shown, route: Route, channel: str) -> bool:
    """Whether somebody's rights cover a route and a channel."""
    if route.right == "admin":
        return whose.admin
    return channel in (whose.publish if route.right == "publish" else whose.subscribe)


def sees_private(mode: Mode, shown: Shown, route: Route, channel: str) -> bool:
    """Whether whoever is let in gets private events: it takes a grant, also for what is public."""
    return counts(mode, shown, route) and channel in shown.subscribe


def refuses_foreign_pages(shown: Shown, route: Route) -> bool:
    """Whether a page of an origin that is neither the service's own nor listed is turned away.

    From all that changes anything, whatever it shows, as it may reach a service that its server
    can't; and from what a cookie opens, because browsers send that from any page.
    """
    if route.method == "OPTIONS":
        return route.rule in ("/publish", "/tickets", "/streams", CHANNEL)
    return route.method in ("POST", "PUT", "DELETE") or (
        route.right == "stream" and shown.place == "cookie"
    )


def refuses_embedding(shown: Shown, route: Route) -> bool:
    """The same for a page of another site that embeds something, which tells no origin."""
    return route.right in ("stream", "ticket") and shown.place == "cookie"


def tells_pages(route: Route) -> bool:
    """Whether pages of listed origins may read the answer, a refusal too."""
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
)

MODE_TITLES = {"PUBLISH_OPEN": "with `PUBLISH_OPEN=1`", "local": "in local mode"}


def table() -> list[str]:
    """The rows of the table in docs/security.md: each kind of credential in production, then who
    shows none where more is open. Credentials that all get the same share a row.
    """
    rows: dict[tuple[str, ...], list[str]] = {}
    for name, shown in CREDENTIALS.items():
        rows.setdefault(_cells(MODES["production"], shown), []).append(name)
    for mode in MODE_TITLES:
        rows[_cells(MODES[mode], CREDENTIALS["none"])] = [f"none, {MODE_TITLES[mode]}"]
    titles = ["credential", *(title for title, _, _ in COLUMNS), "private events"]
    lines = [titles, ["---"] * len(titles)]
    lines += [["; ".join(names), *cells] for cells, names in rows.items()]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _cells(mode: Mode, shown: Shown) -> tuple[str, ...]:
    cells = []
    for _, name, channel in COLUMNS:
        status, _ = expected(mode, shown, ROUTES[name], channel)
        cells.append("yes" if status < 300 else str(status))
    private = sees_private(mode, shown, ROUTES["HEAD /stream channel={c}"], BOTH)
    return (*cells, "yes" if private else "no")


if __name__ == "__main__":
    print(*table(), sep="\n")
