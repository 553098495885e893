"""The normaliser against its definition, and where its definition has holes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from macflow.data import normalizer
from macflow.data.normalizer import Normalizer
from macflow.types import DataError


def sample(rows: int, seed: int, scale: float, shift: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    obs = (scale * random.standard_normal((rows, 2, 3)) + shift).astype(np.float32)
    state = (scale * random.standard_normal((rows, 5)) + shift).astype(np.float32)
    return obs, state, random.standard_normal((rows, 2)).astype(np.float32)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    rows=st.integers(2, 200),
    seed=st.integers(0, 100),
    scale=st.floats(1e-2, 1e3),
    shift=st.floats(-10, 10),
    stride=st.integers(1, 3),
)
def test_train_rows_come_out_with_zero_mean_and_unit_spread(
    rows: int, seed: int, scale: float, shift: float, stride: int
) -> None:
    obs, state, rewards = sample(rows * stride, seed, scale, shift)
    picked = np.arange(0, rows * stride, stride)
    fitted = Normalizer.fit(obs, state, rewards, picked)
    for scaled in (fitted.normalize_obs(obs)[picked], fitted.normalize_state(state)[picked]):
        assert scaled.dtype == np.float32
        np.testing.assert_allclose(scaled.mean(axis=0, dtype=np.float64), 0, atol=2e-3)
        np.testing.assert_allclose(scaled.std(axis=0, dtype=np.float64), 1, rtol=2e-3)
    assert fitted.reward_scale == pytest.approx(rewards[picked].mean(axis=1).std(), rel=1e-5)


def test_chunks_do_not_change_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    obs, state, rewards = sample(100, 0, 3.0, 1.0)
    picked = np.arange(0, 100, 2)
    whole = Normalizer.fit(obs, state, rewards, picked)
    monkeypatch.setattr(normalizer, "CHUNK_ROWS", 7)
    pieces = Normalizer.fit(obs, state, rewards, picked)
    np.testing.assert_allclose(whole.obs_std, pieces.obs_std, rtol=1e-6)
    np.testing.assert_allclose(whole.state_mean, pieces.state_mean, rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e6 / 3])
def test_constant_features_come_out_as_zero_and_constant_rewards_unscaled(value: float) -> None:
    obs = np.full((50, 2, 3), value, np.float32)
    state = np.full((50, 4), value, np.float32)
    rewards = np.full((50, 2), value, np.float32)
    fitted = Normalizer.fit(obs, state, rewards, np.arange(50))
    np.testing.assert_array_equal(fitted.normalize_obs(obs), 0)
    np.testing.assert_array_equal(fitted.normalize_state(state), 0)
    assert fitted.reward_scale == 1.0


def test_tensors_and_arrays_give_the_same_and_json_loses_nothing() -> None:
    obs, state, rewards = sample(20, 1, 2.0, 0.5)
    fitted = Normalizer.fit(obs, state, rewards, np.arange(20))
    again = Normalizer.from_dict(json.loads(json.dumps(fitted.to_dict())))
    np.testing.assert_array_equal(again.normalize_obs(obs), fitted.normalize_obs(obs))
    tensor = again.normalize_obs(torch.from_numpy(obs))
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.numpy(), fitted.normalize_obs(obs))
    np.testing.assert_array_equal(
        again.normalize_state(torch.from_numpy(state)).numpy(), fitted.normalize_state(state)
    )
    # Any number of leading dimensions.
    np.testing.assert_array_equal(fitted.normalize_obs(obs[None, :5])[0], fitted.normalize_obs(obs[:5]))


def test_no_transitions_are_refused() -> None:
    obs, state, rewards = sample(3, 0, 1.0, 0.0)
    with pytest.raises(DataError, match="at least one transition"):
        Normalizer.fit(obs, state, rewards, np.zeros(0, np.int64))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"obs_mean": "?"}, "malformed"),
        ({"obs_mean": [1.0]}, "`obs_mean` and `obs_std` must have one shape"),
        ({"state_std": [1.0]}, "`state_mean` and `state_std` must have one shape"),
        ({"state_std": [0.0] * 5}, "`state_std` finite and > 0"),
        ({"state_mean": [float("nan")] * 5}, "`state_mean` must be finite"),
        ({"reward_scale": 0.0}, "`reward_scale` must be finite and > 0"),
        ({"reward_scale": "large"}, "malformed"),
    ],
)
def test_malformed_json_is_refused(entries: dict[str, object], message: str) -> None:
    fitted = Normalizer.fit(*sample(10, 0, 1.0, 0.0), np.arange(10))
    with pytest.raises(DataError, match=message):
        Normalizer.from_dict(fitted.to_dict() | entries)
