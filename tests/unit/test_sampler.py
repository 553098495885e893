"""Sampling: transitions never cross an episode's end, masks follow termination, order the generator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from macflow.actions import decode_actions, encode_actions
from macflow.data.normalizer import Normalizer
from macflow.data.prepared import PreparedDataset
from macflow.data.sampler import TransitionSampler
from macflow.types import MultiAgentSpec


def make_dataset(lengths: list[int], ends: list[bool], discrete: bool = False) -> PreparedDataset:
    """Build episodes whose observations hold (episode, step); `ends` tells which terminate."""
    spec = MultiAgentSpec(
        ("a", "b"), (2, 2), 2, "discrete" if discrete else "continuous", 2, (-1.0, -2.0), (1.0, 2.0)
    )
    obs, terminated, truncated, train_rows = [], [], [], []
    for episode, (length, ends_for_good) in enumerate(zip(lengths, ends, strict=True)):
        train_rows += range(len(obs), len(obs) + length)
        obs += [[[episode, step]] * 2 for step in range(length + 1)]
        terminated += [False] * (length - 1) + [ends_for_good, False]
        truncated += [False] * (length - 1) + [not ends_for_good, False]
    rows = len(obs)
    observations = np.array(obs, np.float32)
    rewards = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    states = observations[:, 0]
    normalizer = Normalizer.fit(observations, states, rewards, np.array(train_rows))
    shape = (rows, 2) if discrete else (rows, 2, 2)
    return PreparedDataset(
        spec=spec,
        meta={"normalizer": normalizer.to_dict(), "env": None},
        obs=torch.from_numpy(observations),
        state=torch.from_numpy(states),
        actions=torch.zeros(shape, dtype=torch.int64 if discrete else torch.float32),
        rewards=torch.from_numpy(rewards),
        terminated=torch.tensor(terminated),
        truncated=torch.tensor(truncated),
        legal_actions=torch.ones(rows, 2, 2, dtype=torch.bool) if discrete else None,
        train_rows=torch.tensor(train_rows),
        returns=np.zeros(len(lengths)),
    )


@settings(max_examples=30, deadline=None)
@given(
    episodes=st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=6),
    seed=st.integers(0, 2**31),
)
def test_transitions_stay_within_their_episode(episodes: list[tuple[int, bool]], seed: int) -> None:
    lengths, ends = [e[0] for e in episodes], [e[1] for e in episodes]
    dataset = make_dataset(lengths, ends)
    sampler = TransitionSampler(dataset, torch.device("cpu"))
    batch = sampler.sample(64, torch.Generator().manual_seed(seed))
    before, after = dataset.obs[batch.rows, 0], dataset.obs[batch.next_rows, 0]
    assert torch.equal(before[:, 0], after[:, 0])
    assert torch.equal(before[:, 1] + 1, after[:, 1])
    last = before[:, 1] == torch.tensor(lengths)[before[:, 0].long()] - 1
    for_good = torch.tensor(ends)[before[:, 0].long()]
    assert torch.equal(batch.bootstrap_mask == 0, last & for_good)


def test_reward_is_the_scaled_team_mean_and_obs_are_normalised() -> None:
    dataset = make_dataset([4, 4], [True, False])
    sampler = TransitionSampler(dataset, torch.device("cpu"))
    batch = sampler.gather(dataset.train_rows)
    scale = dataset.meta["normalizer"]["reward_scale"]
    torch.testing.assert_close(batch.reward, dataset.rewards[dataset.train_rows].mean(1) / scale)
    torch.testing.assert_close(batch.obs.mean(0), torch.zeros(2, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.obs.std(0, correction=0), torch.ones(2, 2), atol=1e-4, rtol=0)


def test_order_is_a_function_of_the_generators_state() -> None:
    sampler = TransitionSampler(make_dataset([5, 7], [True, False]), torch.device("cpu"))
    generator = torch.Generator().manual_seed(3)
    sampler.sample(8, generator)
    position = generator.get_state()
    expected = [sampler.sample(8, generator).rows for _ in range(3)]
    generator.set_state(position)
    for rows in expected:
        assert torch.equal(sampler.sample(8, generator).rows, rows)


def test_sampling_is_uniform_over_transitions() -> None:
    sampler = TransitionSampler(make_dataset([1, 3, 6], [True, True, False]), torch.device("cpu"))
    rows = sampler.sample(20_000, torch.Generator().manual_seed(0)).rows
    counts = torch.bincount(rows, minlength=len(sampler.obs))[sampler.train_rows]
    assert (counts - 2000).abs().max() < 5 * np.sqrt(20_000 * 0.1 * 0.9)


def test_legal_actions_travel_with_discrete_transitions() -> None:
    dataset = make_dataset([2, 2], [True, False], discrete=True)
    assert dataset.legal_actions is not None
    dataset.legal_actions[1, 0, 0] = False
    batch = TransitionSampler(dataset, torch.device("cpu")).gather(torch.tensor([0, 1]))
    assert batch.legal_actions is not None
    assert batch.next_legal_actions is not None
    assert not batch.next_legal_actions[0, 0, 0]
    assert not batch.legal_actions[1, 0, 0]
    assert batch.actions.shape == (2, 2, 2)


@pytest.mark.parametrize("discrete", [False, True])
def test_decoding_inverts_encoding(discrete: bool) -> None:
    spec = make_dataset([1], [True], discrete).spec
    generator = torch.Generator().manual_seed(0)
    if discrete:
        actions = torch.randint(0, 2, (10, 2), generator=generator)
    else:
        actions = (torch.rand(10, 2, 2, generator=generator) * 2 - 1) * torch.tensor([1.0, 2.0])
    encoded = encode_actions(spec, actions)
    assert encoded.abs().max() <= 1
    np.testing.assert_allclose(decode_actions(spec, encoded), actions.numpy(), atol=1e-6)
