"""Log lines: readable text or one JSON object each, never with a query string in them."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from gunicorn.glogging import Logger

from service.line_handler import Later, LineHandler

ours = logging.getLogger("pushline")
access = logging.getLogger("pushline.access")

LOGGED = "pushline.logged"
"""In a request's environ: set when the service writes the access line itself."""

REQUEST_ID = "pushline.request_id"
"""In a request's environ: its id."""

ERROR_CODE = "pushline.code"
"""In a request's environ: why it was refused, also where a soft refusal has status 200."""

_MORE = ((REQUEST_ID, "request_id"), (ERROR_CODE, "code"))

_as_json = json.JSONEncoder(default=str).encode

_QUERY = re.compile(r"\?\S*")


def log_request(
    *,
    address: str,
    method: str,
    path: str,
    status: int,
    sent_bytes: int,
    seconds: float,
    **more: Any,
) -> None:
    """Write the access line of a request that is over; `path` is without the query string."""
    fields = {
        "address": address,
        "method": method,
        "path": path.partition("?")[0],  # an encoded one is part of the path
        "status": status,
        "bytes": sent_bytes,
        "seconds": round(seconds, 3),
        **more,
    }
    access.info("%s %s %s", method, fields["path"], status, extra={"fields": fields})


def log_opened(**fields: Any) -> None:
    """Write the line of a stream that has opened; the access line follows when it ends."""
    access.info("stream opened", extra={"fields": fields})


def hold_lines(later: Later | None) -> None:
    """Let lines be written together by `later`, or with None each at once again."""
    for handler in ours.handlers:
        if isinstance(handler, LineHandler):
            handler.hold(later)


def noted(environ: Mapping[str, Any]) -> dict[str, str]:
    """What the service has noted of a request for its access line."""
    return {name: environ[key] for key, name in _MORE if key in environ}


class LineFormatter(logging.Formatter):
    """`time level message key=value ...`, or the same as one JSON object."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """One line; control characters are escaped, so that no client can write its own."""
        fields = getattr(record, "fields", {})
        message = _QUERY.sub("?...", record.getMessage())
        if record.exc_info:
            fields = {
                **fields,
                "exception": _QUERY.sub("?...", self.formatException(record.exc_info)),
            }
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        moment += f".{int(record.msecs):03d}Z"
        if self._as_json:
            line = {"time": moment, "level": record.levelname.lower(), "logger": record.name}
            return _as_json({**line, "message": message, **fields})
        return _readable(moment, record.levelname, message, fields)


def _readable(moment: str, level: str, message: str, fields: dict[str, Any]) -> str:
    exception = fields.get("exception", "")
    shown = [f"{key}={value}" for key, value in fields.items() if key != "exception"]
    line = " ".join([moment, f"{level:<7}", message, *shown])
    escaped = _escaped(line)
    if not exception:
        return escaped
    return "\n".join([escaped, *(f"  {_escaped(part)}" for part in exception.split("\n"))])


def _escaped(line: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _leave_out_what_no_line_has() -> None:
    """Half of the time of a line, as logging's documentation says under "Optimization"."""
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


class ServiceLogger(Logger):
    """gunicorn's logger with our lines on standard error, whatever its own format settings say."""

    as_json = True

    def setup(self, cfg: Any) -> None:
        """Set gunicorn's and our own loggers up; runs again when the configuration is reloaded."""
        super().setup(cfg)
        _leave_out_what_no_line_has()
        formatter = LineFormatter(as_json=self.as_json)
        for handler in self.error_log.handlers:
            handler.setFormatter(formatter)
        lines = LineHandler()
        lines.setFormatter(formatter)
        ours.handlers = [lines]
        ours.setLevel(self.loglevel)
        ours.propagate = False

    def access(self, resp: Any, req: Any, environ: Any, request_time: timedelta) -> None:
        """The access line of a request that gunicorn has answered, a stream's own line aside."""
        if LOGGED in environ:
            return
        log_request(
            address=environ.get("REMOTE_ADDR", ""),
            method=environ.get("REQUEST_METHOD", ""),
            path=environ.get("PATH_INFO", ""),
            status=int(str(resp.status).split()[0]),
            sent_bytes=getattr(resp, "sent", 0) or 0,
            seconds=request_time.total_seconds(),
            **noted(environ),
        )
