"""Fine-tuning: what batches hold, how agents explore, exact resumption, the guard, a changing environment."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from data_samples import assert_same_episodes, make_episodes, make_spec
from safetensors.torch import load_file, save_file
from stage_workspace import PARAMS, arguments, change, digests, make_workspace

from macflow.config import FinetuneParams, load_section
from macflow.data.episode import Episode
from macflow.data.minari_store import read_minari, read_minari_rows
from macflow.data.normalizer import Normalizer
from macflow.data.prepared import load_prepared, write_prepared
from macflow.data.rows import stack_episodes
from macflow.data.sampler import ReplaySampler, TransitionSampler, join_batches
from macflow.envs.registry import make_env
from macflow.evaluation.rollout import rollout
from macflow.files import read_json, write_json
from macflow.policy import Acting, Policy, build_policy, load_policy
from macflow.stages import evaluate_finetuned, finetune, report_finetuned
from macflow.training.exploration import Explorer
from macflow.training.finetuning import Waves
from macflow.types import ActionArray, Batch, BatchObs, ConfigError, DataError

CPU = torch.device("cpu")
# Steps of an episode; three are played at a time.
WORLDS = {"mpe/spread": 25, "mpe/tag": 25, "game/payoff": 1, "game/xor": 1}
WAVES = 4
CASES: dict[str, dict[str, Any]] = {
    "frozen": {},
    "refreshed": {"flow": "refreshed"},
    "scratch": {"start": "scratch", "alpha": 0.0, "alpha_last": 0.0, "offline_fraction": 0.0},
    "window": {"replay_size": 12, "action_noise": 0.4},
}


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("discrete", [False, True])
def test_what_is_played_is_sampled_as_if_it_had_been_recorded(tmp_path: Path, discrete: bool) -> None:
    spec = make_spec(discrete)
    episodes = make_episodes(spec, [3, 1, 5, 2])
    write_prepared(
        tmp_path / "d", stack_episodes(episodes, spec), spec, env=None, source={}, made_from={}, params={}
    )
    dataset = load_prepared(tmp_path / "d")
    whole = TransitionSampler(dataset, CPU)
    replay = ReplaySampler(spec, dataset.normalizer, 100, CPU)
    replay.append(stack_episodes(episodes[:2], spec))
    replay.append(stack_episodes(episodes[2:], spec))
    assert torch.equal(replay.train_rows, whole.train_rows)
    for name in vars(whole.gather(whole.train_rows)):
        one, other = (getattr(s.gather(s.train_rows), name) for s in (whole, replay))
        if one is None:
            assert other is None
        else:
            torch.testing.assert_close(one, other, rtol=0, atol=0, msg=name)


def test_batches_come_from_the_newest_transitions() -> None:
    spec = make_spec()
    episodes = make_episodes(spec, [4, 4, 4])
    rows = stack_episodes(episodes, spec)
    replay = ReplaySampler(spec, Normalizer.fit(rows.obs, rows.state, rows.rewards, rows.train_rows), 6, CPU)
    replay.append(rows)
    drawn = set(replay.sample(500, torch.Generator().manual_seed(0)).rows.tolist())
    assert drawn == set(rows.train_rows[-6:].tolist())
    replay.forget()
    replay.append(stack_episodes(episodes[:1], spec))
    # Rows go on being counted: samples of the flow are found by them.
    assert replay.train_rows.tolist() == [15, 16, 17, 18]


def test_joined_batches_keep_every_transition() -> None:
    spec = make_spec(discrete=True)
    rows = stack_episodes(make_episodes(spec, [5]), spec)
    replay = ReplaySampler(spec, Normalizer.fit(rows.obs, rows.state, rows.rewards, rows.train_rows), 9, CPU)
    replay.append(rows)
    parts = [replay.gather(torch.tensor([0, 1])), replay.gather(torch.tensor([3]))]
    joined = join_batches(parts)
    for name in Batch.__dataclass_fields__:
        assert torch.equal(getattr(joined, name), torch.cat([getattr(part, name) for part in parts]))


def make_policy(discrete: bool) -> Policy:
    spec = make_spec(discrete)
    rows = stack_episodes(make_episodes(spec, [5]), spec)
    normalizer = Normalizer.fit(rows.obs, rows.state, rows.rewards, rows.train_rows)
    net = build_policy(spec, "shared", "individual", (8,), torch.Generator().manual_seed(0))
    return Policy(spec, normalizer, net, Acting(1.0, 1), None, {})


def seen(discrete: bool, episodes: int) -> BatchObs:
    random = np.random.default_rng(1)
    obs = random.standard_normal((episodes, 2, 4), np.float32)
    legal = None
    if discrete:
        legal = random.random((episodes, 2, 3)) < 0.6
        legal[..., 0] = True
    return BatchObs(obs, obs.reshape(episodes, -1), legal)


def explored(policy: Policy, what: BatchObs, action_noise: float) -> tuple[ActionArray, ActionArray]:
    """Return what is done exploring, and what the policies alone would have done."""
    explorer, actor, seeds = Explorer(policy, action_noise), policy.actor(), range(len(what.obs))
    explorer.reset(seeds)
    actor.reset(seeds)
    return explorer.act(what), actor.act(what)


@pytest.mark.parametrize("discrete", [False, True])
def test_without_noise_on_actions_exploring_is_acting(discrete: bool) -> None:
    acted, meant = explored(make_policy(discrete), seen(discrete, 4), 0.0)
    np.testing.assert_array_equal(acted, meant)


def test_noise_has_its_deviation_and_stays_within_bounds() -> None:
    acted, meant = explored(make_policy(False), seen(False, 3000), 0.1)
    inside = np.abs(meant) < 0.5
    assert np.std((acted - meant)[inside]) == pytest.approx(0.1, rel=0.05)
    assert np.abs(acted).max() <= 1


def test_stray_actions_are_legal_and_as_frequent_as_asked() -> None:
    what = seen(True, 3000)
    acted, meant = explored(make_policy(True), what, 0.5)
    assert what.legal_actions is not None
    assert np.take_along_axis(what.legal_actions, acted[:, :, None], axis=2).all()
    free = what.legal_actions.sum(axis=2)
    for count in (2, 3):
        # A uniform legal action is the meant one as often as chance has it.
        strayed = (acted != meant)[free == count].mean()
        assert strayed == pytest.approx(0.5 * (1 - 1 / count), abs=0.04)


@pytest.mark.parametrize("discrete", [False, True])
def test_an_episode_explores_the_same_in_any_batch(discrete: bool) -> None:
    policy, what = make_policy(discrete), seen(discrete, 4)
    explorer = Explorer(policy, 0.5)
    explorer.reset([5, 6, 7, 8])
    together = explorer.act(what)
    explorer.reset([7])
    legal = None if what.legal_actions is None else what.legal_actions[2:3]
    alone = explorer.act(BatchObs(what.obs[2:3], what.state[2:3], legal))
    np.testing.assert_allclose(alone[0], together[2], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("discrete", [False, True])
def test_waves_come_back_as_they_were_played(tmp_path: Path, discrete: bool) -> None:
    spec = make_spec(discrete)
    played = [make_episodes(spec, [2, 3], seed) for seed in range(3)]
    waves = Waves(tmp_path / "w", spec)
    for episodes in played:
        waves.add(episodes)
    again = Waves(tmp_path / "w", spec)
    again.restore(2)
    assert_same_episodes(again.episodes(), [*played[0], *played[1]])
    again.remove()
    assert not (tmp_path / "w").exists()
    with pytest.raises(DataError, match=r"000000.safetensors: not found"):
        Waves(tmp_path / "w", spec).restore(1)


@pytest.fixture(scope="module", params=["mpe/spread", "game/payoff", "game/xor"])
def workspace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("workspace"), request.param)


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("workspace"), "mpe/spread")


def made(root: Path, env_id: str) -> Path:
    return make_workspace(root, env_id, "medium" if env_id == "mpe/spread" else "mixed")


def tune(root: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Path:
    """Run the stage for `WAVES` waves in the folder `out`, which is made where it is not there."""
    wave = 3 * WORLDS[load_prepared(root / "data").meta["env"]["id"]]
    small = {
        "env_steps": WAVES * wave,
        "n_envs": 3,
        "warm_up": wave // 2,
        "batch_size": 8,
        "evaluate_every": wave,
        "evaluate_episodes": 6,
        "updates_per_step": 0.5,
    }
    out.mkdir(exist_ok=True)
    monkeypatch.chdir(out)
    params = change(root, out / "params.yaml", "finetune", **(small | settings))
    params = change(out, params, "training", checkpoint_every=1, log_every=4)
    finetune.main(
        arguments(
            root,
            out,
            params=params,
            online=out / "data/online",
            out=out / "models/finetuned",
            metrics=out / "metrics/finetune.json",
            plots=out / "plots/finetune",
        )
    )
    return out


def interrupt_after(monkeypatch: pytest.MonkeyPatch, waves: int) -> None:
    """Let the stage be interrupted when it is about to play one more wave."""
    play = finetune.record_episodes
    left = iter(range(waves))

    def record(*given: Any) -> Sequence[Episode]:
        if next(left, None) is None:
            raise Interrupted
        return play(*given)

    monkeypatch.setattr(finetune, "record_episodes", record)


@pytest.mark.parametrize("waves", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_interrupted_and_resumed_ends_with_the_same_bytes(
    workspace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: str,
    waves: int,
) -> None:
    whole = tune(workspace, tmp_path / "whole", monkeypatch, **CASES[case])
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, waves)
        with pytest.raises(Interrupted):
            tune(workspace, tmp_path / "parts", patch, **CASES[case])
    assert not (tmp_path / "parts/models").exists()
    parts = tune(workspace, tmp_path / "parts", monkeypatch, **CASES[case])
    assert "resumed at environment step" in capsys.readouterr().out
    assert digests(whole) == digests(parts)
    assert not (parts / ".macflow/checkpoints/finetune").exists()


@pytest.mark.parametrize("forget", [False, True])
@pytest.mark.parametrize("waves", [1, 3])
def test_a_change_survives_an_interruption_on_either_side(
    spread: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: bool, waves: int
) -> None:
    settings = {"change": {"after": 150, "kwargs": {"thrust": -1.0}, "forget": forget}, "warm_up": 0}
    whole = tune(spread, tmp_path / "whole", monkeypatch, **settings)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, waves)
        with pytest.raises(Interrupted):
            tune(spread, tmp_path / "parts", patch, **settings)
    parts = tune(spread, tmp_path / "parts", monkeypatch, **settings)
    assert digests(whole) == digests(parts)


def test_waves_of_another_run_are_not_taken_for_its_own(
    spread: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tune(spread, tmp_path / "whole", monkeypatch)
    out = tmp_path / "parts"
    for waves, settings in ((3, {}), (1, {"seed": 7})):
        with pytest.MonkeyPatch.context() as patch:
            interrupt_after(patch, waves)
            with pytest.raises(Interrupted):
                tune(spread, out, patch, **settings)
    # The first run's checkpoint went when the second, whose waves now lie there, began.
    assert digests(whole) == digests(tune(spread, out, monkeypatch))


def test_steps_and_episodes_are_counted(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tune(workspace, tmp_path / "out", monkeypatch)
    length = WORLDS[load_prepared(workspace / "data").meta["env"]["id"]]
    metrics = read_json(out / "metrics/finetune.json")
    assert metrics["episodes"] == 3 * WAVES
    assert metrics["env_steps"] == 3 * WAVES * length
    assert metrics["updates"] == int(0.5 * (metrics["env_steps"] - 3 * length // 2))
    curve = pl.read_csv(out / "plots/finetune/curve.csv")
    assert curve["step"][-1] == metrics["updates"]
    evaluations = pl.read_csv(out / "plots/finetune/evaluations.csv")
    assert evaluations["env_steps"].to_list() == [3 * length * wave for wave in range(WAVES + 1)]


def test_what_is_played_goes_back_into_the_pipeline(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tune(workspace, tmp_path / "out", monkeypatch)
    spec = load_prepared(workspace / "data").spec
    rows, found, meta = read_minari_rows(out / "data/online")
    assert found == spec
    assert meta["env"]["id"] == load_prepared(workspace / "data").meta["env"]["id"]
    first = load_section(PARAMS, "finetune", FinetuneParams).seed
    assert rows.seeds.tolist() == list(range(first, first + 3 * WAVES))


def test_the_guard_keeps_the_best_and_the_last_stays_beside_it(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Steps so large that returns jump about.
    out = tune(workspace, tmp_path / "out", monkeypatch, learning_rate=0.05)
    rows = pl.read_csv(out / "plots/finetune/evaluations.csv")
    assert rows["kept_return"].to_list() == rows["return_mean"].cum_max().to_list()
    best = rows.row(int(np.argmax(rows["return_mean"].to_numpy())), named=True)
    assert rows["kept_env_steps"][-1] == best["env_steps"]
    where = load_prepared(workspace / "data").meta["env"]
    env = make_env(where["id"], where["kwargs"], 6)
    seed = load_section(PARAMS, "finetune", FinetuneParams).evaluate_seed
    for folder, expected in ((".", rows["kept_return"][-1]), ("last", rows["return_mean"][-1])):
        policy = load_policy(out / "models/finetuned" / folder)
        found = rollout(env, policy.actor(), 6, seed)
        assert found.returns.mean() == pytest.approx(expected, abs=1e-9)


def test_a_start_from_scratch_knows_nothing_of_what_was_learnt_offline(
    spread: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_workspace(tmp_path / "other", "mpe/spread", "medium")
    for file in ("policy/policy.safetensors", "critic/critic.safetensors", "flow/flow.safetensors"):
        save_file({key: 2 * value for key, value in load_file(other / file).items()}, other / file)
    weights = []
    for root in (spread, other):
        out = tune(root, tmp_path / f"from-{root.name}", monkeypatch, **CASES["scratch"])
        weights.append(load_file(out / "models/finetuned/last/policy.safetensors"))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    offline = load_file(spread / "policy/policy.safetensors")
    assert not any(torch.equal(weights[0][key], offline[key]) for key in offline if offline[key].any())


def test_policies_beyond_the_bounds_come_back_without_a_hold_on_the_flow(
    spread: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(spread, tmp_path / "far")
    file = root / "policy/policy.safetensors"
    weights = load_file(file)
    save_file(weights | {"net.head.bias": weights["net.head.bias"] + 5}, file)
    settings = {"alpha": 0.0, "alpha_last": 0.0, "learning_rate": 0.1, "updates_per_step": 0.2}
    out = tune(root, tmp_path / "out", monkeypatch, **settings)
    spec = load_policy(root / "policy").spec
    g = torch.Generator().manual_seed(0)
    obs = torch.randn(50, spec.n_agents, spec.obs_size, generator=g)
    noise = torch.randn(50, spec.n_agents, spec.action_size, generator=g)
    far, near = (
        load_policy(folder).net(obs, noise) for folder in (root / "policy", out / "models/finetuned/last")
    )
    assert far.min() > 3
    assert near.min() < 1.5


def test_recorded_data_have_their_share_of_a_batch(
    spread: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[str, int]] = []
    sample = TransitionSampler.sample

    def counted(self: TransitionSampler, size: int, generator: torch.Generator) -> Batch:
        sizes.append((type(self).__name__, size))
        return sample(self, size, generator)

    monkeypatch.setattr(TransitionSampler, "sample", counted)
    tune(spread, tmp_path / "a", monkeypatch, offline_fraction=0.25)
    assert set(sizes) == {("TransitionSampler", 2), ("ReplaySampler", 6)}
    sizes.clear()
    tune(spread, tmp_path / "b", monkeypatch, offline_fraction=0.0)
    assert set(sizes) == {("ReplaySampler", 8)}


def test_after_a_change_agents_play_and_are_judged_in_the_changed_world(
    spread: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"change": {"after": 150, "kwargs": {"thrust": 0.0}, "forget": False}, "learning_rate": 1e-9}
    out = tune(spread, tmp_path / "out", monkeypatch, **settings)
    rows = pl.read_csv(out / "plots/finetune/evaluations.csv")
    assert rows["changed"].to_list() == [0, 0, 0, 1, 1, 1]
    assert rows["env_steps"].to_list() == [0, 75, 150, 150, 225, 300]
    # Nobody moves without thrust, whatever was learnt; before the change they did.
    assert rows["return_mean"][3:].n_unique() == 1
    assert rows["return_mean"][2] != rows["return_mean"][3]
    # What was kept before is judged again where the agents now are.
    assert rows["kept_return"][3] == rows["return_mean"][3]
    found = read_json(out / "metrics/finetune.json")["change"]
    assert found["env_steps"] == 150
    assert found["return_after"] == rows["return_mean"][3]
    _, _, meta = read_minari_rows(out / "data/online")
    assert meta["env"]["kwargs"]["thrust"] == 0.0
    episodes, _, _ = read_minari(out / "data/online")
    for number, episode in enumerate(episodes):
        env = make_env("mpe/spread", {"thrust": 1.0 if number < 6 else 0.0}, 1)
        env.reset([episode.seed])
        for action, following in zip(episode.actions, episode.obs[1:], strict=True):
            np.testing.assert_array_equal(env.step(action[None]).obs[0], following)


def test_opponents_can_change_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_workspace(tmp_path / "w", "mpe/tag", "medium")
    changed = {"after": 75, "kwargs": {"prey": "random"}, "forget": True}
    out = tune(root, tmp_path / "out", monkeypatch, change=changed)
    rows, _, meta = read_minari_rows(out / "data/online")
    assert meta["env"]["kwargs"]["prey"] == "random"
    # Episodes of the same seeds against the prey named in each half.
    for number, prey in ((0, "flee"), (11, "random")):
        episode = rows.episodes()[number]
        env = make_env("mpe/tag", {"prey": prey}, 1)
        env.reset([episode.seed])
        for action, following in zip(episode.actions, episode.obs[1:], strict=True):
            np.testing.assert_array_equal(env.step(action[None]).obs[0], following)


def test_policies_that_choose_among_actions_keep_critics_to_choose_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_workspace(tmp_path / "w", "mpe/spread", "medium", best_of=3)
    out = tune(root, tmp_path / "out", monkeypatch)
    last = out / "models/finetuned/last"
    values, critic = load_file(last / "values.safetensors"), load_file(last / "critic/critic.safetensors")
    assert values.keys() == {key for key in critic if key.startswith("agents.")}
    assert all(torch.equal(values[key], critic[key]) for key in values)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"warm_up": 400}, ConfigError, r"`finetune.warm_up`: .*must leave a gradient step"),
        ({"updates_per_step": 1e-4}, ConfigError, r"`finetune.warm_up`: .*must leave a gradient step"),
        ({"offline_fraction": 1.0}, ConfigError, r"`finetune.offline_fraction`: .*\(received 1.0\)"),
        (
            {"change": {"after": 10, "kwargs": {"thrst": 1.0}, "forget": False}},
            ConfigError,
            r"mpe/spread takes .* \(received thrst\)",
        ),
        (
            {"change": {"after": 10, "kwargs": {"n_agents": 4}, "forget": False}},
            DataError,
            r"the dataset does not fit mpe/spread .*'n_agents': 4",
        ),
        ({"change": {"after": 10, "kwargs": {}, "forget": False}}, ConfigError, r"`finetune.change.kwargs`"),
        (
            {"change": {"after": 300, "kwargs": {"thrust": 2.0}, "forget": False}},
            ConfigError,
            r"`finetune.change`: .*`after` must be fewer than `finetune.env_steps`",
        ),
    ],
)
def test_bad_settings_are_refused_before_anything_is_played(
    spread: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    interrupt_after(monkeypatch, 0)
    with pytest.raises(error, match=message):
        tune(spread, tmp_path / "out", monkeypatch, **settings)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["params.yaml"]


def test_data_without_an_environment_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = make_workspace(tmp_path / "w", "mpe/spread", "medium")
    meta = read_json(root / "data/dataset.json")
    write_json(root / "data/dataset.json", meta | {"env": None})
    with pytest.raises(DataError, match="name no environment to play in"):
        finetune.main(arguments(root, tmp_path, online=tmp_path / "o"))


@pytest.mark.parametrize("changing", [False, True])
def test_evaluation_and_page_tell_what_came_of_it(
    spread: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changing: bool
) -> None:
    settings = {"change": {"after": 150, "kwargs": {"thrust": 0.5}, "forget": False}} if changing else {}
    out = tune(spread, tmp_path / "out", monkeypatch, **settings)
    metrics = out / "metrics/evaluate_finetuned.json"
    evaluate_finetuned.main(
        argparse.Namespace(
            params=out / "params.yaml",
            data=spread / "data",
            policy=spread / "policy",
            finetuned=out / "models/finetuned",
            metrics=metrics,
            out=out / "plots/evaluate_finetuned",
        )
    )
    found = read_json(metrics)
    params = read_params(out)
    env = make_env("mpe/spread", {"thrust": 0.5} if changing else {}, params["evaluate"]["n_envs"])
    for name, folder in (
        ("offline", spread / "policy"),
        ("kept", out / "models/finetuned"),
        ("last", out / "models/finetuned/last"),
    ):
        played = rollout(env, load_policy(folder).actor(), params["evaluate"]["episodes"], 1000)
        assert found[name]["return_mean"] == pytest.approx(played.returns.mean(), abs=1e-9)
    table = pl.read_csv(out / "plots/evaluate_finetuned/returns.csv")
    assert table["actor"].unique(maintain_order=True).to_list() == ["offline", "last", "kept"]
    page = out / "reports/finetuned.html"
    report_finetuned.main(
        argparse.Namespace(params=out / "params.yaml", out=page, metrics=out / "metrics", plots=out / "plots")
    )
    text = page.read_text()
    assert "Return against environment steps" in text
    assert ("The environment became another after" in text) is changing
    assert page.with_name("machine.js").is_file()
    # Equal inputs, equal page.
    report_finetuned.main(
        argparse.Namespace(
            params=out / "params.yaml", out=out / "again.html", metrics=out / "metrics", plots=out / "plots"
        )
    )
    assert (out / "again.html").read_text() == text


def read_params(out: Path) -> dict[str, Any]:
    params: dict[str, Any] = yaml.safe_load((out / "params.yaml").read_text())
    return params
