"""The policy bundle: round trip, decentralised acting, noise streams, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import macflow
from macflow.actions import decode_actions, encode_actions
from macflow.data.normalizer import Normalizer
from macflow.nets.critic import AgentValues, OwnValues
from macflow.nets.policy import Noise, Sharing
from macflow.policy import Acting, EpisodeNoise, Policy, build_policy, load_policy, save_policy
from macflow.types import BatchObs, DataError, MultiAgentSpec


def make_spec(discrete: bool) -> MultiAgentSpec:
    a = 3 if discrete else 2
    return MultiAgentSpec(
        agent_ids=("left", "right"),
        obs_dims=(3, 4),
        state_size=2,
        action_kind="discrete" if discrete else "continuous",
        action_size=a,
        action_low=(-1.0,) * a if discrete else (-2.0, 0.0),
        action_high=(1.0,) * a if discrete else (2.0, 1.0),
    )


def write_bundle(
    folder: Path,
    discrete: bool = False,
    sharing: Sharing = "shared",
    noise: Noise = "individual",
    acting_noise: float = 1.0,
    best_of: int = 1,
) -> Policy:
    spec = make_spec(discrete)
    g = torch.Generator().manual_seed(0)
    rng = np.random.default_rng(0)
    normalizer = Normalizer.from_dict(
        {
            "obs_mean": rng.normal(size=(2, 4)).tolist(),
            "obs_std": rng.uniform(0.5, 2, size=(2, 4)).tolist(),
            "state_mean": [0.0, 0.0],
            "state_std": [1.0, 1.0],
            "reward_scale": 1.0,
        }
    )
    net = build_policy(spec, sharing, noise, [16], g)
    values = None
    if best_of > 1:
        values = OwnValues(AgentValues(2, 4, spec.action_size, discrete, 2, [16], g), "min")
    folder.mkdir(exist_ok=True)
    save_policy(
        folder,
        spec,
        normalizer,
        net,
        Acting(acting_noise, best_of),
        values,
        {"params": {"distill": {"sharing": sharing, "hidden": [16]}}, "env": {}},
    )
    return load_policy(folder, seed=7)


OBS = {"left": [0.1, -0.2, 0.3], "right": [0.1, 0.2, -0.3, 0.4]}


def observed() -> torch.Tensor:
    """Return `OBS` as one row (1, N, O)."""
    rows = torch.zeros(1, 2, 4)
    rows[0, 0, :3], rows[0, 1] = torch.tensor(OBS["left"]), torch.tensor(OBS["right"])
    return rows


@pytest.mark.parametrize("noise", ["individual", "common"])
@pytest.mark.parametrize("sharing", ["shared", "separate"])
@pytest.mark.parametrize("discrete", [False, True])
def test_acting_alone_equals_acting_together(
    tmp_path: Path, discrete: bool, sharing: Sharing, noise: Noise
) -> None:
    together = write_bundle(tmp_path, discrete, sharing, noise)
    apart = load_policy(tmp_path, seed=7)
    for _ in range(3):
        joint = together.act(OBS)
        alone = {agent: apart.agent(agent).act(obs) for agent, obs in reversed(OBS.items())}
        for agent in OBS:
            np.testing.assert_allclose(joint[agent], alone[agent], atol=1e-6)


@pytest.mark.parametrize("noise", ["individual", "common"])
def test_agents_that_have_acted_unequally_often_still_draw_by_their_own_count(
    tmp_path: Path, noise: Noise
) -> None:
    policy = write_bundle(tmp_path, noise=noise)
    plain = [policy.act(OBS) for _ in range(3)]
    policy.seed(7)
    policy.act({"left": OBS["left"]})
    mixed = [policy.act(OBS) for _ in range(2)]
    np.testing.assert_array_equal([a["left"] for a in mixed], [a["left"] for a in plain[1:]])
    np.testing.assert_array_equal([a["right"] for a in mixed], [a["right"] for a in plain[:2]])


@pytest.mark.parametrize("noise", ["individual", "common"])
def test_an_agent_that_joins_late_draws_as_if_it_had_been_there(tmp_path: Path, noise: Noise) -> None:
    policy = write_bundle(tmp_path, noise=noise)
    whole = [policy.act(OBS)["left"] for _ in range(4)]
    late = load_policy(tmp_path, seed=0)
    late.seed(7, step=2)
    np.testing.assert_array_equal(whole[2:], [late.agent("left").act(OBS["left"]) for _ in range(2)])
    with pytest.raises(ValueError, match="`step` must be 0 or more, received -1"):
        late.seed(7, step=-1)


def test_actions_lie_within_the_environments_bounds_and_vary(tmp_path: Path) -> None:
    policy = write_bundle(tmp_path)
    with torch.no_grad():
        policy.net.net.head.weight.mul_(8)
    actions = np.stack([policy.act(OBS)["right"] for _ in range(50)])
    assert actions.dtype == np.float32
    assert (actions >= [-2.0, 0.0]).all()
    assert (actions <= [2.0, 1.0]).all()
    assert (actions.std(axis=0) > 0).all()


def test_one_agents_action_ignores_the_others_observation(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    a = load_policy(tmp_path).act(OBS)["left"]
    b = load_policy(tmp_path).act(OBS | {"right": [9.0, 9.0, 9.0, 9.0]})["left"]
    np.testing.assert_array_equal(a, b)


def test_illegal_actions_are_never_taken(tmp_path: Path) -> None:
    policy = write_bundle(tmp_path, discrete=True)
    legal = {"left": [False, True, False], "right": [True, False, True]}
    for _ in range(30):
        actions = policy.act(OBS, legal)
        assert actions["left"] == 1
        assert actions["right"] in (0, 2)


def test_noise_of_illegal_actions_changes_nothing(tmp_path: Path) -> None:
    policy = write_bundle(tmp_path, discrete=True)
    obs = torch.zeros(1, 2, 4)
    legal = torch.tensor([[[False, True, True], [True, True, True]]])
    noise = torch.ones(1, 2, 3)
    changed = noise.clone()
    changed[0, 0, 0] = 9.0
    assert torch.equal(policy.sample(obs, noise, legal), policy.sample(obs, changed, legal))
    changed[0, 0, 1] = 9.0
    assert not torch.equal(policy.sample(obs, noise, legal), policy.sample(obs, changed, legal))


@pytest.mark.parametrize("noise", ["individual", "common"])
def test_without_acting_noise_there_is_no_chance_in_acting(tmp_path: Path, noise: Noise) -> None:
    policy = write_bundle(tmp_path, noise=noise, acting_noise=0.0)
    rows = np.zeros((1, 2, 4), np.float32)
    rows[0, 0, :3], rows[0, 1] = OBS["left"], OBS["right"]
    expected = policy.act_batch(rows, torch.zeros(1, 1, 2, 2), None)[0]
    for _ in range(2):
        np.testing.assert_array_equal(np.stack(list(policy.act(OBS).values())), expected)
    actor = policy.actor()
    actor.reset([3])
    np.testing.assert_array_equal(actor.act(BatchObs(rows, np.zeros((1, 2), np.float32), None))[0], expected)


def test_acting_noise_scales_the_noise(tmp_path: Path) -> None:
    half, whole = (write_bundle(tmp_path / str(scale), acting_noise=scale) for scale in (0.5, 1.0))
    for policy in (half, whole):
        with torch.no_grad():
            # To first order in weights this small, actions move in proportion to the noise.
            policy.net.net.head.weight.mul_(1e-3)
    away = [np.stack([p.act(OBS)["left"] for _ in range(400)]).std(axis=0) for p in (half, whole)]
    np.testing.assert_allclose(away[0], 0.5 * away[1], rtol=0.2)


@pytest.mark.parametrize("discrete", [False, True])
def test_best_of_m_plays_the_draw_that_the_agents_own_critic_values_most(
    tmp_path: Path, discrete: bool
) -> None:
    policy = write_bundle(tmp_path, discrete, best_of=5)
    assert policy.values is not None
    rows = observed()
    legal = torch.tensor([[[True, True, False], [True, True, True]]]) if discrete else None
    shape = (1, 5, 2, policy.spec.action_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    chosen = policy.act_batch(rows.numpy(), noise, None if legal is None else legal.numpy())[0]
    normalised = policy.normalizer.normalize_obs(rows)
    for agent in range(2):
        found = []
        for m in range(5):
            action = policy.sample(rows, noise[:, m], legal)
            if legal is not None:
                action = torch.eye(3)[action.argmax(-1)]
            with torch.no_grad():
                value = float(policy.values.agents(normalised, action).amin(0)[0, agent])
            found.append((value, decode_actions(policy.spec, action)[0][agent]))
        np.testing.assert_allclose(chosen[agent], max(found, key=lambda pair: pair[0])[1], atol=1e-6)


@pytest.mark.parametrize("discrete", [False, True])
def test_best_of_m_alone_equals_together_and_raises_the_value(tmp_path: Path, discrete: bool) -> None:
    together = write_bundle(tmp_path / "chosen", discrete, best_of=8)
    apart = load_policy(tmp_path / "chosen", seed=7)
    plain = write_bundle(tmp_path / "plain", discrete)
    assert together.values is not None
    assert plain.values is None
    normalised = together.normalizer.normalize_obs(observed())
    gained = []
    for _ in range(20):
        joint = together.act(OBS)
        alone = {agent: apart.agent(agent).act(obs) for agent, obs in reversed(OBS.items())}
        for agent in OBS:
            np.testing.assert_allclose(joint[agent], alone[agent], atol=1e-6)
        values = []
        for actions in (joint, plain.act(OBS)):
            played = torch.from_numpy(np.stack([np.asarray(actions[agent]) for agent in OBS])[None])
            with torch.no_grad():
                values.append(together.values(normalised, encode_actions(together.spec, played)))
        gained.append((values[0] - values[1]).numpy())
    # Of the eight draws the first is the plain policy's.
    assert np.min(gained) > -1e-6
    assert np.max(gained) > 0


@pytest.mark.parametrize(
    ("acting", "said"),
    [
        ({"noise": 1.5, "best_of": 1}, r"`acting.noise` must lie in \[0, 1\], received 1.5"),
        ({"noise": 1.0, "best_of": 0}, "`acting.best_of` must be 1 or more, received 0"),
        ({"noise": 1.0}, "best_of"),
    ],
)
def test_impossible_acting_is_refused(tmp_path: Path, acting: dict[str, float], said: str) -> None:
    write_bundle(tmp_path)
    manifest = tmp_path / "policy.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"acting": acting}))
    with pytest.raises(DataError, match=said):
        load_policy(tmp_path)


def test_seed_fixes_the_actions(tmp_path: Path) -> None:
    policy = write_bundle(tmp_path)
    first = [policy.act(OBS)["left"] for _ in range(3)]
    policy.seed(7)
    np.testing.assert_array_equal(first, [policy.act(OBS)["left"] for _ in range(3)])
    policy.seed(8)
    assert not np.array_equal(first[0], policy.act(OBS)["left"])


def test_episode_noise_depends_on_the_episodes_seed_alone() -> None:
    spec = make_spec(False)
    together, apart = EpisodeNoise(spec), EpisodeNoise(spec)
    together.reset([3, 4, 5])
    apart.reset([4])
    for _ in range(2):
        torch.testing.assert_close(together.draw()[1], apart.draw()[0])


@pytest.mark.parametrize(
    ("obs", "legal", "message"),
    [
        ({"middle": [0.0]}, None, r"agent id must be one of \['left', 'right'\], received 'middle'"),
        ({"left": [0.0]}, None, r"observation of 'left' must have shape \(3,\), received \(1,\)"),
        ({"left": [0.0, float("nan"), 0.0]}, None, "observation of 'left' must be finite"),
        ({"left": [0.0, 0.0, 0.0]}, {"left": [False] * 3}, "legal actions of 'left' must be 3 flags"),
    ],
)
def test_bad_input_is_refused_by_name(
    tmp_path: Path, obs: dict[str, list[float]], legal: dict[str, list[bool]] | None, message: str
) -> None:
    policy = write_bundle(tmp_path, discrete=True)
    with pytest.raises(ValueError, match=message):
        policy.act(obs, legal)


def test_unknown_agent_is_refused_before_it_acts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="received 'middle'"):
        write_bundle(tmp_path).agent("middle")


@pytest.mark.parametrize(
    "damage", ["no manifest", "no weights", "bad json", "other version", "other noise", "other weights"]
)
def test_damaged_bundles_are_refused_by_file(tmp_path: Path, damage: str) -> None:
    write_bundle(tmp_path)
    manifest, weights = tmp_path / "policy.json", tmp_path / "policy.safetensors"
    if damage == "no manifest":
        manifest.unlink()
    elif damage == "no weights":
        weights.unlink()
    elif damage == "bad json":
        manifest.write_text("{")
    elif damage == "other version":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema_version": 99}))
    elif damage == "other noise":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"noise": "pink"}))
    else:
        weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"policy\.(json|safetensors)"):
        load_policy(tmp_path)


def test_the_package_offers_load_policy(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    assert macflow.load_policy(tmp_path).spec == make_spec(False)
