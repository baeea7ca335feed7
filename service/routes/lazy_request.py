"""Werkzeug's request, made only as far as it is looked at: making it all takes 20 µs."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, TypeVar

from werkzeug.datastructures import MultiDict
from werkzeug.wrappers import Request

Args = MultiDict[str, str]
"""The parameters in a query."""

Read = TypeVar("Read")
"""What a route makes of them."""

MADE_BY_INIT = frozenset(
    ["method", "scheme", "server", "root_path", "path", "query_string", "headers", "remote_addr"]
)


SHORT = 256
"""Longest query that is kept, in letters: anybody may send any. None with a ticket is."""

_ENCODED_NAME = re.compile("(?:^|&)[^=&]*%")
"""In a query: a parameter whose name, for all one knows, is `ticket`."""


class LazyRequest(Request):
    """A request of which nothing is made before something of it is asked for."""

    def __init__(self, environ: dict[str, Any]) -> None:
        self.environ = environ
        self.shallow = False

    @functools.cached_property  # Werkzeug's own is asked by a call each time
    def args(self) -> Args:
        """The parameters in the query; nobody may change them."""
        query = self.environ.get("QUERY_STRING", "")
        return _known(query) if _is_kept(query) else _read(query)

    def __getattr__(self, name: str) -> Any:
        if name not in MADE_BY_INIT:
            raise AttributeError(name)
        super().__init__(self.environ)
        return getattr(self, name)


def once_per_query(read: Callable[[Args], Read]) -> Callable[[Request], Read]:
    """Have `read` look at the parameters once for all requests with the same short query.

    All get the same result, which nobody may change, or the same exception anew.
    """
    known = functools.lru_cache(maxsize=1000)(lambda query: read(_known(query)))

    def of(request: Request) -> Read:
        query = request.environ.get("QUERY_STRING", "")
        return known(query) if _is_kept(query) else read(request.args)

    return of


def _is_kept(query: str) -> bool:
    if len(query) > SHORT or "ticket=" in query:
        return False
    return "%" not in query or not _ENCODED_NAME.search(query)


def _read(query: str) -> Args:
    return Request({"REQUEST_METHOD": "GET", "wsgi.url_scheme": "http", "QUERY_STRING": query}).args


_known = functools.lru_cache(maxsize=1000)(_read)
"""Many streams have the same query, and reading one takes Werkzeug 30 µs."""
