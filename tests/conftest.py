"""Fixtures for all tests: a real Valkey, and clean-up that is checked."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.valkey import Valkey

# Started in the background of a script it is ignored, also by every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[Valkey]:
    """One Valkey for all tests that do it no harm."""
    with Valkey() as valkey:
        yield valkey


@pytest.fixture
def valkey(shared_valkey: Valkey) -> Valkey:
    """The shared Valkey, emptied."""
    shared_valkey.cli("FLUSHALL")
    return shared_valkey


@pytest.fixture
def own_valkey() -> Iterator[Valkey]:
    """A Valkey for one test, to be killed, stopped and restarted at will."""
    with Valkey() as valkey:
        yield valkey
