"""gunicorn's settings, made from ours; see the Procfile for how it is named."""

import os
import sys

from service.errors import ConfigError
from service.logs import ServiceLogger
from service.settings import RESERVED_FILES, Settings, raise_file_limit
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

# gunicorn's control socket is shared by all instances of a user.
control_socket_disable = True

# The C parser is an option that `pip install` may or may not have brought.
http_parser = "python"

# A heartbeat file on a disk that blocks would make the master kill a healthy worker.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None  # nosec B108 # mkstemp
