"""Takes connections from a listening socket, and leaves nobody in its queue when it closes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

from gevent.server import StreamServer


class Address:
    """What gunicorn asks a listener for with each connection, also when that has closed since."""

    def __init__(self, listener: Any) -> None:
        self._name = listener.getsockname()

    def getsockname(self) -> Any:
        """Where it listened."""
        return self._name


class Acceptor(StreamServer):
    """A server as gunicorn's gevent worker makes it, with `handle(address, client, peer)`.

    `alone` tells that no other process takes connections from the same listener.
    """

    def __init__(
        self,
        handle: Callable[[Any, Any, Any], None],
        listener: Any,
        *,
        alone: bool,
        spawn: Any,
        ssl_context: Any = None,
        **_unused: Any,
    ) -> None:
        options = {} if ssl_context is None else {"ssl_context": ssl_context}
        if not alone:
            self.max_accept = 1  # so that one of them doesn't take all
        handler = functools.partial(handle, Address(listener))
        super().__init__(listener, handler, spawn=spawn, **options)

    def close(self) -> None:
        """Close the listener; who has connected is served: a close alone would reset them."""
        with contextlib.suppress(OSError):
            while not self.closed and not self.full() and (accepted := self.do_read()):
                self.do_handle(*accepted)
        super().close()
