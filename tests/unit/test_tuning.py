"""Runs of stages beside DVC, and tuning studies over them: real processes of a cheap pipeline."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import polars as pl
import pytest
import yaml
from filelock import FileLock
from typer.testing import CliRunner

from macflow.cli import app
from macflow.report.tuned import TunedContent, render_page
from macflow.runs.pipeline import Pipeline
from macflow.runs.store import RunStore, StageFailedError
from macflow.tuning.journal import open_journal
from macflow.tuning.space import parse_searched, with_values
from macflow.types import ConfigError, MacflowError

ROOT = Path(__file__).parents[2]
PARAMS: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
BEST = 0.1
# Two stages that can be killed and run again; returns are highest at `BEST`. They write down that they ran.
TOY = f"""
import json, math, pathlib, sys, time, yaml
stage, project = sys.argv[1], pathlib.Path(__file__).parent
params = yaml.safe_load(open("params.yaml"))
with open(project / "ran.txt", "a") as file:
    file.write(stage + "\\n")
if stage == "distill":
    alpha = params["distill"]["alpha"]
    if alpha > 5:
        sys.exit("alpha is beyond me")
    time.sleep(float((project / "seconds.txt").read_text()))
    pathlib.Path("models/policy").mkdir(parents=True, exist_ok=True)
    pathlib.Path("models/policy/policy.json").write_text(json.dumps([alpha, params["training"]["seed"]]))
else:
    alpha, seed = json.load(open("models/policy/policy.json"))
    mean = -(math.log10(alpha / {BEST}) ** 2) + 0.001 * seed
    pathlib.Path("metrics/timings").mkdir(parents=True, exist_ok=True)
    returns = {{"return_mean": mean, "return_ci95_low": mean - 1, "return_ci95_high": mean + 1}}
    json.dump({{"policy": returns}}, open("metrics/evaluate.json", "w"))
    json.dump({{"policy": {{"latency_us_p50": 100 * alpha}}}}, open("metrics/timings/evaluate.json", "w"))
"""
STAGES = {
    "distill": {
        "cmd": "exec python -m toy distill",
        "params": ["training", "distill"],
        "deps": ["toy.py", "${prepare.raw}"],
        "outs": [{"models/policy": {"persist": True}}],
    },
    "evaluate": {
        "cmd": "exec python -m toy evaluate",
        "params": ["evaluate"],
        "deps": ["models/policy", "toy.py"],
        "metrics": [{"metrics/evaluate.json": {"cache": False}}],
    },
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "seconds.txt").write_text("0")
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/data.bin").write_text("1")
    text = (tmp_path / "params.yaml").read_text().replace("raw: data/raw", "raw: mine")
    (tmp_path / "params.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def params(**values: Any) -> dict[str, Any]:
    dotted = {name.replace("__", "."): value for name, value in values.items()}
    return with_values(PARAMS, {"prepare.raw": "mine"} | dotted)


def ran(project: Path) -> list[str]:
    file = project / "ran.txt"
    return file.read_text().split() if file.exists() else []


def test_a_name_holds_parameters_code_data_and_what_was_before(project: Path) -> None:
    def keys() -> tuple[str, str]:
        pipeline = Pipeline(project)
        return pipeline.key("distill", params()), pipeline.key("evaluate", params())

    before = keys()
    assert keys() == before
    pipeline = Pipeline(project)
    assert pipeline.key("evaluate", params(distill__alpha=7.0)) != before[1]
    assert pipeline.key("distill", params(evaluate__episodes=3)) == before[0]
    assert pipeline.key("evaluate", params(evaluate__episodes=3)) != before[1]
    assert pipeline.key("evaluate", params(report__title="x")) == before[1]
    (project / "mine/data.bin").write_text("2")
    other = keys()
    assert other[0] != before[0]
    assert other[1] != before[1]
    (project / "toy.py").write_text(TOY + "\n")
    assert keys()[0] != other[0]


def test_the_real_pipeline_is_read_as_dvc_reads_it() -> None:
    pipeline = Pipeline(ROOT)
    assert pipeline.inputs("prepare", PARAMS) == {"data/raw": "record"}
    mine = with_values(PARAMS, {"prepare.raw": "mine"})
    assert pipeline.inputs("prepare", mine) == {}
    assert pipeline.external("prepare", mine) == {"mine": ROOT / "mine"}
    command = pipeline.command("prepare", mine)
    assert command[:3] == [sys.executable, "-m", "macflow.stages.prepare"]
    assert command[command.index("--raw") + 1] == "mine"


@pytest.mark.parametrize(
    ("text", "part"), [(None, "not found"), ("stages: [", "no pipeline"), ("a: 1", "no pipeline")]
)
def test_a_project_without_a_pipeline_is_refused(tmp_path: Path, text: str | None, part: str) -> None:
    if text is not None:
        (tmp_path / "dvc.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"dvc\.yaml: .*{part}"):
        Pipeline(tmp_path)


def test_a_stage_runs_once_with_all_before_it(project: Path) -> None:
    store = RunStore(Pipeline(project), project / "runs")
    folder = store.made("evaluate", params())
    assert (folder / "models/policy/policy.json").is_file()
    assert store.made("evaluate", params()) == folder
    assert ran(project) == ["distill", "evaluate"]
    store.made("evaluate", params(evaluate__episodes=3))
    assert ran(project) == ["distill", "evaluate", "evaluate"]


def test_who_comes_second_waits_for_the_first(project: Path) -> None:
    (project / "seconds.txt").write_text("0.5")
    stores = [RunStore(Pipeline(project), project / "runs") for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda store: store.made("evaluate", params()), stores))
    assert len(folders) == 1
    assert sorted(ran(project)) == ["distill", "evaluate"]


def test_a_stage_that_fails_says_why_and_runs_again(project: Path) -> None:
    store = RunStore(Pipeline(project), project / "runs")
    for _ in range(2):
        with pytest.raises(
            StageFailedError, match=r"distill ended with code 1: alpha is beyond me \(.*log\.txt\)"
        ):
            store.made("evaluate", params(distill__alpha=6.0))
    assert ran(project) == ["distill", "distill"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("alpha=log:0.1:1", "must be SECTION.NAME="),
        ("distill.alpha", "must be SECTION.NAME="),
        ("distill.alpha=log:0.1", "must be SECTION.NAME="),
        ("distill.alpha=cube:1:2", "must be SECTION.NAME="),
        ("distill.alpha=log:0:1", "needs 0 < LOW < HIGH"),
        ("distill.alpha=float:2:1", "needs LOW < HIGH"),
        ("distill.alpha=float:0:inf", "finite"),
        ("distill.steps=int:1.5:3", "must be SECTION.NAME="),
    ],
)
def test_a_range_that_is_none_is_refused(text: str, part: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_searched(text)
    assert part in str(raised.value)
    assert repr(text) in str(raised.value)


def test_ranges_suggest_what_they_say() -> None:
    study = optuna.create_study()
    specs = ("a.x=log:0.1:10", "a.y=float:-1:1", "a.z=int:2:5", "a.w=choice:mean,3,true")
    for _ in range(20):
        trial = study.ask()
        x, y, z, w = (parse_searched(spec).suggest(trial) for spec in specs)
        assert 0.1 <= x <= 10
        assert -1 <= y <= 1
        assert z in (2, 3, 4, 5)
        assert w in ("mean", 3, True)


# Values at which the toy does not fail.
SOUND = ("--param", "distill.alpha=log:0.003:5")


def tune(*options: str) -> str:
    searched = () if "--param" in options else SOUND
    done = CliRunner().invoke(app, ["tune", "alpha", "--trials", "12", *searched, *options])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_a_study_finds_alpha_and_keeps_what_it_did(project: Path) -> None:
    said = tune()
    table = pl.read_csv(project / "tuning/alpha/trials.csv")
    assert table["trial"].to_list() == list(range(12))
    best = table.sort("return")[-1].to_dicts()[0]
    assert f"best: number {best['trial']}" in said
    assert abs(best["return"]) < 0.1
    run = project / "tuning/alpha/runs" / best["run"]
    assert yaml.safe_load((run / "params.yaml").read_text())["distill"]["alpha"] == best["distill.alpha"]
    # Judged on episodes that the pipeline's own report does not use.
    assert yaml.safe_load((run / "params.yaml").read_text())["evaluate"]["seed"] == 2_000_000
    page = (project / "tuning/alpha/index.html").read_text()
    assert "12 trials" in page
    assert best["run"] in page
    before = ran(project)
    tune()
    assert ran(project) == before, "a study that is complete runs nothing"


def test_the_best_values_are_written_where_asked(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    assert "distill.alpha: 0.03 -> " in tune("--write")
    written = (project / "params.yaml").read_text()
    table = pl.read_csv(project / "tuning/alpha/trials.csv").sort("return")
    assert yaml.safe_load(written)["distill"]["alpha"] == table["distill.alpha"][-1]
    # Comments and all else stay.
    assert [line for line in written.splitlines() if "alpha:" not in line] == [
        line for line in text.splitlines() if "alpha:" not in line
    ]


def test_what_lags_after_a_seed_is_given_up(project: Path) -> None:
    tune("--seeds", "3", "--param", "distill.alpha=log:0.0001:4", "--trials", "20")
    table = pl.read_csv(project / "tuning/alpha/trials.csv")
    runs = table.group_by("trial", "state").len()
    given_up = runs.filter(pl.col("state") == "pruned")
    assert len(given_up) > 0
    assert set(given_up["len"]) <= {1, 2}
    assert set(runs.filter(pl.col("state") == "complete")["len"]) == {3}
    assert table.filter(pl.col("state") == "complete")["seed"].unique().sort().to_list() == [0, 1, 2]


def test_a_trial_that_fails_is_listed_and_the_others_go_on(project: Path) -> None:
    said = tune("--param", "distill.alpha=choice:0.1,1.0,9.0", "--trials", "6")
    table = pl.read_csv(project / "tuning/alpha/trials.csv")
    failed = table["distill.alpha"] == 9.0
    assert 0 < failed.sum() < 6
    assert table["state"].to_list() == ["fail" if one else "complete" for one in failed]
    assert said.count("failed: distill ended with code 1: alpha is beyond me") == failed.sum()


def test_nothing_but_failures_is_said_so(project: Path) -> None:
    with pytest.raises(MacflowError, match="no trial has been judged to its end"):
        tune("--param", "distill.alpha=float:6:9", "--trials", "2")


def test_several_objectives_and_a_database(project: Path) -> None:
    url = f"sqlite:///{project}/study.db"
    said = tune("--objective", "return", "--objective", "latency", "--storage", url)
    assert "latency" in said
    study = optuna.load_study(study_name="alpha", storage=url)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert len(study.trials) == 12
    with pytest.raises(ConfigError, match="`--objective`: the study 'alpha' has 2 other ones"):
        tune("--storage", url)


def test_a_killed_study_loses_no_finished_trial(project: Path) -> None:
    (project / "seconds.txt").write_text("0.15")
    command = [sys.executable, "-m", "macflow.cli", "tune", "alpha", "--trials", "12", "--jobs", "2", *SOUND]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(command, cwd=project, env=environment, start_new_session=True)
    deadline = time.monotonic() + 60
    # Of five that began, two at most are under way.
    while ran(project).count("evaluate") < 5:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    journal = open_journal(project / "tuning/alpha/journal.log")
    killed = optuna.load_study(study_name="alpha", storage=journal).trials
    finished = {trial.number: trial.values for trial in killed if trial.state.is_finished()}
    open_ones = [trial.params for trial in killed if not trial.state.is_finished() and trial.params]
    assert len(finished) >= 3
    tune()
    table = pl.read_csv(project / "tuning/alpha/trials.csv")
    whole = table.filter(pl.col("state") == "complete")
    assert len(whole) == 12
    for number, values in finished.items():
        assert whole.filter(pl.col("trial") == number)["return"].to_list() == values
    # What was under way is run again.
    for values in open_ones:
        assert values["distill.alpha"] in whole["distill.alpha"].to_list()


def test_a_writer_killed_in_the_middle_of_the_journal_is_no_hindrance(project: Path) -> None:
    tune("--trials", "3")
    journal = project / "tuning/alpha/journal.log"
    # Holds the journal's lock for good.
    code = (
        "import sys, time; from pathlib import Path; from macflow.tuning.journal import ProcessLock;"
        "ProcessLock(Path(sys.argv[1])).acquire(); print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, f"{journal}.guard"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.kill()
    # What Optuna's own lock would have left behind, and half an entry.
    (project / "tuning/alpha/journal.log.lock").symlink_to("tuning/alpha/journal.log")
    with journal.open("ab") as file:
        file.write(b'{"op_code":5,"worker_id":"x')
    before = pl.read_csv(project / "tuning/alpha/trials.csv")
    assert "4 trials; best" in tune("--trials", "4")
    after = pl.read_csv(project / "tuning/alpha/trials.csv")
    assert after.filter(pl.col("trial") < 3).equals(before)


def test_a_study_is_run_by_one_process_at_a_time(project: Path) -> None:
    tune("--trials", "1")
    with (
        FileLock(project / "tuning/alpha/running.lock"),
        pytest.raises(ConfigError, match="being tuned by another"),
    ):
        tune("--trials", "2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--param", "distill.alhpa=log:1:2"], "`distill.alhpa`: there is no such parameter"),
        (["--param", "distill.alpha=log:1:2", "--param", "distill.alpha=log:1:3"], "each parameter once"),
        (["--params", "none.yaml"], "none.yaml: file not found"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_runs(
    project: Path, options: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tune(*options)
    assert ran(project) == []


def test_text_on_the_page_is_never_markup() -> None:
    trial = {
        "number": 0, "state": "complete", "params": {"a.b": "<i>"}, "values": [1.0],
        "runs": [{"run": "<script>", "policy": "x"}],
    }  # fmt: skip
    content = TunedContent([trial], trial, ["return"], ["a.b"], {}, 10, 5)
    page = render_page(content, "<b>")
    assert "<i>" not in page.replace(json.dumps("<i>"), "")
    assert "<script></code>" not in page
    assert "<title>&lt;b&gt;</title>" in page
