"""What Redis's replies mean: events, tails, which server it is, and refusals."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from redis.exceptions import BusyLoadingError, OutOfMemoryError, ReadOnlyError

from service.errors import (
    ChannelEnded,
    IdempotencyConflict,
    PushlineError,
    RedisChanged,
    RedisRefused,
)
from service.event import EventId
from service.frame import Frame, private_to
from service.publication import Publication


class Clock(NamedTuple):
    """The last id given out, and the id from which the data set vouches for completeness."""

    id: EventId
    born: EventId


class Tail(NamedTuple):
    """The id of a channel's last stored event (None: not known), of its `$end`, if any, and the
    one up to which it was forgotten, if ever.
    """

    id: EventId | None
    ended: EventId | None
    forgotten: EventId | None = None


def checked(replies: list[Any]) -> list[Any]:
    """Return `replies`; raises RedisRefused when one of them is an error."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise refusal(reply)
    return replies


def id_of(text: bytes) -> EventId:
    """An id that Redis sent, which needs no second check; raises ValueError for what is none."""
    milliseconds, _, sequence = text.decode().partition("-")
    return EventId(int(milliseconds), int(sequence))


def frame_of(entry_id: bytes, fields: list[bytes]) -> Frame:
    """An event of a history, as publish.lua has stored it."""
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    name = values[b"name"].decode() or "message"
    frame = Frame(id_of(entry_id), name, values[b"frame"], id_of(values[b"prev"]))
    frame.deadline = int(values[b"deadline"]) if values[b"deadline"] else None
    frame.private = private_to(values.get(b"private", b"").decode())
    return frame


def identity_of(info: list[bytes], config: Any) -> tuple[str, int]:
    """Which Redis this is, and whether a restart of it loses nothing.

    `info` is what INFO says of server and replication; `config` may be a refusal.
    """
    facts = dict(re.findall(r"^(\w+):([^\r\n]*)", b"\n".join(info).decode(), re.M))
    identity = f"{facts.get('run_id')}:{facts.get('master_replid')}"
    settings = dict(zip(config[::2], config[1::2], strict=True)) if type(config) is list else {}
    on_disk = settings.get(b"appendonly") == b"yes" and settings.get(b"appendfsync") == b"always"
    # A promoted replica remembers its master's id: what the master took last may be missing.
    promoted = facts.get("master_replid2", "0").strip("0") != ""
    return identity, int(on_disk and not promoted)


_REFUSALS = (
    (ReadOnlyError, "redis_readonly"),
    (BusyLoadingError, "redis_loading"),
    (OutOfMemoryError, "redis_out_of_memory"),
)


def refusal(error: Exception | str, publication: Publication | None = None) -> PushlineError:
    """The answer to an error, or its text: Redis took nothing, or not all of it."""
    text = str(error)
    if text.startswith("CONFLICT"):
        return IdempotencyConflict()
    if text.startswith("CHANGED"):
        return RedisChanged()
    if text.startswith("ENDED") and publication is not None:
        return ChannelEnded(f"{publication.channels[int(text.split()[1])]} is finished")
    for kind, code in _REFUSALS:
        if isinstance(error, kind):
            return RedisRefused(code, f"Redis refuses to write: {error}")
    if text.startswith("BUSY "):
        return RedisRefused("redis_busy", "Redis is busy running another script")
    return RedisRefused("redis_error", f"Redis refuses: {error}")
