"""Whether a silent stream stays open: a heartbeat has to come before a router loses patience."""

from __future__ import annotations

import time
from http.client import HTTPException

from service.doctor.findings import Report
from service.remote import Remote, RemoteStream

BEATS = 2
"""Heartbeats that are awaited: by its jitter the first one may come early."""

PATIENCE_SECONDS = 60.0
"""More than HEARTBEAT_SECONDS may be."""

FIX = (
    "raise the timeout of the proxy or router, such as nginx's proxy_read_timeout, or set"
    " HEARTBEAT_SECONDS well below it"
)
UNHELD = "a proxy holds them back: switch response buffering off"


def check_silence(report: Report, remote: Remote, channel: str) -> None:
    """Hold a stream of `channel`, to which nobody publishes. Raises OSError and HTTPException."""
    with remote.stream(channel) as stream:
        if not stream.opened:
            report.skip("heartbeat", f"no silent stream could be held: {stream.read_code()}")
            return
        stream.read()
        stream.wait_up_to(PATIENCE_SECONDS)
        if all(_hear(report, stream) for _ in range(BEATS)):
            report.check("heartbeat", True)


def _hear(report: Report, stream: RemoteStream) -> bool:
    """Await one heartbeat."""
    began = time.monotonic()
    try:
        if stream.read():
            return True
    except TimeoutError:
        what = f"no heartbeat comes within {PATIENCE_SECONDS:g} s"
        return report.check("heartbeat", False, what, UNHELD)
    except (OSError, HTTPException):
        pass  # the same as an end
    what = f"a stream is cut after {time.monotonic() - began:.1f} s without an event"
    return report.check("heartbeat", False, what, FIX)
