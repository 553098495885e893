"""Baselines as they are used: trained on a prepared dataset, saved, loaded, played, from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from macflow import cli
from macflow.algorithms.baselines.learner import Learner
from macflow.algorithms.baselines.registry import METHODS
from macflow.data.prepared import load_prepared, write_prepared
from macflow.data.record import record_episodes
from macflow.data.rows import stack_episodes
from macflow.data.sampler import TransitionSampler
from macflow.envs.registry import full_kwargs, make_behaviour, make_env
from macflow.files import digest, read_json, write_json
from macflow.training import baselines
from macflow.training.baselines import RecordedSampler, TrainingSettings, load_baseline, train_baseline
from macflow.types import BatchObs, ConfigError, DataError

# Of a game of several steps, and of one with masks; both run in milliseconds.
GAMES = {"game/landmark": "expert", "game/xor": "mixed"}
# Enough of each method's work to see it, no more.
QUICK: dict[str, dict[str, Any]] = {
    "ma_fql": {"flow_steps": 2},
    "diffusion": {"samples": 2, "sampling_steps": 5},
    "macql": {"samples": 2},
}


@pytest.fixture(scope="module", autouse=True)
def _torch_as_it_was() -> Any:
    """Undo what a training sets for the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("data")
    made = {}
    for env_id, behaviour in GAMES.items():
        kwargs = full_kwargs(env_id, {})
        env = make_env(env_id, kwargs, 20)
        episodes = record_episodes(env, make_behaviour(env_id, kwargs, behaviour), 20, seed=0)
        env.close()
        made[env_id] = root / env_id.split("/")[1]
        write_prepared(
            made[env_id],
            stack_episodes(episodes, env.spec),
            env.spec,
            env={"id": env_id, "kwargs": kwargs, "version": "1"},
            source={"kind": "test"},
            made_from={},
            params={},
        )
    return made


def quick(steps: int = 12, seed: int = 0) -> TrainingSettings:
    return TrainingSettings(steps, 16, 1e-3, (8,), seed, "cpu")


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def run(*arguments: str | Path) -> str:
    """Run a command that must succeed and return what it prints."""
    found = CliRunner().invoke(cli.app, [str(a) for a in arguments], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stdout


def fail(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run a command that must fail with one line on stderr and return that line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["macflow", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    printed = capsys.readouterr()
    assert ended.value.code == 1
    assert printed.err.startswith("macflow: ")
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("env_id", GAMES)
def test_a_loaded_baseline_acts_as_the_trained_one_and_within_its_bounds(
    method: str, env_id: str, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[baselines.Baseline] = []
    save = baselines.save_baseline
    monkeypatch.setattr(baselines, "save_baseline", lambda f, b: (trained.append(b), save(f, b)))
    train_baseline(method, data[env_id], tmp_path / "out", quick(), QUICK.get(method, {}))
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    loaded = load_baseline(tmp_path / "out")
    assert loaded.manifest["made_from"] == {str(data[env_id]): digest(data[env_id])}
    assert loaded.manifest["env"]["id"] == env_id
    dataset = load_prepared(data[env_id])
    rows = dataset.train_rows[:20]
    legal = None if dataset.legal_actions is None else dataset.legal_actions[rows].numpy()
    seen = BatchObs(dataset.obs[rows].numpy(), dataset.state[rows].numpy(), legal)
    actions = []
    for baseline in (trained[0], loaded):
        actor = baseline.actor()
        actor.reset(range(len(rows)))
        actions.append(actor.act(seen))
    np.testing.assert_array_equal(*actions)
    if legal is None:
        assert actions[0].dtype == np.float32
        assert np.abs(actions[0]).max() <= 1.0
    else:
        assert np.take_along_axis(legal, actions[0][..., None], -1).all()
    # An episode's noise is its seed's, whatever else is played beside it.
    actor.reset([3])
    one = BatchObs(seen.obs[3:4], seen.state[3:4], None if legal is None else legal[3:4])
    np.testing.assert_allclose(actor.act(one)[0], actions[0][3], atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_training_ends_with_the_same_bytes(
    method: str, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "CHECKPOINT_EVERY", 5)

    def train(out: Path, seed: int = 0) -> None:
        train_baseline(method, data["game/landmark"], out, quick(seed=seed), QUICK.get(method, {}))

    train(tmp_path / "whole" / "out")
    train(tmp_path / "other" / "out", seed=1)
    taken = 0
    step = Learner.step

    def interrupted(self: Learner, *arguments: Any) -> Any:
        nonlocal taken
        if taken == 8:
            raise KeyboardInterrupt
        taken += 1
        return step(self, *arguments)

    out = tmp_path / "resumed" / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(out)
    assert [p.name for p in out.parent.iterdir()] == [".out.checkpoint.safetensors"]
    counted = 0

    def count(self: Learner, *arguments: Any) -> Any:
        nonlocal counted
        counted += 1
        return step(self, *arguments)

    monkeypatch.setattr(Learner, "step", count)
    train(out)
    assert counted == 7  # from step 5 to 12
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    assert bytes_of(out) == bytes_of(tmp_path / "whole" / "out")
    assert bytes_of(out) != bytes_of(tmp_path / "other" / "out")


def test_critics_of_the_state_train_and_act(data: dict[str, Path], tmp_path: Path) -> None:
    for method in ("matd3_bc", "macql", "ma_fql", "diffusion"):
        own = QUICK.get(method, {}) | {"sees": "state"}
        train_baseline(method, data["game/landmark"], tmp_path / method, quick(2), own)
        assert load_baseline(tmp_path / method).learner.acts_on_state == (method == "diffusion")
        assert "mean return" in run("baseline", "evaluate", tmp_path / method, "--episodes", "2")
    with pytest.raises(ConfigError, match="`sees`"):
        train_baseline("macql", data["game/xor"], tmp_path / "no", quick(2), {"sees": "state"})
    assert not (tmp_path / "no").exists()


def test_recorded_next_actions_are_those_of_the_next_row(data: dict[str, Path]) -> None:
    dataset = load_prepared(data["game/landmark"])
    sampler = TransitionSampler(dataset, torch.device("cpu"))
    batch = RecordedSampler(sampler).sample(200, torch.Generator().manual_seed(0))
    known = batch.next_known.bool()
    # Known exactly where the next row begins a transition too: not after an episode's last.
    assert torch.equal(known, torch.isin(batch.next_rows, dataset.train_rows))
    assert 0 < int(known.sum()) < len(known)
    assert torch.equal(batch.next_actions, sampler.actions[batch.next_rows])


def test_damaged_bundles_are_refused_by_name(data: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "bc"
    train_baseline("bc", data["game/xor"], out, quick(2), {})
    good = read_json(out / "baseline.json")
    with pytest.raises(DataError, match=r"nowhere/baseline.json: file not found"):
        load_baseline(tmp_path / "nowhere")
    for change, part in (
        ({"schema_version": 7}, "`schema_version` must be 1, received 7"),
        ({"method": "other"}, "not a baseline manifest"),
        ({"settings": {"beta": 1}}, "known are acting"),
        ({"spec": None}, "not a baseline manifest"),
        ({"training": {}}, "not a baseline manifest"),
    ):
        write_json(out / "baseline.json", good | change)
        with pytest.raises(DataError, match=part) as refused:
            load_baseline(out)
        assert "baseline.json" in str(refused.value)
    write_json(out / "baseline.json", good | {"training": {"hidden": [9]}})
    with pytest.raises(DataError, match=r"baseline\.safetensors: weights do not fit"):
        load_baseline(out)
    write_json(out / "baseline.json", good)
    (out / "baseline.safetensors").write_bytes(b"short")
    with pytest.raises(DataError, match=r"baseline\.safetensors: not a readable"):
        load_baseline(out)


def test_command_trains_and_evaluates(data: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "macql"
    printed = run(
        "baseline", "train", "macql", "--data", data["game/xor"], "--out", out, "--steps", "3",
        "--batch-size", "8", "--learning-rate", "0.01", "--hidden", "8,8", "--seed", "4",
        "--set", "alpha=1.5", "--set", "ensemble=3",
    )  # fmt: skip
    assert f"{out}: macql, 3 steps of 8 transitions" in printed
    manifest = read_json(out / "baseline.json")
    assert manifest["settings"]["alpha"] == 1.5
    assert manifest["settings"]["ensemble"] == 3
    assert manifest["training"]["hidden"] == [8, 8]
    assert manifest["training"]["seed"] == 4
    assert (out / "curve.csv").read_text().startswith("step,td_loss,cql_gap")
    text = run("baseline", "evaluate", out, "--episodes", "6", "--seed", "9", "--json", tmp_path / "m.json")
    found = json.loads((tmp_path / "m.json").read_text())
    assert f"mean return {found['return_mean']:.2f}" in text
    assert (found["method"], found["env"], found["episodes"], found["seed"]) == ("macql", "game/xor", 6, 9)
    assert 0 <= found["return_mean"] <= 1


def test_command_lists_methods_and_settings() -> None:
    listed = json.loads(run("baseline", "list", "--json"))
    assert list(listed) == list(METHODS)
    assert listed["matd3_bc"]["settings"]["alpha"] == 2.5
    text = run("baseline", "list")
    for name, method in METHODS.items():
        assert name in text
        assert method.description in text


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["qmix"], "`method`: must be one of bc, matd3_bc"),
        (["omiga", "--set", "beta=1"], "omiga: `beta`: unknown; known are alpha, discount"),
        (["omiga", "--set", "alpha=-1"], "omiga: `alpha`: Input should be greater than 0 (received '-1')"),
        (["omiga", "--set", "alpha"], "`--set`: must be NAME=VALUE (received 'alpha')"),
        (["omiga", "--hidden", "8,x"], "`--hidden`: must be whole numbers with commas between"),
        (["omiga", "--learning-rate", "0"], "`learning_rate`: must be > 0 (received 0.0)"),
        (["omiga", "--data", "nowhere"], "nowhere: prepared dataset not found"),
        (["omiga", "--out", "mine"], "mine: already there, and not a baseline"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line_and_leave_nothing(
    arguments: list[str],
    part: str,
    data: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("x")
    before = bytes_of(tmp_path)
    given = [] if "--data" in arguments else ["--data", str(data["game/xor"])]
    assert part in fail(capsys, "baseline", "train", *arguments, *given)
    assert bytes_of(tmp_path) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_named(
    data: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = fail(
        capsys, "baseline", "train", "bc", "--data", data["game/xor"], "--out", tmp_path / "x",
        "--device", "cuda",
    )  # fmt: skip
    assert "`device`: is 'cuda', but torch finds no GPU here" in message


def test_evaluation_refuses_what_does_not_fit(
    data: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bc"
    train_baseline("bc", data["game/landmark"], out, quick(2), {})
    manifest = read_json(out / "baseline.json")
    write_json(out / "baseline.json", manifest | {"env": None})
    assert "name no environment to play in" in fail(capsys, "baseline", "evaluate", out)
    write_json(out / "baseline.json", manifest | {"env": {"id": "game/xor", "kwargs": {}}})
    assert "game/xor has 2 agents" in fail(capsys, "baseline", "evaluate", out, "--json", tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists()
