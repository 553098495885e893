"""Record whole episodes of an actor in a batch of environments.

Environments are anything with the shape of `Environment`, so nothing here depends on how they are made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from macflow.data.episode import Episode
from macflow.types import ActionArray, Actor, DataError, Environment, Seen, Stepped


def record_episodes(
    env: Environment,
    actor: Actor,
    episodes: int,
    seed: int,
    progress: Callable[[int], object] | None = None,
) -> list[Episode]:
    """Record `episodes` episodes; number i gets seed `seed + i` for environment and actor alike.

    Episodes run in waves of `env.n_envs`, which changes none of them. The arrays that the environment
    and the actor return are kept, not copied, so they must be new at every step. `progress` is told
    the number of episodes that each wave added.

    Raises:
        DataError: where `episodes` is not positive, or an episode outlives `env.max_steps`.
    """
    if episodes < 1:
        raise DataError(f"`episodes`: at least 1 (received {episodes})")
    recorded: list[Episode] = []
    while len(recorded) < episodes:
        wave = _wave(env, actor, seed + len(recorded))[: episodes - len(recorded)]
        recorded += wave
        if progress is not None:
            progress(len(wave))
    return recorded


def _wave(env: Environment, actor: Actor, first_seed: int) -> list[Episode]:
    seeds = range(first_seed, first_seed + env.n_envs)
    actor.reset(seeds)
    seen: list[Seen] = [env.reset(seeds)]
    steps: list[Stepped] = []
    actions: list[ActionArray] = []
    running = np.ones(env.n_envs, np.bool_)
    lengths = np.zeros(env.n_envs, np.int64)
    while running.any():
        if len(steps) == env.max_steps:
            late = first_seed + int(running.argmax())
            raise DataError(f"episode of seed {late} did not end within `max_steps` = {env.max_steps} steps")
        action = actor.act(seen[-1])
        step = env.step(action)
        actions.append(action)
        steps.append(step)
        seen.append(step)
        lengths += running
        running &= ~(step.terminated | step.truncated)
    obs = _by_episode([s.obs for s in seen])
    state = _by_episode([s.state for s in seen])
    legal = _by_episode([s.legal_actions for s in seen]) if seen[0].legal_actions is not None else None
    acted = _by_episode(actions)
    rewards = _by_episode([s.rewards for s in steps])
    terminated = _by_episode([s.terminated for s in steps])
    truncated = _by_episode([s.truncated for s in steps])
    return [
        Episode(
            obs=obs[i, : length + 1],
            state=state[i, : length + 1],
            actions=acted[i, :length],
            rewards=rewards[i, :length],
            terminated=terminated[i, :length],
            truncated=truncated[i, :length],
            legal_actions=None if legal is None else legal[i, : length + 1],
            seed=seeds[i],
        )
        for i, length in enumerate(lengths)
    ]


def _by_episode(steps: Sequence[Any]) -> Any:
    """Turn T arrays (E, ...) into one contiguous array (E, T, ...)."""
    return np.stack(steps, axis=1)
