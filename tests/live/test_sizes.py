"""Events of all sizes, whole, over connections that hand their bytes out one by one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fault_proxy import FaultProxy
from tests.live_server import LiveService
from tests.sse_client import SseClient
from tests.valkey import Valkey

pytestmark = pytest.mark.live

SIZES = [0, 1, 65_536, 1_048_576]


@pytest.fixture
def proxied(own_valkey: Valkey) -> Iterator[tuple[LiveService, FaultProxy]]:
    """A service that takes events of up to 2 MiB, and the proxy that it reaches Valkey through."""
    with FaultProxy(("127.0.0.1", own_valkey.port)) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        settings = {"MAX_EVENT_BYTES": 2_097_152, "OUTBOX_BYTES": 4_194_304}
        with LiveService(url, **settings) as service:
            yield service, proxy


@pytest.mark.parametrize("size", SIZES)
def test_events_of_any_size_arrive_whole(
    proxied: tuple[LiveService, FaultProxy], size: int
) -> None:
    """From nothing to a MiB, live and replayed, an event is what was published."""
    service, _ = proxied
    data = "é" * (size // 2) + "x" * (size % 2)
    with SseClient.connect(f"{service.url}/stream?channel=sizes") as live:
        first = service.publish("sizes", "first")
        service.publish("sizes", data)
        assert [event.data for event in live.events(2, 10)] == ["first", data]
    url = f"{service.url}/stream?channel=sizes"
    with SseClient.connect(url, headers={"Last-Event-ID": first}) as resumed:
        assert resumed.next_event(10).data == data


def test_replies_that_come_byte_by_byte(proxied: tuple[LiveService, FaultProxy]) -> None:
    """However Redis's bytes are cut on their way, events arrive whole, once and in order."""
    service, proxy = proxied
    with SseClient.connect(f"{service.url}/stream?channel=bytes") as client:
        proxy.dribble(1, 0.0)
        texts = [f"{number} \r\n é \u2028 $3" for number in range(20)]
        for text in texts:
            service.publish("bytes", text)
        events = client.events(len(texts), 20)
        proxy.heal()

    assert [event.data for event in events] == [text.replace("\r\n", "\n") for text in texts]
    assert {event.type for event in events} == {"message"}
