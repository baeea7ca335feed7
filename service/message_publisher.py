"""Publishes to a channel through Redis alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from service.channel_end import last_publication
from service.channels import check_channel
from service.client_redis import Closing, client_settings, client_store
from service.errors import BadEvent, EventTooLarge, PushlineError
from service.event import FIRST_ID, Event, is_larger
from service.publication import Publication

BATCH_MESSAGES = 1000
"""Messages of one round trip."""


class MessagePublisher(Closing):
    """Publishes to one channel. `url` is Redis; without it REDIS_URL, else what `serve` started.

    May be shared by threads, and is a context manager.
    """

    def __init__(self, channel: str, url: str | None = None) -> None:
        """Prepare to publish; connects with the first message. Raises BadChannel, ConfigError."""
        redis_url, settings = client_settings(url)
        self._channels = (check_channel(channel),)
        self._max_event_bytes = settings.max_event_bytes
        self._store = client_store(redis_url, settings)

    def publish_message(
        self,
        message: Any,
        event: str | None = None,
        *,
        ttl_seconds: int | None = None,
        stored: bool = True,
        key: str | None = None,
        private: bool = False,
    ) -> str:
        """Publish text, UTF-8 bytes, or anything that JSON can carry; returns the event's id.

        A replay skips it after `ttl_seconds`; without `stored` it is delivered live only. Calls
        with the same `key` (Idempotency-Key) publish once. Only streams with a grant for the
        channel get what is `private`. Raises BadEvent, ChannelEnded, IdempotencyConflict, and when
        Redis has not accepted it RedisDown, RedisRefused or OutcomeUnknown. Nothing is retried.
        """
        wanted = self._event(message, event)
        (message_id,) = self._publish(
            [Publication(wanted, self._channels, stored, ttl_seconds, key, private=private)]
        )
        return message_id

    def publish_messages(
        self,
        messages: Iterable[Any],
        event: str | None = None,
        *,
        ttl_seconds: int | None = None,
        stored: bool = True,
        private: bool = False,
    ) -> list[str]:
        """Publish many messages in order, in as few round trips as it takes; returns their ids.

        Options and errors are those of `publish_message`. A message that can't be published at all
        keeps all back; for other errors `published` names what went out, as ids and None.
        """
        if isinstance(messages, str | bytes):
            raise BadEvent("one text is no list of messages", fix="Use publish_message")
        wanted = [self._event(one, event) for one in messages]
        to = self._channels
        return self._publish(
            [Publication(one, to, stored, ttl_seconds, private=private) for one in wanted]
        )

    def end(self, reason: str = "finished") -> str:
        """Finish the channel: its streams end, and it takes no more events; returns the last id.

        Raises as `publish_message` does, ChannelEnded if it is finished already.
        """
        (message_id,) = self._publish([last_publication(self._channels[0], reason)])
        return message_id

    def _event(self, message: Any, name: str | None) -> Event:
        event = Event(_as_text(message), name)
        if is_larger(event.data, self._max_event_bytes):
            raise EventTooLarge(f"the message is larger than {self._max_event_bytes} bytes")
        return event

    def _publish(self, publications: Sequence[Publication]) -> list[str]:
        ids: list[str] = []
        for start in range(0, len(publications), BATCH_MESSAGES):
            batch = publications[start : start + BATCH_MESSAGES]
            try:
                ids += [str(one.id) for one in self._store.publish(batch, FIRST_ID)]
            except PushlineError as error:
                left = [None] * (len(publications) - start - len(batch))
                error.published = [*ids, *(error.published or [None] * len(batch)), *left]
                raise
        return ids

    def close(self) -> None:
        """Close the connections to Redis; publishing again opens new ones."""
        self._store.close()


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
