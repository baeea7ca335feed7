"""Your own authorisation: asks AUTHORIZE_URL which channels the client of a stream may have."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import re
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException

import gevent
from gevent.lock import BoundedSemaphore

from service.endpoint import Endpoint
from service.errors import CannotAuthorize, NotGranted, PushlineError, RedisError, Unauthorized
from service.event import EventId
from service.grants import Grant, check_subject

log = logging.getLogger("pushline.authorizer")

MAX_QUESTIONS = 100
"""Questions under way at a time; the next ones wait, within their own timeout."""

MAX_ANSWERS = 10_000
"""Answers that are remembered; the one used longest ago is forgotten first."""

WARNING_SECONDS = 1.0
"""Failures are logged at most this often: with each stream that opens there may be one."""

NOT_FORWARDED = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization"),
        *("proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "host"),
        *("accept", "accept-encoding", "content-length", "expect"),
    }
)
"""Headers that belong to one connection, or to the question itself."""

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class Authorizer:
    """Asks once for each stream, and shares equal questions.

    A question is equal when all that is sent is: channels and headers. What `url` may answer, and
    what that means, is in docs/security.md.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], EventId],
        timeout_seconds: float,
        cache_seconds: float,
    ) -> None:
        """An answer counts for `cache_seconds`; raises ConfigError for a bad `url`.

        `clock` gives the last id of Redis's clock, or raises RedisError.
        """
        self._clock = clock
        self._endpoint = Endpoint(url)
        self._timeout_seconds = timeout_seconds
        self._cache_seconds = cache_seconds
        self._turns = BoundedSemaphore(MAX_QUESTIONS)
        self._asking: dict[bytes, gevent.Greenlet[[_Question], Grant | _Refusal]] = {}
        self._answers: OrderedDict[bytes, tuple[Grant | _Refusal, float]] = OrderedDict()
        """Each answer with the time until which it counts, by the monotonic clock."""
        self._next_warning_at = -math.inf

    def ask(self, headers: Mapping[str, str], channels: Sequence[str]) -> Grant:
        """What the client with these `headers` may stream, of `channels` or more; blocks.

        Headers that can't be sent on as they are stay away, those with line breaks among them.
        Raises Unauthorized or NotGranted if that is the answer, CannotAuthorize if there is none
        within the timeout.
        """
        question = _Question(self._endpoint.target(channels), _forwarded(headers), channels)
        key = question.key()
        answer = self._remembered(key)
        if answer is None:
            asking = self._asking.get(key)
            if asking is None:  # a greenlet of its own, as who asked first may leave first
                asking = self._asking[key] = gevent.spawn(self._find_out, question)
            answer = asking.get()
        if isinstance(answer, _Refusal):
            raise answer.error(answer.detail)
        return answer

    def forget(self, user: str) -> None:
        """Ask once more for `user`, whatever was answered before."""
        old = [
            key
            for key, (answer, _) in self._answers.items()
            if isinstance(answer, Grant) and answer.user == user
        ]
        for key in old:
            del self._answers[key]

    def _find_out(self, question: _Question) -> Grant | _Refusal:
        answer: Grant | _Refusal
        try:
            answer = self._answer(question)
            self._remember(question.key(), answer)
        except CannotAuthorize as error:
            answer = _Refusal(CannotAuthorize, error.detail)
            self._warn(error.detail)
        finally:
            del self._asking[question.key()]
        return answer

    def _answer(self, question: _Question) -> Grant | _Refusal:
        try:
            with gevent.Timeout(self._timeout_seconds), self._turns:
                as_of = self._clock()  # before asking: what is revoked meanwhile isn't known there
                status, body = self._endpoint.get(question.target, question.headers)
        except gevent.Timeout:
            raise CannotAuthorize("AUTHORIZE_URL did not answer in time") from None
        except ssl.SSLError as error:
            raise CannotAuthorize("AUTHORIZE_URL has no TLS that can be trusted") from error
        except (HTTPException, ValueError) as error:
            raise CannotAuthorize("AUTHORIZE_URL did not answer in whole") from error
        except OSError as error:
            raise CannotAuthorize("AUTHORIZE_URL can't be reached") from error
        except RedisError as error:
            raise CannotAuthorize(error.detail) from error
        answer = _understood(status, body, question.channels)
        return dataclasses.replace(answer, as_of=as_of) if type(answer) is Grant else answer

    # -- what was answered before ----------------------------------------------------------------

    def _remembered(self, key: bytes) -> Grant | _Refusal | None:
        if key not in self._answers:
            return None
        answer, until = self._answers[key]
        if time.monotonic() >= until:
            del self._answers[key]
            return None
        self._answers.move_to_end(key)
        return answer

    def _remember(self, key: bytes, answer: Grant | _Refusal) -> None:
        seconds = self._cache_seconds
        if isinstance(answer, Grant) and answer.expires_at is not None:
            seconds = min(seconds, answer.expires_at - time.time())
        if seconds <= 0:
            return
        self._answers[key] = answer, time.monotonic() + seconds
        if len(self._answers) > MAX_ANSWERS:
            self._answers.popitem(last=False)

    def _warn(self, detail: str) -> None:
        now = time.monotonic()
        if now >= self._next_warning_at:
            self._next_warning_at = now + WARNING_SECONDS
            log.warning("%s (%s)", detail, self._endpoint.host)


@dataclass(frozen=True, slots=True, repr=False)
class _Question:
    """What is sent: path and query, and headers in an order of their own.

    It has no repr: gevent prints the arguments of a greenlet that fails.
    """

    target: str
    headers: tuple[tuple[str, str], ...]
    channels: Sequence[str]

    def key(self) -> bytes:
        """Stands for the question; a hash, so that no credential stays in memory."""
        return hashlib.sha256(json.dumps([self.target, self.headers]).encode()).digest()


@dataclass(frozen=True, slots=True)
class _Refusal:
    """What to raise, made anew for each who asks: a traceback belongs to one of them."""

    error: type[PushlineError]
    detail: str


def _forwarded(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(
        sorted(
            (name, value)
            for name, value in headers.items()
            if name.lower() not in NOT_FORWARDED
            and _HEADER_NAME.fullmatch(name)
            and _HEADER_VALUE.fullmatch(value)
        )
    )


def _understood(status: int, body: bytes, channels: Sequence[str]) -> Grant | _Refusal:
    """What an answer means; raises CannotAuthorize when that isn't clear."""
    if status == 401:
        return _Refusal(Unauthorized, "AUTHORIZE_URL wants a credential, or another one")
    if status == 403:
        return _Refusal(NotGranted, "AUTHORIZE_URL does not allow this")
    if status not in (200, 204):
        raise CannotAuthorize(f"AUTHORIZE_URL answered with status {status}")
    if not body.strip():
        return Grant(subscribe=tuple(channels))
    try:
        return _read_grant(body)
    except (ValueError, OverflowError, RecursionError) as error:
        raise CannotAuthorize("AUTHORIZE_URL answered with something that is no grant") from error


def _read_grant(body: bytes) -> Grant:
    """Raises ValueError, OverflowError or RecursionError when the body is no grant."""
    said = json.loads(body)
    if not isinstance(said, dict):
        raise ValueError("not an object")
    user, seconds = said.get("user"), said.get("expires_in")
    claims = {
        "pushline": {"subscribe": said.get("channels"), "info": said.get("info")},
        "sub": "" if user is None else user,
        "exp": None if seconds is None else time.time() + _checked_seconds(seconds),
    }
    grant = Grant.of_claims(claims)
    check_subject(grant.user)
    return grant


def _checked_seconds(seconds: object) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise ValueError("not a number of seconds")
    if not seconds > 0:  # not a number isn't, either
        raise ValueError("not a time to come")
    return float(seconds)
