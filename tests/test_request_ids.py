"""The id of a request: believed from trusted proxies alone, else made and never twice."""

from __future__ import annotations

import ipaddress

import pytest

from service.routes.request_ids import RequestIds

PROXIES = [ipaddress.ip_network("10.0.0.0/8")]
UUID = "3f2b8a52-8f5e-4a9c-9d0e-0c6a4f1d2b7e"


def ids_of(given: str, peer: str) -> str:
    """The id of a request that a peer sends with an id."""
    return RequestIds(PROXIES).of({"HTTP_X_REQUEST_ID": given, "REMOTE_ADDR": peer})


@pytest.mark.parametrize("given", [UUID, "a" * 128, "Root=1-67891233-abcdef012345678912345678"])
def test_a_trusted_proxy_is_believed(given: str) -> None:
    """What proxies make is kept as it is; from anybody else it is not."""
    assert ids_of(given, "10.1.2.3") == given
    for peer in ("192.0.2.1", "", "no address"):
        assert ids_of(given, peer) != given


@pytest.mark.parametrize(
    "given", ["", "short", "a" * 129, f"{UUID}\n", f"{UUID} x", f"{UUID}é", '{"a":"bcdefgh"}']
)
def test_nonsense_is_not_believed(given: str) -> None:
    """What is no id could spoil logs, whoever sends it."""
    assert ids_of(given, "10.1.2.3") != given


def test_ids_are_made_once() -> None:
    """No two requests have one id, of no two workers."""
    one, other = RequestIds(PROXIES), RequestIds(PROXIES)
    made = [ids.of({}) for ids in (one, other, one)]
    assert len(set(made)) == 3
    assert len({each.partition("-")[0] for each in made}) == 2
