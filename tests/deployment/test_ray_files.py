"""The files in deploy/ray/: valid for their tools, and consistent with the code."""

from __future__ import annotations

import re
from typing import Any

import kubernetes_validate
import pytest
import yaml  # type: ignore[import-untyped]
from conftest import ROOT
from settings_tables import ALL_NAMES

from parakeet_api.settings import Settings

FOLDER = ROOT / "deploy" / "ray"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yml").read_text(encoding="utf-8"))
KUBERAY: list[dict[str, Any]] = [
    *yaml.safe_load_all((FOLDER / "kuberay.yaml").read_text(encoding="utf-8"))
]
CLUSTER = next(entry for entry in KUBERAY if entry["kind"] == "RayCluster")["spec"]
GROUPS = {group["groupName"]: group for group in CLUSTER["workerGroupSpecs"]}
PODS = {"head": CLUSTER["headGroupSpec"]["template"]} | {
    name: group["template"] for name, group in GROUPS.items()
}
VERSIONS = ("1.30", kubernetes_validate.latest_version())


def _environment(pod: dict[str, Any]) -> dict[str, str]:
    [container] = pod["spec"]["containers"]
    return {entry["name"]: entry.get("value", "") for entry in container["env"]}


def _requirement(package: str) -> str:
    text = (ROOT / "requirements-ray.txt").read_text(encoding="utf-8")
    version: str = re.findall(rf"^{package}(?:\[\S+\])?==(\S+)$", text, re.MULTILINE)[0]
    return version


def test_every_machine_runs_the_version_of_ray_that_is_installed() -> None:
    assert CLUSTER["rayVersion"] == _requirement("ray")


@pytest.mark.parametrize("version", VERSIONS)
def test_pods_and_resources_follow_the_schemas_of_kubernetes(version: str) -> None:
    for resource in KUBERAY:
        if resource["kind"] != "RayCluster":
            kubernetes_validate.validate(resource, version, strict=True)
    for name, pod in PODS.items():
        made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod["spec"]}
        kubernetes_validate.validate(made, version, strict=True)


def test_volumes_of_pods_are_claimed() -> None:
    claims = {e["metadata"]["name"] for e in KUBERAY if e["kind"] == "PersistentVolumeClaim"}
    used = {
        volume["persistentVolumeClaim"]["claimName"]
        for pod in PODS.values()
        for volume in pod["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }

    assert used == claims


def test_web_servers_in_pods_have_valid_settings_and_no_replica() -> None:
    environ = _environment(PODS["web"])
    settings = Settings.from_env({"DATABASE_URL": "postgresql://x/y"} | environ)

    assert {name for name in environ if not name.startswith("RAY_U")} <= set(ALL_NAMES)
    assert settings.ray_address == "auto"
    assert settings.replica_range == (1, GROUPS["gpu"]["maxReplicas"])
    assert GROUPS["web"]["rayStartParams"]["num-cpus"] == "0"
    assert CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_the_service_and_the_pods_use_the_servers_port() -> None:
    service = next(entry for entry in KUBERAY if entry["kind"] == "Service")["spec"]
    labels = PODS["web"]["metadata"]["labels"]
    [container] = PODS["web"]["spec"]["containers"]

    assert service["selector"].items() <= labels.items()
    assert [port["port"] for port in service["ports"]] == [Settings().port]
    assert [port["containerPort"] for port in container["ports"]] == [Settings().port]


def test_the_compose_file_has_a_head_two_workers_a_web_server_and_a_database() -> None:
    services = COMPOSE["services"]

    assert set(services) == {"head", "worker", "web", "database"}
    assert services["worker"]["deploy"]["replicas"] == 2
    assert services["web"]["ports"] == [f"{Settings().port}:{Settings().port}"]
    assert all(
        "RAY_AUTH_TOKEN" in services[name]["environment"] for name in ("head", "worker", "web")
    )


def test_the_web_server_of_the_compose_file_has_valid_settings() -> None:
    environ = {
        name: re.sub(r"\$\{[^}]*\}", "x", value or "")
        for name, value in COMPOSE["services"]["web"]["environment"].items()
    }
    of_ray = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED"}

    settings = Settings.from_env(environ)

    assert set(environ) - of_ray <= set(ALL_NAMES)
    assert settings.replica_range == (2, 2)
    assert settings.database_url is not None
    assert f"{settings.jobs_dir}" in {
        volume.partition(":")[2] for volume in COMPOSE["services"]["web"]["volumes"]
    }
