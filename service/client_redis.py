"""Where Python programs find Redis, and how they use it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from service.channels import RedisNames
from service.embedded import running_url
from service.redis_store import RedisStore
from service.retention import RetentionRules
from service.settings import Settings, process_environ


def client_settings(url: str | None) -> tuple[str, Settings]:
    """Where Redis is (`url`, else REDIS_URL, else what `serve` on PORT has started), and more."""
    environ = process_environ()
    if url is not None:
        environ["REDIS_URL"] = url
        environ.pop("REDIS_URL_FILE", None)
    settings = Settings.from_environ(environ)
    return settings.redis_url or running_url(settings.port), settings


def client_store(redis_url: str, settings: Settings) -> RedisStore:
    """A store on the Redis at `redis_url`."""
    return RedisStore(
        redis_url,
        RedisNames(settings.channel_prefix),
        RetentionRules.of_settings(settings),
        connections=settings.redis_pool,
        idempotency_seconds=settings.idempotency_seconds,
        tls_verify=settings.redis_tls_verify,
    )


class Closing(ABC):
    """A context manager that closes itself at the end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Give back what is held."""
