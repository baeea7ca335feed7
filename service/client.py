"""Pushline for Python programs: publish to a channel and listen to it, through Redis alone."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from service.channels import RedisNames, check_channel, check_channels
from service.embedded import running_url
from service.errors import BadEvent, RedisDown
from service.event import FIRST_ID, Event
from service.redis_link import Backoff, RedisAddress, RedisLink
from service.redis_store import Publication, RedisStore
from service.settings import Settings, process_environ
from service.sse import Message, Parser

MAX_CHANNELS = 1000
"""Channels that one MessageSubscriber may listen to."""


def _client_settings(url: str | None) -> tuple[str, Settings]:
    """Where Redis is (`url`, else REDIS_URL, else what `serve` on PORT has started), and more."""
    environ = process_environ()
    if url is not None:
        environ["REDIS_URL"] = url
    settings = Settings.from_environ(environ)
    return settings.redis_url or running_url(settings.port), settings


class MessagePublisher:
    """Publishes to one channel. `url` is Redis; without it REDIS_URL, else what `serve` started.

    May be shared by threads, and is a context manager.
    """

    def __init__(self, channel: str, url: str | None = None) -> None:
        """Prepare to publish; connects with the first message. Raises BadChannel, ConfigError."""
        redis_url, settings = _client_settings(url)
        self._channels = (check_channel(channel),)
        self._store = RedisStore(
            redis_url,
            RedisNames(settings.channel_prefix),
            connections=settings.redis_pool,
            tls_verify=settings.redis_tls_verify,
        )

    def publish_message(self, message: Any, event: str | None = None) -> str:
        """Publish text, UTF-8 bytes, or anything that JSON can carry; returns the event's id.

        Raises BadEvent, and when Redis has not accepted it RedisDown, RedisRefused or
        OutcomeUnknown. Nothing is retried.
        """
        publication = Publication(Event(_as_text(message), event), self._channels)
        (event_id,) = self._store.publish([publication], FIRST_ID)
        return str(event_id)

    def close(self) -> None:
        """Close the connections to Redis; publishing again opens new ones."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _as_text(message: Any) -> str:
    if isinstance(message, str):
        return message
    try:
        if isinstance(message, bytes | bytearray | memoryview):
            return bytes(message).decode()
        return json.dumps(message, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except UnicodeDecodeError:
        raise BadEvent("the message's bytes are not UTF-8") from None
    except (TypeError, ValueError) as error:
        raise BadEvent(f"the message is not text, bytes or JSON: {error}") from None


class MessageSubscriber:
    """Listens to one channel or several. `url` is as for MessagePublisher.

    One thread listens; any may `close`. It is a context manager.
    """

    def __init__(self, channel: str | Sequence[str], url: str | None = None) -> None:
        """Prepare to listen. Raises BadChannel, ConfigError."""
        redis_url, settings = _client_settings(url)
        named = [channel] if isinstance(channel, str) else channel
        self._channels = check_channels(named, MAX_CHANNELS)
        self._address = RedisAddress.parse(redis_url)
        self._names = RedisNames(settings.channel_prefix)
        self._tls_verify = settings.redis_tls_verify
        self._link: RedisLink | None = None
        self._parser = Parser()
        self._last_id = FIRST_ID
        self._waiting: deque[Message] = deque()
        self._closed = threading.Event()

    def listen_messages(self) -> Iterator[Message]:
        """Subscribe, and return an endless iterator of messages that ends with `close`.

        When this returns, Redis has confirmed the channels. Calling it again goes on where the
        last iterator stopped. A lost Redis is reconnected for ever; what is published meanwhile
        is missed. Raises RedisDown when Redis can't be reached at first.
        """
        if self._link is None and not self._closed.is_set():
            try:
                self._link = self._connect()
            except OSError as error:
                raise RedisDown(f"Redis can't be reached: {error}") from error
        return self._messages()

    def _messages(self) -> Iterator[Message]:
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            if self._closed.is_set():
                return
            try:
                self._read(self._link or self._reconnect())
            except OSError:
                self._drop_link()

    def _read(self, link: RedisLink) -> list[str]:
        frames, confirmed = link.read()
        for _, frame in frames:
            if frame.id is None or frame.id > self._last_id:
                self._last_id = frame.id or self._last_id
                self._waiting.extend(self._parser.feed(frame.data))
        return confirmed

    def _connect(self) -> RedisLink:
        link = RedisLink(self._address, self._names, tls_verify=self._tls_verify)
        try:
            link.subscribe(self._channels)
            missing = set(self._channels)
            while missing:
                missing.difference_update(self._read(link))
        except BaseException:
            link.close()
            raise
        return link

    def _reconnect(self) -> RedisLink:
        backoff = Backoff()
        while True:
            try:
                link = self._link = self._connect()
            except OSError:
                if self._closed.wait(backoff.next()):
                    raise
            else:
                if self._closed.is_set():
                    self._drop_link()
                return link

    def _drop_link(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def close(self) -> None:
        """End listening: the iterator yields what has arrived and ends, after a connect at most."""
        self._closed.set()
        self._drop_link()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
