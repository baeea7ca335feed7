"""What Redis keeps of users: who is on which channel by streams of which workers (presence.lua)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from service.channels import RedisNames
from service.redis_pool import RedisPool
from service.redis_replies import checked

USERS = 64
"""Users of one call of the script: Redis does nothing else meanwhile, for about a millisecond."""

CLAIM_SECONDS = 10.0
"""How long who claims a change has for telling it; then others try."""

PAGE_USERS = 200
"""Users that one reply brings: reading it takes about a millisecond."""


class Place(NamedTuple):
    """A user on a channel."""

    channel: str
    user: str


class Change(NamedTuple):
    """Somebody has come to a place or left it. `info` is JSON, or empty."""

    place: Place
    joined: bool
    generation: str
    info: str


class Present(NamedTuple):
    """A user of a channel, and how many streams of it that user has; 0 while others wait."""

    user: str
    info: str
    streams: int
    listed: bool
    """False as soon as somebody is telling that the user has left."""


class PresenceStore:
    """Calls the script, and reads what it keeps. Every method raises RedisError.

    A user without streams stays for `grace_seconds`.
    """

    def __init__(self, pool: RedisPool, names: RedisNames, grace_seconds: float) -> None:
        self._pool = pool
        self._names = names
        self._grace = round(grace_seconds * 1000)

    def hold(self, worker: str, held: Sequence[tuple[Place, int, str]]) -> None:
        """`worker` has so many streams of each user, who is described by a text; or none, for 0."""
        users = [(*place, streams, info) for place, streams, info in held]
        self._call("hold", self._grace, worker, users)

    def claim(self) -> list[Change]:
        """What is to be told now, by the caller and nobody else for CLAIM_SECONDS."""
        # Redis's own clock decides what of this is due.
        read = ("ZRANGE", self._names.changing, 0, USERS - 1)
        places = [_place(one) for one in checked(self._pool.run([read]))[0]]
        if not places:
            return []
        users = [(*place, "", "") for place in places]
        found = self._call("claim", round(CLAIM_SECONDS * 1000), "", users)
        return [
            Change(places[number], kind == b"join", generation.decode(), info.decode())
            for number, kind, generation, info in found
        ]

    def told(self, changes: Sequence[Change]) -> None:
        """All who listen know of `changes`."""
        users = [(*one.place, one.generation, "join" if one.joined else "leave") for one in changes]
        self._call("told", self._grace, "", users)

    def held_by(self, worker: str) -> list[Place]:
        """Some of the places where `worker` has streams; none when it has nowhere any."""
        read = ("SRANDMEMBER", self._names.held(worker), USERS)
        return [_place(one) for one in checked(self._pool.run([read]))[0]]

    def forget(self, worker: str) -> None:
        """Remember `worker` no longer if it holds nobody; one that is alive comes back."""
        self._call("forget", 0, worker, [])

    def pages(self, channel: str) -> Iterator[list[Present]]:
        """The users of a channel, in pieces; one may come twice."""
        cursor: bytes | int = 0
        while True:
            scan = ("HSCAN", self._names.present(channel), cursor, "COUNT", PAGE_USERS)
            ((cursor, found),) = checked(self._pool.run([scan]))
            yield [_present(*pair) for pair in zip(found[::2], found[1::2], strict=True)]
            if int(cursor) == 0:
                return

    def _call(
        self, operation: str, milliseconds: int, worker: str, users: Sequence[tuple[Any, ...]]
    ) -> list[Any]:
        names = self._names
        keys = [names.changing, names.workers, names.held(worker)]
        keys += [names.present(user[0]) for user in users]
        arguments = [part for user in users for part in user]
        call = ("EVALSHA", self._pool.sha["presence"], len(keys), *keys, operation, milliseconds)
        (changes,) = checked(self._pool.run_scripts([(*call, worker, *arguments)]))
        found: list[Any] = changes
        return found


def _place(member: bytes) -> Place:
    channel, _, user = member.decode().partition("/")  # no channel name has a slash
    return Place(channel, user)


def _present(user: bytes, entry: bytes) -> Present:
    said = json.loads(entry)
    listed = said["s"] != "leaving"
    return Present(user.decode(), said["i"], sum(map(int, dict(said["w"]).values())), listed)
