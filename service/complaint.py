"""One warning for each time that Redis begins to refuse something, however long that lasts."""

from __future__ import annotations

import logging

from service.errors import RedisError, RedisRefused


class Complaint:
    """Tells the log that something doesn't work: what Redis refuses, such as by an ACL or for want
    of memory, as a warning, once until it works again. That Redis is away the link says already.
    """

    def __init__(self, log: logging.Logger, what: str) -> None:
        self._log = log
        self._what = what
        self._warned = False

    def failed(self, error: RedisError) -> None:
        """It doesn't work."""
        warns = isinstance(error, RedisRefused) and not self._warned
        self._warned = self._warned or warns
        self._log.log(logging.WARNING if warns else logging.DEBUG, "%s: %s", self._what, error)

    def over(self) -> None:
        """It works."""
        self._warned = False
