"""A real service for tests: gunicorn with our configuration, as its own process, on a free port."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from email.message import Message
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from service.line_handler import HOLD_SECONDS
from tests.processes import children
from tests.secrets_used import USED
from tests.valkey import free_port

ROOT = Path(__file__).resolve().parents[1]
GUNICORN = ("-m", "gunicorn", "-c", "python:service.gunicorn_conf")


def until(condition: Callable[[], Any], timeout: float, what: str) -> Any:
    """Wait for `condition` to be true and return its value; fails after `timeout` seconds.

    It looks once more after that: this process itself may have stood still since the last time.
    """
    deadline = time.monotonic() + timeout
    late = False
    while not (value := condition()):
        if late:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(0.02)
        late = time.monotonic() > deadline
    return value


class LiveService:
    """gunicorn on 127.0.0.1:`port`. Settings are keyword arguments named like the variables."""

    def __init__(self, redis_url: str, **settings: object) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.tls: ssl.SSLContext | None = None
        self.application = "service.app:create_app()"
        self.settings: dict[str, object] = {
            "REDIS_URL": redis_url,
            "PORT": self.port,
            "PUBLISH_OPEN": 1,
            "PUBLIC_CHANNELS": "*",
            "MAX_CONNECTIONS_PER_IP": 0,
            "MAX_CONNECTS_PER_SECOND_PER_IP": 0,
            "LOG_FORMAT": "json",
            **settings,
        }
        self.log_path = Path(tempfile.mkstemp(prefix="pushline-test-", suffix=".log")[1])
        self.process: subprocess.Popen[bytes] | None = None

    def use_tls(self, certificate: Path, key: Path, context: ssl.SSLContext) -> Self:
        """Let gunicorn itself speak TLS; `context` is what clients trust it with."""
        self.settings["GUNICORN_CMD_ARGS"] = f"--certfile={certificate} --keyfile={key}"
        self.url = f"https://localhost:{self.port}"
        self.tls = context
        return self

    def start(self, *, ready: bool = True) -> Self:
        """Start the process; waits until it is ready, or only until it answers."""
        environ = {k: v for k, v in os.environ.items() if k not in ("GUNICORN_CMD_ARGS",)}
        environ.update({key: str(value) for key, value in self.settings.items()})
        USED.keep(self.log_path)
        USED.add_settings(self.settings)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *GUNICORN, self.application],
                cwd=ROOT,
                env=environ,
                stdout=log,
                stderr=log,
            )
        path = "/readyz" if ready else "/livez"
        until(lambda: self._answers(path), 20, f"{path} answers 200\n{self.log()}")
        return self

    def wait_workers(self) -> Self:
        """Wait until every worker follows Redis, not only the one that was ready first."""
        count = int(str(self.settings["WEB_CONCURRENCY"]))
        ready = "Redis is connected"
        until(lambda: self.log().count(ready) >= count, 20, "all workers follow Redis")
        return self

    def _answers(self, path: str) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the service ended\n{self.log()}"
        try:
            return self.get(path)[0] == 200
        except OSError:
            return False

    @property
    def pid(self) -> int:
        """The process id of gunicorn's master."""
        assert self.process is not None
        return self.process.pid

    def worker_pids(self) -> list[int]:
        """The process ids of the workers that are there now."""
        return children(self.pid)

    def get(self, path: str, **headers: str) -> tuple[int, bytes, Message[str, str]]:
        """GET a path: status, body, headers."""
        return self._request("GET", path, None, headers)

    def post(self, path: str, body: bytes, **headers: str) -> tuple[int, bytes, Message[str, str]]:
        """POST a body: status, body, headers. Header names are written with _ for -."""
        return self._request("POST", path, body, headers)

    def _request(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, bytes, Message[str, str]]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        USED.add_request(path, named)
        request = urllib.request.Request(self.url + path, body, named, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10, context=self.tls) as answer:
                return answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(), error.headers

    def publish(self, channel: str, data: str, event: str | None = None) -> str:
        """Publish over HTTP and return the id."""
        query = f"?event={event}" if event else ""
        status, body, _ = self.post(f"/channels/{channel}{query}", data.encode())
        assert status == 200, body
        return str(json.loads(body)["id"])

    def log(self) -> str:
        """Everything that the service has logged, also what has waited to be written with more."""
        time.sleep(2 * HOLD_SECONDS)
        return self.log_path.read_text(errors="replace")

    def log_lines(self, **fields: object) -> list[dict[str, Any]]:
        """The JSON log lines that have all of `fields`; not one that is being written."""
        lines = []
        for text in self.log().splitlines(keepends=True):
            if text.startswith("{") and text.endswith("\n"):
                line = json.loads(text)
                if all(line.get(key) == value for key, value in fields.items()):
                    lines.append(line)
        return lines

    def signal(self, number: signal.Signals) -> None:
        """Send the master a signal."""
        os.kill(self.pid, number)

    def wait(self, timeout: float = 40) -> int:
        """Wait for the end and return the exit status."""
        assert self.process is not None
        return self.process.wait(timeout)

    def stop(self) -> None:
        """End the service, by force if need be."""
        if self.process is None or self.process.poll() is not None:
            return
        workers = self.worker_pids()
        self.process.kill()
        self.process.wait()
        for pid in workers:  # they would notice the master's end only a second later
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if error is not None:
            print(f"--- log of the service on port {self.port}\n{self.log()[-20_000:]}")
