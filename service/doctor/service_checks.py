"""Whether a running service answers as it should at the address that clients use."""

from __future__ import annotations

import secrets
import time
from email.utils import parsedate_to_datetime
from http.client import HTTPException

from service.doctor.findings import Report
from service.doctor.silence_checks import check_silence
from service.doctor.stream_checks import WANTS_CREDENTIAL, check_streams
from service.remote import Remote, RemoteAnswer, reason_of
from service.settings import LOOPBACK_HOSTS

SKEW_SECONDS = 2.0
"""The Date header has whole seconds."""

NOT_READY = {
    "draining": "it is stopping: wait for the next one to start",
    "redis_not_followed": "look at Redis, and at the log line `Redis is lost`",
    "redis_not_answering": "look at Redis: SLOWLOG GET, and whether it answers PING in time",
}
"""How to mend each reason of /readyz."""


def check_service(report: Report, remote: Remote, *, patient: bool = False) -> None:
    """Look at the service of `remote` from outside; `patient`: at a stream that is silent too."""
    try:
        began = time.time()
        answer = remote.ask("GET", "/livez")
        ended = time.time()
        if not _is_ours(report, remote, answer):
            return
        _check_clock(report, answer.headers.get("Date", ""), began, ended)
        if not _is_ready(report, remote.ask("GET", "/readyz")):
            return
        channel = f"doctor-{secrets.token_hex(8)}"
        if not _is_local(remote):
            _check_openness(report, remote, channel)
        opens = check_streams(report, remote, channel)
        if patient and opens:
            check_silence(report, remote, channel)
        elif patient:
            report.skip("heartbeat", "streams have to come through first")
    except (OSError, HTTPException) as error:
        what = f"{remote.url} can't be used: {reason_of(error)}"
        report.fault("service", what, "check the URL, and that the service runs there")


def _is_ours(report: Report, remote: Remote, answer: RemoteAnswer) -> bool:
    place = answer.headers.get("Location", "")
    if 300 <= answer.status < 400 and place:
        what = f"{remote.url} sends clients elsewhere, and they lose their headers on the way"
        report.fault("service", what, f"use {place.partition('?')[0].removesuffix('/livez')}")
        return False
    return report.check(
        "service",
        answer.json().get("live") is True,
        f"what answers at {remote.url} is not Pushline: /livez says {answer.status}",
        "check the URL, and to which server the proxy leads",
    )


def _check_clock(report: Report, date: str, began: float, ended: float) -> None:
    try:
        there = parsedate_to_datetime(date).timestamp()
    except ValueError:
        report.skip("clock", "the answer has no date")
        return
    # The date is rounded down to a second.
    skew = max(there - ended, began - there - 1, 0.0)
    report.check(
        "clock",
        skew <= SKEW_SECONDS,
        f"the clocks of the service and of this machine differ by {skew:.0f} s",
        "let both machines follow a time server: `timedatectl set-ntp true`",
    )


def _is_ready(report: Report, answer: RemoteAnswer) -> bool:
    reasons = answer.json().get("reasons") or [f"/readyz says {answer.status}"]
    fixes = "; ".join(NOT_READY.get(str(one), "look at its log") for one in reasons)
    what = f"the service is not ready: {', '.join(map(str, reasons))}"
    return report.check("ready", answer.status == 200, what, fixes)


def _is_local(remote: Remote) -> bool:
    """Whether it is in local mode, open to its machine on purpose: then it refuses other hosts."""
    if remote.host not in LOOPBACK_HOSTS:
        return False
    answer = remote.ask("GET", "/livez", headers={"Host": "elsewhere.invalid"})
    return answer.code == "foreign_host"


def _check_openness(report: Report, remote: Remote, channel: str) -> None:
    _check_closed(
        report,
        "publish_open",
        remote.publish(channel, b"doctor", show=False),
        "the service takes events without a credential",
        "unset PUBLISH_OPEN, and set PUBLISH_KEYS to what `python -m service keys` prints",
    )
    _check_closed(
        report,
        "public_channels",
        remote.ask("HEAD", f"/stream?channel={channel}"),
        "the service streams any channel without a credential",
        "set PUBLIC_CHANNELS to the channels that are for everybody, such as news.*",
    )


def _check_closed(report: Report, name: str, answer: RemoteAnswer, what: str, fix: str) -> None:
    """Look at what a request without a credential has got; other errors hide it."""
    if answer.status in (200, *WANTS_CREDENTIAL):
        report.check(name, answer.status != 200, what, fix)
    else:
        report.skip(name, f"the service answers {answer.code}")
