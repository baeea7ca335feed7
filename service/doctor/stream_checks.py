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


WANTS_CREDENTIAL = (401, 403)

UNTAKEN = {
    "redis_readonly": "let REDIS_URL name the master, or use redis+sentinel://, which finds it",
    "redis_out_of_memory": "raise Redis's maxmemory, or lower HISTORY_EVENTS and HISTORY_SECONDS",
    "too_many_publishes": "wait, or raise MAX_PUBLISHES_PER_SECOND",
}
"""How to mend what keeps a service from taking events, by the code of its answer."""


class Late(Exception):
    """Something came too late, or not at all; the message says what."""


def check_streams(report: Report, remote: Remote, channel: str) -> bool:
    """Open streams of `channel`, and publish to it; returns whether they open, and stay open."""
    return _probe(report, remote, channel, "buffering", UNBUFFERED, "identity") and _probe(
        report, remote, channel, "gzip", UNPACKED, "gzip, deflate, br"
    )


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
            timed = _check_delays(report, remote, stream, channel)
        except Late as error:
            report.fault(name, str(error), fix)
            return False
        except (OSError, HTTPException) as error:
            report.fault(name, f"a stream breaks off: {reason_of(error)}", fix)
            return False
    report.check("stream", True)
    if timed:
        report.check(name, True)
    else:
        report.skip(name, "no event could be published: only a stream's first bytes were timed")
    return True


def _tell_refusal(report: Report, stream: RemoteStream, *, shown: bool) -> None:
    if stream.overloaded:
        fix = "look at pushline_requests_refused_total; docs/operations.md has the limits"
        report.fault("stream", "the service opens no more streams for this address now", fix)
    elif _wants_credential(stream.status, shown=shown):
        why = "it wants a token that may stream and publish doctor-*: set PUSHLINE_TOKEN to one"
        report.skip("stream", why)
    else:
        what = f"the service opens no stream: {stream.read_code()}"
        report.fault(
            "stream", what, "look at the log of the service; if it is the token, mend that"
        )


def _wants_credential(status: int, *, shown: bool) -> bool:
    """Whether what is missing is a credential, or a right; a bad one that was shown is a fault."""
    return status in WANTS_CREDENTIAL and not (status == 401 and shown)


def _check_delays(report: Report, remote: Remote, stream: RemoteStream, channel: str) -> bool:
    """Whether events could be timed, too. Raises Late, OSError and HTTPException."""
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
        if not _publish(report, remote, channel, b"doctor %d" % number):
            return False
        _await(stream, f"doctor {number}", time.monotonic() + remote.seconds)
        _check_time(began, "an event comes")
    return report.check("publish", True)


def _publish(report: Report, remote: Remote, channel: str, data: bytes) -> bool:
    """Whether the event was taken; else why not is noted."""
    fix = "look at the log of the service, and at its Redis; docs/http.md has the codes of errors"
    try:
        answer = remote.publish(channel, data)
    except (OSError, HTTPException) as error:
        return report.check("publish", False, f"a publish fails: {reason_of(error)}", fix)
    if _wants_credential(answer.status, shown=remote.token is not None):
        why = f"it is refused ({answer.code}); a token for it goes into PUSHLINE_TOKEN"
        report.skip("publish", why)
        return False
    what = f"the service takes no event: {answer.code}"
    return report.check("publish", answer.status == 200, what, UNTAKEN.get(answer.code, fix))


def _await(stream: RemoteStream, data: str, deadline: float) -> None:
    """Read until an event comes; heartbeats don't put the deadline off."""
    while (left := deadline - time.monotonic()) > 0:
        stream.wait_up_to(left)
        try:
            received = stream.read()
        except TimeoutError:
            break
        if not received:
            raise HTTPException("the stream ended")
        if any(message.data == data for message in stream.messages(received)):
            return
    raise Late("an event does not come: something holds it back")


def _check_time(began: float, what: str) -> None:
    took = time.monotonic() - began
    if took > LATE_SECONDS:
        raise Late(f"{what} {took:.1f} s late: something holds it back")
