"""What one clone made, another has: DVC's remotes in a folder and in a bucket."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import pytest
from botocore.client import BaseClient
from botocore.exceptions import BotoCoreError
from conftest import Project, wait_until

from macflow.files import digest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

BUCKET = "macflow"
SECRET = "a-secret-of-this-test"  # noqa: S105


@dataclass(frozen=True)
class Clone(Project):
    """A clone whose shell has these variables too."""

    variables: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        return super().environment() | self.variables


def cloned(origin: Path, folder: Path, variables: dict[str, str] | None = None) -> Clone:
    clone = Clone(folder / "macflow", variables or {})
    folder.mkdir(parents=True)
    subprocess.run(["git", "clone", "--quiet", "--branch=main", origin, clone.root], check=True)
    return clone


def outputs(project: Project) -> dict[str, str]:
    """Return the digest of everything that the stages of dvc.lock wrote."""
    paths = [out["path"] for stage in project.lock().values() for out in stage["outs"]]
    return {path: digest(project.root / path) for path in paths}


def object_of(project: Project, file: str) -> str:
    """Return the name in a remote of one file of models/policy."""
    (folder,) = (out["md5"] for out in project.lock()["distill"]["outs"] if out["path"] == "models/policy")
    listed = json.loads((project.root / f".dvc/cache/files/md5/{folder[:2]}/{folder[2:]}").read_text())
    (md5,) = (entry["md5"] for entry in listed if entry["relpath"] == file)
    return f"files/md5/{md5[:2]}/{md5[2:]}"


def damaged(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def assert_complete(clone: Project, original: Project) -> None:
    assert "up to date" in clone.check("dvc", "status")
    assert "Running stage" not in clone.check("dvc", "repro")
    assert clone.check("git", "status", "--porcelain") == ""
    assert outputs(clone) == outputs(original)


def assert_refused(clone: Project) -> None:
    """A damaged file of the policy is neither laid out nor kept, and said to be missing."""
    done = clone.run("dvc", "pull")
    assert done.returncode != 0
    assert "models/policy" in done.stdout
    assert not (clone.root / "models/policy/policy.safetensors").exists()
    assert (clone.root / "models/flow").is_dir()
    assert "models/policy" in clone.check("dvc", "status")


def shared(project: Project, *remote: str) -> Path:
    """Give the project the remote `store`, and a git repository that clones are made of."""
    origin = project.root.parent / "origin.git"
    project.check("git", "init", "--quiet", "--bare", "--initial-branch=main", str(origin))
    project.check("git", "remote", "add", "origin", str(origin))
    project.check("dvc", "remote", "add", "--default", "store", *remote[:1])
    for setting in remote[1:]:
        project.check("dvc", "remote", "modify", "store", *setting.split("="))
    project.check("git", "commit", "--quiet", "--all", "--message=a remote")
    project.check("git", "push", "--quiet", "origin", "main")
    return origin


def test_a_folder_brings_everything_to_another_clone(project: Project, tmp_path: Path) -> None:
    store = tmp_path / "store"
    origin = shared(project, str(store), "verify=true")
    project.check("dvc", "push")
    other = cloned(origin, tmp_path / "other")
    other.check("dvc", "pull")
    assert_complete(other, project)

    # What was tried there comes back as an experiment, with its files.
    other.check("dvc", "exp", "run", "--name", "seldom", "-S", "diagnose.samples=7", "diagnose")
    other.check("dvc", "exp", "push", "origin", "seldom")
    project.check("dvc", "exp", "pull", "origin", "seldom")
    project.check("dvc", "exp", "apply", "seldom")
    assert "Running stage" not in project.check("dvc", "repro", "diagnose")
    assert outputs(project) == outputs(other)

    # Stages whose outputs persist (ADR 0002) are no part of DVC's run cache.
    project.check("dvc", "push", "--run-cache")
    assert not (store / "runs").exists()


def test_a_damaged_object_is_refused_where_the_remote_is_verified(project: Project, tmp_path: Path) -> None:
    store = tmp_path / "store"
    origin = shared(project, str(store))
    project.check("dvc", "push")
    policy = store / object_of(project, "policy.safetensors")
    good = policy.read_bytes()
    policy.chmod(0o644)
    policy.write_bytes(damaged(good))

    # DVC's default is to believe the remote: docs/remotes.md says so, and what to set.
    believing = cloned(origin, tmp_path / "believing")
    believing.check("dvc", "pull")
    assert (believing.root / "models/policy/policy.safetensors").read_bytes() == damaged(good)
    assert "up to date" in believing.check("dvc", "status")

    careful = cloned(origin, tmp_path / "careful")
    careful.check("dvc", "remote", "modify", "--local", "store", "verify", "true")
    assert_refused(careful)
    policy.write_bytes(good)
    careful.check("dvc", "pull")
    assert_complete(careful, project)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, BaseClient]]:
    """A server that speaks S3, with one bucket: its address, and a client."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with (tmp_path_factory.mktemp("s3") / "moto.log").open("w") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    client = boto3.client(
        "s3",
        endpoint_url=address,
        aws_access_key_id="key",
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
    )

    def made() -> bool:
        try:
            client.create_bucket(Bucket=BUCKET)
        except BotoCoreError:
            return False
        return True

    try:
        wait_until(made, 60, "a bucket")
        yield address, client
    finally:
        client.close()
        server.kill()
        server.wait()


def test_a_bucket_does_the_same_with_keys_from_the_environment(
    project: Project, s3: tuple[str, BaseClient], tmp_path: Path
) -> None:
    address, client = s3
    keys = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    project = Clone(project.root, keys)
    origin = shared(project, f"s3://{BUCKET}/store", f"endpointurl={address}", "verify=true")
    project.check("dvc", "push")
    other = cloned(origin, tmp_path / "other", keys)
    other.check("dvc", "pull")
    assert_complete(other, project)

    nameless = {name: value for name, value in keys.items() if "KEY" not in name}
    without = cloned(origin, tmp_path / "without", nameless).run("dvc", "pull")
    assert without.returncode != 0
    assert "Unable to locate credentials" in without.stdout
    assert "key" not in (project.root / ".dvc/config").read_text()
    assert not (project.root / ".dvc/config.local").exists()

    name = f"store/{object_of(project, 'policy.safetensors')}"
    good = client.get_object(Bucket=BUCKET, Key=name)["Body"].read()
    client.put_object(Bucket=BUCKET, Key=name, Body=damaged(good))
    shutil.rmtree(other.root / ".dvc/cache")
    shutil.rmtree(other.root / "models/policy")
    assert_refused(other)
    client.put_object(Bucket=BUCKET, Key=name, Body=good)
    other.check("dvc", "pull")
    assert_complete(other, project)
