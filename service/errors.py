"""What can go wrong, and the answer to it: each class carries its HTTP status and a stable code.

All are imported from here; those of Overloaded are written in service/overload.py.

PushlineError                     500 internal
|- ConfigError                    (start-up only) one line that names what to mend
|- NothingToCome                  204 nothing_to_come  the one answer that stops an EventSource
|- BadRequest                     400 bad_request
|  |- BadChannel                  400 bad_channel
|  |- BadEvent                    400 bad_event
|  |- BadParameter                400 bad_parameter
|  `- BadBody                     400 bad_body
|- Unauthorized                   401 no_credential      a credential is wanted
|  |- BadCredential               401 bad_credential     it is unknown, forged or malformed
|  `- ExpiredCredential           401 expired_credential
|- NotGranted                     403 not_granted        the credential does not cover it
|- ForeignOrigin                  403 foreign_origin
|- ForeignHost                    403 foreign_host
|- NoSuchPage                     404 not_found
|- WrongMethod                    405 method_not_allowed
|- IdempotencyConflict            409 idempotency_conflict
|- ChannelEnded                   409 channel_ended
|- BodyTooSlow                    408 body_too_slow
|- EventTooLarge                  413 event_too_large
|- UnsupportedBody                415 unsupported_body
|- Overloaded                     503 overloaded; an EventSource is refused softly instead
|  |- TooManyStreams              503 too_many_streams
|  |- TooManyStreamsFromAddress   429 too_many_streams_from_address
|  |- TooManyStreamsOfUser        429 too_many_streams_of_user
|  |- TooManyConnects             429 too_many_connects
|  |- CannotAuthorize             503 cannot_authorize   AUTHORIZE_URL or JWT_JWKS_URL fails
|  |- Draining                    503 draining
|  `- NotFollowing                503 not_following
|- TooManyPublishes               429 too_many_publishes
`- RedisError                     503 redis_error
   |- RedisDown                   503 redis_down         nothing was published
   |- RedisPoolBusy                503 redis_pool_busy    nothing was published
   |- RedisChanged                503 redis_changed      nothing was published
   |- RedisRefused                503 redis_readonly, redis_loading, redis_out_of_memory, redis_busy
   `- OutcomeUnknown              503 outcome_unknown    it may have been published
"""

from __future__ import annotations

from service.failure import PushlineError as PushlineError
from service.overload import CannotAuthorize as CannotAuthorize
from service.overload import Draining as Draining
from service.overload import NotFollowing as NotFollowing
from service.overload import Overloaded as Overloaded
from service.overload import TooManyConnects as TooManyConnects
from service.overload import TooManyStreams as TooManyStreams
from service.overload import TooManyStreamsFromAddress as TooManyStreamsFromAddress
from service.overload import TooManyStreamsOfUser as TooManyStreamsOfUser

CHALLENGE = 'Bearer realm="pushline"'
"""What a 401 wants."""


class ConfigError(PushlineError):
    """The service can't start as configured; the message is one line."""

    code = "bad_configuration"
    title = "The configuration can't be used"


class NothingToCome(PushlineError):
    """All channels of a stream are finished, and its client has everything: don't come back."""

    status = 204
    code = "nothing_to_come"
    title = "All channels are finished"


class BadRequest(PushlineError):
    """The client sent something that can't be used."""

    status = 400
    code = "bad_request"
    title = "The request can't be used"


class BadChannel(BadRequest):
    """A channel name is missing or not allowed."""

    code = "bad_channel"
    title = "Not a channel name"
    fix = "Use 1 to 128 of the characters A-Z a-z 0-9 _ . : -"


class BadEvent(BadRequest):
    """An event can't be written as text/event-stream."""

    code = "bad_event"
    title = "Not a publishable event"


class BadParameter(BadRequest):
    """A parameter, in the query or a header, is unknown or has a bad value."""

    code = "bad_parameter"
    title = "A parameter can't be used"


class BadBody(BadRequest):
    """A request body isn't what its type says."""

    code = "bad_body"
    title = "The request body can't be used"
    broke_off = False
    """Whether it ended too early, so that the connection may be the fault."""

    @classmethod
    def broken_off(cls, detail: str) -> BadBody:
        """One that ended too early."""
        error = cls(detail)
        error.broke_off = True
        return error


class Unauthorized(PushlineError):
    """A credential is wanted, and there is none."""

    status = 401
    code = "no_credential"
    title = "This wants a credential"
    challenge = CHALLENGE
    fix = "Send Authorization: Bearer and a token; streams may use a cookie or a ticket too"


class BadCredential(Unauthorized):
    """A credential that is unknown, forged or malformed; which of them is nobody's business."""

    code = "bad_credential"
    title = "The credential is not valid"
    challenge = f'{CHALLENGE}, error="invalid_token"'  # RFC 6750, section 3.1
    fix = "Get a new token"


class ExpiredCredential(Unauthorized):
    """A credential whose time is over."""

    code = "expired_credential"
    title = "The credential has expired"
    challenge = f'{CHALLENGE}, error="invalid_token"'
    fix = "Get a new token"


class NotGranted(PushlineError):
    """The credential doesn't cover what is asked for."""

    status = 403
    code = "not_granted"
    title = "The credential does not allow this"
    fix = "Ask for a token that grants it"


class ForeignOrigin(PushlineError):
    """A web page of another origin tried to publish, or to use a cookie."""

    status = 403
    code = "foreign_origin"
    title = "This is not allowed from this origin"
    fix = "Add the page's origin to CORS_ORIGINS, or send it from a server"


class ForeignHost(PushlineError):
    """A request to a service in local mode names a host that isn't this machine."""

    status = 403
    code = "foreign_host"
    title = "This service is open to this machine only"
    fix = "Ask for it as localhost or 127.0.0.1"


class NoSuchPage(PushlineError):
    """No route has this path."""

    status = 404
    code = "not_found"
    title = "Nothing is here"
    fix = "Stream with GET /stream?channel=NAME, publish with POST /channels/NAME"


class WrongMethod(PushlineError):
    """The route exists, but not for this method."""

    status = 405
    code = "method_not_allowed"
    title = "This path doesn't take that method"
    fix = "The Allow header lists the methods it takes"


class IdempotencyConflict(PushlineError):
    """The Idempotency-Key was used for another event."""

    status = 409
    code = "idempotency_conflict"
    title = "This Idempotency-Key stands for another event"
    fix = "Use a new key for each event, and the same one only to repeat it"


class ChannelEnded(PushlineError):
    """The channel is finished."""

    status = 409
    code = "channel_ended"
    title = "The channel is finished and takes no more events"
    fix = "Publish to another channel, or DELETE this one first"


class BodyTooSlow(PushlineError):
    """The body did not arrive in time."""

    status = 408
    code = "body_too_slow"
    title = "The request body took too long"


class EventTooLarge(PushlineError):
    """A body or an event is over its limit."""

    status = 413
    code = "event_too_large"
    title = "The event is too large"
    fix = "Send less, or raise MAX_EVENT_BYTES"


class UnsupportedBody(PushlineError):
    """A body of a type or encoding that is not taken."""

    status = 415
    code = "unsupported_body"
    title = "This kind of body is not taken"


class TooManyPublishes(PushlineError):
    """This credential publishes faster than MAX_PUBLISHES_PER_SECOND."""

    status = 429
    code = "too_many_publishes"
    title = "This credential publishes too fast"
    fix = "Wait; the service's limit is MAX_PUBLISHES_PER_SECOND"
    retry_after_seconds = 1


class RedisError(PushlineError):
    """Redis could not do what was asked."""

    status = 503
    code = "redis_error"
    title = "Redis could not take the event"
    fix = "Try again in a moment"
    retry_after_seconds = 2


class RedisDown(RedisError):
    """Redis can't be reached: nothing was published."""

    code = "redis_down"
    title = "Redis can't be reached, so nothing was published"


class RedisPoolBusy(RedisError):
    """All of this worker's command connections are in use: nothing was published."""

    code = "redis_pool_busy"
    title = "All connections to Redis are in use, so nothing was published"


class RedisChanged(RedisError):
    """Redis holds another data set than the one that is followed: nothing was published."""

    code = "redis_changed"
    title = "Redis has changed, as after a failover, so nothing was published"


class RedisRefused(RedisError):
    """Redis answered that it can't write now; `code`, one of `codes`, names the reason."""

    codes = ("redis_readonly", "redis_loading", "redis_out_of_memory", "redis_busy", "redis_error")

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class OutcomeUnknown(RedisError):
    """Redis did not answer: the event may have been published or not."""

    code = "outcome_unknown"
    title = "Redis did not answer, so the event may have been published or not"
    fix = "Publish again if a repeated event does less harm than a missing one"
