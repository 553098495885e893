"""Datasets by name: which there are, what is said of a wrong name, and a published one without a network."""

from __future__ import annotations

import json
import re
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from macflow import cli
from macflow.catalogue import (
    FACTS,
    PublishedDataset,
    RecordedDataset,
    all_datasets,
    dataset_named,
    read_facts,
)
from macflow.cli_listing import describe_datasets, listing_text
from macflow.data.importers.og_marl_sources import SOURCES
from macflow.data.minari_store import read_minari
from macflow.envs.registry import ENVIRONMENTS
from macflow.files import digest
from macflow.stages import record
from macflow.types import ConfigError, DataError

ROOT = Path(__file__).parents[2]
VAULTS = ROOT / "tests/fixtures/vaults"


def test_every_behaviour_and_every_vault_has_one_name() -> None:
    known = all_datasets()
    assert all(entry.name == name for name, entry in known.items())
    recorded = [entry for entry in known.values() if isinstance(entry, RecordedDataset)]
    assert len({(entry.env_id, entry.behaviour) for entry in recorded}) == len(recorded)
    assert len(recorded) == sum(len(entry.behaviours) for entry in ENVIRONMENTS.values())
    published = [entry for entry in known.values() if isinstance(entry, PublishedDataset)]
    assert len(published) == sum(max(1, len(source.uids)) for source in SOURCES.values())
    assert len(recorded) + len(published) == len(known)


def test_names_lead_to_what_they_say() -> None:
    medium = dataset_named("mpe-spread/medium")
    assert medium == RecordedDataset("mpe-spread/medium", "mpe/spread", "medium", 4000)
    good = dataset_named("og-marl/og_marl/smac_v1/3m/Good")
    assert isinstance(good, PublishedDataset)
    assert (good.source.name, good.uid, good.env_id) == ("og-marl/og_marl/smac_v1/3m", "Good", "smac/3m")
    # The publishers do not say which datasets this one has.
    unlisted = dataset_named("og-marl/og_marl/flatland/20_trains/Whatever")
    assert isinstance(unlisted, PublishedDataset)
    assert (unlisted.uid, unlisted.env_id) == ("Whatever", None)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mpe-spread/meduim", "near names: mpe-spread/expert, mpe-spread/medium,"),
        ("mpe/spread/medium", "near names: mpe-spread/medium"),
        ("MPE-Spread/Medium", "near names: mpe-spread/medium"),
        ("mpe-spread", "near names: mpe-spread/expert, mpe-spread/medium,"),
        ("og-marl/og_marl/smac_v1/3m", "near names: og-marl/og_marl/smac_v1/3m/Good,"),
        ("og-marl/og_marl/smac_v1/3m/good", "near names: og-marl/og_marl/smac_v1/3m/Good,"),
        ("og-marl/og_marl/flatland/20_trains/UID", "lists no UIDs; put the one you mean in place of UID"),
        ("zzzz", "`macflow dataset list` shows all names"),
    ],
)
def test_a_wrong_name_is_told_with_its_neighbours(name: str, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"^`dataset`: .*{re.escape(told)}.*\(received '{name}'\)$"):
        dataset_named(name)


@settings(deadline=None)
@given(st.text())
def test_any_other_text_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"(received {name!r})")):
        dataset_named(name)


def test_measured_figures_are_of_what_is_recorded() -> None:
    known = all_datasets()
    facts = read_facts()
    assert "mpe-spread/medium" in facts
    for name, found in facts.items():
        entry = known[name]
        assert isinstance(entry, RecordedDataset)
        assert found["episodes"] == entry.episodes
        assert found["transitions"] >= found["episodes"]
        assert found["bytes"] > found["transitions"]
        assert found["command"] == f"python tools/measure_datasets.py {name}"
    assert FACTS.suffix == ".json"


def run(*arguments: str) -> str:
    found = CliRunner().invoke(cli.app, ["dataset", *arguments], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stdout


def test_the_list_has_every_name_and_what_is_known() -> None:
    found = {entry["name"]: entry for entry in json.loads(run("list", "--json"))}
    assert list(found) == list(all_datasets())
    measured = read_facts()["mpe-spread/medium"]
    medium = found["mpe-spread/medium"]
    assert medium["return_mean"] == measured["return_mean"]
    assert 40 < medium["normalized_return"] < 60
    assert found["game-xor/random"]["missing"] is None
    assert found["og-marl/omar/mpe/simple_spread/Expert"]["env"] is None
    assert "OMAR" in found["og-marl/omar/mpe/simple_spread/Expert"]["no_env"]
    text = run("list")
    assert all(name in text for name in found)
    line = next(line for line in text.splitlines() if line.startswith("mpe-spread/medium "))
    assert line.split() == [
        "mpe-spread/medium", "4,000", "100,000", f"{measured['bytes'] / 1e6:.1f}",
        f"{measured['return_mean']:.2f}", f"({medium['normalized_return']:.0f})",
    ]  # fmt: skip


def test_what_is_not_installed_is_told_once_or_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    entries = describe_datasets(available=False)
    text = listing_text(entries)
    assert text.count("tensorstore is not installed") == 1
    number = re.search(r"^(\[\d+\]) tensorstore", text, re.MULTILINE)
    assert number is not None
    line = next(
        line for line in text.splitlines() if line.startswith("og-marl/omar/mpe/simple_spread/Expert")
    )
    assert line.endswith(number[1])
    left = {entry["name"] for entry in describe_datasets(available=True)}
    assert "game-xor/mixed" in left
    assert not any(name.startswith(("og-marl/", "mamujoco-")) for name in left)


def test_a_published_dataset_is_not_recorded(tmp_path: Path) -> None:
    wanted = (
        f"macflow dataset import og-marl/og_marl/smac_v1/3m --from og-marl --uid Good --to {tmp_path / 'new'}"
    )
    with pytest.raises(ConfigError, match=re.escape(wanted)):
        run("record", "og-marl/og_marl/smac_v1/3m/Good", "--out", str(tmp_path / "new"))


def place_archive(downloads: Path, vault: Path, source: str) -> Path:
    """Put a vault where its download would be."""
    target = downloads / source
    target.parent.mkdir(parents=True)
    return Path(shutil.make_archive(str(target), "zip", vault.parent, vault.name))


def arguments(folder: Path, dataset: Any, **changed: Any) -> Namespace:
    params = {"dataset": dataset, "record": {"kwargs": {}, "episodes": None, "seed": 0, **changed}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return Namespace(
        params=folder / "params.yaml", out=folder / "data/raw", metrics=folder / "metrics/record.json"
    )


PUBLISHED = "og-marl/omar/mpe/simple_spread/Expert"


@pytest.mark.parametrize(
    ("dataset", "changed", "told"),
    [
        (["a"], {}, r"params\.yaml: `dataset`: Input should be a valid string \(received \['a'\]\)"),
        ("", {}, r"params\.yaml: `dataset`: String should have at least 1 character \(received ''\)"),
        ("game-xor/a", {}, r"`dataset`: .*near names: game-xor/mixed"),
        ("game-xor/mixed", {"kwargs": {"a": 3}}, r"`kwargs`: game/xor takes no keyword \(received a\)"),
        ("game-xor/mixed", {"episodes": 0}, r"`record\.episodes`: .*greater than 0 \(received 0\)"),
        (
            PUBLISHED,
            {"kwargs": {"a": 3}},
            r"`record\.kwargs`: must be \{\}, since .* \(received \{'a': 3\}\)",
        ),
        (PUBLISHED, {"episodes": 5}, r"`record\.episodes`: must be null, since .* \(received 5\)"),
    ],
)
def test_wrong_parameters_are_refused(
    tmp_path: Path, dataset: Any, changed: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        record.main(arguments(tmp_path, dataset, **changed))
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_the_catalogue_says_how_many_episodes_there_are(tmp_path: Path) -> None:
    record.main(arguments(tmp_path, "game-xor/mixed"))
    metrics = json.loads((tmp_path / "metrics/record.json").read_text())
    assert (metrics["episodes"], metrics["transitions"]) == (4000, 4000)
    assert metrics["normalized_return"] == 100.0


def test_a_published_dataset_is_imported_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorstore", reason="extra `vaults`")
    monkeypatch.chdir(tmp_path)
    name = "og-marl/omar/mpe/simple_spread"
    place_archive(Path("data/downloads"), VAULTS / "synthetic/mpe/spread_toy.vlt", name)
    record.main(arguments(tmp_path, f"{name}/Medium"))
    episodes, spec, meta = read_minari(tmp_path / "data/raw")
    assert (meta["behaviour"]["name"], meta["behaviour"]["uid"], meta["env"]) == (name, "Medium", None)
    metrics = json.loads((tmp_path / "metrics/record.json").read_text())
    assert metrics["episodes"] == len(episodes)
    assert metrics["normalized_return"] is None
    assert spec.n_agents > 1
    printed = capsys.readouterr().out
    assert "record: no environment to evaluate in: OMAR's own variant" in printed
    assert f"{len(episodes)} episodes of {name}/Medium" in printed

    before = digest(tmp_path / "data/raw")
    with pytest.raises((ConfigError, DataError), match="Expert"):
        record.main(arguments(tmp_path, f"{name}/Random"))
    assert digest(tmp_path / "data/raw") == before
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["downloads", "raw"]


def test_published_data_that_the_environment_cannot_have_made_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorstore", reason="extra `vaults`")
    pytest.importorskip("gymnasium_robotics", reason="extra `mujoco`")
    monkeypatch.chdir(tmp_path)
    name = "og-marl/og_marl/gymnasium_mamujoco/2ant"
    vault = tmp_path / "2ant.vlt"
    shutil.copytree(VAULTS / "synthetic/mpe/spread_toy.vlt/Medium", vault / "Replay")
    place_archive(Path("data/downloads"), vault, name)
    with pytest.raises(DataError, match=f"{name}/Replay: .*mamujoco/ant-2x4 did not make these data"):
        record.main(arguments(tmp_path, f"{name}/Replay"))
    assert not (tmp_path / "data/raw").exists()
