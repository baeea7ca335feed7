"""The command line: `python -m service serve`, `publish`, `subscribe`, `token` and `keys`."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # so that `python path/to/service` works from anywhere

from service import embedded  # noqa: E402  after the path is set
from service.client import MessagePublisher, MessageSubscriber  # noqa: E402
from service.errors import ConfigError, PushlineError, RedisDown  # noqa: E402
from service.keys import new_key, new_secret  # noqa: E402
from service.minting import Order, mint  # noqa: E402
from service.settings import LOOPBACK_HOSTS, Settings, process_environ  # noqa: E402
from service.token_keys import KeyRing  # noqa: E402

LOCAL_HINT = "Is `serve` running, on this PORT? Else set REDIS_URL"

PROGRESS_SECONDS = 0.2
"""How often `publish -` tells a terminal how far it is."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status. Errors are one line on standard error."""
    args = _parser().parse_args(arguments)
    try:
        return int(args.run(args))
    except PushlineError as error:
        hint = LOCAL_HINT if isinstance(error, RedisDown) else error.fix
        print(f"pushline: {error}" + (f" ({hint})" if hint else ""), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service", description="Pushline, a Server-Sent Events push service"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser(
        "serve", help="run the service, with a private Valkey unless REDIS_URL"
    )
    serve.add_argument("--host", help="address to listen on (HOST, 127.0.0.1)")
    serve.add_argument("--port", help="port to listen on (PORT, 8000)")
    serve.add_argument("--workers", help="worker processes (WEB_CONCURRENCY, 1)")
    serve.set_defaults(run=_serve)

    publish = commands.add_parser("publish", help="publish to a channel through Redis")
    publish.add_argument("channel")
    publish.add_argument("data", nargs="?", default="-", help="the data, or - for a line each (-)")
    publish.add_argument("--event", help="the event's name")
    publish.set_defaults(run=_publish)

    subscribe = commands.add_parser("subscribe", help="print what is published, through Redis")
    subscribe.add_argument("channels", nargs="+", metavar="CHANNEL")
    subscribe.add_argument("--json", action="store_true", help="one JSON object a line")
    subscribe.set_defaults(run=_subscribe)

    keys = commands.add_parser("keys", help="print a new key for PUBLISH_KEYS")
    keys.add_argument("--jwt", action="store_true", help="a new JWT_SECRET instead")
    keys.set_defaults(run=_keys)

    _add_token(commands.add_parser("token", help="print a token, signed with JWT_SECRET"))
    return parser


def _add_token(token: argparse.ArgumentParser) -> None:
    for name, use in (("--publish", "publish to"), ("--subscribe", "stream")):
        what = f"channels to {use}; may be repeated"
        token.add_argument(name, action="append", default=[], metavar="PATTERN", help=what)
    token.add_argument("--admin", action="store_true", help="the right to administrate")
    token.add_argument("--user", default="", metavar="ID", help="whose token it is (sub)")
    token.add_argument("--info", metavar="JSON", help="what lists of users say of the user")
    token.add_argument("--expires", default="1h", help="30s, 15m, 1h or 7d from now (1h)")
    token.add_argument("--audience", help="its aud (JWT_AUDIENCE)")
    token.add_argument("--issuer", help="its iss (JWT_ISSUER)")
    token.add_argument("--private-key", type=Path, metavar="FILE", help="PEM to sign with instead")
    token.add_argument("--algorithm", help="how to sign (what the key and JWT_ALGORITHMS allow)")
    token.set_defaults(run=_token)


def _serve(args: argparse.Namespace) -> int:
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
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{settings.port}"
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


def _publish(args: argparse.Namespace) -> int:
    with MessagePublisher(args.channel) as publisher:
        if args.data != "-":
            print(publisher.publish_message(args.data, args.event))
            return 0
        count = 0
        for count, line in enumerate(_with_progress(sys.stdin.buffer), 1):
            try:
                publisher.publish_message(line.removesuffix(b"\n").removesuffix(b"\r"), args.event)
            except PushlineError as error:
                error.args = (f"line {count}: {error}; {count - 1} lines were published",)
                raise
        print(f"{count} published", file=sys.stderr)
    return 0


def _with_progress(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Pass `lines` on; on a terminal, tell how many went by and how fast."""
    shown = sys.stderr.isatty()
    started = told = time.monotonic()
    for count, line in enumerate(lines, 1):
        yield line
        now = time.monotonic()
        if shown and now - told >= PROGRESS_SECONDS:
            told = now
            print(f"\r{count} events, {count / (now - started):.0f}/s ", end="", file=sys.stderr)
    if shown:
        print("\r\x1b[K", end="", file=sys.stderr)  # the cursor's line is empty again


def _subscribe(args: argparse.Namespace) -> int:
    with MessageSubscriber(args.channels) as subscriber:
        for message in subscriber.listen_messages():
            if args.json:
                line = json.dumps({"id": message.id, "event": message.event, "data": message.data})
            else:
                line = f"{message.id or '-'} {message.event} {message.data}"
            print(line, flush=True)
    return 0


def _keys(args: argparse.Namespace) -> int:
    print(new_secret() if args.jwt else new_key())
    if sys.stdout.isatty():
        hint = (
            "Set JWT_SECRET to it, for the service and for whoever makes tokens."
            if args.jwt
            else "Add it to PUBLISH_KEYS, as KEY or KEY=pattern; send it as Authorization: Bearer."
        )
        print(hint, file=sys.stderr)
    return 0


def _token(args: argparse.Namespace) -> int:
    order = Order(
        lifetime=args.expires,
        publish=args.publish,
        subscribe=args.subscribe,
        admin=args.admin,
        user=args.user,
        info=args.info,
        audience=args.audience,
        issuer=args.issuer,
        private_key=args.private_key,
        algorithm=args.algorithm,
    )
    print(mint(order, Settings.from_environ()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
