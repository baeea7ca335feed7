"""Werkzeug's request, made only as far as it is looked at: making it all takes 20 µs."""

from __future__ import annotations

import functools
from typing import Any

from werkzeug.datastructures import MultiDict
from werkzeug.utils import cached_property
from werkzeug.wrappers import Request

MADE_BY_INIT = frozenset(
    ["method", "scheme", "server", "root_path", "path", "query_string", "headers", "remote_addr"]
)


SHORT = 256
"""Longest query that is kept, in letters: anybody may send any. None with a ticket is."""


class LazyRequest(Request):
    """A request of which nothing is made before something of it is asked for."""

    def __init__(self, environ: dict[str, Any]) -> None:
        self.environ = environ
        self.shallow = False

    @cached_property
    def args(self) -> MultiDict[str, str]:
        """The parameters in the query; nobody may change them."""
        query = self.environ.get("QUERY_STRING", "")
        return _known(query) if len(query) <= SHORT and "ticket=" not in query else _read(query)

    def __getattr__(self, name: str) -> Any:
        if name not in MADE_BY_INIT:
            raise AttributeError(name)
        super().__init__(self.environ)
        return getattr(self, name)


def _read(query: str) -> MultiDict[str, str]:
    return Request({"REQUEST_METHOD": "GET", "wsgi.url_scheme": "http", "QUERY_STRING": query}).args


_known = functools.lru_cache(maxsize=1000)(_read)
"""Many streams have the same query, and reading one takes Werkzeug 30 µs."""
