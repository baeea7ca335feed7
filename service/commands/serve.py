"""`serve`: run the service, with a private Valkey where REDIS_URL names no other."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path

from service import embedded
from service.errors import ConfigError
from service.settings import LOOPBACK_HOSTS, Settings, process_environ
from service.token_keys import KeyRing

ROOT = Path(__file__).resolve().parents[2]


def describe(serve: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    serve.add_argument("--host", help="address to listen on (HOST, 127.0.0.1)")
    serve.add_argument("--port", help="port to listen on (PORT, 8000)")
    serve.add_argument("--workers", help="worker processes (WEB_CONCURRENCY, 1)")


def run(args: argparse.Namespace) -> int:
    """Become gunicorn, after all that can be wrong has been looked at. Raises ConfigError."""
    environ = process_environ()
    given = {"HOST": args.host, "PORT": args.port, "WEB_CONCURRENCY": args.workers}
    environ.update({key: value for key, value in given.items() if value is not None})
    settings = Settings.from_environ(environ)
    KeyRing.of_settings(settings)  # refuses keys of which nobody can make use
    _check_port(settings)
    if settings.redis_url is None:
        if settings.host not in LOOPBACK_HOSTS:
            settings.check_publishing()
        environ["REDIS_URL"] = embedded.start(settings.port)
        environ["PUSHLINE_EMBEDDED"] = "1"
        settings = Settings.from_environ(environ)
    settings.check_can_serve()
    _print_banner(settings)
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "gunicorn", "--chdir", str(ROOT)]
    # Named here, as it beats GUNICORN_CMD_ARGS: local mode is open, so it must stay on loopback.
    command += ["--bind", settings.bind, "-c", "python:service.gunicorn_conf"]
    command += ["service.app:create_app()"]
    os.execve(sys.executable, command, environ)


def _check_port(settings: Settings) -> None:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise ConfigError(
                f"can't listen on {settings.host} port {settings.port}: {error.strerror};"
                " choose another with --port or PORT"
            ) from None


def _print_banner(settings: Settings) -> None:
    url = f"http://{settings.bind}"
    header = ""
    if settings.local:
        reach = "Open to this machine only: anyone on it may publish and stream."
    elif settings.publish_open:
        reach = "PUBLISH_OPEN=1: anyone who reaches this address may publish."
    else:
        reach = "Publishing wants a key or a token: docs/security.md tells how to make them."
        header = "-H 'Authorization: Bearer KEY' "
    lines = [
        f"Demo      {url}/",
        f"Publish   curl {header}-d hello {url}/channels/news",
        f"Stream    curl -N '{url}/stream?channel=news'",
        reach,
    ]
    print("\n".join(lines), flush=True)
