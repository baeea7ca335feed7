"""What requests publish: query parameters and JSON items become publications, or are refused."""

from __future__ import annotations

from typing import Any

import pytest
from werkzeug.wrappers import Request

from service.errors import (
    BadBody,
    BadChannel,
    BadEvent,
    BadParameter,
    EventTooLarge,
    PushlineError,
)
from service.event import Event
from service.publication import Publication
from service.routes.items import (
    MAX_BATCH_DELIVERIES,
    MAX_BATCH_EVENTS,
    TextOptions,
    parse,
    publication,
    publications,
)

LIMIT = 100


def options(query: str) -> TextOptions:
    """The options in a request's query."""
    return TextOptions.of_request(Request.from_values(f"/?{query}"))


def test_the_query_is_part_of_each_text() -> None:
    """Name, retry, ttl and history of the query hold for every text that is published with it."""
    one = options("event=tick&retry=700&ttl=5&history=0")
    assert one.publication("a", "x", "key") == Publication(
        Event("x", "tick", 700), ("a",), stored=False, ttl_seconds=5, key="key"
    )
    assert options("history=1").publication("a", "x") == Publication(Event("x"), ("a",))


@pytest.mark.parametrize(
    ("query", "kind"),
    [
        ("colour=red", BadParameter),
        ("history=2", BadParameter),
        ("retry=x", BadParameter),
        ("ttl=1e3", BadParameter),
        ("event=$end", BadEvent),
        ("retry=1", BadEvent),
        ("ttl=0", BadEvent),
    ],
)
def test_bad_queries(query: str, kind: type[PushlineError]) -> None:
    """What the query can't say is refused, at the latest with the first text."""
    with pytest.raises(kind):
        options(query).publication("a", "x")


def test_an_item_says_everything_about_its_event() -> None:
    """Each field has its place; data that isn't a string is published as JSON."""
    item = {
        "channels": ["b", "a"],
        "data": {"n": 1},
        "event": "tick",
        "retry": 700,
        "ttl": 5,
        "history": False,
        "idempotency_key": "k",
    }
    assert publication(item, LIMIT) == Publication(
        Event('{"n":1}', "tick", 700), ("a", "b"), stored=False, ttl_seconds=5, key="k"
    )
    assert publication({"channel": "a", "data": "x"}, LIMIT) == Publication(Event("x"), ("a",))


def test_a_whole_number_is_one_however_it_is_written() -> None:
    """To JSON 2000.0 and 2e3 are the number 2000, and some languages write nothing else."""
    item = parse('{"channel": "a", "data": "x", "retry": 2000.0, "ttl": 2e3}')
    assert publication(item, LIMIT) == Publication(Event("x", None, 2000), ("a",), ttl_seconds=2000)


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        (5, BadBody),
        ({"channel": "a"}, BadBody),
        ({"channel": "a", "data": "x", "colour": 1}, BadBody),
        ({"channel": "a", "data": "x", "ttl": True}, BadBody),
        ({"channel": "a", "data": "x", "ttl": 5.5}, BadBody),
        ({"channel": "a", "data": "x", "ttl": 1e999}, BadBody),
        ({"channel": "a", "data": "x", "ttl": 1e99}, BadEvent),
        ({"channel": "a", "data": [1e999]}, BadBody),
        ({"channel": "a b", "data": "x"}, BadChannel),
        ({"channel": "a", "data": "x", "event": "open"}, BadEvent),
        ({"channels": [f"c{n}" for n in range(65)], "data": "x"}, BadParameter),
        ({"channel": "a", "data": "x" * (LIMIT + 1)}, EventTooLarge),
    ],
)
def test_bad_items(item: Any, kind: type[PushlineError]) -> None:
    """Each mistake is an error of its kind; in an array it is said which item it is."""
    with pytest.raises(kind):
        publication(item, LIMIT)
    with pytest.raises(kind) as raised:
        publications([{"channel": "a", "data": "x"}, item], LIMIT)
    assert raised.value.detail.startswith("item 1: ")


@pytest.mark.parametrize("text", ["", "x", "{", "NaN", "[" * 100_000, "9" * 5000])
def test_what_is_no_json(text: str) -> None:
    """Text that isn't JSON, or that Python can't hold, is a bad body."""
    with pytest.raises(BadBody):
        parse(text)


def test_arrays_are_limited() -> None:
    """In events, and in the channels that they name in all."""
    one = {"channel": "a", "data": "x"}
    assert len(publications([one] * MAX_BATCH_EVENTS, LIMIT)) == MAX_BATCH_EVENTS
    for bad in ([], [one] * (MAX_BATCH_EVENTS + 1)):
        with pytest.raises(BadBody, match="the array holds"):
            publications(bad, LIMIT)
    wide = {"channels": [f"c{n}" for n in range(50)], "data": "x"}
    fitting = MAX_BATCH_DELIVERIES // 50
    assert len(publications([wide] * fitting, LIMIT)) == fitting
    with pytest.raises(BadBody, match=f"name {MAX_BATCH_DELIVERIES + 50} channels"):
        publications([wide] * (fitting + 1), LIMIT)
