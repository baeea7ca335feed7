"""A closing that comes late to a worker whose link to Redis was silent."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import pytest

from service.open_streams import LATE_SECONDS, SKEW_SECONDS
from tests.credentials import bearer, token
from tests.fault_proxy import FaultProxy
from tests.guarded import GUARDED, REVOKED, close_streams, last_words, opened, publish, stream
from tests.live_server import LiveService
from tests.valkey import Valkey

pytestmark = pytest.mark.live


@pytest.fixture
def proxy(own_valkey: Valkey) -> Iterator[FaultProxy]:
    """What stands between one service and Redis."""
    with FaultProxy(("127.0.0.1", own_valkey.port)) as proxy:
        yield proxy


def test_a_late_closing(own_valkey: Valkey, proxy: FaultProxy) -> None:
    """It ends the stream that was there, not the one that the user has opened since."""
    channel, user = f"mine.{uuid.uuid4()}", f"ana-{uuid.uuid4()}"
    shown = bearer(token(user, subscribe=["mine.*"]))
    cut_off = LiveService(f"redis://127.0.0.1:{proxy.port}", **GUARDED)
    with (
        cut_off,
        LiveService(own_valkey.url, **GUARDED) as other,
        stream(cut_off, channel, shown) as before,
        stream(other, channel, shown) as elsewhere,
    ):
        opened(before)
        opened(elsewhere)
        proxy.freeze(new_too=False)
        assert close_streams(other, f"user={user}").status == 202
        assert last_words(elsewhere) == REVOKED
        time.sleep(SKEW_SECONDS + 1.2)
        with stream(cut_off, channel, shown) as after:
            opened(after)
            time.sleep(LATE_SECONDS - SKEW_SECONDS)
            assert before.ended is None
            proxy.thaw()
            assert last_words(before) == REVOKED
            publish(other, channel, "still here")
            assert after.next_event(10).data == "still here"
