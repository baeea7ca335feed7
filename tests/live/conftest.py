"""Fixtures for live tests: the service as real processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live_server import LiveService
from tests.secrets_used import USED
from tests.valkey import Valkey


@pytest.fixture(scope="session", autouse=True)
def secrets_stay_out_of_logs() -> Iterator[None]:
    """No log of any service has a secret in it that any test has used, at the end of them all."""
    yield
    assert USED.leaks_in_logs() == []


@pytest.fixture(scope="session")
def live_valkey() -> Iterator[Valkey]:
    """The Valkey of the shared service, which nobody empties: that would be told to streams."""
    with Valkey() as valkey:
        yield valkey


@pytest.fixture(scope="session")
def live_session(live_valkey: Valkey) -> Iterator[LiveService]:
    """One service with two workers for all tests that do it no harm."""
    with LiveService(live_valkey.url, WEB_CONCURRENCY=2, HEARTBEAT_SECONDS=1) as service:
        yield service


@pytest.fixture
def live(live_session: LiveService) -> LiveService:
    """The shared service. Tests use channels of their own."""
    return live_session
