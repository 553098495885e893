"""Act by the one-step policies and a little otherwise, so that the critics see what they do not do yet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from macflow.policy import Policy
from macflow.types import ActionArray, Seen

# Keeps these random numbers apart from the environment's and the policies', made from the same seeds.
_STREAM = 0x6578706C


class Explorer:
    """The policies by their own noise and, on top of it, noise on their actions.

    Everything random in an episode comes from its seed.
    """

    def __init__(self, policy: Policy, action_noise: float) -> None:
        """Explore by `policy`, as it is at every step.

        Args:
            action_noise: continuous: standard deviation, actions counted from -1 to 1; discrete: probability
                of a uniform legal action.
        """
        self._spec = policy.spec
        self._actor = policy.actor()
        self._action_noise = action_noise
        self._streams: list[np.random.Generator] = []

    def reset(self, seeds: Sequence[int]) -> None:
        """Begin one episode per seed."""
        self._actor.reset(seeds)
        self._streams = [np.random.default_rng([_STREAM, seed]) for seed in seeds]

    def act(self, seen: Seen) -> ActionArray:
        """Map raw observations (E, N, O) to environment actions."""
        actions = self._actor.act(seen)
        if self._action_noise == 0:
            return actions
        return self._stray(actions, seen) if self._spec.discrete else self._shaken(actions)

    def _shaken(self, actions: ActionArray) -> ActionArray:
        low, high = (np.array(bound, np.float32) for bound in (self._spec.action_low, self._spec.action_high))
        noise = np.stack([s.standard_normal(actions.shape[1:], np.float32) for s in self._streams])
        shaken: ActionArray = np.clip(actions + self._action_noise * (high - low) / 2 * noise, low, high)
        return shaken

    def _stray(self, actions: ActionArray, seen: Seen) -> ActionArray:
        n, a = self._spec.n_agents, self._spec.action_size
        legal = np.ones((len(actions), n, a), np.bool_) if seen.legal_actions is None else seen.legal_actions
        chance, choice = np.moveaxis(np.stack([s.random((2, n)) for s in self._streams]), 1, 0)
        rank = np.floor(choice * legal.sum(axis=2)).astype(np.int64)
        other = (legal.cumsum(axis=2) > rank[:, :, None]).argmax(axis=2)
        return np.where(chance < self._action_noise, other, actions)
