"""Random batches of transitions held in memory: those of a prepared dataset, and those that still come in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from macflow.actions import encode_actions
from macflow.data.normalizer import Normalizer
from macflow.data.prepared import PreparedDataset
from macflow.data.rows import EpisodeRows
from macflow.types import Batch, MultiAgentSpec


class TransitionSampler:
    """Normalise a dataset once, then gather batches by `index_select`.

    Batch order is a function of the generator alone, so saving the generator's state saves the
    sampler's position.
    """

    def __init__(self, dataset: PreparedDataset, device: torch.device) -> None:
        normalizer = Normalizer.from_dict(dataset.meta["normalizer"])
        self.train_rows = dataset.train_rows.to(device)
        self.obs = normalizer.normalize_obs(dataset.obs).to(device)  # (R, N, O)
        self.state = normalizer.normalize_state(dataset.state).to(device)  # (R, S)
        self.actions = encode_actions(dataset.spec, dataset.actions).to(device)  # (R, N, A)
        self.reward = (dataset.rewards.mean(dim=1) / normalizer.reward_scale).to(device)  # (R,)
        self.bootstrap_mask = (~dataset.terminated).to(torch.float32).to(device)  # (R,)
        legal = dataset.legal_actions
        self.legal_actions = None if legal is None else legal.to(device)  # (R, N, A)

    def sample(self, size: int, generator: torch.Generator) -> Batch:
        """Draw `size` transitions uniformly with replacement."""
        picks = torch.randint(
            len(self.train_rows), (size,), generator=generator, device=self.train_rows.device
        )
        return self.gather(self.train_rows.index_select(0, picks))

    def gather(self, rows: Tensor) -> Batch:
        """Return the transitions that start at `rows` (B,)."""
        following = rows + 1
        legal = self.legal_actions
        return Batch(
            rows=rows,
            next_rows=following,
            obs=self.obs.index_select(0, rows),
            actions=self.actions.index_select(0, rows),
            reward=self.reward.index_select(0, rows),
            bootstrap_mask=self.bootstrap_mask.index_select(0, rows),
            next_obs=self.obs.index_select(0, following),
            state=self.state.index_select(0, rows),
            next_state=self.state.index_select(0, following),
            legal_actions=None if legal is None else legal.index_select(0, rows),
            next_legal_actions=None if legal is None else legal.index_select(0, following),
        )


class ReplaySampler(TransitionSampler):
    """Transitions that come in while training goes on, of which the newest are drawn from."""

    def __init__(
        self, spec: MultiAgentSpec, normalizer: Normalizer, capacity: int, device: torch.device
    ) -> None:
        """Begin empty; `capacity` is the number of transitions that batches are drawn from."""
        n, a = spec.n_agents, spec.action_size
        self.spec = spec
        self.normalizer = normalizer
        self.capacity = capacity
        self.train_rows = torch.zeros(0, dtype=torch.int64, device=device)
        self.obs = torch.zeros((0, n, spec.obs_size), device=device)
        self.state = torch.zeros((0, spec.state_size), device=device)
        self.actions = torch.zeros((0, n, a), device=device)
        self.reward = torch.zeros(0, device=device)
        self.bootstrap_mask = torch.zeros(0, device=device)
        self.legal_actions = (
            torch.zeros((0, n, a), dtype=torch.bool, device=device) if spec.discrete else None
        )

    def append(self, rows: EpisodeRows) -> None:
        """Take in episodes, in raw units."""
        device = self.obs.device

        def longer(held: Tensor, fresh: Tensor) -> Tensor:
            return torch.cat([held, fresh.to(device)])

        rewards = torch.from_numpy(rows.rewards).mean(dim=1) / self.normalizer.reward_scale
        terminated = torch.from_numpy(rows.terminated)
        first = len(self.obs)
        newest = longer(self.train_rows, torch.from_numpy(rows.train_rows) + first)
        self.train_rows = newest[-self.capacity :]
        self.obs = longer(self.obs, self.normalizer.normalize_obs(torch.from_numpy(rows.obs)))
        self.state = longer(self.state, self.normalizer.normalize_state(torch.from_numpy(rows.state)))
        self.actions = longer(self.actions, encode_actions(self.spec, torch.from_numpy(rows.actions)))
        self.reward = longer(self.reward, rewards)
        self.bootstrap_mask = longer(self.bootstrap_mask, (~terminated).to(torch.float32))
        if self.legal_actions is not None and rows.legal_actions is not None:
            self.legal_actions = longer(self.legal_actions, torch.from_numpy(rows.legal_actions))

    def forget(self) -> None:
        """Draw from none of the transitions that came in so far."""
        self.train_rows = self.train_rows[:0]


def join_batches(batches: Sequence[Batch]) -> Batch:
    """Return one batch of all transitions; `rows` still are those of the samplers that they came from."""
    joined: dict[str, Any] = {}
    for field in fields(Batch):
        parts = [getattr(batch, field.name) for batch in batches]
        joined[field.name] = None if parts[0] is None else torch.cat(parts)
    return Batch(**joined)
