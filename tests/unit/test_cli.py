"""The command line as a user types it: real processes where start-up matters, real files throughout."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from macflow import cli
from macflow.data.minari_store import read_minari, write_minari
from macflow.data.normalizer import Normalizer
from macflow.envs.registry import ENVIRONMENTS, make_env
from macflow.policy import Acting, build_policy, save_policy
from macflow.types import DataError


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
    assert printed.out == ""
    assert printed.err.startswith("macflow: ")
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "xor"
    text = run("dataset", "record", "game-xor/mixed", "--episodes", "30", "--out", out)
    assert text == f"{out}: 30 episodes of game-xor/mixed, mean return 1.00\n"
    return out


def save_landmark_policy(folder: Path, env: dict[str, Any] | None) -> Path:
    """Write an untrained but complete bundle for `game/landmark` with 4 agents."""
    spec = make_env("game/landmark", {"n_agents": 4}, 1).spec
    ones = np.ones((spec.n_agents, spec.obs_size), np.float32)
    state = np.ones(spec.state_size, np.float32)
    net = build_policy(spec, "shared", "individual", (8,), torch.Generator().manual_seed(0))
    folder.mkdir()
    manifest: dict[str, Any] = {"params": {"distill": {"sharing": "shared", "hidden": [8]}}}
    if env is not None:
        manifest["env"] = env
    save_policy(
        folder, spec, Normalizer(0 * ones, ones, 0 * state, state, 1.0), net, Acting(1.0, 1), None, manifest
    )
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    env = {"id": "game/landmark", "kwargs": {"n_agents": 4, "max_cycles": 5}, "version": "1"}
    return save_landmark_policy(tmp_path_factory.mktemp("models") / "policy", env)


def test_help_lists_every_command_and_starts_at_once() -> None:
    started = time.perf_counter()
    shown = subprocess.run([sys.executable, "-m", "macflow.cli", "--help"], capture_output=True, text=True)
    taken = time.perf_counter() - started
    assert shown.returncode == 0
    assert shown.stderr == ""
    for word in ("envs", "evaluate", "dataset", "--version", "macflow evaluate models/policy --episodes 200"):
        assert word in shown.stdout
    # 0.2 s where this was written.
    assert taken < 5


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom macflow import cli\nsys.argv = ['macflow', 'evaluate', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'scipy', 'polars', 'minari', 'gymnasium'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.endswith("[]\n")


def test_version() -> None:
    assert run("--version") == "macflow 0.1.0\n"


def test_envs_tells_of_every_environment() -> None:
    listed = {entry["id"]: entry for entry in json.loads(run("envs", "--json"))}
    assert list(listed) == list(ENVIRONMENTS)
    assert listed["game/xor"]["agents"] == 2
    assert listed["game/xor"]["reference"]["expert"] == 1.0
    text = run("envs")
    for env_id, entry in ENVIRONMENTS.items():
        assert env_id in text
        assert entry.description in text
    assert "random 0.50 (0), expert 1.00 (100)" in text


def test_show_a_recording(recorded: Path) -> None:
    text = run("dataset", "show", recorded)
    for words in ("game/xor", "mixed", "30", "agent"):
        assert words in text


def test_recording_is_the_same_each_time_and_follows_the_seed(tmp_path: Path, recorded: Path) -> None:
    for name, seed in (("again", 0), ("other", 1)):
        run("dataset", "record", "game-xor/mixed", "--episodes", "30", "--seed", str(seed),
            "--out", tmp_path / name)  # fmt: skip

    def bytes_of(root: Path) -> dict[str, bytes]:
        return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    assert bytes_of(tmp_path / "again") == bytes_of(recorded)
    assert bytes_of(tmp_path / "other") != bytes_of(recorded)


def test_import_copies_the_episodes(tmp_path: Path, recorded: Path) -> None:
    text = run("dataset", "import", recorded, "--from", "minari", "--to", tmp_path / "copy")
    assert "30 episodes of 2 agents" in text
    (before, spec, meta), (after, copied_spec, copied_meta) = (
        read_minari(recorded),
        read_minari(tmp_path / "copy"),
    )
    assert spec == copied_spec
    assert meta["env"] == copied_meta["env"]
    assert meta["behaviour"] == copied_meta["behaviour"]
    for a, b in zip(before, after, strict=True):
        assert np.array_equal(a.actions, b.actions)
        assert np.array_equal(a.rewards, b.rewards)
        assert np.array_equal(a.obs, b.obs)
        assert a.seed == b.seed


def test_nothing_is_overwritten(tmp_path: Path, recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    for arguments in (
        ("dataset", "import", recorded, "--from", "minari", "--to", tmp_path),
        ("dataset", "record", "game-xor/mixed", "--out", tmp_path),
    ):
        assert "already there, and nothing is overwritten" in fail(capsys, *arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_import_refuses_a_truncated_file_and_leaves_nothing(
    tmp_path: Path, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("dataset", "import", recorded, "--from", "minari", "--to", tmp_path / "broken")
    file = next((tmp_path / "broken").rglob("main_data.hdf5"))
    file.write_bytes(file.read_bytes()[:2000])
    message = fail(
        capsys, "dataset", "import", tmp_path / "broken", "--from", "minari", "--to", tmp_path / "to"
    )
    assert "main_data.hdf5" in message
    assert [p.name for p in tmp_path.iterdir()] == ["broken"]


def test_import_refuses_what_breaks_the_rules_of_validation(tmp_path: Path, recorded: Path) -> None:
    episodes, spec, meta = read_minari(recorded)
    episodes[4].rewards[0, 1] = np.nan
    write_minari(tmp_path / "nan", "macflow/nan-v0", episodes, spec, meta["env"], meta["behaviour"])
    with pytest.raises(DataError, match=r"rewards_finite: .*first \(episode, step\): \(4, 0\)"):
        run("dataset", "import", tmp_path / "nan", "--from", "minari", "--to", tmp_path / "to")
    assert [p.name for p in tmp_path.iterdir()] == ["nan"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["dataset", "show", "nowhere"], "nowhere: folder not found"),
        (["dataset", "import", "nowhere", "--from", "minari", "--to", "x"], "nowhere: folder not found"),
        (["dataset", "record", "no-such/a", "--out", "x"], "received 'no-such/a'"),
        (
            ["dataset", "record", "game-xor/a", "--out", "x"],
            "near names: game-xor/mixed, game-xor/random (received 'game-xor/a')",
        ),
        (
            ["dataset", "record", "game-payoff/mixed", "--out", "x", "--env-kwarg", "zeta"],
            "must be NAME=VALUE (received 'zeta')",
        ),
        (
            ["dataset", "record", "game-payoff/mixed", "--out", "x", "--env-kwarg", "zeta=7"],
            "game/payoff: `kwargs.zeta`: Input should be less than or equal to 1 (received 7)",
        ),
        (["evaluate", "nowhere"], "nowhere/policy.json: file not found"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(
    arguments: list[str],
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert part in fail(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_evaluate_uses_the_environment_of_the_bundle(bundle: Path) -> None:
    found = json.loads(run("evaluate", bundle, "--episodes", "7", "--seed", "5", "--json"))
    assert found["env"] == "game/landmark"
    assert found["env_kwargs"]["n_agents"] == 4
    assert found["episodes"] == 7
    assert found["length_mean"] == 5.0
    assert found["return_ci95_low"] < found["return_mean"] < found["return_ci95_high"]
    again = json.loads(run("evaluate", bundle, "--episodes", "7", "--seed", "5", "--json",
                           "--env", "game/landmark"))  # fmt: skip
    assert again == found
    text = run("evaluate", bundle, "--episodes", "7", "--seed", "5")
    assert f"{found['return_mean']:.2f} (95% interval" in text
    assert "seeds 5 to 11" in text


def test_evaluate_takes_keywords_and_a_single_episode(bundle: Path) -> None:
    found = json.loads(run("evaluate", bundle, "--episodes", "1", "--env-kwarg", "max_cycles=2", "--json"))
    assert found["length_mean"] == 2.0
    assert found["return_ci95_low"] is None
    assert "one episode has no interval" in run("evaluate", bundle, "--episodes", "1")


def test_evaluate_refuses_other_agents_and_no_environment(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = fail(capsys, "evaluate", bundle, "--env-kwarg", "n_agents=3")
    assert "the policy is for 4 agents" in message
    assert "has 3 agents" in message
    nameless = save_landmark_policy(tmp_path / "nameless", None)
    assert "names no environment; choose one with --env" in fail(capsys, "evaluate", nameless)
