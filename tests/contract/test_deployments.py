"""What lies in deploy/ is valid by the tools that read it. No cluster is needed, and none is tried here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted(file for file in DEPLOY.glob("kubernetes/*.yaml") if file.stem != "kustomization")
SCRIPTS = [DEPLOY / "worker.sh", *sorted(DEPLOY.glob("slurm/*.sbatch"))]


def tool(name: str) -> str:
    """Return a program's path, from this environment or the system's; skip where there is none."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"no {name}")
    return found


def named(path: Path) -> str:
    return path.relative_to(DEPLOY).as_posix()


def resources() -> dict[tuple[str, str], dict[str, Any]]:
    listed = [entry for file in MANIFESTS for entry in yaml.safe_load_all(file.read_text(encoding="utf-8"))]
    return {(entry["kind"], entry["metadata"]["name"]): entry for entry in listed}


def pods() -> dict[str, dict[str, Any]]:
    return {
        name: entry["spec"]["template"]["spec"] for (_, name), entry in resources().items()
        if "template" in entry.get("spec", {})
    }  # fmt: skip


@pytest.mark.parametrize("file", MANIFESTS, ids=named)
def test_kubernetes_accepts_the_manifest(file: Path) -> None:
    done = subprocess.run(
        [tool("kubernetes-validate"), "--strict", file], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_kustomize_joins_all_of_them() -> None:
    joined = subprocess.run(
        [tool("kubectl"), "kustomize", DEPLOY / "kubernetes"], capture_output=True, text=True, timeout=60
    )
    assert joined.returncode == 0, joined.stderr
    entries = list(yaml.safe_load_all(joined.stdout))
    assert {(entry["kind"], entry["metadata"]["name"]) for entry in entries} == set(resources())


def test_kustomization_names_every_manifest() -> None:
    content = yaml.safe_load((DEPLOY / "kubernetes/kustomization.yaml").read_text(encoding="utf-8"))
    assert sorted(content["resources"]) == [file.name for file in MANIFESTS]


def test_what_manifests_refer_to_is_there() -> None:
    found = resources()
    ports = {
        name: entry["spec"]["ports"][0]["port"] for (kind, name), entry in found.items() if kind == "Service"
    }
    assert ports == {"postgres": 5432, "prefect": 4200}
    for pod in pods().values():
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for container in pod["containers"] + pod.get("initContainers", []):
            for entry in container["env"]:
                # No secret stands in a file: what looks like one is taken from the cluster.
                if entry["name"].endswith(("PASSWORD", "AUTH_STRING")):
                    assert "secretKeyRef" in entry["valueFrom"], entry["name"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        for volume in volumes.values():
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in found
            if config := volume.get("configMap"):
                assert ("ConfigMap", config["name"]) in found
    (worker,) = pods()["worker"]["containers"]
    variables = {entry["name"]: entry.get("value") for entry in worker["env"]}
    assert variables["PREFECT_API_URL"] == f"http://prefect:{ports['prefect']}/api"
    assert (ROOT / Path(worker["command"][0]).relative_to("/work/macflow")).stat().st_mode & 0o111


def test_settings_of_the_server_are_prefects() -> None:
    import prefect.settings

    (server,) = pods()["prefect-server"]["containers"]
    known = json.dumps(prefect.settings.get_current_settings().model_json_schema()).upper()
    for entry in server["env"]:
        assert f'"{entry["name"]}"' in known


@pytest.mark.parametrize("file", SCRIPTS, ids=named)
def test_bash_accepts_the_script(file: Path) -> None:
    assert subprocess.run(["bash", "-n", file], timeout=10).returncode == 0


@pytest.mark.parametrize("file", SCRIPTS, ids=named)
def test_shellcheck_finds_nothing(file: Path) -> None:
    done = subprocess.run([tool("shellcheck"), file], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(
        [tool("hadolint"), DEPLOY / "Dockerfile"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout
