"""Errors of streams that can't be opened now; service/errors.py draws the whole tree."""

from __future__ import annotations

from service.failure import PushlineError


class Overloaded(PushlineError):
    """No stream can be opened now; an EventSource is told to come back later."""

    status = 503
    code = "overloaded"
    title = "No stream can be opened now"
    fix = "Try again in a moment"
    retry_after_seconds = 5
    retry_range_milliseconds = (5_000, 30_000)
    """When a refused EventSource comes back: spread out, so that a full service isn't stormed."""


class TooManyStreams(Overloaded):
    """This worker holds MAX_CONNECTIONS streams."""

    code = "too_many_streams"
    title = "This worker holds all the streams it may"


class TooManyStreamsFromAddress(Overloaded):
    """This client address holds MAX_CONNECTIONS_PER_IP streams on this worker."""

    status = 429
    code = "too_many_streams_from_address"
    title = "This address holds all the streams it may"
    fix = "Close a stream first; the service's limit is MAX_CONNECTIONS_PER_IP"


class TooManyStreamsOfUser(Overloaded):
    """This user holds MAX_CONNECTIONS_PER_USER streams on this worker."""

    status = 429
    code = "too_many_streams_of_user"
    title = "This user holds all the streams it may"
    fix = "Close a stream first; the service's limit is MAX_CONNECTIONS_PER_USER"


class TooManyConnects(Overloaded):
    """This client address opens streams faster than MAX_CONNECTS_PER_SECOND_PER_IP."""

    status = 429
    code = "too_many_connects"
    title = "This address opens streams too fast"
    fix = "Wait; the service's limit is MAX_CONNECTS_PER_SECOND_PER_IP"


class CannotAuthorize(Overloaded):
    """Whoever has to say what is allowed can't be asked now."""

    code = "cannot_authorize"
    title = "Rights can't be checked now"


class Draining(Overloaded):
    """The worker is shutting down."""

    code = "draining"
    title = "This worker is shutting down"
    retry_range_milliseconds = (1_000, 3_000)  # another worker is there, or about to be


class NotFollowing(Overloaded):
    """Redis did not confirm the subscription in time."""

    code = "not_following"
    title = "Redis did not confirm the channels in time"
