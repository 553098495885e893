"""Diagnostics against closed forms, brute force and constructed cases of each failure."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from macflow.evaluation.diagnostics import (
    MAX_MODES,
    check_factorisation,
    check_mode_dropping,
    check_q_collapse,
    compare,
    find_modes,
    mutual_information,
    nearest_rows,
    policy_diagnostics,
    policy_modes,
)
from macflow.evaluation.transport import sampling_distance, wasserstein2
from macflow.nets.critic import FactoredCritic
from macflow.types import DataError

FLOW_MODES = torch.tensor([[[-0.8], [0.8]], [[0.8], [-0.8]]])  # (2, N=2, A=1): agents always disagree


def clouds(seed: int, n: int, m: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(0.5, 1.5, (m, d))


def two_mode_flow(states: int = 4, samples: int = 64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    picks = torch.arange(states * samples).reshape(states, samples) % 2
    return FLOW_MODES[picks] + 0.05 * torch.randn(states, samples, 2, 1, generator=generator)


def flat_value(states: Tensor, actions: Tensor) -> Tensor:
    return 0.0 * actions.sum(dim=(1, 2))


def first_agent_value(states: Tensor, actions: Tensor) -> Tensor:
    return actions[:, 0, 0]


# Wasserstein distance


def test_w2_in_one_dimension_pairs_sorted_points() -> None:
    x, y = clouds(0, 50, 50, 1)
    expected = math.sqrt(np.mean((np.sort(x[:, 0]) - np.sort(y[:, 0])) ** 2))
    assert wasserstein2(x, y) == pytest.approx(expected, rel=1e-9)


def test_w2_of_a_shifted_cloud_is_the_shift() -> None:
    x, _ = clouds(1, 40, 1, 6)
    shift = np.arange(6.0)
    assert wasserstein2(x, x[::-1] + shift) == pytest.approx(np.linalg.norm(shift), rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 3))
def test_w2_is_the_best_permutation(seed: int, n: int, d: int) -> None:
    x, y = clouds(seed, n, n, d)
    best = min(np.mean(np.sum((x - y[list(p)]) ** 2, axis=1)) for p in permutations(range(n)))
    assert wasserstein2(x, y) == pytest.approx(math.sqrt(best), rel=1e-9, abs=1e-12)


def test_w2_splits_mass_between_clouds_of_unequal_size() -> None:
    assert wasserstein2([[0.0]], [[-1.0], [1.0]]) == pytest.approx(1.0)
    assert wasserstein2([[0.0], [1.0]], [[0.0], [0.0], [1.0], [1.0]]) == pytest.approx(0.0, abs=1e-12)


def test_sampling_distance_is_a_mean_square_and_falls_with_the_sample() -> None:
    x, y = np.zeros((2, 1, 2)), np.array([[[3.0, 4.0]], [[0.0, 1.0]]])
    assert sampling_distance(x, y) == pytest.approx(math.sqrt((25 + 1) / 2))
    assert sampling_distance(x, x) == 0.0
    rng = np.random.default_rng(0)
    read = [sampling_distance(*rng.standard_normal((2, 20, m, 1))) for m in (16, 256)]
    # In one dimension the expected square of the distance falls like log log M / M.
    assert read[1] < read[0] / 3


def test_transport_leaves_jax_alone() -> None:
    program = "import sys, macflow.evaluation.transport; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


# Bounds of Props. 4.2 and 4.3


def random_critic_case(seed: int, n: int = 3, b: int = 8, m: int = 32) -> tuple[Tensor, Tensor, object]:
    generator = torch.Generator().manual_seed(seed)
    critic = FactoredCritic(n, 5, 2, 4, False, "qmix", "own", 2, (32, 32), generator)
    obs, state = torch.randn(b, n, 5, generator=generator), torch.randn(b, 4, generator=generator)
    flow = torch.randn(b, m, n, 2, generator=generator).clamp(-1, 1)
    policy = (flow + 0.5 * torch.randn(flow.shape, generator=generator)).clamp(-1, 1)
    return policy, flow, lambda i, a: critic(obs[i], state[i], a).mean(dim=0)


@pytest.mark.parametrize("seed", range(5))
def test_both_propositions_hold_on_a_real_critic(seed: int) -> None:
    policy, flow, q_total = random_critic_case(seed)
    found = policy_diagnostics(policy, flow, q_total)
    assert 0 < found.w2 <= found.coupling_bound
    assert 0 < found.value_gap <= found.value_gap_bound
    assert found.w2_bound_holds
    assert found.value_gap_bound_holds
    assert found.value_gap == pytest.approx(abs(found.q_policy - found.q_flow))


def test_w2_is_the_root_of_the_mean_square_over_states() -> None:
    flow = torch.zeros(2, 4, 1, 1)
    policy = torch.stack([torch.full((4, 1, 1), 0.3), torch.full((4, 1, 1), -0.4)])
    found = policy_diagnostics(policy, flow, flat_value)
    assert found.w2 == pytest.approx(math.sqrt((0.09 + 0.16) / 2), rel=1e-6)
    assert found.w2 == pytest.approx(found.coupling_bound)


def test_w2_ignores_which_noise_led_where_and_the_coupling_does_not() -> None:
    flow = two_mode_flow()
    swapped = flow.flip(1)
    found = policy_diagnostics(swapped, flow, flat_value)
    assert found.w2 == pytest.approx(0.0, abs=1e-6)
    assert found.coupling_bound > 1.5


def test_lipschitz_of_a_linear_value_is_its_gradient() -> None:
    weights = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    flow = torch.randn(3, 16, 2, 2, generator=torch.Generator().manual_seed(0))
    found = policy_diagnostics(flow + 0.1, flow, lambda s, a: (a * weights).sum(dim=(1, 2)))
    assert found.lipschitz_q == pytest.approx(float(weights.norm()), rel=1e-5)


def test_lipschitz_sees_a_cliff_between_points_of_no_gradient() -> None:
    flow, policy = torch.full((1, 8, 1, 1), -0.5), torch.full((1, 8, 1, 1), 0.5)
    found = policy_diagnostics(policy, flow, lambda s, a: torch.sigmoid(200 * a[:, 0, 0]))
    assert found.lipschitz_q == pytest.approx(1.0, rel=1e-4)
    assert found.value_gap_bound_holds


def test_lipschitz_of_discrete_actions_leaves_the_common_offset_out() -> None:
    values = torch.tensor([[10.0, 11.0, 99.0]])  # the third action is illegal
    legal = torch.tensor([[[True, True, False]]])
    flow = torch.tensor([[[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]]])
    found = policy_diagnostics(flow, flow, lambda s, a: (a * values).sum(dim=(1, 2)), legal)
    # One unit of value over the distance sqrt(2) between the two one-hot vectors.
    assert found.lipschitz_q == pytest.approx(1 / math.sqrt(2), rel=1e-5)


def test_a_violated_bound_is_shown() -> None:
    flow, policy = torch.zeros(1, 4, 1, 1), torch.full((1, 4, 1, 1), 5e-4)
    # Steps that are too short to count as slopes, over a cliff that no gradient sees.
    found = policy_diagnostics(policy, flow, lambda s, a: (a[:, 0, 0] > 1e-4).float() + 0 * a[:, 0, 0])
    assert found.value_gap == 1.0
    assert not found.value_gap_bound_holds


def test_values_that_are_not_finite_are_refused() -> None:
    flow = two_mode_flow()
    with pytest.raises(DataError, match=r"critic's values are not all finite: 0\.0% are"):
        policy_diagnostics(flow, flow, lambda s, a: a.sum(dim=(1, 2)) * torch.nan)
    with pytest.raises(DataError, match="policy's actions"):
        policy_diagnostics(flow * torch.inf, flow, flat_value)


def test_flow_spread_is_the_w2_of_always_playing_the_mean() -> None:
    flow = two_mode_flow()
    mean = flow.mean(dim=1, keepdim=True).expand_as(flow)
    found = policy_diagnostics(mean, flow, flat_value)
    assert found.w2 == pytest.approx(found.flow_spread, rel=1e-6)


def test_diagnostics_are_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, flow, q_total = random_critic_case(0)
    whole = policy_diagnostics(policy, flow, q_total)
    monkeypatch.setattr("macflow.evaluation.diagnostics.CRITIC_CHUNK", 50)
    parts = policy_diagnostics(policy, flow, q_total)
    assert parts.lipschitz_q == pytest.approx(whole.lipschitz_q, rel=1e-5)
    assert parts.q_policy == pytest.approx(whole.q_policy, rel=1e-5)


def test_diagnostics_are_cheap_enough_to_run_while_training() -> None:
    generator = torch.Generator().manual_seed(0)
    critic = FactoredCritic(3, 18, 2, 54, False, "mean", "own", 2, (256, 256, 256), generator)
    obs, state = torch.randn(64, 3, 18, generator=generator), torch.randn(64, 54, generator=generator)
    flow = torch.rand(64, 64, 3, 2, generator=generator) * 2 - 1
    started = time.process_time()
    policy_diagnostics(0.9 * flow, flow, lambda i, a: critic(obs[i], state[i], a).mean(dim=0))
    # CPU time over all threads: 0.5 s where this was written.
    assert time.process_time() - started < 6


# Modes


def test_find_modes_counts_separate_groups_and_not_one_cloud() -> None:
    rng = np.random.default_rng(0)
    corners = np.array(list(product([-0.8, 0.8], repeat=2)))
    grouped = corners[rng.integers(0, 4, 120)] + rng.normal(0, 0.08, (120, 2))
    assert find_modes(grouped).max() + 1 == 4
    assert find_modes(rng.normal(0, 0.3, (120, 6))).max() == 0
    assert find_modes(np.zeros((20, 3))).max() == 0


def test_find_modes_finds_a_rare_group_and_agrees_with_the_truth() -> None:
    points = np.repeat([[1.0, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]], [60, 60, 6], axis=0)
    labels = find_modes(points)
    assert [len(np.unique(labels[a:b])) for a, b in ((0, 60), (60, 120), (120, 126))] == [1, 1, 1]
    assert len(np.unique(labels)) == 3 <= MAX_MODES


def test_policy_that_plays_every_mode_drops_none() -> None:
    flow = two_mode_flow()
    check = check_mode_dropping(policy_modes(compare(two_mode_flow(seed=1), flow, flat_value)), 0.25)
    assert check.value == 0.0
    assert not check.raised


def test_policy_that_plays_one_of_two_equal_modes_drops_half() -> None:
    flow = two_mode_flow()
    policy = FLOW_MODES[0].expand_as(flow)
    modes = policy_modes(compare(policy, flow, flat_value))
    check = check_mode_dropping(modes, 0.25)
    assert len(modes) == 8
    assert check.value == pytest.approx(0.5)
    assert check.raised


def test_policy_between_the_modes_drops_both() -> None:
    flow = two_mode_flow()
    check = check_mode_dropping(policy_modes(compare(torch.zeros_like(flow), flow, flat_value)), 0.25)
    assert check.value == pytest.approx(1.0)


def test_leaving_a_worse_mode_is_the_purpose_and_leaving_a_better_one_is_not() -> None:
    flow = two_mode_flow()
    better, worse = FLOW_MODES[1].expand_as(flow), FLOW_MODES[0].expand_as(flow)
    kept = check_mode_dropping(policy_modes(compare(better, flow, first_agent_value)), 0.25)
    lost = check_mode_dropping(policy_modes(compare(worse, flow, first_agent_value)), 0.25)
    assert kept.value == 0.0
    assert "50%" in kept.meaning
    assert lost.value == pytest.approx(0.5)
    assert lost.raised


def test_one_stray_sample_does_not_cover_a_mode() -> None:
    flow = two_mode_flow()
    policy = FLOW_MODES[0].expand_as(flow).clone()
    policy[:, 0] = FLOW_MODES[1]
    assert check_mode_dropping(policy_modes(compare(policy, flow, flat_value)), 0.25).raised


# Factorisation failure


def test_product_of_the_marginals_is_a_factorisation_failure() -> None:
    flow = two_mode_flow(samples=128)
    shuffled = flow.clone()
    shuffled[:, :, 1] = flow[:, torch.randperm(128, generator=torch.Generator().manual_seed(0)), 1]
    failed = check_factorisation(compare(shuffled, flow, flat_value), 0.5)
    faithful = check_factorisation(compare(two_mode_flow(samples=128, seed=1), flow, flat_value), 0.5)
    # Half the samples are a flip of one agent (distance 1.6) from the nearest mode, as far as the spread.
    assert failed.value == pytest.approx(1.0, abs=0.15)
    assert failed.raised
    assert faithful.value < 0.2
    assert not faithful.raised


def test_distance_that_gains_value_is_no_factorisation_failure() -> None:
    flow = two_mode_flow()
    policy = FLOW_MODES[1].expand_as(flow)
    paid = check_factorisation(compare(policy, flow, first_agent_value), 0.5)
    unpaid = check_factorisation(compare(policy, flow, lambda s, a: -first_agent_value(s, a)), 0.5)
    assert paid.value == 0.0
    assert "(0 of 4 states)" in paid.meaning
    assert unpaid.value > 1.0
    assert unpaid.raised


def test_tiny_distance_from_a_deterministic_flow_is_no_failure() -> None:
    flow = torch.full((2, 16, 2, 1), 0.5)
    assert not check_factorisation(compare(flow + 0.03, flow, flat_value), 0.5).raised


def test_every_verdict_is_plain_json() -> None:
    # Where the tolerance stands for the spread of a flow that has none.
    flow = torch.full((2, 16, 2, 1), 0.5)
    failed = check_factorisation(compare(flow - 0.4, flow, flat_value), 0.5)
    assert json.loads(json.dumps(failed.to_dict()))["raised"] is True


# Q-collapse


def test_q_collapse_compares_with_what_rewards_allow() -> None:
    within, beyond = check_q_collapse(19.0, 1.0, 0.95, 1.0), check_q_collapse(21.0, 1.0, 0.95, 1.0)
    assert within.value == pytest.approx(0.95)
    assert not within.raised
    assert beyond.value == pytest.approx(1.05)
    assert beyond.raised
    assert beyond.to_dict()["raised"] is True


def test_q_without_any_reward_has_collapsed() -> None:
    assert check_q_collapse(1.0, 0.0, 0.99, 1.0).raised


# Mutual information


def test_mutual_information_of_agents_that_copy_is_their_entropy() -> None:
    picks = torch.arange(200).reshape(1, 200) % 2
    onehot = torch.nn.functional.one_hot(picks, 2).float()[:, :, None].expand(1, 200, 3, 2)
    found = mutual_information(onehot, discrete=True, seed=0)
    assert found.joint == pytest.approx(math.log(2), rel=1e-9)
    assert found.corrected == pytest.approx(math.log(2), abs=0.02)


def test_mutual_information_of_independent_agents_is_zero_after_correction() -> None:
    actions = torch.rand(32, 128, 3, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = mutual_information(actions, discrete=False, seed=0)
    assert found.joint > 0.15  # the bias that the correction is for
    assert found.corrected == pytest.approx(0.0, abs=0.01)


def test_mutual_information_sees_two_modes_and_not_their_product() -> None:
    flow = two_mode_flow(states=8, samples=128)
    product_of_marginals = flow.clone()
    product_of_marginals[:, :, 1] = flow[
        :, torch.randperm(128, generator=torch.Generator().manual_seed(1)), 1
    ]
    assert mutual_information(flow, False, 0).corrected == pytest.approx(math.log(2), abs=0.02)
    assert mutual_information(product_of_marginals, False, 0).corrected == pytest.approx(0.0, abs=0.02)


def test_mutual_information_of_one_agent_is_zero() -> None:
    assert mutual_information(torch.zeros(2, 4, 1, 1), False, 0).joint == 0.0


def test_nearest_rows_are_the_nearest_and_ties_are_spread() -> None:
    points = torch.arange(10.0)[:, None]
    assert set(nearest_rows(points, torch.tensor([[4.2]]), 3, 0)[0]) == {3, 4, 5}
    tied = nearest_rows(torch.zeros(1000, 1), torch.zeros(1, 1), 100, 0)[0]
    assert 350 < tied.mean() < 650
    assert len(np.unique(tied)) == 100
    assert nearest_rows(points, torch.zeros(2, 1), 99, 0).shape == (2, 10)
