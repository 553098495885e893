"""Random batches of transitions out of a prepared dataset held in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from macflow.actions import encode_actions
from macflow.data.normalizer import Normalizer
from macflow.data.prepared import PreparedDataset
from macflow.types import Batch


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
