"""Tickets on a real Valkey: what they grant, for how long, and what is none."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator

import gevent
import pytest

from service.channels import RedisNames
from service.errors import BadCredential, CannotAuthorize, ExpiredCredential, RedisDown
from service.event import FIRST_ID, Event
from service.grants import Grant
from service.publication import Publication
from service.redis_store import RedisStore
from service.tickets import Tickets
from tests.nodes import NAMES, make_store
from tests.valkey import Valkey, free_port

ADMIN = Grant(("*",), ("*",), True, "ann", "jwt:0a1b2c", 4_000_000_000.25)
SCOPE = ("a", "news.*")
FORM = re.compile(r"[A-Za-z0-9_-]{43}")


@pytest.fixture
def store(valkey: Valkey) -> Iterator[RedisStore]:
    """A store on the shared Valkey."""
    store = make_store(valkey.url)
    yield store
    store.close()


@pytest.fixture
def tickets(store: RedisStore) -> Tickets:
    """Tickets that live for a minute."""
    return Tickets(store, 60)


def test_a_ticket_grants_its_channels_and_no_more(tickets: Tickets) -> None:
    """Whoever it was issued for, a ticket streams the channels that it names, and neither
    publishes nor administrates.
    """
    grant = tickets.redeem(tickets.issue(ADMIN, SCOPE))
    assert grant.subscribe == SCOPE
    assert grant.may_subscribe("a")
    assert grant.may_subscribe("news.sport")
    assert not grant.may_subscribe("b")
    assert not grant.may_publish("a")
    assert grant.publish == ()
    assert grant.admin is False


@pytest.mark.parametrize(
    "issuer",
    [
        ADMIN,
        Grant(),
        Grant(user='né "\n\ud800 \u2028', credential="key:1"),
        Grant(expires_at=0.5),
        Grant(expires_at=1_800_000_000.123456),
    ],
)
def test_a_ticket_stands_for_its_issuer(tickets: Tickets, issuer: Grant) -> None:
    """The user counts on, the credential is known, and streams end when the issuer's grant does."""
    grant = tickets.redeem(tickets.issue(issuer, ["a"]))
    assert (grant.user, grant.credential) == (issuer.user, issuer.credential)
    assert grant.expires_at == issuer.expires_at
    assert grant == Grant(
        subscribe=("a",),
        user=issuer.user,
        credential=issuer.credential,
        expires_at=issuer.expires_at,
    )


def test_a_ticket_of_a_ticket_is_no_larger(tickets: Tickets) -> None:
    """What a ticket grants can't be widened by redeeming it and issuing another."""
    first = tickets.redeem(tickets.issue(ADMIN, ["a"]))
    second = tickets.redeem(tickets.issue(first, ["a"]))
    assert second == first


def test_a_ticket_opens_any_number_of_streams(tickets: Tickets, valkey: Valkey) -> None:
    """An EventSource repeats its URL: a ticket counts again and again, for its seconds from when
    it was issued, however often it is used, on every worker.
    """
    ticket = tickets.issue(ADMIN, SCOPE)
    key = NAMES.ticket(ticket)
    assert 58 <= valkey.cli("TTL", key) <= 60
    valkey.cli("EXPIRE", key, 30)
    with_other_worker = make_store(valkey.url)
    other = Tickets(with_other_worker, 60)
    assert {one.redeem(ticket).user for one in (tickets, other) * 3} == {"ann"}
    with_other_worker.close()
    assert 28 <= valkey.cli("TTL", key) <= 30


def test_a_ticket_ends_after_its_seconds(store: RedisStore, valkey: Valkey) -> None:
    """When its time is over a ticket is unknown, and nothing is left of it in Redis."""
    tickets = Tickets(store, 1)
    ticket = tickets.issue(ADMIN, SCOPE)
    assert tickets.redeem(ticket).user == "ann"
    gevent.sleep(1.1)
    with pytest.raises(BadCredential, match="too old"):
        tickets.redeem(ticket)
    assert valkey.cli("EXISTS", NAMES.ticket(ticket)) == 0


def test_tickets_differ(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """No two tickets are the same, each has the form that is asked for, and its lifetime."""
    kept: list[tuple[str, int]] = []
    monkeypatch.setattr(
        store, "keep_ticket", lambda ticket, grant, seconds: kept.append((ticket, seconds))
    )
    tickets = Tickets(store, 7)
    issued = [tickets.issue(ADMIN, SCOPE) for _ in range(10_000)]
    assert len(set(issued)) == 10_000
    assert all(FORM.fullmatch(ticket) for ticket in issued)
    assert kept == [(ticket, 7) for ticket in issued]


@pytest.mark.parametrize("length", [0, 1, 42, 44, 1000])
def test_what_has_not_the_length_of_a_ticket(tickets: Tickets, length: int) -> None:
    """All of it must fit."""
    with pytest.raises(BadCredential, match="no ticket"):
        tickets.redeem("x" * length)


@pytest.mark.parametrize("letter", [" ", "\n", "=", "+", "/", ".", "*", ":", "é", "\u0661", "\0"])
def test_what_has_not_the_letters_of_a_ticket(
    tickets: Tickets, monkeypatch: pytest.MonkeyPatch, letter: str
) -> None:
    """What can't be a ticket is refused before Redis is asked, wherever the wrong letter stands."""
    monkeypatch.setattr(RedisStore, "ticket", None)
    for place in (0, 20, 42):
        text = "x" * place + letter + "x" * (42 - place)
        with pytest.raises(BadCredential, match="no ticket"):
            tickets.redeem(text)
    with pytest.raises(BadCredential, match="no ticket"):
        tickets.redeem("x" * 43 + letter)


def test_an_unknown_ticket(tickets: Tickets) -> None:
    """A ticket that was never issued is refused, without a word on why it could be wrong."""
    ticket = tickets.issue(ADMIN, SCOPE)
    for unknown in ("x" * 43, ticket.swapcase(), ticket[::-1]):
        with pytest.raises(BadCredential) as raised:
            tickets.redeem(unknown)
        assert (raised.value.status, raised.value.code) == (401, "bad_credential")
        assert unknown not in raised.value.detail


def test_services_that_share_a_redis_have_their_own(tickets: Tickets, valkey: Valkey) -> None:
    """A ticket of a service with another prefix is none here."""
    store = make_store(valkey.url, names=RedisNames("other:"))
    ticket = Tickets(store, 60).issue(ADMIN, SCOPE)
    store.close()
    with pytest.raises(BadCredential):
        tickets.redeem(ticket)


def test_without_redis_nobody_can_tell() -> None:
    """When Redis is down a ticket isn't called bad: the client is asked to come back. None can be
    issued either.
    """
    store = make_store(f"redis://127.0.0.1:{free_port()}")
    tickets = Tickets(store, 60)
    with pytest.raises(CannotAuthorize) as raised:
        tickets.redeem("x" * 43)
    assert raised.value.status == 503
    with pytest.raises(RedisDown):
        tickets.issue(ADMIN, SCOPE)
    with pytest.raises(BadCredential):
        tickets.redeem("nonsense")
    store.close()


def test_a_frozen_redis_holds_nobody_up(own_valkey: Valkey) -> None:
    """A Redis that doesn't answer refuses a ticket within 3 s."""
    store = make_store(own_valkey.url)
    tickets = Tickets(store, 60)
    ticket = tickets.issue(ADMIN, SCOPE)
    own_valkey.stop_process()
    started = time.monotonic()
    with pytest.raises(CannotAuthorize):
        tickets.redeem(ticket)
    assert time.monotonic() - started < 4
    own_valkey.cont()
    assert tickets.redeem(ticket).user == "ann"
    store.close()


def test_nobodys_ticket_costs_nothing(store: RedisStore, valkey: Valkey) -> None:
    """Who shows no credential gets a ticket that opens public channels only, and none is stored,
    however often it is asked for.
    """
    tickets = Tickets(store, 60)
    assert len({tickets.issue(Grant(), []) for _ in range(100)}) == 1
    assert valkey.cli("DBSIZE") == 0
    assert tickets.redeem(tickets.issue(Grant(), [])) == Grant()


def test_a_ticket_is_of_its_time(tickets: Tickets, store: RedisStore) -> None:
    """It knows the last id before it, at once and in whatever millisecond; one for an answer that
    is older is as old as that.
    """
    for _ in range(20):
        (before,) = store.publish([Publication(Event("x"), ("a",))], FIRST_ID)
        ticket = tickets.issue(ADMIN, SCOPE)
        (after,) = store.publish([Publication(Event("x"), ("a",))], FIRST_ID)
        as_of = tickets.redeem(ticket).as_of
        assert as_of is not None
        assert before.id <= as_of < after.id
    old = dataclasses.replace(ADMIN, as_of=before.id)
    assert tickets.redeem(tickets.issue(old, SCOPE)).as_of == before.id


def test_a_ticket_of_an_empty_redis(tickets: Tickets) -> None:
    """Where nothing was published yet, whatever is published is later."""
    assert tickets.redeem(tickets.issue(ADMIN, SCOPE)).as_of == FIRST_ID


def test_tickets_are_taken_back_for_good(
    tickets: Tickets, store: RedisStore, valkey: Valkey
) -> None:
    """What a user has got before a closing is refused, also by a worker that starts after it and
    has never heard of it; what the user gets then is good, and others keep theirs.
    """
    ann, bob = (tickets.issue(Grant(user=one), SCOPE) for one in ("ann", "bob"))
    (command,) = store.publish([Publication(Event("x"), ("a",))], FIRST_ID)
    tickets.take_back("ann", command.id)
    new_store = make_store(valkey.url)
    for one in (tickets, Tickets(new_store, 60)):
        with pytest.raises(ExpiredCredential):
            one.redeem(ann)
        assert one.redeem(bob).user == "bob"
        assert one.redeem(one.issue(Grant(user="ann"), SCOPE)).user == "ann"
    new_store.close()
    assert 58 <= valkey.cli("TTL", NAMES.closing("ann")) <= 60, "as long as its tickets live"
