"""Pushline for Python programs: publish to a channel and listen to it, through Redis alone."""

from __future__ import annotations

from service.message_publisher import MessagePublisher as MessagePublisher
from service.message_subscriber import MessageSubscriber as MessageSubscriber
