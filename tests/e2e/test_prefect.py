"""The pipeline under a real Prefect server and worker, started as `make serve` starts them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Project, copy_of, wait_until
from openlineage_rules import check_event
from receiver import Receiver

from flows import tied

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

LONG = 100_000_000
# What the report needs, and so what the deployment runs unless told otherwise.
OFFLINE = {
    "record", "prepare", "describe", "train_flow", "teacher", "train_critic", "distill", "evaluate",
    "diagnose", "report",
}  # fmt: skip
RUN = ("prefect", "deployment", "run", "macflow/full-pipeline", "--watch")


@dataclass
class Served:
    """A project with its server and worker, and the server's API."""

    project: Project
    api: str
    # Takes the OpenLineage events of its runs; only the flow's own tests need one.
    receiver: Receiver | None = None
    process: subprocess.Popen[str] | None = field(default=None)

    def start(self) -> None:
        # As a script's background job or under a supervisor: what is ignored, every child inherits.
        command = f"trap '' INT TERM; exec {shlex.quote(sys.executable)} -m flows.serve"
        self.process = self.project.spawn("sh", "-c", command)
        log = self.project.root.parent / "flows.serve.log"
        wait_until(lambda: "Ctrl-C stops" in log.read_text() or self.ended(), 120, "server and worker up")
        assert not self.ended(), log.read_text()

    def stop(self) -> None:
        if self.process is not None and not self.ended():
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(60)
            finally:
                self.process.kill()
                self.process.wait()

    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def ask(self, path: str, **body: Any) -> Any:
        """POST a question to the server's API."""
        request = urllib.request.Request(  # noqa: S310
            f"{self.api}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return json.load(answer)

    def last_run(self) -> dict[str, Any]:
        run: dict[str, Any] = self.ask("flow_runs/filter", sort="EXPECTED_START_TIME_DESC", limit=1)[0]
        return run

    def tasks(self, run: dict[str, Any]) -> dict[str, dict[str, Any]]:
        found = self.ask("task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})
        return {task["name"]: task for task in found}

    def artifact(self, key: str) -> Any:
        found = self.ask("artifacts/latest/filter", artifacts={"key": {"any_": [key]}})
        return json.loads(found[0]["data"])

    def log(self, task: dict[str, Any]) -> str:
        lines = self.ask("logs/filter", logs={"task_run_id": {"any_": [task["id"]]}}, sort="TIMESTAMP_ASC")
        return "\n".join(line["message"] for line in lines)

    def outcomes(self) -> dict[str, str]:
        return {row["stage"]: row["outcome"] for row in self.artifact("stages")}

    def worker(self) -> psutil.Process | None:
        """Return the worker's process once the server has heard from it."""
        listed = self.ask("work_pools/local/workers/filter")
        online = {worker["name"] for worker in listed if worker["status"] == "ONLINE"}
        workers = [process for process in self.project.processes("worker") if online & set(process.cmdline())]
        return workers[0] if workers else None

    def begin_training(self, steps: int) -> subprocess.Popen[str]:
        """Start a run; return its watcher once a training of so many steps has written a checkpoint."""
        checkpoint = self.project.root / ".macflow/checkpoints/train_flow.safetensors"
        checkpoint.unlink(missing_ok=True)
        self.project.set_params({"flow": {"steps": steps}})
        watcher = self.project.start(*RUN)
        wait_until(checkpoint.exists, 120, "a checkpoint")
        return watcher

    def of_runs(self) -> list[psutil.Process]:
        """Return the processes of runs: the flow's, DVC and the stage in training."""
        words = ("prefect.engine", "dvc", "macflow.stages.train_flow")
        return [process for word in words for process in self.project.processes(word)]


@pytest.fixture(scope="module")
def server(reproduced: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A reproduced project with a server on a port of its own, with its state inside."""
    project = copy_of(reproduced, tmp_path_factory.mktemp("prefect"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = project.root / "prefect.toml"
    settings.write_text(settings.read_text().replace(":4200/", f":{port}/"))
    assert str(port) in settings.read_text()
    receiver = Receiver()
    served = Served(project, f"http://127.0.0.1:{port}/api", receiver)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENLINEAGE_URL", receiver.url)
        yield served
    served.stop()
    receiver.close()
    left = project.processes("prefect") + served.of_runs()
    for process in left:
        process.kill()
    assert not left, "Ctrl-C must end server, worker and stages"
    shutil.rmtree(project.root)


@pytest.fixture
def served(server: Served) -> Served:
    """The project with its server and worker running, whatever earlier tests did to them."""
    if server.ended():
        server.start()
    return server


@pytest.fixture
def unchanged(served: Served) -> Iterator[Served]:
    """The served project; parameters that the test changed are put back, and no run is left."""
    params = (served.project.root / "params.yaml").read_text()
    yield served
    for process in served.of_runs():
        process.kill()
    (served.project.root / "params.yaml").write_text(params)


def test_a_run_goes_to_the_end(served: Served) -> None:
    project = served.project
    project.set_params({"training": {"seed": 7}})
    project.check(*RUN)
    outcomes = served.outcomes()
    assert {stage for stage, outcome in outcomes.items() if outcome == "up to date"} == {
        "record",
        "prepare",
        "describe",
    }
    assert outcomes["report"] == "ran"
    assert set(outcomes) == OFFLINE
    assert "up to date" in project.check("dvc", "status", "report", "--with-deps")
    run = served.last_run()
    assert run["state"]["message"] == "7 of 10 stages ran, 3 were up to date"
    tasks = served.tasks(run)
    assert set(outcomes) == set(tasks)

    # Its own live log and its metrics for each stage.
    assert "> exec python -m macflow.stages.distill" in served.log(tasks["distill"])
    metrics = json.loads((project.root / "metrics/evaluate.json").read_text())
    rows = {row["metric"]: row["value"] for row in served.artifact("evaluate")}
    assert rows["policy.return_mean"] == metrics["policy"]["return_mean"]

    # Stages that do not need each other overlap; those that do, do not.
    def overlap(a: str, b: str) -> bool:
        return bool(
            tasks[a]["start_time"] < tasks[b]["end_time"] and tasks[b]["start_time"] < tasks[a]["end_time"]
        )

    assert overlap("evaluate", "diagnose")
    assert not overlap("distill", "evaluate")
    # Nothing outside the project.
    assert not (project.root.parent / "home" / ".prefect").exists()


def test_a_run_tells_openlineage_what_it_read_and_wrote(unchanged: Served) -> None:
    unchanged.receiver.posted.clear()
    unchanged.project.check(*RUN, "--param", "force=true", "--param", 'targets=["prepare"]', timeout=180)
    assert {path for path, _ in unchanged.receiver.posted} == {"/api/v1/lineage"}
    events = [event for _, event in unchanged.receiver.posted]
    for event in events:
        check_event(event)
    assert [(event["job"]["name"], event["eventType"]) for event in events] == [
        ("macflow", "START"),
        ("record", "START"), ("record", "COMPLETE"),
        ("prepare", "START"), ("prepare", "COMPLETE"),
        ("macflow", "COMPLETE"),
    ]  # fmt: skip
    run = unchanged.last_run()
    assert events[0]["run"]["runId"] == events[-1]["run"]["runId"] == run["id"]
    task = unchanged.tasks(run)["prepare"]
    for event in events[3:5]:
        assert event["run"]["runId"] == task["id"]
        assert event["run"]["facets"]["parent"]["run"]["runId"] == run["id"]
    locked = unchanged.project.lock()["prepare"]
    versions = {
        data["name"]: data["facets"]["version"]["datasetVersion"]
        for data in [*events[4]["inputs"], *events[4]["outputs"]]
    }
    told = [*locked["outs"], *(dep for dep in locked["deps"] if dep["path"] == "data/raw")]
    assert versions == {entry["path"]: entry["md5"] for entry in told}


def test_a_failing_stage_is_shown_with_its_own_message(unchanged: Served) -> None:
    project = unchanged.project
    lock = (project.root / "dvc.lock").read_bytes()
    project.set_params({"prepare": {"max_abs_reward": 1e-9}})
    done = project.run(*RUN)
    assert done.returncode == 1
    run = unchanged.last_run()
    tasks = unchanged.tasks(run)
    for state in (run["state"], tasks["prepare"]["state"]):
        assert state["type"] == "FAILED"
        assert state["message"].startswith("prepare: ")
        assert "reward" in state["message"]
    assert tasks["prepare"]["run_count"] == 1, "the same input fails the same way: no retry"
    assert unchanged.outcomes()["record"] == "up to date"
    assert unchanged.outcomes()["train_flow"] == "not run"
    assert (project.root / "dvc.lock").read_bytes() == lock


def test_openlineage_is_told_of_a_failure_and_may_be_away(unchanged: Served) -> None:
    unchanged.project.set_params({"prepare": {"max_abs_reward": 0.001}})
    unchanged.receiver.posted.clear()
    unchanged.project.run(*RUN, "--param", 'targets=["prepare"]', timeout=180)
    *_, stage, whole = [event for _, event in unchanged.receiver.posted]
    assert [(x["job"]["name"], x["eventType"]) for x in (stage, whole)] == [
        ("prepare", "FAIL"),
        ("macflow", "FAIL"),
    ]
    assert "rewards_believable" in stage["run"]["facets"]["errorMessage"]["message"]
    unchanged.project.set_params({"prepare": {"max_abs_reward": 1e6}})
    unchanged.receiver.close()
    done = unchanged.project.check(*RUN, "--param", 'targets=["prepare"]', timeout=180)
    assert "Completed" in done
    logs = unchanged.ask(
        "logs/filter", logs={"flow_run_id": {"any_": [unchanged.last_run()["id"]]}}, limit=200
    )
    [warning] = [line["message"] for line in logs if "OpenLineage" in line["message"]]
    assert "OpenLineage events were not delivered" in warning


def test_a_study_runs_as_a_flow_and_goes_on(unchanged: Served) -> None:
    project = unchanged.project
    project.set_params({"training": {"seed": 3}})
    command = ("prefect", "deployment", "run", "tune/tune", "--watch")
    project.check(*command, "--param", "trials=1")
    assert "1 trials; best: number 0" in unchanged.last_run()["state"]["message"]
    project.check(*command, "--param", "trials=2", "--param", "seeds=1")
    assert "2 trials; best: number " in unchanged.last_run()["state"]["message"]
    assert [row["trial"] for row in unchanged.artifact("trials")] == ["0", "1"]
    assert project.run(*command, "--param", 'params=["distill.alpha=log:2:1"]').returncode == 1
    assert "needs 0 < LOW < HIGH" in unchanged.last_run()["state"]["message"]


def test_a_sweep_runs_as_a_flow_and_names_what_failed(unchanged: Served) -> None:
    project = unchanged.project
    (project.root / "one.yaml").write_text(
        "datasets: {game-xor/mixed: {prepare: {max_duplicate_fraction: 1.0}}}\n"
        "seeds: [0]\n"
        "methods: {bc: {baseline: bc}}\n"
        "peers: {batch_size: 32, hidden: [16]}\n"
    )
    command = ("prefect", "deployment", "run", "sweep/sweep", "--watch", "--param", "file=one.yaml")
    project.check(*command)
    assert unchanged.last_run()["state"]["message"] == "1 cells, 1 of them run now"
    assert [task["state"]["type"] for task in unchanged.tasks(unchanged.last_run()).values()] == ["COMPLETED"]
    project.check(*command)
    assert unchanged.last_run()["state"]["message"] == "1 cells, 0 of them run now"
    wrong = (project.root / "one.yaml").read_text().replace("1.0", "0.0")
    (project.root / "one.yaml").write_text(wrong)
    assert project.run(*command).returncode == 1
    assert "cells failed" in unchanged.last_run()["state"]["message"]
    assert "1 of 13 expectations failed" in (project.root / "sweeps/one/summary.md").read_text()


def test_an_unknown_target_is_refused(unchanged: Served) -> None:
    assert unchanged.project.run(*RUN, "--param", 'targets=["distil"]').returncode == 1
    message = unchanged.last_run()["state"]["message"]
    assert message.startswith("no such stage: distil (dvc.yaml has record, prepare")


def test_force_targets_and_save(unchanged: Served) -> None:
    project = unchanged.project
    project.check("git", "add", "--all")
    project.check("git", "commit", "--quiet", "--allow-empty", "--message=before")
    project.check(*RUN, "--param", 'targets=["describe"]', "--param", "force=true", "--param", "save=true")
    assert unchanged.outcomes() == {"record": "ran", "prepare": "ran", "describe": "ran"}
    assert unchanged.last_run()["name"] in project.check("dvc", "exp", "list")


def test_cancelling_ends_the_stage(unchanged: Served) -> None:
    project = unchanged.project
    project.set_params({"flow": {"steps": LONG}})
    watcher = project.start(*RUN)
    stages = wait_until(lambda: project.processes("macflow.stages.train_flow"), 60, "training has begun")
    project.check("prefect", "flow-run", "cancel", unchanged.last_run()["id"])
    psutil.wait_procs(stages, timeout=20)
    assert not project.processes("macflow.stages.train_flow")
    assert not project.processes("dvc")
    assert watcher.wait(60) == 1
    assert unchanged.last_run()["state"]["type"] == "CANCELLED"


def test_a_rerun_after_a_killed_worker_continues(unchanged: Served) -> None:
    project = unchanged.project
    watcher = unchanged.begin_training(4000)
    worker = unchanged.worker()
    assert worker is not None
    worker.kill()
    wait_until(lambda: not unchanged.of_runs(), 40, "the run ends with the worker")
    checkpoint = project.root / ".macflow/checkpoints/train_flow.safetensors"
    assert checkpoint.exists(), "killed too late to show anything"
    assert watcher.wait(60) == 1
    assert unchanged.last_run()["state"]["type"] == "CRASHED"

    # `serve` has started another worker, and the crashed run holds no slot.
    project.check(*RUN, "--param", 'targets=["train_flow"]')
    outcomes = unchanged.outcomes()
    assert (outcomes["prepare"], outcomes["train_flow"]) == ("up to date", "ran")
    log = unchanged.log(unchanged.tasks(unchanged.last_run())["train_flow"])
    assert re.search(r"train_flow: resumed at step \d+ of 4000", log)
    runs = unchanged.ask("flow_runs/filter", flow_runs={"state": {"type": {"any_": ["RUNNING", "PENDING"]}}})
    assert not runs, "no run is left holding the deployment's slot"


def test_a_worker_that_is_killed_at_once_is_replaced(served: Served) -> None:
    killed: set[int] = set()
    for _ in range(3):
        worker = wait_until(served.worker, 60, "a worker")
        assert worker.pid not in killed
        killed.add(worker.pid)
        time.sleep(1)  # `serve` may still be asking whether the worker is there
        worker.kill()
        worker.wait(10)


def test_a_run_ends_though_its_worker_ended_before_it_began(reproduced: Project) -> None:
    run = (
        "import time; from flows.pipeline import end_with_worker; print('ready', flush=True);"
        "time.sleep(1); end_with_worker(); time.sleep(120); print('still there', flush=True)"
    )
    worker = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {run!r}])"
    with subprocess.Popen(
        tied.command("-c", worker),
        cwd=reproduced.root,
        env=reproduced.environment() | {"PREFECT__FLOW_RUN_ID": "a run"},
        text=True,
        stdout=subprocess.PIPE,
    ) as process:
        wait_until(psutil.Process(process.pid).children, 30, "a run")
        process.kill()
        # The run holds the pipe: its end is the end of the output.
        assert process.communicate(timeout=60)[0] == "ready\n"


def test_serve_refuses_an_address_that_is_taken(served: Served) -> None:
    done = served.project.run(sys.executable, "-m", "flows.serve", timeout=60)
    assert done.returncode == 1
    assert "is already being served" in done.stdout


def test_a_run_ends_with_server_and_worker_however_often_it_is_told(unchanged: Served) -> None:
    project = unchanged.project
    unchanged.begin_training(LONG)
    (run,) = project.processes("prefect.engine")
    # A DVC that does not answer: the run is still busy with it when it is told again.
    for process in project.processes("dvc"):
        process.suspend()
    for process in (*project.processes("flows.serve"), *project.processes("prefect")):
        process.kill()
    time.sleep(1.5)
    run.terminate()
    wait_until(lambda: not unchanged.of_runs(), 40, "the run ends with the worker")


def test_ctrl_c_ends_a_run_in_progress(unchanged: Served) -> None:
    unchanged.begin_training(LONG)
    unchanged.stop()
    assert not unchanged.project.processes("prefect")
    assert not unchanged.of_runs()


def test_stale_entries_of_the_lock_table_are_released(tmp_path: Path) -> None:
    from flows.dvc_process import clear_stale_locks

    table = tmp_path / ".dvc/tmp/rwlock"
    table.parent.mkdir(parents=True)
    assert clear_stale_locks(tmp_path) == []
    with subprocess.Popen([sys.executable, "-c", "input()", "dvc"], stdin=subprocess.PIPE) as alive:
        # This process lives, but is no DVC: a killed DVC's id, given out again.
        reused = psutil.Process().pid
        entries = [{"pid": pid, "cmd": "dvc repro"} for pid in (reused, alive.pid)]
        table.write_text(json.dumps({"write": {"a": entries[0], "b": entries[1]}, "read": {"c": entries}}))
        assert len(clear_stale_locks(tmp_path)) == 1
        assert json.loads(table.read_text()) == {"write": {"b": entries[1]}, "read": {"c": [entries[1]]}}
        assert clear_stale_locks(tmp_path) == []
        alive.communicate(b"\n")
    table.write_text("")
    assert "killed while writing" in clear_stale_locks(tmp_path)[0]
    assert not table.exists()
