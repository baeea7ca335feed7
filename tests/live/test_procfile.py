"""The service as Heroku starts it: the Procfile, run by honcho, and Redis over TLS."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.chaos import Chaos
from tests.fault_proxy import FaultProxy
from tests.live_server import ROOT, LiveService, until
from tests.processes import descendants
from tests.raw_http import ask
from tests.sse_client import SseClient
from tests.valkey import Valkey, free_port

pytestmark = pytest.mark.live

KILLED_AFTER_SECONDS = 30
"""When Heroku kills what is left of a dyno after SIGTERM."""

SMALLEST_PLAN_CONNECTIONS = 20
"""What Heroku's smallest Redis plan allows in all."""

KEY = "0123456789abcdef" * 4
"""What Heroku generates for PUBLISH_KEYS."""

WORKERS = 2
REDIS_POOL = 3

STOOD_STILL = {"redis_pool_busy", "outcome_unknown"}
"""How publishes are refused while Redis or this machine stands still for a moment."""


class Procfile:
    """`honcho start` with the project's Procfile; `environ` is what the platform sets."""

    def __init__(self, **environ: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        descriptor, name = tempfile.mkstemp(prefix="pushline-test-", suffix=".log")
        os.close(descriptor)
        self.log_path = Path(name)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "honcho", "-e", os.devnull, "start"],
                cwd=ROOT,
                env={"PATH": path, "PORT": str(self.port), **environ},
                stdout=log,
                stderr=log,
            )

    def lines(self) -> list[str]:
        """What the service itself has printed, without honcho's prefix."""
        text = re.sub(r"\x1b\[[\d;]*m", "", self.log_path.read_text(errors="replace"))
        found = re.findall(r"^\S+ web\.1\s*\| (.*)$", text, flags=re.MULTILINE)
        return [line.strip() for line in found]

    def ready(self) -> bool:
        """Whether streams and publishes work."""
        assert self.process.poll() is None, self.lines()
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            error.close()
            return False
        except OSError:
            return False

    def publish(self, channel: str, data: str, query: str = "") -> str:
        """Publish over HTTP and return the id."""
        url = f"{self.url}/channels/{channel}{query}"
        request = urllib.request.Request(
            url, data.encode(), headers={"Authorization": f"Bearer {KEY}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(json.loads(answer.read())["id"])

    def terminate(self) -> None:
        """Send SIGTERM once nothing more is printed: honcho's handler uses the queue of its lines;
        now and then it hangs, and passes no signal on, when lines come at the same moment.
        """
        size = -1
        for _ in range(10):
            before, size = size, self.log_path.stat().st_size
            if size == before:
                break
            time.sleep(0.3)
        self.process.send_signal(signal.SIGTERM)

    def __enter__(self) -> Procfile:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.terminate()
            try:
                self.process.wait(20)
            finally:
                self.process.kill()
        self.process.wait()
        self.log_path.unlink()


@pytest.fixture
def channel() -> str:
    """A channel that nobody else uses."""
    return f"test-{uuid.uuid4()}"


def test_procfile_serves(own_valkey: Valkey, channel: str) -> None:
    """Started as the Procfile and app.json say it publishes for who has the key, streams to anyone
    once PUBLIC_CHANNELS says so, and stops within Heroku's 30 s.

    GUNICORN_CMD_ARGS, which Heroku sets, brings no query string into the log.
    """
    with Procfile(
        REDIS_URL=own_valkey.url,
        WEB_CONCURRENCY="2",
        PUBLISH_KEYS=KEY,
        PUBLIC_CHANNELS="*",
        DRAIN_SECONDS="1",
        GUNICORN_CMD_ARGS="--access-logfile -",
    ) as web:
        until(web.ready, 20, f"ready {web.lines()}")
        with contextlib.ExitStack() as stack:
            url = f"{web.url}/stream?channel={channel}&token=s3cret"
            clients = [stack.enter_context(SseClient.connect(url)) for _ in range(8)]
            ids = [web.publish(channel, str(n), "?event=s3cret") for n in range(8)]
            for client in clients:
                events = client.events(8, 5)
                assert [event.last_event_id for event in events] == ids
            started = time.monotonic()
            web.terminate()
            for client in clients:
                assert client.read_until_end(5) == []
            web.process.wait(20)
            assert time.monotonic() - started < 10
        log = "\n".join(web.lines())
        assert log.count("/stream") >= 8
        assert log.count(f"/channels/{channel}") >= 8
        assert "s3cret" not in log
        assert KEY not in log


class DynoRestart(Chaos):
    """A deploy on Heroku: a new dyno serves, then every process of the old one gets SIGTERM.

    The router sends nothing new to a dyno that is told to stop.
    """

    seconds = 0.0

    def _start_services(self, stack: contextlib.ExitStack) -> None:
        settings = {"REDIS_URL": self.valkey.url, "WEB_CONCURRENCY": str(WORKERS)}
        opened = {"PUBLISH_OPEN": "1", "PUBLIC_CHANNELS": "*"}
        dynos = [stack.enter_context(Procfile(**settings, **opened)) for _ in range(2)]
        for dyno in dynos:
            until(dyno.ready, 20, f"ready {dyno.lines()}")
        self._old, self._new = dynos
        self._serving = self._old

    def ports(self) -> list[int]:
        """The router's choice."""
        return [self._serving.port]

    def _inject(self) -> None:
        time.sleep(1)
        self._serving = self._new
        self.clients.use(self.ports())
        started = time.monotonic()
        for pid in descendants(self._old.process.pid):
            os.kill(pid, signal.SIGTERM)
        self._old.process.wait(60)
        self.seconds = time.monotonic() - started
        self.outcome.faults = {"restart": 1}


@pytest.mark.long
def test_a_restart_of_a_dyno_loses_nothing() -> None:
    """With the defaults a dyno ends well within Heroku's 30 s, and each client gets each event."""
    restart = DynoRestart(seed=5, seconds=0, clients=30, progress=lambda _: None)
    outcome = restart.run()
    print(f"ended after {restart.seconds:.1f} s\n{outcome}")
    assert outcome.failures == []
    assert (outcome.missing, outcome.unacknowledged) == (0, 0)
    assert outcome.connections > 30, "streams were drained"
    assert 10 < restart.seconds < 20 < KILLED_AFTER_SECONDS


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"PUBLISH_OPEN": "1"}, "REDIS_URL is not set"),
        ({"REDIS_URL": "redis://127.0.0.1:6379"}, "set PUBLISH_KEYS"),
        ({"REDIS_URL": "redis://127.0.0.1:6379", "PUBLISH_OPEN": "yes"}, "PUBLISH_OPEN='yes'"),
        (
            {"REDIS_URL": "redis://127.0.0.1:6379", "PUBLISH_OPEN": "1", "HEARTBEAT_SECONDS": "99"},
            "HEARTBEAT_SECONDS='99'",
        ),
        ({"REDIS_URL": "http://:s3cret@example.com", "PUBLISH_OPEN": "1"}, "REDIS_URL="),
        ({"REDIS_URL": "redis://127.0.0.1:6379", "PUBLISH_KEYS": "s3cret"}, "PUBLISH_KEYS can't"),
        ({"REDIS_URL": "redis://127.0.0.1:6379", "JWT_SECRET": "s3cret"}, "JWT_SECRET can't"),
        (
            {
                "REDIS_URL": "redis://127.0.0.1:6379",
                "JWT_SECRET": "s3cret" * 6,
                "JWT_ALGORITHMS": "RS256",
            },
            "JWT_SECRET has a key",
        ),
    ],
    ids=[
        "no REDIS_URL",
        "no credential",
        "no switch",
        "out of range",
        "no Redis URL",
        "short key",
        "short secret",
        "useless secret",
    ],
)
def test_procfile_refuses_in_one_line(environ: dict[str, str], expected: str) -> None:
    """Without what it needs the service does not start, and says so in one line."""
    with Procfile(**environ) as web:
        assert web.process.wait(20) != 0
        (line,) = web.lines()
        assert line.startswith("pushline: ")
        assert expected in line
        assert "s3cret" not in line


# ---------------------------------------------------------------------------------- connections


def connections(valkey: Valkey) -> int:
    """How many connections the service has to Valkey."""
    return len(valkey.cli("CLIENT", "LIST").splitlines()) - 1  # that of this command


def test_connections_to_redis(own_valkey: Valkey) -> None:
    """Two workers take at most 2 x (2 + REDIS_POOL), so 20 are enough while they are replaced."""
    most_each = WORKERS * (2 + REDIS_POOL)
    assert 2 * most_each <= SMALLEST_PLAN_CONNECTIONS
    with LiveService(
        own_valkey.url, WEB_CONCURRENCY=WORKERS, MAX_CONNECTIONS_PER_IP=0, DRAIN_SECONDS=1
    ) as service:
        service.wait_workers()  # one alone takes fewer
        seen = loaded(service, own_valkey)
        print(f"{max(seen)} connections of at most {most_each}")
        assert max(seen) <= most_each
        assert max(seen) >= WORKERS * 3  # the load was one
        service.signal(signal.SIGHUP)
        seen = loaded(service, own_valkey)
        print(f"{max(seen)} connections of at most {2 * most_each} while workers are replaced")
        assert max(seen) <= SMALLEST_PLAN_CONNECTIONS


class Load(threading.Thread):
    """Publishes and streams again and again, until `done`; counts the `codes`, "" for success."""

    def __init__(self, service: LiveService, number: int, done: threading.Event) -> None:
        super().__init__()
        self.service = service
        self.channel = f"load{number}"
        self.done = done
        self.codes: Counter[str] = Counter()

    def run(self) -> None:
        """Do it."""
        while not self.done.is_set():
            for _ in range(5):
                answer = ask(self.service, "POST", f"/channels/{self.channel}", b"x")
                self.codes[answer.json().get("code", "")] += 1
            SseClient.connect(f"{self.service.url}/stream?channel={self.channel}").close()


def loaded(service: LiveService, valkey: Valkey) -> list[int]:
    """The connections to Valkey, counted while many publish and stream for two seconds."""
    done = threading.Event()
    threads = [Load(service, number, done) for number in range(24)]
    for thread in threads:
        thread.start()
    seen = []
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        seen.append(connections(valkey))
        time.sleep(0.02)
    done.set()
    for thread in threads:
        thread.join()
    codes = sum((thread.codes for thread in threads), Counter[str]())
    assert codes.keys() <= {"", *STOOD_STILL}, codes
    assert codes[""] > 0.9 * codes.total(), codes
    return seen


# -------------------------------------------------------------------------------------------- TLS


@pytest.fixture
def authority() -> trustme.CA:
    """Somebody whom no machine trusts by itself."""
    return trustme.CA()


@pytest.fixture
def tls_port(own_valkey: Valkey, authority: trustme.CA, tmp_path: Path) -> Iterator[int]:
    """The port of a Redis that speaks TLS, with a certificate for `localhost`."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    issued = authority.issue_cert("localhost")
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(key))
    with FaultProxy(("127.0.0.1", own_valkey.port), tls=(certificate, key)) as proxy:
        yield proxy.port


def test_redis_over_tls_unverified(tls_port: int, channel: str) -> None:
    """REDIS_TLS_VERIFY=0 takes any certificate, for any name, as Heroku's Redis needs it."""
    with (
        LiveService(f"rediss://127.0.0.1:{tls_port}", REDIS_TLS_VERIFY=0) as service,
        SseClient.connect(f"{service.url}/stream?channel={channel}") as client,
    ):
        event_id = service.publish(channel, "encrypted")
        event = client.next_event(5)
        assert (event.data, event.last_event_id) == ("encrypted", event_id)


def test_redis_over_tls_with_a_trusted_certificate(
    tls_port: int, authority: trustme.CA, tmp_path: Path, channel: str
) -> None:
    """A certificate that the machine trusts, with the right name, is taken without settings."""
    trusted = tmp_path / "trusted.pem"
    authority.cert_pem.write_to_path(str(trusted))
    with (
        LiveService(f"rediss://localhost:{tls_port}", SSL_CERT_FILE=trusted) as service,
        SseClient.connect(f"{service.url}/stream?channel={channel}") as client,
    ):
        service.publish(channel, "verified")
        assert client.next_event(5).data == "verified"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_redis_over_tls_refused(
    tls_port: int, authority: trustme.CA, tmp_path: Path, host: str
) -> None:
    """An unknown certificate, or a known one for another name, is refused, for both connections."""
    settings: dict[str, object] = {}
    if host == "127.0.0.1":  # which the certificate doesn't name
        authority.cert_pem.write_to_path(str(tmp_path / "trusted.pem"))
        settings["SSL_CERT_FILE"] = tmp_path / "trusted.pem"
    service = LiveService(f"rediss://{host}:{tls_port}", **settings)
    try:
        service.start(ready=False)
        answer = ask(service, "POST", "/channels/a", b"x")
        answer.problem(503, "redis_down")
        reasons = ask(service, "GET", "/readyz").json()["reasons"]
        assert set(reasons) == {"redis_not_followed", "redis_not_answering"}
        (line,) = service.log_lines(logger="pushline.redis", level="warning")
        assert "certificate verify failed" in line["message"].lower()
    finally:
        service.stop()
        service.log_path.unlink()
