"""What the environment says: settings, and the limits of this machine."""

from __future__ import annotations

import resource
from collections.abc import Mapping

from service.doctor.findings import Report
from service.errors import ConfigError
from service.settings import LOOPBACK_HOSTS, RESERVED_FILES, Settings
from service.token_keys import KeyRing

MOST_HEARTBEAT_SECONDS = 40.0
"""So that a heartbeat which comes ten seconds late is still in time for the strictest router."""

FEW_STREAMS = 1000
"""A file limit that leaves room for fewer is somebody's default, and no decision."""


def check_settings(report: Report, environ: Mapping[str, str]) -> Settings | None:
    """Look at all that the environment says; None when there is no service with it."""
    try:
        settings = Settings.from_environ(environ)
        KeyRing.of_settings(settings)
        if settings.redis_url is not None or settings.host not in LOOPBACK_HOSTS:
            settings.check_publishing()
    except ConfigError as error:
        fix = "set it as the line says; docs/settings.md has all settings"
        report.fault("settings", str(error), fix)
        return None
    report.check("settings", True)
    local = settings.host in LOOPBACK_HOSTS and (settings.embedded or settings.redis_url is None)
    if not local:
        _check_openness(report, settings)
    _check_heartbeat(report, settings.heartbeat_seconds)
    _check_files(report, int(environ.get("MAX_CONNECTIONS") or 0))
    return settings


def _check_openness(report: Report, settings: Settings) -> None:
    report.check(
        "publish_open",
        not settings.publish_open,
        "PUBLISH_OPEN=1",
        "unset PUBLISH_OPEN, and set PUBLISH_KEYS to what `python -m service keys` prints",
    )
    report.check(
        "public_channels",
        "*" not in settings.public_channels,
        "PUBLIC_CHANNELS has a *",
        "set PUBLIC_CHANNELS to the channels that are for everybody, such as news.*",
    )


def _check_heartbeat(report: Report, seconds: float) -> None:
    report.check(
        "heartbeat",
        seconds <= MOST_HEARTBEAT_SECONDS,
        f"HEARTBEAT_SECONDS={seconds:g} leaves routers hardly any time",
        f"set HEARTBEAT_SECONDS to {Settings.heartbeat_seconds:g}, or unset it",
    )


def _check_files(report: Report, wanted: int) -> None:
    """`wanted` streams, or as many as fit where it is 0."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = hard - RESERVED_FILES
    needed = wanted or FEW_STREAMS
    asked = f"MAX_CONNECTIONS={wanted} wants more" if wanted else "hardly any client gets in"
    report.check(
        "file_limit",
        hard == resource.RLIM_INFINITY or room >= needed,
        f"the file limit of {hard} leaves room for {max(0, room)} streams a worker: {asked};"
        " it is that of this program, and a service that runs may have another",
        f"raise it to {needed + RESERVED_FILES} or more where the service is started:"
        f" `ulimit -n {needed + RESERVED_FILES}`, LimitNOFILE= for systemd, --ulimit nofile="
        " for Docker",
    )
