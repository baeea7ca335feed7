"""The Dockerfile and compose.yaml: taken by what reads them, and true to the service's settings."""

from __future__ import annotations

import json
import re
import shlex
import stat
import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploying import (
    BIN,
    DEPLOY,
    ROOT,
    STOPPED_AFTER,
    check_environ,
    instructions,
    run,
    told_secrets,
)


def hadolint(text: str, path: Path) -> subprocess.CompletedProcess[str]:
    """What hadolint says of a Dockerfile with this text."""
    path.write_text(text)
    return run(BIN / "hadolint", "--no-color", path)


def test_the_dockerfile_is_sound(tmp_path: Path) -> None:
    """hadolint has nothing to say about it; about a base without a version it has."""
    text = (DEPLOY / "Dockerfile").read_text()
    done = hadolint(text, tmp_path / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")
    loose = hadolint(re.sub(r"FROM python:\S+", "FROM python", text), tmp_path / "Loose")
    assert "DL3006" in loose.stdout


def test_the_image_is_what_is_tested() -> None:
    """Its Python is the one that is tested, and it starts what the Procfile starts, as nobody."""
    python = (ROOT / ".python-version").read_text().strip()
    bases = {one.partition(" AS ")[0] for one in instructions("FROM")}
    (base,) = bases
    assert re.fullmatch(rf"python:{re.escape(python)}\.\d+-slim-\w+", base)
    (user,) = instructions("USER")
    assert 0 not in map(int, user.split(":"))
    *_, command = instructions("CMD")
    procfile = (ROOT / "Procfile").read_text().partition("exec ")[2]
    assert json.loads(command) == shlex.split(procfile), "in exec form: signals reach gunicorn"


def test_the_image_has_what_it_needs() -> None:
    """Whatever is copied is there, and .dockerignore lets it through, and nothing else."""
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        path for one in instructions("COPY") if "--from" not in one for path in one.split()[:-1]
    }
    assert {path.removeprefix("./") for path in copied} == let_in
    assert all((ROOT / path).exists() for path in let_in)
    assert "*" in ignored


def check_schema(path: Path) -> subprocess.CompletedProcess[str]:
    """What the Compose Specification's own schema says of a file."""
    schema = ("--builtin-schema", "vendor.compose-spec")
    return run(sys.executable, "-m", "check_jsonschema", *schema, path)


def test_the_compose_file_is_sound(tmp_path: Path) -> None:
    """It fits the specification's schema; one with a misspelt key wouldn't."""
    text = (DEPLOY / "compose.yaml").read_text()
    assert check_schema(DEPLOY / "compose.yaml").returncode == 0
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(text.replace("stop_grace_period", "stop_grace"))
    assert "stop_grace" in check_schema(wrong).stdout


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    """What is in compose.yaml."""
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text()))


def test_the_compose_file_runs_the_image(composed: dict[str, Any]) -> None:
    """It builds this Dockerfile, has a Valkey that keeps history, and leaves time to drain."""
    services = composed["services"]
    service, valkey = services["pushline"], services["valkey"]
    build = service["build"]
    context = (DEPLOY / build["context"]).resolve()
    assert context / build["dockerfile"] == DEPLOY / "Dockerfile"
    assert float(service["stop_grace_period"].removesuffix("s")) > STOPPED_AFTER
    assert service["depends_on"] == {"valkey": {"condition": "service_healthy"}}
    assert valkey["healthcheck"]["test"][0] == "CMD"
    assert re.search(r":\d+\.\d+\.\d+", valkey["image"])
    options = dict(zip(valkey["command"][1::2], valkey["command"][2::2], strict=True))
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--appendonly"] == "yes"
    limit = valkey["deploy"]["resources"]["limits"]["memory"]
    assert 2 * float(options["--maxmemory"].removesuffix("mb")) <= float(limit.removesuffix("M"))


def test_compose_asks_for_nothing_but_a_file(composed: dict[str, Any]) -> None:
    """Without a variable of the shell, so that `docker compose ps` and the others work too."""
    assert "${" not in (DEPLOY / "compose.yaml").read_text()
    assert composed["services"]["pushline"]["env_file"] == ["compose.env"]


def test_compose_knows_where_clients_come_from(composed: dict[str, Any]) -> None:
    """The gateway of its network is believed, and nobody else in it: the host is behind that."""
    (network,) = composed["networks"]["default"]["ipam"]["config"]
    trusted = composed["services"]["pushline"]["environment"]["TRUSTED_PROXIES"]
    assert trusted == f"{network['gateway']}/32"
    assert ip_address(network["gateway"]) in ip_network(network["subnet"])


def test_the_secrets_of_compose(composed: dict[str, Any], tmp_path: Path) -> None:
    """The command of docs/deploy.md makes the file, for nobody else to read; git ignores it."""
    page = (ROOT / "docs" / "deploy.md").read_text()
    (command,) = re.findall(r"^\(umask 077\n.*?\)$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "deploy").mkdir()
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, timeout=10)
    made = tmp_path / "deploy" / "compose.env"
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert "deploy/compose.env" in (ROOT / ".gitignore").read_text().splitlines()
    secrets = dict(line.split("=", 1) for line in made.read_text().splitlines())
    assert all(len(secret) == 64 for secret in secrets.values())
    check_environ({**composed["services"]["pushline"]["environment"], **secrets})


def test_docker_is_given_what_it_needs() -> None:
    """The command of docs/deploy.md has a place for each secret that a service can't do without."""
    check_environ(told_secrets("docker run", r" -e (\w+)="))
