"""The files in deploy/: valid for their tools, and consistent with the code.

What needs promtool, kubectl or systemd-analyze is skipped where they are not installed.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml  # type: ignore[import-untyped]
from conftest import PATIENCE_S, ROOT, Server
from http_helpers import request
from settings_tables import ALL_NAMES

from parakeet_api import errors
from parakeet_api.http.received_form import MULTIPART_OVERHEAD
from parakeet_api.metrics import Metrics
from parakeet_api.settings import Settings

pytestmark = pytest.mark.integration

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
KUBERNETES_VERSIONS = ("1.30", kubernetes_validate.latest_version())
"""The oldest that knows all fields, and the newest whose schema there is."""
OVERLAYS = ("base", "cpu", "scaled")

OF_OTHERS = {
    *("HF_HOME", "NUMBA_CACHE_DIR", "TMPDIR", "HOME"),
    *("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "PARAKEET_VERSION"),
    *("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED"),
    *("POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB"),
}
"""Variables that are not read by `settings`."""

SETTINGS = Settings()


def _documents(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text(encoding="utf-8")))


DEPLOYMENT = _documents(KUBERNETES / "base" / "deployment.yaml")[0]["spec"]["template"]["spec"]
CONTAINER = DEPLOYMENT["containers"][0]
UNIT = (DEPLOY / "parakeet-api.service").read_text(encoding="utf-8")
RULES = _documents(DEPLOY / "alerts.yml")[0]["groups"][0]["rules"]
DASHBOARD = json.loads((DEPLOY / "grafana-dashboard.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
NGINX = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")


def _run(*command: str | Path) -> str:
    """Run a tool that is skipped where it is missing; give what it printed."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(
        command, cwd=DEPLOY, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# Variables, ports and paths


def _unit_variables() -> set[str]:
    lines = re.findall(r"^Environment=(.*)", UNIT, re.MULTILINE)
    return {pair.partition("=")[0] for line in lines for pair in line.split()}


def test_every_variable_that_is_set_is_read_by_something() -> None:
    in_overlays = {
        name
        for file in KUBERNETES.glob("*/kustomization.yaml")
        for name in re.findall(r"name: ([A-Z][A-Z_]+)$", file.read_text(), re.MULTILINE)
    }
    variables = {entry["name"] for entry in CONTAINER["env"]} | in_overlays | _unit_variables()

    assert {"API_KEY", "MAX_QUEUED_JOBS", "MODELS_DIR"} <= variables
    assert variables - set(ALL_NAMES) - OF_OTHERS == set()


@pytest.mark.parametrize(
    "file",
    [*DEPLOY.rglob("*.*"), ROOT / "docs" / "operations.md", ROOT / "SECURITY.md"],
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_every_variable_in_the_prose_is_a_setting(file: Path) -> None:
    words = set(re.findall(r"\b[A-Z]+_[A-Z_]+\b", file.read_text(encoding="utf-8")))
    address_families = {word for word in words if word.startswith("AF_")}

    assert words - set(ALL_NAMES) - OF_OTHERS - address_families == set()


def _values_in_overlays() -> dict[str, str]:
    patches = [
        entry
        for file in KUBERNETES.glob("*/kustomization.yaml")
        for patch in _documents(file)[0].get("patches", [])
        for entry in yaml.safe_load(patch["patch"])
        if isinstance(entry, dict)
    ]
    added = [entry["value"] for entry in patches if entry.get("path", "").endswith("/env/-")]
    return {variable["name"]: variable["value"] for variable in added}


def test_values_in_deploy_are_values_that_the_server_takes() -> None:
    in_pod = {entry["name"]: entry["value"] for entry in CONTAINER["env"] if "value" in entry}
    lines = re.findall(r"^Environment=(.*)", UNIT, re.MULTILINE)
    in_unit = dict(pair.split("=", 1) for line in lines for pair in line.split())

    scaled = Settings.from_env(in_pod | _values_in_overlays())
    service = Settings.from_env(in_unit)

    assert (scaled.enable_lazy_load, scaled.idle_timeout_minutes) == (False, 0)
    assert scaled.max_queued_jobs == 0
    assert service.models_dir.parent == service.jobs_dir.parent == service.temp_uploads_dir.parent


def test_all_files_use_the_servers_port() -> None:
    service = _documents(KUBERNETES / "base" / "service.yaml")[0]["spec"]
    scrape = _documents(DEPLOY / "prometheus.yml")[0]["scrape_configs"][0]
    caddy = (DEPLOY / "Caddyfile").read_text(encoding="utf-8")

    assert CONTAINER["ports"] == [{"name": "http", "containerPort": SETTINGS.port}]
    assert [port["port"] for port in service["ports"]] == [SETTINGS.port]
    assert scrape["static_configs"] == [{"targets": [f"localhost:{SETTINGS.port}"]}]
    assert f"server 127.0.0.1:{SETTINGS.port};" in NGINX
    assert f"reverse_proxy 127.0.0.1:{SETTINGS.port} " in caddy


def test_probes_and_prometheus_use_existing_paths(server: Server) -> None:
    probes = ("startupProbe", "livenessProbe", "readinessProbe")
    paths = {CONTAINER[probe]["httpGet"]["path"] for probe in probes}
    paths.add(_documents(DEPLOY / "prometheus.yml")[0]["scrape_configs"][0]["metrics_path"])

    answers = {path: request(server, "GET", path).status_code for path in paths}

    assert answers == {"/health/simple": 200, "/ready": 200, "/metrics": 200}


def test_the_stop_timeout_exceeds_the_grace_period() -> None:
    pause_s = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    stop_s = int(re.findall(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)[0])
    to_close_s = 10

    assert DEPLOYMENT["terminationGracePeriodSeconds"] >= (
        pause_s + SETTINGS.stop_grace_s + to_close_s
    )
    assert stop_s >= SETTINGS.stop_grace_s + to_close_s


def test_proxies_leave_the_upload_limit_to_the_server() -> None:
    needed = SETTINGS.max_upload_bytes + MULTIPART_OVERHEAD
    caddy = (DEPLOY / "Caddyfile").read_text(encoding="utf-8")

    assert int(re.findall(r"client_max_body_size (\d+)m;", NGINX)[0]) * 1024**2 >= needed
    assert int(re.findall(r"max_size (\d+)MiB", caddy)[0]) * 1024**2 >= needed


# Prometheus and Grafana


def _series() -> dict[str, set[str]]:
    """Return the name of each series that /metrics can have, and its labels."""
    metrics = Metrics()
    labels = {
        metric._name: set(metric._labelnames)
        for metric in vars(metrics).values()
        if hasattr(metric, "_labelnames")
    }
    endings = {
        "counter": ("_total",),
        "histogram": ("_bucket", "_sum", "_count"),
        "info": ("_info",),
        "stateset": ("",),
        "gauge": ("",),
    }
    return {
        f"{family.name}{ending}": labels.get(family.name, set())
        | ({family.name} if family.type == "stateset" else set())
        for family in metrics.registry.collect()
        for ending in endings[family.type]
    }


def _expressions() -> dict[str, str]:
    """Return every PromQL expression in deploy/ by where it is."""
    tests = _documents(DEPLOY / "alerts_test.yml")[0]["tests"]
    adapter = _documents(KUBERNETES / "scaled" / "prometheus-adapter.yaml")[0]["rules"]["custom"][0]
    autoscaler = _documents(KUBERNETES / "scaled" / "autoscaler.yaml")[0]["spec"]["metrics"][0]
    return {
        "prometheus-adapter": adapter["seriesQuery"],
        "autoscaler": autoscaler["pods"]["metric"]["name"],
        **{f"alert {rule['alert']}": rule["expr"] for rule in RULES},
        **{
            f"test {number}.{place}": series["series"]
            for number, test in enumerate(tests)
            for place, series in enumerate(test["input_series"])
        },
        **{
            f"panel {panel['title']}, {target['refId']}": target["expr"]
            for panel in PANELS
            for target in panel["targets"]
        },
    }


@pytest.mark.parametrize("where", _expressions())
def test_every_series_in_a_query_is_one_that_the_server_exports(where: str) -> None:
    expression, series = _expressions()[where], _series()
    of_prometheus = {"job", "instance", "namespace", "pod", "le"}

    metrics = set(re.findall(r"\b(?:parakeet|process)_\w+", expression))
    matched = re.findall(r"\b((?:parakeet|process)_\w+)\{([^}]*)\}", expression)

    assert metrics <= series.keys()
    assert metrics or "up{" in expression
    for name, matchers in matched:
        assert set(re.findall(r"(\w+)\s*(?:=~|!=|=)", matchers)) - of_prometheus <= series[name]


def test_every_error_code_in_the_alerts_exists() -> None:
    known = {kind.code for kind in vars(errors).values() if hasattr(kind, "code")}
    codes = {code for rule in RULES for code in re.findall(r'code="(\w+)"', rule["expr"])}

    assert {"queue_full", "model_not_ready"} <= codes <= known


def test_every_alert_has_instructions_and_a_test() -> None:
    tests = (DEPLOY / "alerts_test.yml").read_text(encoding="utf-8")
    for rule in RULES:
        assert rule["labels"].keys() == {"severity"}
        assert rule["annotations"].keys() == {"summary", "description"}
        assert f'ALERTS{{alertname="{rule["alert"]}"' in tests


def test_the_memory_alert_uses_the_limit_of_the_deployment() -> None:
    limit = CONTAINER["resources"]["limits"]["memory"]
    rule = next(rule for rule in RULES if rule["alert"] == "ParakeetMemoryHigh")

    assert rule["expr"].endswith(f"> 0.9 * {limit.removesuffix('Gi')} * 1024 ^ 3")


def test_promtool_accepts_the_rules_and_every_alert_fires_as_expected() -> None:
    _run("promtool", "check", "config", "--syntax-only", "prometheus.yml")
    _run("promtool", "check", "rules", "alerts.yml")
    _run("promtool", "test", "rules", "alerts_test.yml")


def test_promtool_accepts_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    of_grafana = {"$__rate_interval": "1m", "$__range": "6h", "$job": "parakeet", "$instance": ".*"}
    rules: list[dict[str, str]] = []
    for target in itertools.chain.from_iterable(panel["targets"] for panel in PANELS):
        expression = target["expr"]
        for name, value in of_grafana.items():
            expression = expression.replace(name, value)
        rules.append({"record": f"panel:{len(rules)}", "expr": expression})
    file = tmp_path / "dashboard.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))

    assert f"{len(rules)} rules found" in _run("promtool", "check", "rules", file)


def test_every_panel_has_a_description_and_a_unit() -> None:
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["type"] == "table" or panel["fieldConfig"]["defaults"]["unit"]


def test_the_dashboard_uses_the_selected_data_source() -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    variables = {entry["name"]: entry for entry in DASHBOARD["templating"]["list"]}

    assert variables["datasource"]["type"] == "datasource"
    for panel in PANELS:
        assert panel["datasource"] == chosen
        assert all(target["datasource"] == chosen for target in panel["targets"])


def test_panels_do_not_overlap() -> None:
    covered = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]

    assert len(covered) == len(set(covered))
    assert max(x for x, _ in covered) < 24
    assert len(numbers) == len(set(numbers))


# Kubernetes


def _resources() -> list[dict[str, Any]]:
    return [
        resource
        for file in KUBERNETES.rglob("*.yaml")
        for resource in _documents(file)
        if resource.get("kind") not in (None, "Kustomization")
    ]


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_every_resource_follows_its_schema(version: str) -> None:
    resources = _resources()

    assert {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"} <= {
        resource["kind"] for resource in resources
    }
    for resource in resources:
        kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_builds_and_follows_the_schemas(overlay: str) -> None:
    built = _build(overlay)

    for resource, version in itertools.product(built.values(), KUBERNETES_VERSIONS):
        kubernetes_validate.validate(resource, version, strict=True)


def _build(overlay: str) -> dict[str, dict[str, Any]]:
    """Run kustomize; give the resources by kind and name."""
    tool = ("kustomize", "build") if shutil.which("kustomize") else ("kubectl", "kustomize")
    resources = yaml.safe_load_all(_run(*tool, KUBERNETES / overlay))
    return {f"{entry['kind']}/{entry['metadata']['name']}": entry for entry in resources}


def _pod(built: dict[str, dict[str, Any]]) -> dict[str, Any]:
    pod: dict[str, Any] = built["Deployment/parakeet-api"]["spec"]["template"]["spec"]
    return pod


def test_the_cpu_overlay_requests_no_gpu() -> None:
    limits = _pod(_build("cpu"))["containers"][0]["resources"]["limits"]

    assert limits.keys() == {"cpu", "memory"}


def test_scaled_servers_accept_no_jobs_and_the_autoscaler_sets_their_number() -> None:
    built = _build("scaled")
    volumes = {volume["name"]: volume for volume in _pod(built)["volumes"]}

    assert "replicas" not in built["Deployment/parakeet-api"]["spec"]
    assert {"name": "MAX_QUEUED_JOBS", "value": "0"} in _pod(built)["containers"][0]["env"]
    assert "emptyDir" in volumes["data"]
    assert "PersistentVolumeClaim/parakeet-data" not in built
    models = built["PersistentVolumeClaim/parakeet-models"]["spec"]
    assert models["accessModes"] == ["ReadWriteMany"]


def test_the_pod_writes_only_to_volumes() -> None:
    mounted = {mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    data_dir = next(entry["value"] for entry in CONTAINER["env"] if entry["name"] == "DATA_DIR")

    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"] is True
    assert mounted == {
        "/tmp",
        "/cache",
        data_dir,
        f"/app/{SETTINGS.temp_uploads_dir}",
        f"/app/{SETTINGS.models_dir}",
    }
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == {
        volume["name"] for volume in DEPLOYMENT["volumes"]
    }


# systemd


def test_systemd_accepts_the_unit_and_rates_it_hardened(tmp_path: Path) -> None:
    unit = tmp_path / "parakeet-api.service"
    # It checks that the program is there, and that is somewhere else here.
    unit.write_text(UNIT.replace("/opt/parakeet-api/.venv/bin/python", sys.executable))

    _run("systemd-analyze", "verify", "--man=no", unit)
    # 0 is unreachable, 100 root without limits; the rest is the network and the GPU.
    _run("systemd-analyze", "security", "--offline=true", "--threshold=15", unit)
