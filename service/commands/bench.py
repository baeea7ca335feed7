"""`bench`: measure a running service, and show how it goes."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from typing import Any

import gevent

from service.commands.credentials import add_arguments, read_token, service_url
from service.load.load import Load, connect_in_turn
from service.load.plan import CONNECTS_PER_SECOND, Plan
from service.load.results import is_sound, results, table
from service.remote import Remote
from service.settings import LOOPBACK_HOSTS

BAR = 20
"""Letters of the bar that shows how much is done."""


def describe(bench: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    bench.add_argument("url", type=service_url, metavar="URL", help="the service's address")
    bench.add_argument("--streams", type=_count, default=50, metavar="N", help="streams (50)")
    bench.add_argument("--seconds", type=_number, default=10, metavar="S", help="how long (10)")
    rate = "events a second, or max for as many as are taken (10)"
    bench.add_argument("--rate", type=_rate, default=10, metavar="R", help=rate)
    bench.add_argument("--size", type=_count, default=100, metavar="BYTES", help="of events (100)")
    add_arguments(bench)
    force = "let it be more than a service elsewhere should bear unasked"
    bench.add_argument("--force", action="store_true", help=force)
    bench.add_argument("--json", action="store_true", help="one JSON object, for programs")


def _number(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError("give a number above 0")
    return value


def _count(text: str) -> int:
    return math.ceil(_number(text))


def _rate(text: str) -> float:
    return 0.0 if text == "max" else _number(text)


def run(args: argparse.Namespace) -> int:
    """Print the figures; 1 if anything was refused, lost or out of order. Raises ConfigError."""
    remote = Remote(args.url, read_token(args), connect=connect_in_turn)
    nearby = remote.host in LOOPBACK_HOSTS
    plan = Plan(
        streams=args.streams,
        seconds=args.seconds,
        rate=args.rate,
        size=args.size,
        connects_per_second=0 if nearby or args.force else CONNECTS_PER_SECOND,
    )
    if not (nearby or args.force):
        plan.check_harmless()
    hub: Any = gevent.get_hub()
    hub.NOT_ERROR = (*hub.NOT_ERROR, KeyboardInterrupt)  # else it is printed
    load = Load(remote, plan)
    shown = gevent.spawn(_show_progress, load)
    try:
        load.run()
    finally:
        shown.kill()
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr)  # the line is empty again
    found = results(load)
    print(json.dumps(found, indent=2) if args.json else "\n".join(table(found, plan.rate)))
    return 0 if is_sound(found) else 1


def _show_progress(load: Load) -> None:
    """Tell how it goes: on a terminal in one line that changes, else in one line a second."""
    live = sys.stderr.isatty()
    before, told_at = 0, time.monotonic()
    while True:
        gevent.sleep(0.2 if live else 1.0)
        now, delivered = time.monotonic(), load.delivered
        speed = (delivered - before) / (now - told_at)
        before, told_at = delivered, now
        line = progress(load, speed)
        print(f"\r{line}\x1b[K" if live else line, end="" if live else "\n", file=sys.stderr)
        sys.stderr.flush()


def progress(load: Load, speed: float) -> str:
    """How it goes, in one line; `speed` is in deliveries a second."""
    if load.phase == "opening":
        return f"{_bar(load.opened / load.plan.streams)} {load.opened} streams open"
    done = (time.perf_counter() - load.began_at) / load.plan.seconds
    times = load.latencies.milliseconds()
    return (
        f"{_bar(done)} {load.phase}: {speed:.0f} deliveries/s,"
        f" p50 {times['p50']:.3g} ms, p99 {times['p99']:.3g} ms"
    )


def _bar(share: float) -> str:
    full = round(BAR * min(share, 1.0))
    return f"[{'#' * full}{'.' * (BAR - full)}]"
