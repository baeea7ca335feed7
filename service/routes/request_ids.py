"""The id of a request, by which its log lines are found: in the answer as X-Request-Id."""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from service.addresses import Network, is_trusted

HEADER = "X-Request-Id"

_SANE = re.compile(r"[A-Za-z0-9_.:/+=@-]{8,128}")
"""What proxies make: a number or a UUID in some spelling. Logs and answers have it as it is."""


class RequestIds:
    """Takes the id that a trusted proxy has given a request, or makes one."""

    def __init__(self, trusted_proxies: Sequence[Network]) -> None:
        self._trusted = trusted_proxies
        self._prefix = secrets.token_hex(6)
        self._numbers = itertools.count(1)

    def of(self, environ: Mapping[str, Any]) -> str:
        """The id of the request of `environ`; ids that are made have a worker's own prefix."""
        given: str | None = environ.get("HTTP_X_REQUEST_ID")
        if given and self._is_believed(given, environ.get("REMOTE_ADDR", "")):
            return given
        return f"{self._prefix}-{next(self._numbers)}"

    def _is_believed(self, given: str, peer: str) -> bool:
        return is_trusted(peer, self._trusted) and _SANE.fullmatch(given) is not None
