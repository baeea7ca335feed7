"""`doctor` and `bench` through a real proxy, and while a service stops."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.live_server import ROOT, LiveService, until
from tests.proxies import Nginx, nginx_command, replaced
from tests.raw_http import RawConnection
from tests.sse_client import SseClient
from tests.valkey import Valkey, free_port

pytestmark = pytest.mark.live

PROXIES = {
    "good": "proxy_http_version 1.1;",
    # The service says X-Accel-Buffering: no, and nobody listens; chunks would pass all the same.
    "buffering": "proxy_ignore_headers X-Accel-Buffering; proxy_http_version 1.0;",
    # It asks for text, and calls it gzip.
    "gzip": 'proxy_set_header Accept-Encoding ""; add_header Content-Encoding gzip;',
    "impatient": "proxy_http_version 1.1; proxy_read_timeout 2s;",
    "redirect": "return 301 https://elsewhere.invalid$request_uri;",
}


@pytest.fixture(scope="module")
def proxies(
    shared_valkey: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """The addresses of nginx before one service, set up well and badly."""
    directory = tmp_path_factory.mktemp("nginx")
    ports = {name: free_port() for name in PROXIES}
    with LiveService(shared_valkey.url, WEB_CONCURRENCY=1, HEARTBEAT_SECONDS=4) as service:
        servers = "\n".join(
            f"server {{ listen 127.0.0.1:{ports[name]};"
            f" location / {{ {options} proxy_pass {service.url}; }} }}"
            for name, options in PROXIES.items()
        )
        command = nginx_command(directory, "proxy_set_header Host $http_host;\n" + servers)
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            until(lambda: all(map(listens, ports.values())), 10, "nginx listens")
            yield {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        finally:
            process.terminate()
            process.wait()


def listens(port: int) -> bool:
    """Whether anything does."""
    try:
        with RawConnection(port):
            return True
    except OSError:
        return False


def doctor(url: str, *ignored: str, patient: bool = False) -> tuple[int, dict[str, Any]]:
    """Run it as a user does; once more if something was late, as this machine may stand still."""
    options = [option for name in ignored for option in ("--ignore", name)]
    options += ["--patient"] if patient else []
    command = [sys.executable, "-m", "service", "doctor", url, "--json", *options]
    for _ in range(2):
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=40, check=False
        )
        assert done.stderr == ""
        if " s late: " not in done.stdout:
            break
    return done.returncode, json.loads(done.stdout)


OPEN = ("publish_open", "public_channels")
"""What the service here is on purpose."""


def test_a_good_proxy(proxies: dict[str, str]) -> None:
    """Nothing is found behind a proxy that is set up well, but what is so on purpose."""
    status, report = doctor(proxies["good"], *OPEN)
    assert (status, report["findings"]) == (0, [])
    assert {"stream", "buffering", "gzip"} <= set(report["passed"])
    status, report = doctor(proxies["good"])
    assert status == 1
    assert [one["check"] for one in report["findings"]] == list(OPEN)


@pytest.mark.parametrize(
    ("name", "check", "fix"),
    [
        ("buffering", "buffering", "proxy_buffering off"),
        ("gzip", "gzip", "Content-Encoding"),
        ("redirect", "service", "use https://elsewhere.invalid"),
    ],
)
def test_a_bad_proxy(proxies: dict[str, str], name: str, check: str, fix: str) -> None:
    """What a proxy does to streams is found, and how to mend it is said."""
    status, report = doctor(proxies[name], *OPEN)
    assert status == 1
    (finding,) = report["findings"]
    assert finding["check"] == check
    assert fix in finding["fix"]


def test_a_proxy_without_patience(proxies: dict[str, str]) -> None:
    """A timeout below the heartbeat is found by holding a silent stream, and by nothing else."""
    status, report = doctor(proxies["impatient"], *OPEN, patient=True)
    assert status == 1
    (finding,) = report["findings"]
    assert finding["check"] == "heartbeat"
    assert re.search(r"is cut after \d+\.\d s", finding["what"])
    assert "proxy_read_timeout" in finding["fix"]
    status, report = doctor(proxies["impatient"], *OPEN)
    assert (status, report["findings"]) == (0, [])
    assert "--patient" in report["skipped"]["heartbeat"]
    status, report = doctor(proxies["good"], *OPEN, patient=True)
    assert (status, report["findings"]) == (0, [])
    assert "heartbeat" in report["passed"]


class OftenClosing(Nginx):
    """nginx that ends connections after three requests, as it else does after a thousand."""

    def _write(self, services: Sequence[str]) -> None:
        super()._write(services)
        site = self.folder / "site.conf"
        line = "ssl_certificate_key "
        site.write_text(replaced(site.read_text(), {line: f"keepalive_requests 3; {line}"}))


def test_a_proxy_that_ends_connections(shared_valkey: Valkey, tmp_path: Path) -> None:
    """`bench` then takes a new one, over TLS like the first: nothing fails, nothing is lost."""
    with (
        LiveService(shared_valkey.url, WEB_CONCURRENCY=1) as service,
        OftenClosing(tmp_path, [service.port]) as proxy,
    ):
        done = subprocess.run(
            [sys.executable, "-m", "service", "bench", proxy.url, "--json", "--streams", "2",
             "--seconds", "2", "--rate", "40"],
            cwd=ROOT, env={**os.environ, "SSL_CERT_FILE": str(proxy.authority)},
            capture_output=True, text=True, timeout=40, check=False,
        )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["publishes_failed"] == {}
    assert found["published"] > 6, "more than one connection takes"
    assert done.returncode == 0


def test_a_service_that_stops(own_valkey: Valkey) -> None:
    """A worker that drains is alive, and not ready."""
    with LiveService(own_valkey.url, WEB_CONCURRENCY=1, DRAIN_SECONDS=30) as service:
        url = f"{service.url}/stream?channel=test-{uuid.uuid4()}"
        with SseClient.connect(url), SseClient.connect(url):
            (worker,) = service.worker_pids()
            os.kill(worker, signal.SIGTERM)
            until(lambda: service.get("/readyz")[0] == 503, 5, "it drains")
            _, report = doctor(service.url, *OPEN)
    (finding,) = report["findings"]
    assert finding["check"] == "ready"
    assert "draining" in finding["what"]


def test_a_service_without_redis() -> None:
    """A service whose Redis is dead says so itself."""
    service = LiveService(f"redis://127.0.0.1:{free_port()}")
    try:
        service.start(ready=False)
        _, report = doctor(service.url, *OPEN)
    finally:
        service.stop()
    (finding,) = report["findings"]
    assert finding["check"] == "ready"
    assert "redis_not_followed, redis_not_answering" in finding["what"]
    assert "Redis is lost" in finding["fix"]
