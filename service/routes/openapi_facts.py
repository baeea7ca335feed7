"""What of the configuration stands in openapi.json: limits, and who wants which credential."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from service.routes.openapi_schemas import Schema
from service.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Those few settings."""

    max_event_bytes: int
    max_channels: int
    cookie_name: str
    anyone_publishes: bool = False
    anyone_streams: bool = False
    anyone_administrates: bool = False

    @classmethod
    def of_settings(cls, settings: Settings) -> Self:
        """Those of `settings`."""
        return cls(
            max_event_bytes=settings.max_event_bytes,
            max_channels=settings.max_channels_per_stream,
            cookie_name=settings.cookie_name,
            anyone_publishes=settings.local or settings.publish_open,
            anyone_streams=bool(settings.public_patterns),
            anyone_administrates=settings.local,
        )

    def login(self, *schemes: str, anyone: bool) -> list[Schema]:
        """One of `schemes` is wanted, or none."""
        return [*({one: []} for one in schemes), *([{}] if anyone else [])]

    @property
    def publishing(self) -> list[Schema]:
        """What publishing wants."""
        return self.login("bearer", anyone=self.anyone_publishes)

    @property
    def reading(self) -> list[Schema]:
        """What streams want."""
        return self.login("bearer", "cookie", "ticket", anyone=self.anyone_streams)

    @property
    def listing(self) -> list[Schema]:
        """What a list of channels wants."""
        return self.login("bearer", "cookie", "ticket", anyone=self.anyone_administrates)


def security_schemes(cookie_name: str) -> Schema:
    """The ways to show a credential."""
    return {
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "A token (JWT); to publish, one of `PUBLISH_KEYS` too",
        },
        "cookie": {
            "type": "apiKey",
            "in": "cookie",
            "name": cookie_name,
            "description": "A token; from pages of the service and of `CORS_ORIGINS` only",
        },
        "ticket": {
            "type": "apiKey",
            "in": "query",
            "name": "ticket",
            "description": "From `POST /tickets`",
        },
    }
