"""The files of deploy/: taken by the tools that read them, and true to the service's settings."""

from __future__ import annotations

import configparser
import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.app import create_app
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
WORST_EXPOSURE = 2.0
"""Of 10, by systemd's own reckoning; a service without any protection has 9.6."""

DEFAULTS = {spec.metadata["env"]: spec.default for spec in dataclasses.fields(Settings)}
KILLED_AFTER = 10.0
"""Seconds after a drain when gunicorn kills its workers (gunicorn_conf.py)."""

STOPPED_AFTER = float(str(DEFAULTS["DRAIN_SECONDS"])) + KILLED_AFTER


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a tool and return what it said."""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def sections(path: Path) -> configparser.RawConfigParser:
    """A unit of systemd; of keys that come several times the last."""
    parser = configparser.RawConfigParser(strict=False, delimiters=["="], comment_prefixes=["#"])
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # as its manual says
    parser.read(path)
    return parser


def environ_file() -> dict[str, str]:
    """The settings of the example for systemd."""
    lines = (DEPLOY / "pushline.env").read_text().splitlines()
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    return {name: value for name, _, value in pairs}


def check_environ(environ: dict[str, str]) -> None:
    """Each variable is a setting, its value is taken, and all of them together can be served."""
    assert environ.keys() <= DEFAULTS.keys()
    given = {"REDIS_URL": "redis://valkey:6379/0", "PUBLISH_KEYS": "k" * 32}
    Settings.from_environ({**environ, **given}).check_can_serve()


# ---------------------------------------------------------------------------------- systemd

systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None and not os.environ.get("CI"),
    reason="no systemd-analyze (Debian: systemd)",
)


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A folder with the units, whose program is the Python of these tests."""
    for name in ("pushline.service", "pushline.socket"):
        text = (DEPLOY / name).read_text()
        text = text.replace("/opt/pushline/.venv/bin/python", sys.executable)
        (tmp_path / name).write_text(text.replace("/opt/pushline", str(ROOT)))
    return tmp_path


@systemd
def test_systemd_takes_the_units(units: Path) -> None:
    """systemd-analyze has nothing to say about them; about a misspelt key it has."""
    service = units / "pushline.service"
    done = run("systemd-analyze", "verify", service, units / "pushline.socket")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    service.write_text(service.read_text().replace("TimeoutStopSec", "TimeoutStopsec"))
    assert "TimeoutStopsec" in run("systemd-analyze", "verify", service).stderr


@systemd
def test_the_service_can_do_little_harm(units: Path) -> None:
    """By systemd's own reckoning the service is exposed about as little as one with a port can be.

    What that takes away from the service is tried in tests/live/test_deploy.py.
    """
    threshold = f"--threshold={WORST_EXPOSURE * 10:.0f}"
    command = ("systemd-analyze", "security", "--offline=true", "--no-pager", threshold)
    service = units / "pushline.service"
    done = run(*command, service)
    assert done.returncode == 0, done.stdout
    service.write_text(service.read_text().replace("SystemCallFilter", "# SystemCallFilter"))
    assert run(*command, service).returncode != 0


def test_systemd_leaves_time_for_the_drain() -> None:
    """Stopping is SIGTERM to gunicorn's master, which has time for all; reloading is SIGHUP."""
    service = sections(DEPLOY / "pushline.service")["Service"]
    assert float(service["TimeoutStopSec"]) > STOPPED_AFTER
    assert (service["KillSignal"], service["KillMode"]) == ("SIGTERM", "mixed")
    assert service["ExecReload"].endswith("kill -s HUP $MAINPID")
    assert int(service["LimitNOFILE"]) > 10_000


def test_systemd_has_settings_that_exist() -> None:
    """The example of an environment is taken, and names the address on which a proxy is."""
    environ = environ_file()
    check_environ(environ)
    assert environ["TRUSTED_PROXIES"] == "127.0.0.1/32"
    assert sections(DEPLOY / "pushline.socket")["Socket"]["ListenStream"] == "127.0.0.1:8000"


# ------------------------------------------------------------------------------- containers


def instructions(name: str) -> list[str]:
    """What follows an instruction, each time that it comes in the Dockerfile."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    return re.findall(rf"^\s*{name} (.*)$", text, re.MULTILINE)


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


def test_the_compose_file_runs_the_image() -> None:
    """It builds this Dockerfile, has a Valkey that keeps history, and leaves time to drain."""
    composed = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    service, valkey = composed["pushline"], composed["valkey"]
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
    environ = {name: re.sub(r"\$\{.*\}", "", text) for name, text in service["environment"].items()}
    check_environ(environ)


# ------------------------------------------------------------------------------- Kubernetes


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    """The manifests by kind."""
    found = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    return {one["kind"]: one for one in found}


def kubernetes_validate(path: Path) -> subprocess.CompletedProcess[str]:
    """What the schemas of Kubernetes say of a file."""
    return run(BIN / "kubernetes-validate", "--strict", path)


def test_the_manifests_fit_their_schemas(tmp_path: Path) -> None:
    """Kubernetes would take each; one with a misspelt key it wouldn't."""
    done = kubernetes_validate(DEPLOY / "kubernetes.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "wrong.yaml"
    text = (DEPLOY / "kubernetes.yaml").read_text()
    wrong.write_text(text.replace("readinessProbe", "readynessProbe"))
    assert kubernetes_validate(wrong).returncode != 0


def test_pods_have_time_to_drain(manifests: dict[str, Any]) -> None:
    """Before a pod is killed its proxies learn that it goes, and then it drains."""
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environ = {one["name"]: one["value"] for one in container["env"]}
    check_environ(environ)
    program, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    drain = float(environ["DRAIN_SECONDS"]) + KILLED_AFTER
    assert pod["terminationGracePeriodSeconds"] > float(seconds) + drain


def test_pods_are_asked_what_there_is(manifests: dict[str, Any]) -> None:
    """Probes ask routes of the service; liveness has no part in Redis, and waits out a busy pod."""
    (container,) = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    app = create_app(Settings(redis_url="redis://127.0.0.1:1"))
    routes = {rule.rule for rule in app.url_map.iter_rules()}
    live, ready = container["livenessProbe"], container["readinessProbe"]
    assert (live["httpGet"]["path"], ready["httpGet"]["path"]) == ("/livez", "/readyz")
    assert {"/livez", "/readyz"} <= routes
    assert live["periodSeconds"] * live["failureThreshold"] >= 60
    assert ready["timeoutSeconds"] > 1, "the service itself waits for Redis for a second"


def test_the_manifests_fit_together(manifests: dict[str, Any]) -> None:
    """Service, budget and ingress mean the pods of the deployment, of which one may be away."""
    deployment, service = manifests["Deployment"], manifests["Service"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    budget = manifests["PodDisruptionBudget"]["spec"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    assert budget["selector"]["matchLabels"] == labels
    assert deployment["spec"]["replicas"] > budget["maxUnavailable"]
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]
    assert container["ports"][0]["containerPort"] == 8000
    (path,) = manifests["Ingress"]["spec"]["rules"][0]["http"]["paths"]
    assert path["backend"]["service"] == {"name": "pushline", "port": {"name": "http"}}


def test_pods_run_as_nobody(manifests: dict[str, Any]) -> None:
    """They write nothing, gain nothing, and are the image's own user."""
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (user,) = instructions("USER")
    assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == user
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


# ---------------------------------------------------------------------------------- proxies


def test_proxies_wait_longer_than_a_heartbeat(manifests: dict[str, Any]) -> None:
    """No proxy finds a stream idle, and none keeps a connection that the service closes first."""
    heartbeat = float(str(DEFAULTS["HEARTBEAT_SECONDS"]))
    keepalive = float(str(DEFAULTS["KEEPALIVE_SECONDS"]))
    nginx = (DEPLOY / "nginx.conf").read_text()
    caddy = (DEPLOY / "Caddyfile").read_text()
    annotations = manifests["Ingress"]["metadata"]["annotations"]
    (read,) = re.findall(r"proxy_read_timeout (\d+)s;", nginx)
    assert float(read) > 2 * heartbeat
    assert float(annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"]) > 2 * heartbeat
    assert float(re.findall(r"keepalive_timeout (\d+)s;", nginx)[0]) < keepalive
    assert float(re.findall(r"\bkeepalive (\d+)s", caddy)[0]) < keepalive
