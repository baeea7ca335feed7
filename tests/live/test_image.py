"""The image is built, started as docs/deploy.md tells, asked, and stopped. It takes minutes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.live_server import ROOT, LiveService, until
from tests.valkey import Valkey

pytestmark = [pytest.mark.live, pytest.mark.long]

TAG = "pushline-test"
PATIENCE_SECONDS = 1200.0
"""For a build that has everything to fetch."""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run an engine's command in the project's folder."""
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS
    )


@pytest.fixture(scope="module")
def engine() -> str:
    """A container engine that works; skips where there is none."""
    for name in ("docker", "podman"):
        if shutil.which(name) and run(name, "info", "--format", "{{.}}").returncode == 0:
            return name
    pytest.skip("THE IMAGE IS NOT TESTED: neither docker nor podman works here")


@pytest.fixture(scope="module")
def image(engine: str) -> str:
    """The image, built from what is here."""
    built = run(engine, "build", "-f", "deploy/Dockerfile", "-t", TAG, ".")
    assert built.returncode == 0, built.stdout + built.stderr
    return TAG


@pytest.fixture
def container(engine: str, image: str, shared_valkey: Valkey) -> Iterator[LiveService]:
    """A running container in this machine's network, which can write nowhere but in /tmp."""
    service = LiveService(shared_valkey.url, HOST="127.0.0.1")
    settings = [f"--env={name}={value}" for name, value in service.settings.items()]
    limits = ("--network=host", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL")
    done = run(engine, "run", "--detach", f"--name={TAG}", *limits, *settings, image)
    assert done.returncode == 0, done.stderr
    yield service
    run(engine, "rm", "--force", TAG)


def test_the_image_serves(engine: str, container: LiveService) -> None:
    """It gets ready, passes its own health check, publishes, and ends on SIGTERM with status 0."""

    def is_ready() -> bool:
        try:
            return container.get("/readyz")[0] == 200
        except OSError:
            return False

    until(is_ready, 30, "it is ready")
    checked = run(engine, "exec", TAG, "python", "/app/healthcheck.py")
    assert checked.returncode == 0, checked.stderr
    assert container.publish("image", "hello")
    run(engine, "stop", "-t", "30", TAG)
    ended = run(engine, "inspect", "--format={{.State.ExitCode}}", TAG)
    assert ended.stdout.strip() == "0", run(engine, "logs", TAG).stdout


def test_the_image_has_no_redis_of_its_own(engine: str, image: str) -> None:
    """Without REDIS_URL it says so in one line and ends."""
    done = run(engine, "run", "--rm", image)
    assert done.returncode != 0
    assert "REDIS_URL" in done.stderr
    assert "Traceback" not in done.stderr
