"""The benchmarks' own machinery: what a study shares, repeats, gives a baseline, and says of its results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import coverage
import finetuning
import study
from macflow.files import read_json
from macflow.types import ConfigError
from workspace import ROOT, make_workspace

TINY: dict[str, Any] = {
    "record": {"episodes": 20},
    "flow": {"hidden": [8], "steps": 4, "batch_size": 8, "euler_steps": 2},
    "teacher": {"samples": 1},
    "critic": {"hidden": [8], "steps": 4, "batch_size": 8},
    "distill": {"hidden": [8], "steps": 4, "batch_size": 8, "diagnose_every": 4},
    "evaluate": {"episodes": 4, "n_envs": 4},
    "diagnose": {"states": 4, "samples": 4},
}


def params(variant: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    return study.params_of({"params": {}}, "mpe-spread/medium", variant, seed, 7)


def keys(variant: dict[str, Any], seed: int = 0) -> dict[str, str]:
    return {
        stage: study.PIPELINE.key(stage, params(variant, seed))
        for stage in study.PIPELINE.stages
        if stage != "report"
    }


@pytest.mark.parametrize(
    ("variant", "seed", "anew"),
    [
        ({}, 0, set()),
        ({"distill": {"alpha": 7.0}}, 0, {"distill", "evaluate", "diagnose"}),
        ({"diagnose": {"q_collapse_ratio": 9.0}}, 0, {"diagnose"}),
        ({"critic": {"mixer": "none"}}, 0, {"train_critic", "distill", "evaluate", "diagnose"}),
        ({}, 1, {"train_flow", "teacher", "train_critic", "distill", "evaluate", "diagnose"}),
        ({"record": {"seed": 5}}, 0, set(study.PIPELINE.stages) - {"report"}),
    ],
)
def test_only_what_follows_from_a_change_is_run_anew(
    variant: dict[str, Any], seed: int, anew: set[str]
) -> None:
    before, after = keys({}), keys(variant, seed)
    if "distill" in anew:
        anew = anew | {"finetune", "evaluate_finetuned", "report_finetuned"}
    assert {stage for stage in before if before[stage] != after[stage]} == anew


def test_a_baseline_sees_as_many_transitions_as_the_three_trainings() -> None:
    given = params({"flow": {"steps": 3, "batch_size": 10}, "critic": {"steps": 2, "batch_size": 5}})
    given["distill"] |= {"steps": 1, "batch_size": 1}
    given["critic"] |= {"discount": 0.8, "polyak_tau": 0.5}
    peers = {"batch_size": 4, "learning_rate": 0.1, "hidden": "8"}
    found = study.peer_arguments(peers, {"method": "macql", "settings": {"alpha": 2}}, given)
    assert found["training"]["steps"] == 11  # 41 transitions in batches of 4
    assert found["training"]["hidden"] == "8"
    assert found["settings"] == {"discount": 0.8, "polyak_tau": 0.5, "alpha": 2}
    assert study.peer_arguments(peers, {"method": "bc"}, given)["settings"] == {}


def test_a_study_runs_tabulates_draws_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "study.yaml"
    content = {
        "datasets": ["game-landmark/expert"],
        "params": TINY,
        "peers": {"batch_size": 8, "learning_rate": 0.001, "hidden": "8"},
        "variants": {
            "all": {},
            "alpha 0": {"distill": {"alpha": 0.0}},
            "best": {"grid": [{"distill": {"alpha": 0.0}}, {"distill": {"alpha": 0.03}}]},
            "cloned": {
                "baseline": {"method": "bc"},
                "grid": [{"baseline": {"settings": {"acting": "sample"}}}],
            },
        },
    }
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    command = ["study.py", str(file), "--seeds", "0", "--jobs", "1", "--workspace", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", [*command, "--picture", str(tmp_path / "study.png")])
    study.main()
    printed = capfd.readouterr().out
    made = [folder.name.rsplit("-", 1)[0] for folder in (tmp_path / "work").iterdir() if folder.is_dir()]
    assert sorted(made) == [
        "bc", *["diagnose"] * 2, *["distill"] * 2, *["evaluate"] * 4,
        "play", "prepare", "record", "teacher", "train_critic", "train_flow",
    ]  # fmt: skip
    results = read_json(tmp_path / "work/results.json")["game-landmark/expert"]
    assert list(results) == list(content["variants"])  # type: ignore[call-overload]
    tried = {
        yaml.safe_load((folder / "params.yaml").read_text())["distill"]["alpha"]: read_json(
            folder / "metrics/evaluate.json"
        )["policy"]["return_mean"]
        for folder in (tmp_path / "work").glob("evaluate-*")
        if yaml.safe_load((folder / "params.yaml").read_text())["evaluate"]["seed"] == study.CHOICE_SEED
    }
    assert tried[results["best"]["0"]["change"]["distill"]["alpha"]] == max(tried.values())
    assert results["cloned"]["0"]["change"]["baseline"]["settings"] == {"acting": "sample"}
    mean = results["alpha 0"]["0"]["return"]
    assert f"| alpha 0 | {mean:.2f} | {mean - results['all']['0']['return']:.2f} |" in printed
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")
    study.main()
    assert "==" not in capfd.readouterr().out


def test_a_study_of_fine_tuning_judges_the_last_policies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tune = {"env_steps": 60, "n_envs": 2, "warm_up": 0, "batch_size": 8, "evaluate_every": 20}
    changed = {"change": {"after": 20, "kwargs": {"max_cycles": 4}, "forget": False}}
    content = {
        "measures": "finetuning",
        "datasets": ["game-landmark/expert"],
        "params": TINY | {"finetune": tune | {"evaluate_episodes": 4}},
        "variants": {"all": {}, "changed": {"finetune": changed}},
    }
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    command = ["study.py", str(file), "--seeds", "0", "--jobs", "1", "--workspace", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", [*command, "--picture", str(tmp_path / "study.png")])
    study.main()
    printed = capfd.readouterr().out
    run = read_json(tmp_path / "work/results.json")["game-landmark/expert"]["changed"]["0"]
    folders = {folder.name.rsplit("-", 1)[0]: folder for folder in (tmp_path / "work").glob("*-*")}
    assert {"distill", "finetune", "evaluate_finetuned"} <= folders.keys()
    judged = [
        read_json(folder / "metrics/evaluate_finetuned.json")["last"]["return_mean"]
        for folder in (tmp_path / "work").glob("evaluate_finetuned-*")
    ]
    assert run["return"] in judged
    assert [row["changed"] for row in run["curve"]] == [0, 0, 1, 1, 1]
    assert f"| changed | {run['offline']:.2f} | {run['return']:.2f} |" in printed
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")


def test_steps_are_counted_to_a_goal_and_falls_from_where_a_run_began() -> None:
    curve = [
        {"env_steps": steps, "changed": steps > 20, "return_mean": mean, "return_ci95_low": mean - 1}
        for steps, mean in ((0, 5.0), (10, 3.5), (20, 6.0), (30, 0.0), (40, 8.0))
    ]
    run = {"curve": curve, "offline": 5.0, "return": 8.0, "reference": {"random": 0.0, "expert": 11.0}}
    assert finetuning.reached(run, 6.0) == "20"
    assert finetuning.reached(run, 9.0) == "> 40"
    assert finetuning.dip(run) == -0.5
    assert finetuning.way(run) == 0.5


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (["--variants", "al"], "`--variants`: must be of all (received 'al')"),
        (["--datasets", "mpe-spread/mediun"], "'mpe-spread/mediun'"),
        (["--set", "distill: {alpha: -1}"], "`distill.alpha`"),
    ],
)
def test_a_study_refuses_what_cannot_run_before_it_runs(
    change: list[str],
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({"datasets": ["game-xor/mixed"], "variants": {"all": {}}}))
    monkeypatch.setattr(sys, "argv", ["study.py", str(file), "--workspace", str(tmp_path / "work"), *change])
    with pytest.raises(SystemExit) as ended:
        study.main()
    assert ended.value.code == 2
    assert part in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    "file", sorted((ROOT / "benchmarks/studies").glob("*.yaml")), ids=lambda file: file.stem
)
def test_every_study_of_the_repository_can_run(file: Path) -> None:
    content = yaml.safe_load(file.read_text())
    study.check(content, content["datasets"], list(content["variants"]), [0])


def test_a_grid_is_not_judged_on_the_episodes_that_choose_from_it() -> None:
    content = {
        "params": {"evaluate": {"seed": 3}},
        "variants": {"best": {"grid": [{}, {"flow": {"steps": 1}}]}},
    }
    with pytest.raises(ConfigError, match=r"`params\.evaluate\.seed`: .*\(received 3\)"):
        study.check(content, ["mpe-spread/medium"], ["best"], [0])
    study.check(content | {"params": {}}, ["mpe-spread/medium"], ["best"], [0])


def test_data_of_ones_own_are_not_recorded() -> None:
    given = params({"prepare": {"raw": "/somewhere/mine"}})
    assert study.PIPELINE.inputs("prepare", given) == {}
    assert study.PIPELINE.inputs("prepare", params({})) == {"data/raw": "record"}


def test_subsets_are_what_their_names_say() -> None:
    rng = np.random.default_rng(3)
    features, returns = rng.standard_normal((40, 3)), rng.standard_normal(40)
    found = coverage.subsets(features, returns, 10, 0)
    assert list(found) == ["random", "worst", "best", "narrow", "broad"]
    for name, picks in found.items():
        assert len(set(picks.tolist())) == 10, name
    apart = np.linalg.norm(features[:, None] - features[None], axis=-1)
    centre = found["broad"][0]
    assert set(found["narrow"]) == set(np.argsort(apart[centre])[:10])
    assert set(found["best"]) == set(np.argsort(returns)[-10:])
    assert set(found["worst"]) == set(np.argsort(returns)[:10])
    for position in range(1, 10):
        to_chosen = apart[:, found["broad"][:position]].min(axis=1)
        assert to_chosen[found["broad"][position]] == to_chosen.max()


def test_ranks_share_ties_and_count_what_all_datasets_have() -> None:
    def runs(**means: float) -> dict[str, Any]:
        return {name: {"0": {"return": mean}} for name, mean in means.items()}

    order = ["bc", "omiga", "macql"]
    both = {"a": runs(bc=1.0, omiga=2.0, macql=0.0), "b": runs(bc=3, omiga=3, macql=1)}
    assert study.mean_ranks(both, order) == {"bc": 1.75, "omiga": 1.25, "macql": 3.0}
    partial = {"a": runs(bc=1.0, omiga=2.0, macql=0.0), "b": runs(macql=3, bc=1)}
    assert study.mean_ranks(partial, order) == {"bc": 1.5, "macql": 1.5}


def test_a_run_with_other_parameters_does_not_pass_for_the_one_asked_for(tmp_path: Path) -> None:
    for _ in range(2):
        make_workspace(tmp_path / "run", {"distill": {"alpha": 1.0}})
    before = (tmp_path / "run/params.yaml").read_bytes()
    with pytest.raises(FileExistsError, match=r"run/params\.yaml: of a run with other parameters"):
        make_workspace(tmp_path / "run", {"distill": {"alpha": 2.0}})
    assert (tmp_path / "run/params.yaml").read_bytes() == before
