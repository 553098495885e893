"""`macflow dataset import` and `export` as a user types them: real files, real validation, real stages."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest
import yaml
from data_samples import make_episodes, make_spec
from minari.data_collector import EpisodeBuffer
from safetensors.numpy import load_file
from typer.testing import CliRunner

from macflow import cli, cli_dataset
from macflow.cli_dataset import OPTION_FORMATS
from macflow.data.importers.omar import read_omar
from macflow.data.minari_metadata import find_dataset, read_metadata
from macflow.data.minari_store import read_minari
from macflow.data.prepared import ARRAYS_FILE, EPISODES_FILE, TRANSITIONS_FILE
from macflow.envs import registry
from macflow.files import digest
from macflow.stages import prepare
from macflow.types import MacflowError

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
OMAR = FIXTURES / "omar" / "simple_spread" / "medium"
VAULTS = FIXTURES / "vaults" / "synthetic"


def run(*arguments: str | Path) -> str:
    """Run a command that must succeed and return what it prints."""
    found = CliRunner().invoke(cli.app, ["dataset", *map(str, arguments)], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stdout


def refused(*arguments: str | Path) -> str:
    """Run a command that must end with one of our errors and return its message."""
    with pytest.raises(MacflowError) as raised:
        CliRunner().invoke(cli.app, ["dataset", *map(str, arguments)], catch_exceptions=False)
    return str(raised.value)


def env_of(folder: Path) -> Any:
    return read_metadata(find_dataset(folder))[1]["env"]


def prepare_folder(raw: Path, out: Path) -> None:
    """Run the prepare stage as the pipeline does."""
    params = out.with_suffix(".yaml")
    sections = {
        "prepare": {
            "raw": str(raw), "max_abs_reward": 100.0, "max_abs_observation": 100.0,
            "max_duplicate_fraction": 1.0,
        },
    }  # fmt: skip
    params.write_text(yaml.safe_dump(sections))
    prepare.main(
        Namespace(
            params=params,
            raw=raw,
            out=out,
            validation=out.with_name(f"{out.name}-validation"),
            metrics=out.with_name(f"{out.name}.json"),
        )
    )


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare a continuous and a discrete recording of registered environments."""
    root = tmp_path_factory.mktemp("recorded")
    for name, dataset in (("spread", "mpe-spread/medium"), ("xor", "game-xor/mixed")):
        run("record", dataset, "--episodes", "6", "--out", root / name)
        prepare_folder(root / name, root / f"{name}-prepared")
    return root


@pytest.mark.parametrize(
    ("name", "form"),
    [("spread", "npz"), ("spread", "omar"), ("spread", "minari"), ("xor", "npz"), ("xor", "minari")],
)
def test_export_import_prepare_gives_the_same_arrays(
    tmp_path: Path, recordings: Path, name: str, form: str
) -> None:
    before = recordings / f"{name}-prepared"
    text = run("export", before, "--format", form, "--out", tmp_path / "out")
    env = env_of(recordings / name)
    chosen = ["--env", env["id"], *(f"--env-kwarg={k}={v}" for k, v in env["kwargs"].items())]
    if form != "minari":
        assert f"the environment is not part of the format; import with --env {env['id']}" in text
    run("import", tmp_path / "out", "--from", form, "--to", tmp_path / "raw", *chosen)
    recorded = env_of(tmp_path / "raw")
    assert recorded == env | ({} if form == "minari" else {"version": None})
    prepare_folder(tmp_path / "raw", tmp_path / "again")
    one, two = load_file(before / ARRAYS_FILE), load_file(tmp_path / "again" / ARRAYS_FILE)
    assert set(one) == set(two)
    for array in one:
        assert one[array].tobytes() == two[array].tobytes(), array
    same = {TRANSITIONS_FILE} if form == "omar" else {TRANSITIONS_FILE, EPISODES_FILE}
    for file in same:
        assert digest(before / file) == digest(tmp_path / "again" / file)
    spec = [read_metadata(find_dataset(folder))[0] for folder in (recordings / name, tmp_path / "raw")]
    assert spec[0] == spec[1]


def test_import_of_omar_names_what_it_found(tmp_path: Path) -> None:
    text = run("import", OMAR, "--from", "omar", "--to", tmp_path / "raw", "--env", "mpe/spread")
    assert text == (
        f"{tmp_path / 'raw'}: 40 episodes of 3 agents, 18 observations, continuous actions of size 2, "
        "1000 transitions; all 13 expectations met\n"
        "  20 of 40 episode ends are marked by dones, 20 are time limits\n"
        "  no states_i files: the state is all observations in a row\n"
    )
    assert env_of(tmp_path / "raw") == {
        "id": "mpe/spread",
        "kwargs": {"n_agents": 3, "max_cycles": 25, "local_ratio": 0.5, "thrust": 1.0},
        "version": None,
    }
    assert "mpe/spread" in run("show", tmp_path / "raw")
    run("import", OMAR / "seed_1_data", "--from", "omar", "--to", tmp_path / "cut", "--time-limit", "25")
    assert not any(episode.terminated.any() for episode in read_minari(tmp_path / "cut")[0])
    assert env_of(tmp_path / "cut") is None


# --- vaults ----------------------------------------------------------------------------------------------


def test_import_of_a_vault(tmp_path: Path) -> None:
    vault = VAULTS / "mpe" / "spread_toy.vlt"
    text = run("import", vault, "--from", "og-marl", "--uid", "Medium", "--to", tmp_path / "raw",
               "--env", "mpe/spread")  # fmt: skip
    # Each of 20 episodes of 25 rows gives its last one for the final observation.
    assert "20 episodes of 3 agents, 18 observations, continuous actions of size 2, 480 transitions" in text
    assert env_of(tmp_path / "raw")["id"] == "mpe/spread"
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_options_of_a_vault_reach_its_reader(tmp_path: Path) -> None:
    vault = VAULTS / "mpe" / "spread_toy.vlt"
    common = ("import", vault, "--from", "og-marl", "--uid", "Expert", "--to")
    run(*common, tmp_path / "ended")
    assert all(episode.terminated[-1] for episode in read_minari(tmp_path / "ended")[0])
    run(*common, tmp_path / "cut", "--time-limit", "25", "--action-bounds", "-2", "2", "--infos", "ignore")
    episodes, spec, _ = read_minari(tmp_path / "cut")
    assert all(episode.truncated[-1] and not episode.terminated.any() for episode in episodes)
    assert (spec.action_low, spec.action_high) == ((-2.0, -2.0), (2.0, 2.0))


def test_mistakes_with_a_vault_leave_nothing(tmp_path: Path) -> None:
    vault = VAULTS / "smac_v1" / "3m_toy.vlt"
    common = ("import", vault, "--from", "og-marl", "--to", tmp_path / "raw")
    assert "Good, Poor" in refused(*common)
    message = refused(*common, "--uid", "Good", "--env", "mpe/spread")
    assert "actions: 2 continuous in [-1, 1] x [-1, 1] there, 9 discrete in the data" in message
    assert "is for archives" in refused(*common, "--uid", "Good", "--sha256", "0" * 64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("env", "note"),
    [
        ("mpe/spread", None),
        ("mpe/spread-discrete", "mpe/spread-discrete did not make these data"),
        ("no/such", "(received 'no/such')"),
    ],
)
def test_the_environment_of_the_catalogue_is_checked_too(env: str, note: str | None) -> None:
    read = replace(read_omar(OMAR / "seed_0_data"), notes=())
    found = cli_dataset._with_catalogued_environment(read, {"id": env, "kwargs": {}, "version": None})
    if note is None:
        assert found.notes == ()
        assert found.env is not None
        assert found.env["id"] == env
    else:
        (told,) = found.notes
        assert told.startswith("no environment recorded: ")
        assert note in told
        assert found.env is None


# --- environments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (["mpe/spread", "--env-kwarg", "n_agents=4"], "did not make these data; agents: 4 there, 3 in"),
        (
            ["mpe/spread-discrete"],
            "actions: 5 discrete there, 2 continuous in [-1, 1] x [-1, 1] in the data",
        ),
        (["game/landmark"], "observation sizes: ["),
        (["no/such"], "received 'no/such'"),
        (["mpe/spread", "--env-kwarg", "size=4"], "(received size)"),
    ],
)  # fmt: skip
def test_environments_that_cannot_have_made_the_data(tmp_path: Path, env: list[str], message: str) -> None:
    assert message in refused("import", OMAR, "--from", "omar", "--to", tmp_path / "raw", "--env", *env)
    assert list(tmp_path.iterdir()) == []


def test_an_environment_that_cannot_be_made_here_is_recorded_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = replace(registry.ENVIRONMENTS["mpe/spread"], missing=lambda: "mpe2 is not installed")
    monkeypatch.setattr(registry, "ENVIRONMENTS", {**registry.ENVIRONMENTS, "mpe/spread": absent})
    text = run("import", OMAR, "--from", "omar", "--to", tmp_path / "raw", "--env", "mpe/spread")
    assert (
        "  not compared with mpe/spread, which cannot be made here: mpe/spread: mpe2 is not installed" in text
    )
    assert env_of(tmp_path / "raw")["id"] == "mpe/spread"


def test_a_state_of_another_size_is_told(tmp_path: Path) -> None:
    for agent in range(3):
        (tmp_path / "seed_0_data").mkdir(exist_ok=True)
        for file in (OMAR / "seed_0_data").glob(f"*_{agent}.npy"):
            (tmp_path / "seed_0_data" / file.name).write_bytes(file.read_bytes())
        for name in ("states", "next_states"):
            np.save(tmp_path / "seed_0_data" / f"{name}_{agent}.npy", np.zeros((500, 7)))
    text = run("import", tmp_path / "seed_0_data", "--from", "omar", "--to", tmp_path / "raw",
               "--env", "mpe/spread")  # fmt: skip
    assert "the state has 7 values, that of mpe/spread 54" in text


def test_a_recorded_environment_is_not_replaced(tmp_path: Path, recordings: Path) -> None:
    message = refused("import", recordings / "xor", "--from", "minari", "--to", tmp_path / "raw",
                      "--env", "game/rare-optimum")  # fmt: skip
    assert message == (
        "`--env`: the data say that they come from game/xor {} (received game/rare-optimum {})"
    )
    assert list(tmp_path.iterdir()) == []


# --- installed Minari datasets -----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:env_spec is None")
def test_an_installed_dataset_is_imported_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minari itself writes it, without a word of ours, as another program would."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "installed"))
    spec = make_spec(agents=3, obs=18, actions=2)
    buffers = [
        EpisodeBuffer(
            observations=episode.obs,
            actions=episode.actions,
            rewards=episode.rewards.mean(axis=1),
            terminations=episode.terminated,
            truncations=episode.truncated,
        )
        for episode in make_episodes(spec, [3, 2])
    ]
    with pytest.warns(UserWarning, match="is set to None"):
        minari.create_dataset_from_buffers(
            "someone/spread/walk-v3",
            buffer=buffers,
            observation_space=gym.spaces.Box(-np.inf, np.inf, (3, 18)),
            action_space=gym.spaces.Box(-1, 1, (3, 2)),
            data_format="hdf5",
        )
    run(
        "import",
        "someone/spread/walk-v3",
        "--from",
        "minari",
        "--to",
        tmp_path / "raw",
        "--env",
        "mpe/spread",
    )
    _, found, meta = read_minari(tmp_path / "raw")
    assert meta["dataset_id"] == "someone/spread/walk-v3"
    assert meta["env"]["id"] == "mpe/spread"
    assert found.agent_ids == ("agent_0", "agent_1", "agent_2")
    message = refused("import", "someone/spread/wlak-v3", "--from", "minari", "--to", tmp_path / "other")
    assert f"nor a dataset of that id in {tmp_path / 'installed'}" in message
    assert "`minari download someone/spread/wlak-v3` gets a published one" in message
    assert message.endswith("is 'someone/spread/walk-v3' meant?")


def test_looking_for_an_installed_dataset_makes_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(tmp_path / ".minari" / "datasets") in refused(
        "import", "a/bb-v0", "--from", "minari", "--to", tmp_path / "raw"
    )
    assert list(tmp_path.iterdir()) == []


# --- options ---------------------------------------------------------------------------------------------

GIVEN = {
    "--time-limit": ["3"],
    "--episode-length": ["3"],
    "--action-bounds": ["-1", "1"],
    "--uid": ["Good"],
    "--sha256": ["00"],
    "--action-kind": ["discrete"],
    "--n-actions": ["3"],
    "--obs-dims": ["3,4"],
    "--infos": ["keep"],
    "--downloads": ["x"],
}


def test_every_option_of_a_format_is_tried() -> None:
    assert set(GIVEN) == set(OPTION_FORMATS)


@pytest.mark.parametrize("form", ["minari", "npz", "omar", "og-marl"])
def test_options_of_another_format_are_refused_by_name(tmp_path: Path, form: str) -> None:
    for option, values in GIVEN.items():
        if form not in OPTION_FORMATS[option]:
            message = refused("import", "x", "--from", form, "--to", tmp_path / "to", option, *values)
            assert message.startswith(f"`{option}`: belongs to --from ")
            assert message.endswith(f"(received --from {form})")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "npz", "--env-kwarg", "n_agents=3"], "`--env-kwarg`: needs `--env` (received n_agents)"),
        (["--from", "omar", "--action-bounds", "1", "1"], "`--action-bounds`: LOW must be below HIGH"),
        (["--from", "og-marl", "--obs-dims", "3,x"], "`--obs-dims`: must be whole numbers > 0 with commas"),
        (["--from", "npz"], "nowhere: not found; it must be an .npz file"),
        (["--from", "omar"], "nowhere: folder not found"),
        (["--from", "minari"], "nowhere: folder not found"),
        (["--from", "og-marl"], "nowhere"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused("import", "nowhere", "--to", "to", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path, recordings: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    for arguments in (
        ("export", recordings / "xor-prepared", "--format", "npz", "--out", tmp_path),
        ("import", OMAR, "--from", "omar", "--to", tmp_path),
    ):
        assert "already there, and nothing is overwritten" in refused(*arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_import_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom macflow import cli\nsys.argv = ['macflow', 'dataset', 'import', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "import json\n"
        "print(json.dumps(sorted({'torch', 'numpy', 'polars', 'minari', 'gymnasium'} & set(sys.modules))))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(shown.stdout.splitlines()[-1]) in ([], ["numpy"])
