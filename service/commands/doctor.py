"""`doctor`: check a deployment, and say how to mend what is wrong."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys

from service.commands.credentials import add_arguments, read_token, service_url
from service.doctor.findings import WHY, Report
from service.doctor.redis_checks import check_redis
from service.doctor.service_checks import check_service
from service.doctor.settings_checks import check_settings
from service.embedded import running_url, socket_path
from service.errors import ConfigError
from service.minting import Order, mint
from service.remote import Remote
from service.settings import Settings, process_environ

CHANNELS = ["doctor-*"]


def describe(doctor: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    what = "a running service; without it what the environment describes is checked"
    doctor.add_argument("url", nargs="?", type=service_url, metavar="URL", help=what)
    add_arguments(doctor)
    accept = "a check whose finding you accept; may be repeated"
    doctor.add_argument("--ignore", action="append", default=[], choices=WHY, help=accept,
                        metavar="CHECK")  # fmt: skip
    patient = "also hold a silent stream until heartbeats have come: half a minute"
    doctor.add_argument("--patient", action="store_true", help=patient)
    doctor.add_argument("--json", action="store_true", help="one JSON object, for programs")


def run(args: argparse.Namespace) -> int:
    """Print what was found; 1 if anything was. Raises ConfigError for a token of no use."""
    report = Report(args.ignore)
    token = read_token(args)
    if args.url:
        if not args.patient:
            report.skip("heartbeat", "a silent stream is held with --patient only")
        check_service(report, Remote(args.url, token), patient=args.patient)
    else:
        _check_environment(report, token, patient=args.patient)
    if args.json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        report.print(sys.stdout)
    return 1 if report.findings else 0


def _check_environment(report: Report, token: str | None, *, patient: bool) -> None:
    settings = check_settings(report, process_environ())
    if settings is None:
        return
    _check_its_redis(report, settings)
    try:
        socket.create_connection((settings.host, settings.port), 2).close()
    except OSError:
        why = (
            f"none runs on {settings.bind}: start it with `python -m service serve`, or give a URL"
        )
        report.skip("service", why)
        return
    remote = Remote(f"http://{settings.bind}", token or _own_token(settings))
    check_service(report, remote, patient=patient)


def _own_token(settings: Settings) -> str | None:
    """A token for this check alone, where the environment has what signs them."""
    try:
        return mint(Order(lifetime="5m", publish=CHANNELS, subscribe=CHANNELS), settings)
    except ConfigError:
        return None


def _check_its_redis(report: Report, settings: Settings) -> None:
    url = settings.redis_url
    private = settings.embedded or url is None
    if url is None:
        if not os.path.exists(socket_path(settings.port)):
            why = "REDIS_URL is not set: `serve` starts a private Valkey, and none runs now"
            report.skip("redis", why)
            return
        try:
            url = running_url(settings.port)
        except ConfigError as error:
            report.fault("redis", str(error), "remove it, stop what uses it, or set REDIS_URL")
            return
    check_redis(report, url, settings, private=private)
