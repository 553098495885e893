"""Prefect's server and studies of `macflow tune` on a real PostgreSQL, whose password nobody gets to read."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import psycopg
import pytest
from conftest import Project, copy_of, wait_until
from test_prefect import OFFLINE, RUN, Served

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

PASSWORD = "pass-of-this-test"  # noqa: S105
# The project's own code, whatever is installed.
TUNE = ("python", "-m", "macflow.cli", "tune", "alpha")
# Debian keeps a folder for each version.
FOLDERS = [*sorted(Path("/usr/lib/postgresql").glob("*/bin")), Path("/usr/bin"), Path("/usr/local/bin")]
PROGRAMS = next((folder for folder in reversed(FOLDERS) if (folder / "initdb").exists()), None)


@dataclass(frozen=True)
class Database:
    """A PostgreSQL server on this machine."""

    port: int

    def url(self, name: str, driver: str = "", password: str = f":{PASSWORD}") -> str:
        return f"postgresql{driver}://macflow{password}@127.0.0.1:{self.port}/{name}"

    def ask(self, name: str, question: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.url(name), autocommit=True) as connection:
            cursor = connection.execute(question)
            return cursor.fetchall() if cursor.description else []


@dataclass(frozen=True)
class WithVariables(Project):
    """A project whose shell has these variables too."""

    variables: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        return super().environment() | self.variables


@pytest.fixture(scope="module")
def postgres() -> Iterator[Database]:
    """A cluster of its own, on a free port; PostgreSQL will not run as root, nor in a folder of root's."""
    if PROGRAMS is None:
        pytest.skip("no PostgreSQL (Debian: apt-get install postgresql)")
    user = None if os.getuid() else pwd.getpwnam("nobody")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)

    def start(*command: str) -> subprocess.Popen[bytes]:
        with (folder / f"{command[0]}.log").open("wb") as log:
            return subprocess.Popen(
                [PROGRAMS / command[0], *command[1:]],
                cwd=folder,
                user=None if user is None else user.pw_uid,
                group=None if user is None else user.pw_gid,
                extra_groups=None if user is None else [],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    (folder / "password").write_text(PASSWORD)
    (folder / "password").chmod(0o644)
    cluster = str(folder / "cluster")
    made = start(
        "initdb", "--pgdata", cluster, "--username=macflow", "--auth=scram-sha-256", "--encoding=UTF8",
        f"--pwfile={folder / 'password'}", "--no-sync", "--locale=C",
    )  # fmt: skip
    assert made.wait(60) == 0, (folder / "initdb.log").read_text()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        database = Database(probe.getsockname()[1])
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": database.port,
        "unix_socket_directories": "",
        "fsync": "off",
    }
    server = start("postgres", "-D", cluster, *(f"--{name}={value}" for name, value in settings.items()))

    def answers() -> bool:
        assert server.poll() is None, (folder / "postgres.log").read_text()
        try:
            return bool(database.ask("postgres", "select 1"))
        except psycopg.OperationalError:
            return False

    try:
        wait_until(answers, 30, "PostgreSQL answers")
        for name in ("prefect", "studies"):
            database.ask("postgres", f"create database {name}")
        yield database
    finally:
        # SIGINT: end sessions, then itself.
        server.send_signal(2)
        try:
            server.wait(20)
        finally:
            server.kill()
            server.wait()
            shutil.rmtree(folder)


def said_anywhere(folder: Path) -> list[Path]:
    """Return the files below a folder that hold the password."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if PASSWORD.encode() in path.read_bytes()]


@pytest.mark.timeout(600)
def test_prefect_keeps_its_state_in_postgresql(project: Project, postgres: Database) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    # As in deploy/kubernetes, with the worker's own script.
    database = {
        "DRIVER": "postgresql+asyncpg",
        "HOST": "127.0.0.1",
        "PORT": str(postgres.port),
        "NAME": "prefect",
        "USER": "macflow",
        "PASSWORD": PASSWORD,
    }
    variables = {f"PREFECT_SERVER_DATABASE_{name}": value for name, value in database.items()}
    server = WithVariables(project.root, variables)
    project = WithVariables(project.root, {"PREFECT_API_URL": api})
    served = Served(project, api)

    def registered() -> bool:
        try:
            return bool(served.ask("deployments/filter")) and served.worker() is not None
        except OSError:
            return False

    serving = server.start("prefect", "server", "start", "--port", str(port))
    worker = project.start("deploy/worker.sh", "worker")
    wait_until(registered, 120, "server and worker are up")
    project.set_params({"diagnose": {"samples": 7}})
    project.check(*RUN)
    assert set(served.outcomes()) == OFFLINE
    assert served.outcomes()["diagnose"] == "ran"

    tune = ("prefect", "deployment", "run", "tune/tune", "--watch")
    url = "postgresql+psycopg://macflow:another@127.0.0.1/studies"
    assert project.run(*tune, "--param", f"storage={url}").returncode == 1
    assert served.last_run()["state"]["message"].startswith("storage: must hold no password")
    with urllib.request.urlopen(f"{api}/admin/settings", timeout=10) as answer:  # noqa: S310
        assert PASSWORD not in answer.read().decode()
    assert PASSWORD not in json.dumps([served.ask("flow_runs/filter"), served.ask("logs/filter")])
    for process in (worker, serving):
        process.terminate()
        process.wait(30)
    states = postgres.ask("prefect", "select state_type::text from flow_run order by expected_start_time")
    assert states == [("COMPLETED",), ("FAILED",)]
    assert not list((project.root / ".prefect").glob("*.db"))
    # The logs of server and worker lie beside the project.
    assert said_anywhere(project.root.parent) == []


def test_a_study_is_shared_through_postgresql(fresh: Project, postgres: Database, tmp_path: Path) -> None:
    hidden = {"MACFLOW_STORAGE": postgres.url("studies", "+psycopg")}
    (tmp_path / "one").mkdir()
    one = WithVariables(copy_of(fresh, tmp_path / "one").root, hidden)
    said = one.check(*TUNE, "--trials", "2", "--jobs", "2")
    assert "2 trials; best: number" in said

    # Two clones go on with it at the same time; the second has the password from libpq's own variable.
    (tmp_path / "two").mkdir()
    two = WithVariables(copy_of(one, tmp_path / "two").root, {"PGPASSWORD": PASSWORD})
    other = one.start(*TUNE, "--trials", "4")
    two.check(*TUNE, "--trials", "4", "--storage", postgres.url("studies", "+psycopg", password=""))
    assert other.wait(120) == 0
    ((state, count),) = postgres.ask("studies", "select state::text, count(*) from trials group by state")
    # What is under way when the fourth is judged is ended.
    assert (state, count) in {("COMPLETE", 4), ("COMPLETE", 5)}
    tables = [pl.read_csv(project.root / "tuning/alpha/trials.csv") for project in (one, two)]
    longer, shorter = sorted(tables, key=len, reverse=True)
    assert len(longer) == count
    assert longer["distill.alpha"].n_unique() == count
    assert longer.filter(pl.col("trial").is_in(shorter["trial"].implode())).equals(shorter)
    for project in (one, two):
        runs = {folder.name for folder in (project.root / "tuning/alpha/runs").iterdir()}
        assert len(runs & set(longer["run"])) > 2, "both had a part in it"
    assert said_anywhere(tmp_path) == []


@pytest.mark.parametrize(
    ("database", "words"),
    [("studies", "password authentication failed"), ("nowhere", "Connection refused")],
)
def test_a_database_that_cannot_be_used_is_told_without_its_password(
    fresh: Project, postgres: Database, database: str, words: str
) -> None:
    url = postgres.url(database, "+psycopg", ":not-the-password")
    if database == "nowhere":
        url = url.replace(f":{postgres.port}/", ":1/")
    done = fresh.run(*TUNE, "--trials", "1", "--storage", url)
    assert done.returncode == 1
    (line,) = done.stdout.strip().splitlines()
    assert line.startswith("macflow: `--storage`: postgresql+psycopg://macflow:***@127.0.0.1")
    assert words in line
    assert "not-the-password" not in line
    assert not (fresh.root / "tuning").exists()
