"""The keys at JWT_JWKS_URL: fetched, kept fresh, and kept through an outage of their server."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.parse import urlsplit

from service.errors import CannotAuthorize
from service.setting_rules import without_credentials
from service.token_keys import TokenKey

log = logging.getLogger("pushline.tokens")

FRESH_SECONDS = 300.0
"""How long keys are used without a look at whether they are still published."""

EARLY_SECONDS = 60.0
"""So long before that they are fetched in the background, and nobody waits."""

PAUSE_SECONDS = 10.0
"""Fetches begin at most this often, whatever unknown key ids anybody sends."""

FIRST_PAUSE_SECONDS = 1.0
"""The same as long as there were never any keys, and no token can be verified."""

FETCH_SECONDS = 5.0
"""How long the server may be silent, and how long the body may take."""

WAIT_SECONDS = FETCH_SECONDS + 1.0
"""How long a request waits for a fetch."""

ABANDON_SECONDS = 30.0
"""A fetch that takes longer, header by header, is no longer waited for."""

MAX_BYTES = 1_048_576
MAX_KEYS = 100


class Jwks:
    """A JSON Web Key Set. Any number of threads or greenlets may use it; they share fetches.

    Each fetch runs in a thread of its own, and the lock is held for moments without a switch of
    greenlets. So whoever waits may be killed, and nothing stays locked or half done.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: tuple[TokenKey, ...] = ()
        self._fetched_at = self._began_at = -math.inf
        self._failing = False
        self._fetch: threading.Event | None = None
        """The fetch under way; set when it is over."""

    def keys(self) -> tuple[TokenKey, ...]:
        """The keys; waits for a fetch when there are none, or only old ones and no outage.

        Raises CannotAuthorize when they could never be fetched.
        """
        age = self._clock() - self._fetched_at
        if age >= FRESH_SECONDS - EARLY_SECONDS:
            fetch = self._begin(PAUSE_SECONDS if self._keys else FIRST_PAUSE_SECONDS)
            if not self._keys or (age >= FRESH_SECONDS and not self._failing):
                _wait(fetch)
        if not self._keys:
            raise CannotAuthorize("the keys of JWT_JWKS_URL can't be fetched")
        return self._keys

    def renewed(self) -> tuple[TokenKey, ...]:
        """The keys, fetched again unless the last fetch began less than PAUSE_SECONDS ago."""
        _wait(self._begin(PAUSE_SECONDS))
        return self._keys

    def _begin(self, pause: float) -> threading.Event | None:
        """Begin a fetch, or join the one under way; None when it is too early for the next."""
        with self._lock:
            now = self._clock()
            if self._fetch is not None and now - self._began_at < ABANDON_SECONDS:
                return self._fetch
            if now - self._began_at < pause:
                return None
            self._began_at = now
            fetch = self._fetch = threading.Event()
        threading.Thread(target=self._run, args=(fetch,), name="jwks", daemon=True).start()
        return fetch

    def _run(self, fetch: threading.Event) -> None:
        try:
            keys = _keys_in(_download(self._url))
        except (OSError, HTTPException, ValueError, RecursionError) as error:
            self._note_failure(fetch, error)
        else:
            self._take(fetch, keys)
        finally:
            with self._lock:
                if self._fetch is fetch:
                    self._fetch = None
            fetch.set()

    def _take(self, fetch: threading.Event, keys: tuple[TokenKey, ...]) -> None:
        with self._lock:
            if self._fetch is not fetch:
                return  # it was abandoned, and a later one may have brought newer keys
            self._keys, self._fetched_at = keys, self._clock()
            was_failing, self._failing = self._failing, False
        if was_failing:
            log.info("token keys: %s answers again", without_credentials(self._url))

    def _note_failure(self, fetch: threading.Event, error: Exception) -> None:
        with self._lock:
            if self._fetch is not fetch:
                return
            was_failing, self._failing = self._failing, True
        if not was_failing:
            log.warning(
                "token keys: %s can't be used (%s); %s",
                without_credentials(self._url),
                _reason(error),
                "the known ones stay" if self._keys else "no token can be verified with them",
            )


def _wait(fetch: threading.Event | None) -> None:
    if fetch is not None:
        fetch.wait(WAIT_SECONDS)


def _reason(error: Exception) -> str:
    """Why a fetch failed; never an address, which may hold a secret."""
    if isinstance(error, HTTPException):
        return type(error).__name__
    return str(getattr(error, "reason", error)) or type(error).__name__


class _SameScheme(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from https to http, nor to a file."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme != urlsplit(req.full_url).scheme:
            fp.close()
            raise ValueError("it redirects to another scheme")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(url: str) -> bytes:
    """Raises OSError, HTTPException or ValueError."""
    request = urllib.request.Request(
        url, headers={"Accept": "application/json", "User-Agent": "pushline"}
    )
    deadline = time.monotonic() + FETCH_SECONDS
    try:
        with urllib.request.build_opener(_SameScheme).open(request, timeout=FETCH_SECONDS) as body:
            return _read(body, deadline)
    except urllib.error.HTTPError as error:
        error.close()
        raise ValueError(f"status {error.code}") from None


def _read(body: Any, deadline: float) -> bytes:
    found = b""
    while part := body.read1(65_536):
        found += part
        if len(found) > MAX_BYTES:
            raise ValueError("it is over 1 MiB")
        if time.monotonic() > deadline:
            raise TimeoutError("it takes too long")
    return found


def _keys_in(body: bytes) -> tuple[TokenKey, ...]:
    """The usable keys of a key set; raises ValueError when there is none."""
    said = json.loads(body)
    listed = said.get("keys") if isinstance(said, dict) else None
    keys = []
    for jwk in listed[:MAX_KEYS] if isinstance(listed, list) else []:
        try:
            keys.append(TokenKey.of_jwk(jwk))
        except ValueError:
            continue  # for encryption, or of a kind that came later than this
    if not keys:
        raise ValueError("it has no key that verifies tokens")
    return tuple(keys)
