"""Who gets in: every combination of what is shown, what is asked for, and who else is asked."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import jwt
import pytest

from service.access import Access, Credentials
from service.access_settings import AccessSettings
from service.authorizer import Authorizer
from service.errors import (
    BadCredential,
    CannotAuthorize,
    ExpiredCredential,
    NotGranted,
    PushlineError,
    Unauthorized,
)
from service.event import FIRST_ID, Event
from service.grants import Grant
from service.keys import PublishKeys
from service.publication import Publication
from service.revocations import Revocations
from service.tickets import Tickets
from service.tokens import TokenVerifier
from tests.nodes import make_store
from tests.valkey import Valkey, free_port

SECRET = "of the test, and longer than thirty-two bytes"
KEY = "publish-key-of-the-test"
CHANNELS = {"public": "public.a", "granted": "mine.a", "foreign": "theirs.a"}
PUBLIC = ("public.*",)
MINE = ("mine.*",)

Outcome = str | type[PushlineError]
"""Whose grant it is, or why there is none."""


def token(user: str, *, secret: str = SECRET, seconds: float = 300) -> str:
    """A token to publish to and to stream what is MINE."""
    rights = {"publish": MINE, "subscribe": MINE}
    claims = {"sub": user, "exp": time.time() + seconds, "pushline": rights}
    return jwt.encode(claims, secret, "HS256")


class Asked:
    """Stands in for an Authorizer; gives the answer that it was made with, and counts."""

    def __init__(self, answer: Grant | type[PushlineError]) -> None:
        self.answer = answer
        self.questions: list[tuple[Mapping[str, str], tuple[str, ...]]] = []
        self.forgotten: list[str] = []

    def forget(self, user: str) -> None:
        """Note it."""
        self.forgotten.append(user)

    def ask(self, headers: Mapping[str, str], channels: Sequence[str]) -> Grant:
        """Answer."""
        self.questions.append((headers, tuple(channels)))
        if isinstance(self.answer, Grant):
            return self.answer
        raise self.answer


def verifier() -> TokenVerifier:
    """Takes tokens of SECRET."""
    made = TokenVerifier.of_settings(AccessSettings(jwt_secret=(("", SECRET),)))
    assert made is not None
    return made


def make_access(
    tickets: Tickets,
    *,
    keys: bool = True,
    tokens: bool = True,
    asked: Asked | None = None,
    public: Sequence[str] = PUBLIC,
    anybody: Grant | None = None,
) -> Access:
    """Access with these parts."""
    return Access(
        keys=PublishKeys([(KEY, MINE)] if keys else []),
        verifier=verifier() if tokens else None,
        tickets=tickets,
        authorizer=cast(Authorizer, asked) if asked is not None else None,
        public=public,
        anybody=anybody,
        revocations=Revocations(60),
    )


@pytest.fixture(scope="module")
def tickets(shared_valkey: Valkey) -> Iterator[Tickets]:
    """Tickets on the shared Valkey, which no test here empties."""
    store = make_store(shared_valkey.url)
    yield Tickets(store, 60)
    store.close()


@pytest.fixture(scope="module")
def shown(tickets: Tickets) -> dict[str, dict[str, tuple[str, Outcome]]]:
    """What may be shown in each place: the text, and whose grant it leads to, or which error."""
    issuer = Grant(publish=("*",), subscribe=("*",), admin=True, user="ticket")
    old = dataclasses.replace(issuer, expires_at=time.time() - 1)
    return {
        "header": {
            "none": ("", ""),
            "good": (f"Bearer {token('header')}", "header"),
            "lower case": (f"bearer  {token('header')} ", "header"),
            "key": (f"Bearer {KEY}", "key"),
            "forged": (f"Bearer {token('header', secret=SECRET[::-1])}", BadCredential),
            "expired": (f"Bearer {token('header', seconds=-60)}", ExpiredCredential),
            "other scheme": (f"Basic {token('header')}", BadCredential),
            "no scheme": (token("header"), BadCredential),
            "no token": ("Bearer ", BadCredential),
            "ticket": (f"Bearer {tickets.issue(issuer, MINE)}", BadCredential),
        },
        "ticket": {
            "none": ("", ""),
            "good": (tickets.issue(issuer, MINE), "ticket"),
            "unknown": ("x" * 43, BadCredential),
            "token": (token("header"), BadCredential),
            "issuer expired": (tickets.issue(old, MINE), ExpiredCredential),
        },
        "cookie": {
            "none": ("", ""),
            "good": (token("cookie"), "cookie"),
            "forged": (token("cookie", secret=SECRET[::-1]), BadCredential),
            "expired": (token("cookie", seconds=-60), ExpiredCredential),
            "key": (KEY, BadCredential),
            "scheme": (f"Bearer {token('cookie')}", BadCredential),
        },
    }


AUTHORIZERS: dict[str, Grant | type[PushlineError] | None] = {
    "absent": None,
    "allows": Grant(subscribe=tuple(CHANNELS.values()), user="authorizer"),
    "allows something else": Grant(subscribe=("elsewhere",), user="authorizer"),
    "allows nothing": Grant(),
    "refuses": NotGranted,
    "wants a credential": Unauthorized,
    "fails": CannotAuthorize,
}


def expected(channel: str, first: Outcome, authorizer: str) -> Outcome:
    """What must come out for a channel when `first` is what the first credential leads to."""
    if first is BadCredential and authorizer != "absent":
        first = ""
    if not isinstance(first, str):
        return first
    if channel == "public" or (channel == "granted" and first not in ("", "key")):
        return first
    answer = AUTHORIZERS[authorizer]
    if answer is None:
        return NotGranted if first else Unauthorized
    if isinstance(answer, Grant):
        return "authorizer" if authorizer == "allows" else NotGranted
    return answer


def whose(grant: Grant) -> str:
    """Whose grant it is, as Outcome has it."""
    return "key" if grant.credential.startswith("key:") else grant.user


@pytest.mark.parametrize("authorizer", AUTHORIZERS)
@pytest.mark.parametrize("channel", CHANNELS)
def test_every_combination_of_credentials(
    tickets: Tickets,
    shown: dict[str, dict[str, tuple[str, Outcome]]],
    channel: str,
    authorizer: str,
) -> None:
    """The first credential of header, ticket and cookie counts, and no other one is looked at.
    Public channels need none, but a bad one is an error; AUTHORIZE_URL is asked when a credential
    doesn't do, once, and not for an expired one.
    """
    answer = AUTHORIZERS[authorizer]
    asked = None if answer is None else Asked(answer)
    access = make_access(tickets, asked=asked)
    questions = 0
    for names in itertools.product(*shown.values()):
        texts = [shown[place][name] for place, name in zip(shown, names, strict=True)]
        first = next((outcome for text, outcome in texts if text), "")
        wanted = expected(channel, first, authorizer)
        header, ticket, cookie = (text for text, _ in texts)
        credentials = Credentials(header, ticket, cookie, {"Origin": "x"})
        got: Outcome
        try:
            got = whose(access.subscriber(credentials, [CHANNELS[channel]]))
        except PushlineError as error:
            got = type(error)
        assert got == wanted, names
        if asked is not None:
            own = expected(channel, "" if first is BadCredential else first, "absent")
            questions += own in (NotGranted, Unauthorized)
            assert len(asked.questions) == questions, names
    if asked is not None:
        assert set(map(repr, asked.questions)) <= {repr(({"Origin": "x"}, (CHANNELS[channel],)))}


def test_a_stream_gets_all_of_its_channels_or_none(
    tickets: Tickets, shown: dict[str, dict[str, tuple[str, Outcome]]]
) -> None:
    """One channel that is not covered is enough to be refused, and is named."""
    access = make_access(tickets)
    mine = Credentials(shown["header"]["good"][0])
    grant = access.subscriber(mine, ["mine.a", "mine.b", "public.a"])
    assert (grant.user, grant.may_subscribe("public.a")) == ("header", False)
    with pytest.raises(NotGranted, match=r"theirs\.a"):
        access.subscriber(mine, ["mine.a", "public.a", "theirs.a"])
    with pytest.raises(Unauthorized, match=r"mine\.a"):
        access.subscriber(Credentials(), ["public.a", "mine.a"])


def test_somebody_else_is_asked_for_all_channels(
    tickets: Tickets, shown: dict[str, dict[str, tuple[str, Outcome]]]
) -> None:
    """When a credential covers only some, the answer must cover the rest, and counts alone:
    user and end of the stream are its own. Without need nobody is asked.
    """
    answer = Grant(subscribe=("mine.a", "theirs.*"), user="authorizer", expires_at=9e9)
    asked = Asked(answer)
    access = make_access(tickets, asked=asked)
    credentials = Credentials(shown["header"]["good"][0], headers={"Cookie": "c"})
    assert access.subscriber(credentials, ["mine.a", "public.a", "theirs.a"]) is answer
    assert asked.questions == [({"Cookie": "c"}, ("mine.a", "public.a", "theirs.a"))]
    with pytest.raises(NotGranted, match=r"mine\.b"):
        access.subscriber(credentials, ["mine.b", "theirs.a"])
    del asked.questions[:]
    assert access.subscriber(credentials, ["mine.b", "public.a"]).user == "header"
    assert access.subscriber(Credentials(), ["public.a"]) == Grant()
    assert asked.questions == []


def test_somebody_else_may_know_more_of_public_channels(tickets: Tickets) -> None:
    """Who shows a cookie or a header may have rights on a public channel too, and a name; a refusal
    leaves what everybody has, and a failure isn't taken for one.
    """
    answer = Grant(subscribe=("public.a",), user="authorizer")
    cookie = Credentials(headers={"Cookie": "session=1"})
    asked = Asked(answer)
    assert make_access(tickets, asked=asked).subscriber(cookie, ["public.a"]) is answer
    for refusal in (Unauthorized, NotGranted):
        access = make_access(tickets, asked=Asked(refusal))
        assert access.subscriber(cookie, ["public.a"]) == Grant()
    with pytest.raises(CannotAuthorize):
        make_access(tickets, asked=Asked(CannotAuthorize)).subscriber(cookie, ["public.a"])


def test_who_was_revoked_asks_once_more(tickets: Tickets) -> None:
    """After a user's streams were closed, tickets and answers from before open none, tokens do."""
    asked = Asked(Grant())
    access = make_access(tickets, asked=asked)
    ana = Grant(subscribe=("mine.a",), user="ana")
    ticket = tickets.issue(ana, ["mine.a"])
    granted = access.subscriber(Credentials(ticket=ticket), ["mine.a"])
    access.check_current(granted)
    tickets._store.open(FIRST_ID)
    later = Publication(Event("x"), ("a",))
    (command,) = tickets._store.publish([later], FIRST_ID)
    access.revoke("ana", command.id)
    assert asked.forgotten == ["ana"]
    for grant in (granted, access.subscriber(Credentials(ticket=ticket), ["mine.a"])):
        with pytest.raises(ExpiredCredential):
            access.check_current(grant)
    access.check_current(ana)
    new = tickets.issue(ana, ["mine.a"])
    access.check_current(access.subscriber(Credentials(ticket=new), ["mine.a"]))


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("asking", [False, True])
def test_without_tokens_cookies_and_headers_are_somebody_elses(
    tickets: Tickets,
    shown: dict[str, dict[str, tuple[str, Outcome]]],
    keys: bool,
    asking: bool,
) -> None:
    """Where no token can be verified, a service without any credentials takes headers and cookies
    for what others use, and leaves them alone; tickets count all the same.
    """
    allowing = Asked(Grant(subscribe=("*",), user="authorizer"))
    access = make_access(tickets, keys=keys, tokens=False, asked=allowing if asking else None)
    for credentials in (Credentials("Bearer something"), Credentials(cookie="something")):
        if keys and not asking:
            with pytest.raises(BadCredential):
                access.subscriber(credentials, ["public.a"])
        else:
            assert access.subscriber(credentials, ["public.a"]) == Grant()
        if asking:
            assert access.subscriber(credentials, ["theirs.a"]).user == "authorizer"
        else:
            with pytest.raises(BadCredential if keys else Unauthorized):
                access.subscriber(credentials, ["theirs.a"])
    ticket = Credentials(ticket=shown["ticket"]["good"][0])
    assert access.subscriber(ticket, ["mine.a"]).user == "ticket"


def test_when_nobody_can_tell(shown: dict[str, dict[str, tuple[str, Outcome]]]) -> None:
    """While Redis is down a ticket is neither good nor bad, and nobody else is asked about it."""
    store = make_store(f"redis://127.0.0.1:{free_port()}")
    asked = Asked(Grant(subscribe=("*",)))
    access = make_access(Tickets(store, 60), asked=asked)
    with pytest.raises(CannotAuthorize):
        access.subscriber(Credentials(ticket=shown["ticket"]["good"][0]), ["mine.a"])
    assert access.subscriber(Credentials(shown["header"]["good"][0]), ["mine.a"]).user == "header"
    assert asked.questions == []
    store.close()


def test_when_the_issuers_keys_are_missing(
    tickets: Tickets,
    shown: dict[str, dict[str, tuple[str, Outcome]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While tokens can't be verified they are neither good nor bad, for streams and publishers."""

    def fail(self: TokenVerifier, text: str) -> Grant:
        raise CannotAuthorize

    monkeypatch.setattr(TokenVerifier, "verify", fail)
    access = make_access(tickets, asked=Asked(Grant(subscribe=("*",))))
    header, cookie = shown["header"]["good"][0], shown["cookie"]["good"][0]
    for credentials in (Credentials(header), Credentials(cookie=cookie)):
        with pytest.raises(CannotAuthorize):
            access.subscriber(credentials, ["mine.a"])
    with pytest.raises(CannotAuthorize):
        access.publisher(header)
    assert access.publisher(f"Bearer {KEY}").may_publish("mine.a"), "keys need no issuer"


# --------------------------------------------------------------------------------- publishing


@pytest.mark.parametrize("anybody", [None, Grant(publish=("*",), user="anybody")])
@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("tokens", [False, True])
def test_every_combination_of_publishers(
    tickets: Tickets,
    shown: dict[str, dict[str, tuple[str, Outcome]]],
    anybody: Grant | None,
    keys: bool,
    tokens: bool,
) -> None:
    """What is shown must be good where there are credentials, also where all may publish. Who
    shows none, or anything where there are no credentials, is anybody, or nobody.
    """
    asked = Asked(Grant(publish=("*",), subscribe=("*",)))
    access = make_access(tickets, keys=keys, tokens=tokens, asked=asked, anybody=anybody)
    for name, (text, outcome) in shown["header"].items():
        wanted = outcome
        if not text or not (keys or tokens):
            wanted = Unauthorized if anybody is None else "anybody"
        elif name == "key":
            wanted = "key" if keys else BadCredential
        elif not tokens:
            wanted = BadCredential
        got: Outcome
        try:
            grant = access.publisher(text)
            got = whose(grant)
            assert grant.may_publish("mine.a")
            assert grant.may_publish("theirs.a") == (got == "anybody")
        except PushlineError as error:
            got = type(error)
        assert got == wanted, name
    assert asked.questions == []


def test_a_publish_key_streams_nothing(
    tickets: Tickets, shown: dict[str, dict[str, tuple[str, Outcome]]]
) -> None:
    """A key is to publish with: it opens no stream of what it may publish to."""
    access = make_access(tickets)
    with pytest.raises(NotGranted):
        access.subscriber(Credentials(shown["header"]["key"][0]), ["mine.a"])
    assert not access.publisher(shown["header"]["key"][0]).admin


def test_a_ticket_in_the_header_publishes_nothing(
    tickets: Tickets, shown: dict[str, dict[str, tuple[str, Outcome]]]
) -> None:
    """A ticket stands in URLs, where others can read it: it is no credential to publish with."""
    ticket = shown["ticket"]["good"][0]
    for text in (ticket, f"Bearer {ticket}"):
        with pytest.raises(BadCredential):
            make_access(tickets).publisher(text)


def test_a_service_in_local_mode_is_open(tickets: Tickets) -> None:
    """With everything public and publishing open, whatever is shown but a ticket is ignored."""
    anybody = Grant(publish=("*",))
    access = make_access(tickets, keys=False, tokens=False, public=("*",), anybody=anybody)
    assert access.publisher("") == access.publisher("Basic x") == anybody
    for credentials in (Credentials(), Credentials("Bearer x"), Credentials(cookie="x")):
        assert access.subscriber(credentials, ["a", "b"]) == Grant()


@pytest.mark.parametrize("header", ["", "x"])
@pytest.mark.parametrize("ticket", ["", "x"])
@pytest.mark.parametrize("cookie", ["", "x"])
def test_the_cookie_counts_only_alone(header: str, ticket: str, cookie: str) -> None:
    """A request is by cookie, which browsers send by themselves, when nothing else is shown."""
    by_cookie = Credentials(header, ticket, cookie).by_cookie
    assert by_cookie == ((header, ticket, cookie) == ("", "", "x"))
