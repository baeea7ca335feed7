"""Whether a Redis is there, lets the service in, and is set up for it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from service.doctor.findings import Report
from service.errors import PushlineError
from service.redis_address import RedisAddress
from service.redis_pool import RedisPool
from service.settings import Settings

OLDEST = (6, 2)
"""XADD with MINID and what else the scripts use."""

OTHER_CONNECTIONS = 2
"""What a worker takes beside REDIS_POOL: it follows with one, and asks with another."""

CLIENTS = 10
"""Connections that are left to publishers, monitoring and this program."""

PUBSUB_HARD_BYTES, PUBSUB_SOFT_BYTES = 33_554_432, 8_388_608
"""Redis's own defaults; less is somebody's choice."""

SKEW_SECONDS = 1.0
FULL = 0.9
"""The share of `maxmemory` beyond which there is little time left."""

CONFIGURED = (
    *("maxmemory-policy", "maxclients", "appendonly", "save"),
    "client-output-buffer-limit",
)

Facts = Mapping[str, str]


def check_redis(report: Report, url: str, settings: Settings, *, private: bool) -> None:
    """Look at the Redis at `url`; a private one, of `serve`, needs neither disk nor budget."""
    pool = RedisPool(url, {}, connections=1, tls_verify=settings.redis_tls_verify)
    with closing(pool):
        try:
            sent = time.time()
            info, moment = pool.run([("INFO",), ("TIME",)])
            received = time.time()
            replies = pool.run([("CONFIG", "GET", name) for name in CONFIGURED])
        except PushlineError as error:
            report.fault("redis", *_why_not(error, url))
            return
    if isinstance(info, Exception):
        report.fault("redis", f"Redis refuses INFO: {info}", "let the user run INFO and CONFIG GET")
        return
    report.check("redis", True)
    facts = {**_facts_of(info), **_configured(replies)}
    check_server(report, facts)
    if not private:
        check_durability(report, facts)
        _check_connections(report, facts, settings)
    _check_clock(report, moment, (sent + received) / 2, received - sent)


def _why_not(error: PushlineError, url: str) -> tuple[str, str]:
    """What is wrong, and how to mend it; redis-py's own words have no password in them."""
    cause = error.__cause__
    why = str(cause or error)
    if type(cause).__name__.startswith("Authentication") or "WRONGPASS" in why:
        what = "Redis refuses the user or the password"
        return what, "put the right password into REDIS_URL: redis://:PASSWORD@host:port/0"
    if "NOAUTH" in why or "NOPERM" in why:
        return f"Redis does not let this user in: {why}", "put user and password into REDIS_URL"
    if "CERTIFICATE_VERIFY_FAILED" in why:
        fix = "install its authority's certificate, or set REDIS_TLS_VERIFY=0 to accept any"
        return "the certificate of Redis is not valid", fix
    what = f"Redis can't be reached at {RedisAddress.parse(url)}: {why}"
    return what, "start Redis there, open the way to it, or mend REDIS_URL"


def _facts_of(info: bytes) -> dict[str, str]:
    return dict(re.findall(r"^(\w+):([^\r\n]*)", info.decode("utf-8", "replace"), re.M))


def _configured(replies: list[Any]) -> dict[str, str]:
    """What CONFIG says, as far as it may be asked."""
    told = [reply for reply in replies if isinstance(reply, list) and len(reply) == 2]
    return {name.decode(): value.decode("utf-8", "replace") for name, value in told}


def check_server(report: Report, facts: Facts) -> None:
    """Look at what it is, and whether it takes writes."""
    version = facts.get("redis_version", "0")
    report.check(
        "redis_version",
        tuple(map(int, re.findall(r"\d+", version)[:2])) >= OLDEST,
        f"Redis is version {version}",
        "upgrade to Redis 6.2 or newer, or to any Valkey",
    )
    report.check(
        "redis_replica",
        facts.get("role") == "master",
        f"it is a replica of {facts.get('master_host')}:{facts.get('master_port')}",
        "let REDIS_URL name the master, or use redis+sentinel://, which finds it",
    )
    policy = facts.get("maxmemory-policy") or facts.get("maxmemory_policy", "noeviction")
    report.check(
        "redis_eviction",
        policy == "noeviction",
        f"maxmemory-policy is {policy}",
        "redis-cli CONFIG SET maxmemory-policy noeviction, and the same in its configuration",
    )
    most, used = int(facts.get("maxmemory", 0)), int(facts.get("used_memory", 0))
    report.check(
        "redis_memory",
        used <= FULL * most or not most,
        f"{used / 2**20:.1f} of {most / 2**20:.1f} MiB are in use",
        "raise maxmemory, or lower HISTORY_EVENTS and HISTORY_SECONDS",
    )
    _check_buffer(report, facts.get("client-output-buffer-limit"))


def _check_buffer(report: Report, limits: str | None) -> None:
    match = re.search(r"pubsub (\d+) (\d+) \d+", limits or "")
    if match is None:
        report.skip("redis_pubsub_buffer", "this Redis does not tell its configuration")
        return
    hard, soft = int(match[1]), int(match[2])
    report.check(
        "redis_pubsub_buffer",
        not 0 < hard < PUBSUB_HARD_BYTES and not 0 < soft < PUBSUB_SOFT_BYTES,
        f"client-output-buffer-limit is pubsub {hard} {soft}",
        f"redis-cli CONFIG SET client-output-buffer-limit 'pubsub {PUBSUB_HARD_BYTES}"
        f" {PUBSUB_SOFT_BYTES} 60'",
    )


def check_durability(report: Report, facts: Facts) -> None:
    """Look at whether its data outlives it."""
    appends = facts.get("aof_enabled") == "1"
    if not appends and "save" not in facts:
        report.skip("redis_persistence", "this Redis does not tell its configuration")
        return
    failed = [
        name
        for name in ("aof_last_write_status", "rdb_last_bgsave_status")
        if facts.get(name, "ok") != "ok"
    ]
    if failed:
        fix = "look at Redis's log and at its disk"
        report.fault("redis_persistence", f"Redis can't save: {failed[0]}", fix)
        return
    report.check(
        "redis_persistence",
        appends or facts["save"],
        "Redis writes nothing to disk",
        "redis-cli CONFIG SET appendonly yes, and the same in its configuration",
    )


def _check_connections(report: Report, facts: Facts, settings: Settings) -> None:
    most = int(facts.get("maxclients", 0))
    workers, pool = settings.workers, settings.redis_pool
    needed = 2 * workers * (OTHER_CONNECTIONS + pool) + CLIENTS
    report.check(
        "redis_connections",
        most >= needed or not most,
        f"Redis takes {most} connections; {workers} workers with REDIS_POOL={pool} want"
        f" {(needed - CLIENTS) // 2}, twice that while they are replaced, and others {CLIENTS}",
        f"raise maxclients to {needed}, or lower REDIS_POOL or WEB_CONCURRENCY",
    )


def _check_clock(report: Report, moment: Any, here: float, took: float) -> None:
    if isinstance(moment, Exception):
        report.skip("redis_clock", "Redis does not tell its time")
        return
    skew = int(moment[0]) + int(moment[1]) / 1e6 - here
    report.check(
        "redis_clock",
        abs(skew) <= SKEW_SECONDS + took,
        f"Redis's clock and this machine's differ by {abs(skew):.1f} s",
        "let both machines follow a time server: `timedatectl set-ntp true`",
    )
