"""What the README says to type, typed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.live_server import LiveService, until
from tests.sse_client import SseClient, event_data
from tests.valkey import free_port

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = re.findall(
    r"^curl .*$", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE
)


def typed(command: str, live: LiveService, seconds: float, cwd: Path = ROOT) -> str:
    """The output of a README command, sent to the live service; a stream is left after a while."""
    command = command.replace("http://127.0.0.1:8000", live.url)
    shell = subprocess.Popen(
        ["timeout", str(seconds), "bash", "-c", command],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    return shell.communicate()[0]


def test_the_readme_curls_publish_and_stream(live: LiveService) -> None:
    """Each curl of the README works: what the publishing ones send, the streaming one shows."""
    streaming = [command for command in COMMANDS if "curl -N" in command]
    publishing = [command for command in COMMANDS if "curl -d" in command]
    assert (len(streaming), len(publishing)) == (1, 2)
    command = streaming[0].replace("http://127.0.0.1:8000", live.url)
    with subprocess.Popen(
        ["timeout", "20", "bash", "-c", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as stream:
        assert stream.stdout is not None
        assert stream.stdout.readline().startswith("retry:")
        ids = [json.loads(typed(command, live, 10))["id"] for command in publishing]
        seen = ""
        while '{"eur":42}' not in seen:
            seen += stream.stdout.readline()
        stream.terminate()

    assert f"id: {ids[0]}\ndata: hello\n" in seen
    assert f"event: price\nid: {ids[1]}\ndata: {{" in seen


def test_the_readme_uploads_a_log(live: LiveService, tmp_path: Path) -> None:
    """The README's `tail -f log | curl` publishes what the log has while tail goes on."""
    (command,) = re.findall(r"^tail -f log \| curl .*$", (ROOT / "README.md").read_text(), re.M)
    (tmp_path / "log").write_text("one\ntwo\n")
    with SseClient.connect(f"{live.url}/stream?channel=log") as client:
        client.wait_body(b"\n\n", 5)
        assert typed(command, live, 2, tmp_path) == "", "there is no answer before the end"
        assert event_data(client.events(2, 5)) == ["one", "two"]


def test_make_run_serves_from_a_fresh_clone(tmp_path: Path) -> None:
    """`make run` in a fresh clone, with an empty home and only Python, sets up and serves."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    port = free_port()
    clone = tmp_path / "pushline"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    environ = {
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
        "PORT": str(port),
        **{key: value for key, value in os.environ.items() if key.lower().startswith("pip_")},
    }
    with (tmp_path / "log").open("w+") as log:
        service = subprocess.Popen(
            ["make", "run"],
            cwd=clone,
            env=environ,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            asked = ["curl", "-sf", "-d", "hello", f"{url}/channels/news"]
            until(lambda: subprocess.run(asked, check=False).returncode == 0, 110, f"{url} answers")
        finally:
            os.killpg(service.pid, signal.SIGTERM)
            service.wait(30)
        banner = (tmp_path / "log").read_text()

    assert f"Demo      {url}/" in banner
    assert "this machine only" in banner
