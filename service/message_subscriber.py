"""Listens to channels through Redis alone."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from service.channels import RedisNames, check_channels
from service.client_redis import Closing, client_settings, client_store
from service.errors import RedisDown, RedisError
from service.event import FIRST_ID, EventId
from service.follower import Follower
from service.following import Following
from service.frame import Frame
from service.receiver import Receiver
from service.recent import RecentEvents
from service.redis_address import RedisAddress
from service.redis_link import Backoff, RedisLink
from service.reset import Loss, reset_frame
from service.retention import RetentionRules
from service.sse import Message, Parser

MAX_CHANNELS = 1000
"""Channels that one MessageSubscriber may listen to."""


class MessageSubscriber(Closing):
    """Listens to one channel or several. `url` is as for MessagePublisher.

    One thread listens; any may `close`. It is a context manager.
    """

    def __init__(
        self, channel: str | Sequence[str], url: str | None = None, *, position: str | None = None
    ) -> None:
        """Prepare to listen, from now on or after `position`.

        Raises BadChannel, ConfigError, and ValueError for what is no position.
        """
        redis_url, settings = client_settings(url)
        named = [channel] if isinstance(channel, str) else channel
        self._channels = check_channels(named, MAX_CHANNELS)
        self._address = RedisAddress.parse(redis_url)
        self._names = RedisNames(settings.channel_prefix)
        self._tls_verify = settings.redis_tls_verify
        self._link: RedisLink | None = None
        self._parser = Parser()
        self._backoff = Backoff()
        self._waiting: deque[tuple[Message, EventId]] = deque()
        self._position = self._yielded = EventId.parse(position) if position else FIRST_ID
        self._delivered = self._position
        self._closed = threading.Event()
        self._recent = RecentEvents(at_most_bytes=0)
        self._following = Following()
        self._following.add(self._channels)
        if position:
            self._start_after(self._position)
        rules = RetentionRules.of_settings(settings)
        receiver = Receiver(self._deliver, self._advance, self._reset)
        self._store = client_store(redis_url, settings)
        self._follower = Follower(
            self._store,
            self._following,
            self._recent,
            rules.tail_seconds,
            receiver,
        )

    def _start_after(self, position: EventId) -> None:
        for channel, followed in self._following.items():
            followed.last = position
            self._recent.begin(channel, position)

    @property
    def position(self) -> str:
        """The id up to which all has been yielded: store it, and give it back as `position`."""
        return str(self._yielded)

    def listen_messages(self) -> Iterator[Message]:
        """Subscribe, and return an iterator of messages that ends with `close`, or with `$end`.

        When this returns, everything that is published will come, also what is published while
        Redis is lost; it is reconnected for ever. A message `$reset` says that events may be
        missing. Calling this again goes on where the last iterator stopped. Raises RedisDown when
        Redis can't be reached at first.
        """
        if self._link is None and not self._closed.is_set():
            try:
                self._connect()
            except (OSError, RedisError) as error:
                raise RedisDown(f"{self._address} can't be reached: {error}") from error
        return self._messages()

    def _messages(self) -> Iterator[Message]:
        while True:
            while self._waiting:
                message, self._yielded = self._waiting.popleft()
                yield message
            self._yielded = self._position  # a quiet channel's position must not get too old
            if self._closed.is_set() or self._recent.all_ended(self._channels):
                return
            self._step()

    def _step(self) -> None:
        try:
            if self._link is None:
                self._connect()
                self._backoff.reset()
            else:
                self._follower.step(self._link)
        except (OSError, RedisError):
            self._drop_link()
            self._closed.wait(self._backoff.next())

    def _connect(self) -> None:
        link = RedisLink(self._address, self._names, tls_verify=self._tls_verify)
        try:
            self._follower.start(link)
        except BaseException:
            link.close()
            raise
        self._link = link
        if self._closed.is_set():
            self._drop_link()
            self._store.close()

    def _advance(self, position: EventId) -> None:
        self._position = max(self._position, position)
        if self._yielded == FIRST_ID:  # a fresh subscriber begins where its first link does
            self._yielded = self._position

    def _deliver(self, frames: Iterable[tuple[str, Frame]]) -> None:
        for channel, frame in frames:
            if frame.prev is not None:
                self._recent.add(channel, frame)
            if frame.id is not None:
                if frame.id <= self._delivered:
                    if frame.prev is not None and frame.id < self._delivered:
                        # Too late to be in order.
                        self._reset([channel], Loss.LOST, None, self._position)
                    continue  # else the copy for another channel
                self._delivered = frame.id
                self._position = max(self._position, frame.id)
            for message in self._parser.feed(frame.data):
                self._waiting.append((message, self._position))

    def _reset(
        self, channels: Sequence[str], loss: Loss, oldest: EventId | None, until: EventId
    ) -> None:
        if loss is Loss.UNKNOWN:  # the position is none of this Redis's, and may be ahead of it
            self._delivered = self._position = FIRST_ID
        self._position = max(self._position, self._follower.position)
        if len(channels) == len(self._channels):
            self._position = max(self._position, until)
        position = self._position
        frame = reset_frame(position, channels, loss, oldest)
        for message in self._parser.feed(frame.data):
            self._waiting.append((message, position))

    def _drop_link(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            self._follower.stop()
            link.close()

    def close(self) -> None:
        """End listening: the iterator yields what has arrived and ends, after a connect at most."""
        self._closed.set()
        self._drop_link()
        self._store.close()
