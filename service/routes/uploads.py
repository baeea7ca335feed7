"""PUT /channels/<channel> and PUT /publish: each line is an event, published as it arrives."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial

import gevent
from flask import Blueprint, Response, after_this_request, request
from gevent.lock import Semaphore

from service.channels import check_channel
from service.errors import BadParameter, Draining, PushlineError, RedisPoolBusy
from service.event import EventId
from service.grants import Grant
from service.publication import Publication, Receipt
from service.publishing import Publishing, check_publish
from service.routes.answers import json_answer
from service.routes.bodies import check_type
from service.routes.gate import Gate
from service.routes.items import (
    MAX_BATCH_DELIVERIES,
    MAX_BATCH_FACTOR,
    Publish,
    TextOptions,
    parse,
    publication,
)
from service.routes.lines import Arrivals, decode, split

BATCH_EVENTS = 128
"""Events that go out together, as two calls of publish.lua."""

TURN_SECONDS = 10.0
"""How long an upload waits for the others; a worker that is so far behind has too many."""

FINISH_SECONDS = 2.0
"""How long a drained upload may take to publish what has arrived."""

LONGEST_WAIT_SECONDS = 0.5
"""How long an upload that is over its limit sleeps before it looks whether the worker drains."""

DISCARD_SECONDS = 2.0
"""How long a refused upload is read on: a close with unread bytes would destroy the answer."""

Admit = Callable[[], Grant]
"""The grant of this request to publish. Raises PushlineError."""

ReadLine = Callable[[bytes], Publication | None]
"""Makes a line an event, or nothing of one that is skipped. Raises PushlineError."""


def upload_routes(uploads: Uploads, gate: Gate) -> Blueprint:
    """The routes of uploads; routes/publish.py answers their preflights."""
    routes = gate.origins.guard(Blueprint("uploads", __name__))

    @routes.put("/channels/<channel>", provide_automatic_options=False)
    def upload_texts(channel: str) -> Response:
        """Publish each line of the body as one event."""
        return uploads.receive_texts(partial(gate.publisher, request), channel)

    @routes.put("/publish", provide_automatic_options=False)
    def upload_items() -> Response:
        """Publish the JSON object on each line of the body."""
        return uploads.receive_items(partial(gate.publisher, request))

    return routes


class Uploads:
    """The uploads of this worker.

    They publish in turns, `at_once` of them at a time: a few busy ones would else keep all of the
    worker's connections to Redis, and every other publish would be refused.
    """

    def __init__(self, publishing: Publishing, max_event_bytes: int, at_once: int) -> None:
        self._publishing = publishing
        self._turns = Semaphore(at_once)
        self._max_event_bytes = max_event_bytes
        self._max_item_bytes = max_event_bytes * MAX_BATCH_FACTOR
        self._running: set[Arrivals] = set()
        self._deadline = math.inf

    def drain(self) -> None:
        """Refuse new uploads, and end those that run once they have published what has arrived."""
        self._deadline = time.monotonic() + FINISH_SECONDS
        for body in self._running:
            body.end(Draining())

    def receive_texts(self, admit: Admit, channel: str) -> Response:
        """Publish each line of this request's body to `channel`."""

        def prepare(grant: Grant) -> ReadLine:
            check_publish(grant, (check_channel(channel),))
            options = TextOptions.of_request(request)
            options.publication(channel, "")  # what is wrong with them is told before any line
            return lambda line: options.publication(channel, decode(line, self._max_event_bytes))

        return self._receive(admit, prepare, self._max_event_bytes)

    def receive_items(self, admit: Admit) -> Response:
        """Publish the JSON object on each line of this request's body."""
        return self._receive(
            admit, lambda grant: partial(self._read_item, grant), self._max_item_bytes
        )

    def _read_item(self, grant: Grant, line: bytes) -> Publication | None:
        text = decode(line, self._max_item_bytes)
        if not text.strip(" \t\r"):
            return None
        item = publication(parse(text), self._max_event_bytes)
        check_publish(grant, item.channels)
        return item

    def _receive(
        self, admit: Admit, prepare: Callable[[Grant], ReadLine], max_bytes: int
    ) -> Response:
        body = Arrivals(request.stream, request.content_length)
        after_this_request(partial(_let_the_client_see_errors, body))
        upload = Upload(lambda events: self._publish_in_turn(grant, events))
        try:
            grant = admit()
            self._check()
            read_line = prepare(grant)
            self._running.add(body)
            for lines in split(body.take, max_bytes):
                if grant.expires_at is not None and grant.expires_at <= time.time():
                    admit()  # which raises now
                upload.publish(lines, read_line)
        except PushlineError as error:
            error.published = ()
            error.members.update(line=upload.line, events=upload.events)
            raise
        finally:
            self._running.discard(body)
        last_id = str(upload.last_id) if upload.last_id else None
        return json_answer(
            {"events": upload.events, "replayed": upload.replayed, "last_id": last_id}
        )

    def _publish_in_turn(self, grant: Grant, publications: list[Publication]) -> list[Receipt]:
        # The client of one that publishes too fast is made to wait, not turned away.
        while wait := self._publishing.delay(grant, len(publications)):
            if time.monotonic() > self._deadline:
                raise Draining
            gevent.sleep(min(wait, LONGEST_WAIT_SECONDS))
        if not self._turns.acquire(timeout=TURN_SECONDS):
            raise RedisPoolBusy
        try:
            if time.monotonic() > self._deadline:
                raise Draining
            return self._publishing.pass_on(grant, publications)
        finally:
            self._turns.release()
            gevent.sleep(0)  # the next one's turn: who asks first after a release gets it

    def _check(self) -> None:
        if self._deadline < math.inf:
            raise Draining
        check_type(request)
        if "Idempotency-Key" in request.headers:
            raise BadParameter(
                "one Idempotency-Key can't stand for many events",
                fix="PUT JSON objects to /publish, one per line, each with its idempotency_key",
            )


def _let_the_client_see_errors(body: Arrivals, response: Response) -> Response:
    # It is still sending: a close with unread bytes would be a reset, which destroys the answer.
    if response.status_code >= 400:
        response.headers["Connection"] = "close"
        response.call_on_close(lambda: body.discard(DISCARD_SECONDS))
    return response


class Upload:
    """How far one upload is; `line` is the number of the first that isn't published for certain.

    While one batch is on its way, the lines of the next are read.
    """

    def __init__(self, publish: Publish) -> None:
        self.line = 1
        self.events = 0
        self.replayed = 0
        self.last_id: EventId | None = None
        self._publish = publish
        self._sending: _Sending | None = None

    def publish(self, lines: list[bytes], read_line: ReadLine) -> None:
        """Publish `lines` in order; those before a bad one go out.

        Raises what `read_line` does for the first bad one, and what publishing raises.
        """
        after = self.line + len(lines)
        batch: list[tuple[int, Publication]] = []
        deliveries = 0
        for number, line in enumerate(lines, self.line):
            try:
                event = read_line(line)
            except PushlineError as error:
                self._send(batch, number)
                self._finish()
                error.detail = f"line {number} of the upload: {error.detail}"
                raise
            if event is None:
                continue
            deliveries += len(event.channels)
            if len(batch) == BATCH_EVENTS or deliveries > MAX_BATCH_DELIVERIES:
                self._send(batch, number)
                batch, deliveries = [], len(event.channels)
            batch.append((number, event))
        self._send(batch, after)
        self._finish()

    def _send(self, batch: list[tuple[int, Publication]], next_line: int) -> None:
        """Let a batch go out, which is all that there is before `next_line`, after the last one."""
        self._finish()
        self._sending = _Sending(self._publish, batch, next_line)
        gevent.sleep(0)  # it goes out now, and the next lines are read while Redis works

    def _finish(self) -> None:
        """Wait for the batch that is on its way, and raise its error."""
        sending, self._sending = self._sending, None
        if sending is None:
            return
        result = sending.result()
        if isinstance(result, PushlineError):
            # Of a batch those behind the first that failed may have gone out too.
            out = [event_id is not None for event_id in result.published]
            self.events += sum(out)
            self.line = sending.numbers[[*out, False].index(False)]
            raise result
        self.events += len(result)
        self.replayed += sum(receipt.replayed for receipt in result)
        self.last_id = result[-1].id if result else self.last_id
        self.line = sending.next_line


class _Sending:
    """A batch on its way to Redis, in a greenlet of its own."""

    def __init__(
        self, publish: Publish, batch: list[tuple[int, Publication]], next_line: int
    ) -> None:
        self.numbers = [number for number, _ in batch]
        self.next_line = next_line
        self._publish = publish
        self._greenlet = gevent.spawn(self._run, [event for _, event in batch])

    def result(self) -> list[Receipt] | PushlineError:
        """Its receipts, or why it failed."""
        return self._greenlet.get()

    def _run(self, events: list[Publication]) -> list[Receipt] | PushlineError:
        try:
            return self._publish(events) if events else []
        except PushlineError as error:
            return error
