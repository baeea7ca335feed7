"""kubernetes.yaml: taken by what reads it, and true to the service's settings."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.app import create_app
from service.routes.status import ANSWER_SECONDS
from service.settings import Settings
from tests.deploying import (
    BIN,
    DEFAULTS,
    DEPLOY,
    KILLED_AFTER,
    check_environ,
    instructions,
    run,
    told_secrets,
)

KEPT_BY_CONTROLLERS = 90.0
"""Seconds for which Traefik keeps idle connections to pods; ingress-nginx does for 60."""


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
    environ = environ_of(manifests)
    program, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    drain = float(environ["DRAIN_SECONDS"]) + KILLED_AFTER
    assert pod["terminationGracePeriodSeconds"] > float(seconds) + drain


def environ_of(manifests: dict[str, Any]) -> dict[str, str]:
    """The settings of a pod that don't come from its Secret."""
    (container,) = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    return {one["name"]: one["value"] for one in container["env"]}


def test_pods_have_settings_that_exist(manifests: dict[str, Any]) -> None:
    """With the Secret that docs/deploy.md tells to make, and the file itself says the same."""
    pattern = r" --from-literal=(\w+)="
    secrets = told_secrets("kubectl create secret generic pushline", pattern)
    check_environ({**environ_of(manifests), **secrets})
    head = (DEPLOY / "kubernetes.yaml").read_text().partition("apiVersion")[0]
    assert set(re.findall(pattern, head)) == secrets.keys()


def test_the_ingress_waits_longer_than_a_heartbeat(manifests: dict[str, Any]) -> None:
    """It finds no stream idle, and keeps no connection to a pod that the pod closes first."""
    annotations = manifests["Ingress"]["metadata"]["annotations"]
    read = float(annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"])
    assert read > 2 * float(str(DEFAULTS["HEARTBEAT_SECONDS"]))
    assert float(environ_of(manifests)["KEEPALIVE_SECONDS"]) > KEPT_BY_CONTROLLERS


def test_pods_are_asked_what_there_is(manifests: dict[str, Any]) -> None:
    """Probes ask routes of the service. Redis has a part in them only until a pod is ready once:
    later it would take all pods away together. Liveness waits out a busy pod.
    """
    (container,) = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    app = create_app(Settings(redis_url="redis://127.0.0.1:1"))
    routes = {rule.rule for rule in app.url_map.iter_rules()}
    probes = {kind: container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")}
    paths = {kind: probe["httpGet"]["path"] for kind, probe in probes.items()}
    assert paths == {"startup": "/readyz", "readiness": "/livez", "liveness": "/livez"}
    assert set(paths.values()) <= routes
    for kind in ("startup", "liveness"):
        assert probes[kind]["periodSeconds"] * probes[kind]["failureThreshold"] >= 60
    assert probes["startup"]["timeoutSeconds"] > ANSWER_SECONDS


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
