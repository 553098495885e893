"""Small datasets for tests: random ones, and recorded ones."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np

from macflow.data.episode import Episode
from macflow.data.prepared import write_prepared
from macflow.data.record import record_episodes
from macflow.data.rows import stack_episodes
from macflow.envs.registry import full_kwargs, make_behaviour, make_env
from macflow.types import MultiAgentSpec

ENV = {"id": "mpe/spread", "kwargs": {"n_agents": 2}, "version": "1"}


def make_spec(discrete: bool = False, agents: int = 2, obs: int = 4, actions: int = 3) -> MultiAgentSpec:
    return MultiAgentSpec(
        agent_ids=tuple(f"agent_{i}" for i in range(agents)),
        obs_dims=(obs,) * agents,
        state_size=agents * obs,
        action_kind="discrete" if discrete else "continuous",
        action_size=actions,
        action_low=(-1.0,) * actions,
        action_high=(1.0,) * actions,
    )


def make_episodes(spec: MultiAgentSpec, lengths: list[int], seed: int = 0) -> list[Episode]:
    """Return random episodes that meet every expectation; every second one terminates."""
    random = np.random.default_rng(seed)
    n, size = spec.n_agents, spec.action_size
    episodes = []
    for index, length in enumerate(lengths):
        ends = np.zeros(length, np.bool_)
        ends[-1:] = True
        actions = random.integers(0, size, (length, n))
        legal = None
        if spec.discrete:
            legal = random.random((length + 1, n, size)) < 0.5
            np.put_along_axis(legal[:-1], actions[:, :, None], True, axis=2)
        episodes.append(
            Episode(
                obs=random.standard_normal((length + 1, n, spec.obs_size), np.float32),
                state=random.standard_normal((length + 1, spec.state_size), np.float32),
                actions=actions
                if spec.discrete
                else random.uniform(-1, 1, (length, n, size)).astype(np.float32),
                rewards=random.standard_normal((length, n), np.float32),
                terminated=ends if index % 2 else np.zeros_like(ends),
                truncated=np.zeros_like(ends) if index % 2 else ends,
                legal_actions=legal,
                seed=100 + index,
            )
        )
    return episodes


def assert_same_episodes(left: list[Episode], right: list[Episode]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.seed == other.seed
        for name in ("obs", "state", "actions", "rewards", "terminated", "truncated", "legal_actions"):
            a, b = getattr(one, name), getattr(other, name)
            if a is None:
                assert b is None
            else:
                assert a.dtype == b.dtype, name
                np.testing.assert_array_equal(a, b, err_msg=name)


def prepare_recorded(folder: Path, env_id: str, behaviour: str, episodes: int) -> None:
    """Record episodes of an environment's behaviour and write them as a prepared dataset."""
    kwargs = full_kwargs(env_id, {})
    with closing(make_env(env_id, kwargs, episodes)) as env:
        recorded = record_episodes(env, make_behaviour(env_id, kwargs, behaviour), episodes, seed=0)
        spec = env.spec
    write_prepared(
        folder,
        stack_episodes(recorded, spec),
        spec,
        env={"id": env_id, "kwargs": kwargs, "version": "1"},
        source={"kind": "minari", "behaviour": {"name": behaviour}},
        made_from={},
        params={},
    )
