"""gunicorn's settings, made from ours; see the Procfile for how it is named."""

import itertools
import os
import sys
from collections.abc import Iterable
from typing import Any

from service.errors import ConfigError
from service.logs import ServiceLogger
from service.metrics_directory import MetricsDirectory
from service.settings import LOOPBACK_HOSTS, RESERVED_FILES, Settings, raise_file_limit
from service.token_keys import KeyRing

try:
    settings = Settings.from_environ(os.environ)
    settings.check_can_serve()
    KeyRing.of_settings(settings)  # refuses keys of which nobody can make use
except ConfigError as error:
    sys.exit(f"pushline: {error}")

raise_file_limit()


class Logger(ServiceLogger):
    """Our log lines in the format of LOG_FORMAT."""

    as_json = settings.json_logs


bind = settings.bind
workers = settings.workers
worker_class = "service.worker.PushlineWorker"
logger_class = Logger
loglevel = settings.log_level

# Requests in flight and idle connections; streams leave this pool when their socket is taken over.
worker_connections = RESERVED_FILES - 150
keepalive = settings.keepalive_seconds

# gunicorn kills workers this long after SIGTERM: first the drain, then requests in flight.
graceful_timeout = round(settings.drain_seconds) + 10

# 64 channels of 100 letters fit; more than 8190 is refused by most proxies anyway.
limit_request_line = 8190

# Each stream is a request: a limit would restart workers for no reason.
max_requests = 0

# Patching must come before the application is imported, and that is in the worker.
preload_app = False

# No header of a proxy changes scheme or path; X-Forwarded-For is for TRUSTED_PROXIES to read. Else
# gunicorn looks at the address of each request's client, which takes it 10 us.
forwarded_allow_ips = "*"
secure_scheme_headers: dict[str, str] = {}
forwarder_headers = ""

# gunicorn's control socket is shared by all instances of a user.
control_socket_disable = True

# The C parser is an option that `pip install` may or may not have brought.
http_parser = "python"

# A heartbeat file on a disk that blocks would make the master kill a healthy worker.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None  # nosec B108 # mkstemp


def on_starting(server: Any) -> None:
    """Look at the addresses that are to be bound, and make the directory of metrics.

    GUNICORN_CMD_ARGS may have other addresses. A reload keeps the directory, though it may read
    this file anew: so the server holds it.
    """
    _check_reach(server.cfg.address)
    made = MetricsDirectory(worker_tmp_dir, server.cfg.uid, server.cfg.gid)
    server.metrics_directory = made
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(made.path)  # the name is prometheus_client's


def when_ready(server: Any) -> None:
    """Look at what is bound: sockets may be inherited."""
    _check_reach(listener.getsockname() for listener in server.LISTENERS)


def _check_reach(addresses: Iterable[object]) -> None:
    """End where others could get in while anyone may publish; unix sockets are this machine's."""
    for address in addresses:
        if settings.local and isinstance(address, tuple) and address[0] not in LOOPBACK_HOSTS:
            sys.exit(
                f"pushline: {address[0]} can't be bound in local mode, as others would reach it:"
                " take --bind out of GUNICORN_CMD_ARGS, and set HOST instead"
            )


def pre_fork(server: Any, worker: Any) -> None:
    """Give a new worker the lowest slot that no living one has."""
    taken = {one.metrics_slot for one in server.WORKERS.values()}
    worker.metrics_slot = next(slot for slot in itertools.count() if slot not in taken)
    os.environ["PUSHLINE_METRICS_SLOT"] = str(worker.metrics_slot)


def child_exit(server: Any, worker: Any) -> None:
    """A dead worker's gauges count no more."""
    server.metrics_directory.forget(worker.metrics_slot)


def on_exit(server: Any) -> None:
    """Remove the directory."""
    server.metrics_directory.remove()
