"""The stages `evaluate` and `diagnose` on complete, untrained artifacts of two small games."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from stage_workspace import arguments, change, digests, make_workspace

from macflow.config import DiagnoseParams, load_section
from macflow.data.prepared import load_prepared, write_prepared
from macflow.data.record import record_episodes
from macflow.data.rows import stack_episodes
from macflow.data.sampler import TransitionSampler
from macflow.envs.registry import make_behaviour, make_env
from macflow.files import digest, read_json, write_json
from macflow.policy import Acting, load_policy
from macflow.stages import diagnose, distill, evaluate
from macflow.training.artifacts import (
    build_critic,
    followed_critic,
    load_critic,
    load_flow,
    save_critic,
)
from macflow.types import ConfigError, DataError, MacflowError

GAMES = {"game/payoff": "mixed", "game/xor": "mixed"}


@pytest.fixture(scope="module", params=GAMES, ids=str)
def workspace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("workspace"), request.param, GAMES[request.param])


def test_evaluate_writes_what_it_promises(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evaluate.main(arguments(workspace, tmp_path / "a"))
    found = read_json(tmp_path / "a/metrics.json")
    assert set(found) == {
        "env", "episodes", "seed", "reference", "policy", "flow", "behaviour", "random", "dataset",
        "gain_over_dataset",
    }  # fmt: skip
    assert found["gain_over_dataset"] == pytest.approx(
        found["policy"]["normalized_return"] - found["dataset"]["normalized_return"]
    )
    table = pl.read_csv(tmp_path / "a/plots/returns.csv")
    assert table.columns == ["actor", "episode", "return", "length"]
    assert len(table) == 4 * 30
    means = dict(table.group_by("actor").agg(pl.col("return").mean()).iter_rows())
    for name in ("policy", "flow", "behaviour", "random"):
        assert means[name] == pytest.approx(found[name]["return_mean"])
    timings = read_json(tmp_path / "metrics/timings/evaluate.json")
    for name in ("policy", "flow"):
        assert 0 < timings[name]["latency_us_p50"] <= timings[name]["latency_us_p95"]


def test_evaluate_gives_the_same_bytes_and_episodes_do_not_depend_on_their_batch(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        evaluate.main(arguments(workspace, tmp_path / name))
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    params = change(workspace, tmp_path / "params.yaml", "evaluate", n_envs=30)
    evaluate.main(arguments(workspace, tmp_path / "c", params=params))
    few, all_at_once = (pl.read_csv(tmp_path / name / "plots/returns.csv") for name in ("a", "c"))
    # A matrix product of another size may round its last bit elsewhere.
    assert few["return"].to_list() == pytest.approx(all_at_once["return"].to_list(), abs=1e-5)


def test_evaluate_without_a_known_behaviour_leaves_it_out(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = load_prepared(workspace / "data")
    entry = {key: dataset.meta[key] for key in ("env", "made_from", "params")}
    assert dataset.env is not None
    rows = stack_episodes(_episodes(dataset.env["id"]), dataset.spec)
    source = {"kind": "minari", "behaviour": None}
    write_prepared(tmp_path / "data", rows, dataset.spec, source=source, **entry)
    evaluate.main(arguments(workspace, tmp_path / "a", data=tmp_path / "data"))
    assert "behaviour" not in read_json(tmp_path / "a/metrics.json")


def _episodes(env_id: str) -> list[Any]:
    env = make_env(env_id, {}, 10)
    return record_episodes(env, make_behaviour(env_id, {}, "random"), 10, seed=0)


def test_evaluate_refuses_one_episode_and_other_agents(workspace: Path, tmp_path: Path) -> None:
    params = change(workspace, tmp_path / "params.yaml", "evaluate", episodes=1)
    with pytest.raises(ConfigError, match=r"`evaluate\.episodes`: at least 2"):
        evaluate.main(arguments(workspace, tmp_path / "a", params=params))
    data = with_env(workspace, tmp_path / "other", {"id": "game/landmark", "kwargs": {}, "version": "1"})
    with pytest.raises(DataError, match="the policy does not fit game/landmark"):
        evaluate.main(arguments(workspace, tmp_path / "a", data=data))
    assert not (tmp_path / "a").exists()


def with_env(root: Path, to: Path, env: dict[str, Any] | None) -> Path:
    """Copy the dataset; it now says that it comes from `env`."""
    shutil.copytree(root / "data", to)
    write_json(to / "dataset.json", read_json(to / "dataset.json") | {"env": env})
    return to


def test_evaluate_says_how_to_name_an_environment_that_the_data_do_not(
    workspace: Path, tmp_path: Path
) -> None:
    data = with_env(workspace, tmp_path / "nameless", None)
    with pytest.raises(DataError, match=r"nameless: the data name no environment .*import \.\.\. --env ID"):
        evaluate.main(arguments(workspace, tmp_path / "a", data=data))
    data = with_env(workspace, tmp_path / "unknown", {"id": "no/such", "kwargs": {}, "version": None})
    with pytest.raises(ConfigError, match=r"`env`: one of .* \(received 'no/such'\)"):
        evaluate.main(arguments(workspace, tmp_path / "a", data=data))
    assert not (tmp_path / "a").exists()


def test_evaluate_needs_no_state_of_the_environments_size(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evaluate.main(arguments(workspace, tmp_path / "a"))
    other = load_policy(workspace / "policy")
    other.spec = replace(other.spec, state_size=other.spec.state_size + 3)
    monkeypatch.setattr(evaluate, "load_policy", lambda path: other)
    evaluate.main(arguments(workspace, tmp_path / "b"))
    assert read_json(tmp_path / "a/metrics.json") == read_json(tmp_path / "b/metrics.json")


def test_diagnose_writes_what_it_promises_in_the_same_bytes(workspace: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        diagnose.main(arguments(workspace, tmp_path / name))
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    found = read_json(tmp_path / "a/metrics.json")
    assert set(found) == {
        "w2", "w2_sampling", "coupling_bound", "w2_bound_holds", "value_gap", "lipschitz_q",
        "value_gap_bound", "value_gap_bound_holds", "flow_spread", "q_policy", "q_flow", "mutual_information",
        "checks",
    }  # fmt: skip
    assert found["w2_bound_holds"] is True
    assert found["value_gap_bound_holds"] is True
    assert set(found["mutual_information"]) == {"dataset", "flow", "policy"}
    # The behaviour agrees (payoff) or disagrees (xor) on a sign or choice: one bit.
    assert found["mutual_information"]["dataset"] == pytest.approx(0.69, abs=0.15)
    for check in found["checks"].values():
        assert check["raised"] is (check["value"] > check["threshold"])
    modes = pl.read_csv(tmp_path / "a/plots/modes.csv")
    assert modes["state"].n_unique() == 6
    assert modes.group_by("state").agg(pl.col("mass").sum())["mass"].to_list() == pytest.approx([1.0] * 6)
    actions = pl.read_csv(tmp_path / "a/plots/actions.csv")
    assert set(actions["source"]) == {"flow", "policy"}
    information = pl.read_csv(tmp_path / "a/plots/mutual_information.csv")
    assert len(information) == 5


def test_a_signature_to_fail_on_stops_the_pipeline_and_leaves_what_was_measured(
    workspace: Path, tmp_path: Path
) -> None:
    # An untrained policy is as far from the flow as it likes: with this threshold the check is raised.
    settings = {"factorisation_ratio": 1e-6, "q_collapse_ratio": 1e6}
    lenient = change(workspace, tmp_path / "lenient.yaml", "diagnose", fail_on=["q_collapse"], **settings)
    diagnose.main(arguments(workspace, tmp_path / "a", params=lenient))
    strict = change(
        workspace,
        tmp_path / "strict.yaml",
        "diagnose",
        fail_on=["q_collapse", "factorisation_failure"],
        **settings,
    )
    message = r"strict.yaml: `diagnose.fail_on`: factorisation_failure is .*, above its threshold of 1e-06"
    with pytest.raises(MacflowError, match=message):
        diagnose.main(arguments(workspace, tmp_path / "b", params=strict))
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    unknown = change(workspace, tmp_path / "unknown.yaml", "diagnose", fail_on=["q_colapse"])
    with pytest.raises(ConfigError, match=r"`diagnose.fail_on.0`.*received 'q_colapse'"):
        diagnose.main(arguments(workspace, tmp_path / "c", params=unknown))


def distill_arguments(root: Path, params: Path, out: Path, **changed: Path) -> argparse.Namespace:
    made = arguments(root, out.parent / f"{out.name}-numbers", params=params, **changed)
    made.out = out
    return made


@pytest.mark.parametrize("critics", ["frozen", "policy"])
def test_distill_gives_agents_their_own_critics_to_choose_by(
    workspace: Path, critics: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = {"hidden": [16], "steps": 4, "batch_size": 8, "diagnose_every": 4}
    params = change(workspace, tmp_path / "chosen.yaml", "distill", best_of=3, critic=critics, **small)
    distill.main(distill_arguments(workspace, params, tmp_path / "chosen"))
    policy = load_policy(tmp_path / "chosen")
    critic = load_critic(followed_critic(tmp_path / "chosen", workspace / "critic"))
    own = critic.own_values()
    assert policy.acting == Acting(1.0, 3)
    assert policy.values is not None
    assert own is not None
    rows = load_prepared(workspace / "data").obs[:5]
    actions = torch.rand(5, policy.spec.n_agents, policy.spec.action_size)
    torch.testing.assert_close(policy.values(rows, actions), own(rows, actions))
    seen = shutil.copytree(workspace / "critic", tmp_path / "critic")
    for mixer, sees in (("central", "own"), ("mean", "state")):
        generator = torch.Generator().manual_seed(0)
        artifact = replace(critic, critic=build_critic(policy.spec, mixer, sees, 2, (16,), generator))
        kept = {"mixer": mixer, "sees": sees}
        save_critic(seen, artifact, {"params": {"critic": {**critic.params, **kept}}})
        with pytest.raises(ConfigError, match=r"chosen.yaml: `distill.best_of`: .*\(received 3\)"):
            distill.main(distill_arguments(workspace, params, tmp_path / "refused", critic=seen))
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(("noise", "acting_noise"), [("common", 1.0), ("individual", 0.0)])
def test_there_is_nothing_to_choose_among_where_agents_do_not_draw_alone(
    workspace: Path, tmp_path: Path, noise: str, acting_noise: float
) -> None:
    params = change(
        workspace, tmp_path / "p.yaml", "distill", best_of=2, noise=noise, acting_noise=acting_noise
    )
    with pytest.raises(ConfigError, match=r"`distill.best_of`: .*\(received 2\)"):
        distill.main(distill_arguments(workspace, params, tmp_path / "refused"))


SMALL = {"hidden": [16], "steps": 8, "batch_size": 8, "diagnose_every": 8, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def landmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace of episodes with more than one step: next actions count."""
    return make_workspace(tmp_path_factory.mktemp("landmark"), "game/landmark", "expert")


def test_critics_that_went_on_learning_lie_beside_the_policies_and_judge_them(
    landmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = change(landmark, tmp_path / "params.yaml", "distill", critic="policy", best_of=3, **SMALL)
    distill.main(distill_arguments(landmark, params, tmp_path / "policy"))
    assert read_json(tmp_path / "policy/critic/critic.json")["made_from"] == {
        str(landmark / name): digest(landmark / name) for name in ("data", "flow", "teacher", "critic")
    }
    before, after = load_critic(landmark / "critic"), load_critic(tmp_path / "policy/critic")
    assert (after.aggregate, after.discount, after.reward_scale) == ("mean", 0.9, 1.0)
    for old, new in zip(before.critic.parameters(), after.critic.parameters(), strict=True):
        assert not torch.equal(old, new)

    dataset, policy = load_prepared(landmark / "data"), load_policy(tmp_path / "policy")
    own = after.own_values()
    assert own is not None
    assert policy.values is not None
    actions = torch.rand(5, dataset.spec.n_agents, dataset.spec.action_size)
    assert torch.equal(policy.values(dataset.obs[:5], actions), own(dataset.obs[:5], actions))

    sampler = TransitionSampler(dataset, torch.device("cpu"))
    measured = read_json(tmp_path / "policy-numbers/metrics.json")["q_mean"]
    flow, section = load_flow(landmark / "flow"), load_section(params, "diagnose", DiagnoseParams)
    by_old, by_new = (
        distill._observer(policy.net, flow, critic, sampler, section)()["q_policy"]
        for critic in (before, after)
    )
    assert measured == pytest.approx(by_new, rel=1e-5)
    assert measured != pytest.approx(by_old, rel=1e-3)

    bundle = tmp_path / "policy"
    diagnose.main(arguments(landmark, tmp_path / "a", policy=bundle))
    alone = Path(shutil.copytree(bundle, tmp_path / "alone"))
    shutil.rmtree(alone / "critic")
    diagnose.main(arguments(landmark, tmp_path / "b", policy=alone, critic=bundle / "critic"))
    diagnose.main(arguments(landmark, tmp_path / "c", policy=alone))
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert digests(tmp_path / "a") != digests(tmp_path / "c")


def test_frozen_critics_are_not_written_again(
    landmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = change(landmark, tmp_path / "params.yaml", "distill", critic="frozen", **SMALL)
    distill.main(distill_arguments(landmark, params, tmp_path / "policy"))
    assert set(digests(tmp_path / "policy")) == {"policy.json", "policy.safetensors"}


def test_interrupted_with_its_critics_and_resumed_equals_uninterrupted(
    landmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    params = change(landmark, tmp_path / "params.yaml", "distill", critic="policy", **SMALL)
    change(tmp_path, params, "training", checkpoint_every=3)
    distill.main(distill_arguments(landmark, params, tmp_path / "whole"))
    steps = iter(range(8))
    loss = distill.distillation_loss

    def interrupted(*given: Any) -> Any:
        if next(steps) == 4:
            raise KeyboardInterrupt
        return loss(*given)

    with monkeypatch.context() as patch:
        patch.setattr(distill, "distillation_loss", interrupted)
        with pytest.raises(KeyboardInterrupt):
            distill.main(distill_arguments(landmark, params, tmp_path / "resumed"))
    assert not (tmp_path / "resumed").exists()
    distill.main(distill_arguments(landmark, params, tmp_path / "resumed"))
    assert "resumed at step 3 of 8" in capsys.readouterr().out
    for end in ("", "-numbers"):
        assert digests(tmp_path / f"whole{end}") == digests(tmp_path / f"resumed{end}")


def test_critics_do_not_go_on_learning_for_nobody(landmark: Path, tmp_path: Path) -> None:
    params = change(landmark, tmp_path / "p.yaml", "distill", critic="policy", q_term=False)
    with pytest.raises(ConfigError, match=r"p.yaml: `distill.critic`: .*`distill.q_term`.*'policy'"):
        distill.main(distill_arguments(landmark, params, tmp_path / "refused"))


def test_diagnose_refuses_artifacts_of_other_agents(workspace: Path, tmp_path: Path) -> None:
    other = make_workspace(tmp_path / "other", "game/landmark", "expert")
    with pytest.raises(DataError, match="critic: made for other agents"):
        diagnose.main(arguments(workspace, tmp_path / "a", critic=other / "critic"))
    with pytest.raises(DataError, match=r"teacher: has samples for 240 rows, .* has 80"):
        diagnose.main(arguments(workspace, tmp_path / "a", teacher=other / "teacher"))
    assert not (tmp_path / "a").exists()
