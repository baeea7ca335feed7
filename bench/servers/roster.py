"""All servers, in the order in which they are reported."""

from __future__ import annotations

from bench.servers.better_sse import BetterSse
from bench.servers.flask_peers import FlaskSse, FlaskTutorial
from bench.servers.go_peers import Centrifugo, Mercure
from bench.servers.limit import JoinedLimit, Limit
from bench.servers.nchan import Nchan, NchanRedis
from bench.servers.pushline import Pushline, PushlineTwo
from bench.servers.pushpin import Pushpin
from bench.servers.server import Server
from bench.servers.starlette_peer import SseStarlette

SERVERS: tuple[type[Server], ...] = (
    Limit,
    JoinedLimit,
    Pushline,
    PushlineTwo,
    Nchan,
    NchanRedis,
    Pushpin,
    BetterSse,
    FlaskTutorial,
    SseStarlette,
    FlaskSse,
    Centrifugo,
    Mercure,
)
