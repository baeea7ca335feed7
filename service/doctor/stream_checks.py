"""Whether events come through an address at once, plain and compressed."""

from __future__ import annotations

import time
from http.client import HTTPException

from service.doctor.findings import Report
from service.remote import Remote, RemoteStream, reason_of

LATE_SECONDS = 1.0
"""What an event may take from its publish to its client, and a stream to its first bytes."""

PROBES = 3
"""Events that are published, one after the other has come: buffers may let the first one pass."""

UNBUFFERED = (
    "nginx: `proxy_buffering off` and no `proxy_ignore_headers X-Accel-Buffering` for this path;"
    " other proxies: switch response buffering and caching off"
)
UNPACKED = (
    "let the proxy pass Accept-Encoding and Content-Encoding on, and compress no text/event-stream"
    " itself; or set COMPRESS_MIN_BYTES=0"
)


class Late(Exception):
    """Something came too late, or not at all; the message says what."""


def check_streams(report: Report, remote: Remote, channel: str) -> None:
    """Open streams of `channel`, and publish to it where that is granted."""
    if _probe(report, remote, channel, "buffering", UNBUFFERED, "identity"):
        _probe(report, remote, channel, "gzip", UNPACKED, "gzip, deflate, br")


def _probe(
    report: Report, remote: Remote, channel: str, name: str, fix: str, accepted: str
) -> bool:
    """Look at one stream; False when there is no more to learn."""
    try:
        stream = remote.stream(channel, accepted)
    except TimeoutError:
        report.fault(name, "the head of a stream does not come", fix)
        return False
    with stream:
        if not stream.opened:
            _tell_refusal(report, stream, shown=remote.token is not None)
            return False
        known = ("identity", "gzip") if name == "gzip" else ("identity",)
        if stream.coding not in known:
            what = f"a proxy compresses streams by itself ({stream.coding})"
            report.fault("gzip", what, UNPACKED)
            return False
        try:
            _check_delays(report, remote, stream, channel)
        except Late as error:
            report.fault(name, str(error), fix)
            return False
        except (OSError, HTTPException) as error:
            report.fault(name, f"a stream breaks off: {reason_of(error)}", fix)
            return False
    report.check("stream", True)
    return report.check(name, True)


def _tell_refusal(report: Report, stream: RemoteStream, *, shown: bool) -> None:
    if stream.status == 200:
        fix = "look at pushline_requests_refused_total; docs/operations.md has the limits"
        report.fault("stream", "the service opens no more streams for this address now", fix)
    elif stream.status == 403 or (stream.status == 401 and not shown):
        why = "it wants a token that may stream and publish doctor-*: set PUSHLINE_TOKEN to one"
        report.skip("stream", why)
    else:
        what = f"the service opens no stream: {stream.read_code()}"
        report.fault(
            "stream", what, "look at the log of the service; if it is the token, mend that"
        )


def _check_delays(report: Report, remote: Remote, stream: RemoteStream, channel: str) -> None:
    """Raises Late, OSError and HTTPException."""
    began = time.monotonic()
    try:
        opening = stream.read()
    except TimeoutError:
        raise Late("a stream's first bytes do not come: something holds them back") from None
    _check_time(began, "a stream's first bytes come")
    for _ in stream.messages(opening):
        pass
    for number in range(PROBES):
        began = time.monotonic()
        answer = remote.publish(channel, b"doctor %d" % number)
        if answer.status != 200:
            why = (
                f"publishing is refused ({answer.code}), so only a stream's first bytes were timed"
            )
            report.skip("stream", f"{why}; a token for it goes into PUSHLINE_TOKEN")
            return
        _await(stream, f"doctor {number}")
        _check_time(began, "an event comes")


def _await(stream: RemoteStream, data: str) -> None:
    while True:
        try:
            received = stream.read()
        except TimeoutError:
            raise Late("an event does not come: something holds it back") from None
        if not received:
            raise HTTPException("the stream ended")
        if any(message.data == data for message in stream.messages(received)):
            return


def _check_time(began: float, what: str) -> None:
    took = time.monotonic() - began
    if took > LATE_SECONDS:
        raise Late(f"{what} {took:.1f} s late: something holds it back")
