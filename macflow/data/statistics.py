"""What a dataset is like, before anything is trained on it.

The coordination statistics are conditional on the state, which is cut into cells by random
hyperplanes near its mean: rows of one cell have similar states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from macflow.data.duplicates import (
    episode_copies,
    row_hashes,
    transition_copies,
    transition_hashes,
)
from macflow.data.rows import EpisodeRows, IntArray
from macflow.types import MultiAgentSpec

FloatVector = NDArray[np.float64]
# Cells with fewer rows tell nothing about the shape of a distribution.
LEAST_ROWS_FOR_SHAPE = 30
# Sarle's bimodality coefficient of a uniform distribution: above it, two modes are likely.
UNIFORM_BIMODALITY = 5 / 9
HISTOGRAM_BINS = 40
# Largest distance of a state cell's hyperplane from the mean: the quartiles of a normal distribution.
OFFSET_SPREADS = 0.67
# State-action coverage counts pairs that agree to so many decimals as one (OG-MARL's convention).
SACO_DECIMALS = 4
CHUNK_ROWS = 1 << 16


@dataclass(frozen=True)
class Histogram:
    """Hold the counts of B bins between B + 1 edges."""

    edges: FloatVector
    counts: IntArray


def describe(
    rows: EpisodeRows, spec: MultiAgentSpec, *, state_cells: int, action_bins: int, seed: int
) -> dict[str, Any]:
    """Return the metrics of a dataset with at least one transition; plain JSON types.

    Keys without a unit are counts, shares (0 to 1) or in units of reward. `bimodality_*` are None
    where actions are discrete, which have no shape, or no cell has enough rows.
    """
    hashes = transition_hashes(rows)
    ended = rows.final_rows - 1
    picked = rows.train_rows
    actions = rows.actions[picked]
    cells = state_cells_of(rows.state[picked], state_cells, seed)
    codes = action_codes(actions, spec, action_bins)
    per_agent = spec.action_size if spec.discrete else action_bins**spec.action_size
    permuted = permute_within_cells(codes, cells, seed)
    bimodality = None if spec.discrete else bimodality_coefficients(actions, cells, state_cells)
    return {
        "episodes": rows.n_episodes,
        "transitions": len(picked),
        "return": _summary(rows.team_returns),
        "length": _summary(rows.lengths.astype(np.float64)),
        "terminated_fraction": float(rows.terminated[ended].mean()),
        "truncated_fraction": float(rows.truncated[ended].mean()),
        "constant_features": constant_features(rows, spec),
        "duplicate_transitions": int(transition_copies(rows, hashes).sum()),
        "duplicate_episodes": int(episode_copies(rows, hashes).sum()),
        "saco": state_action_coverage(rows.state[picked], actions),
        "joint_action_coverage": joint_action_coverage(codes, per_agent),
        "factorisation_gap_nats": factorisation_gap(codes, cells),
        "factorisation_gap_baseline_nats": factorisation_gap(permuted, cells),
        "bimodality_mean": _weighted_mean(bimodality),
        "bimodality_share_above_uniform": _weighted_mean(bimodality, above=UNIFORM_BIMODALITY),
    }


def constant_features(rows: EpisodeRows, spec: MultiAgentSpec) -> list[str]:
    """Name the observation and state features that never change, as "agent_0/obs/3" or "state/5"."""
    low, high = rows.obs.min(axis=0), rows.obs.max(axis=0)
    names = [
        f"{agent}/obs/{feature}"
        for i, agent in enumerate(spec.agent_ids)
        for feature in range(spec.obs_dims[i])
        if low[i, feature] == high[i, feature]
    ]
    constant = np.flatnonzero(rows.state.min(axis=0) == rows.state.max(axis=0))
    return names + [f"state/{feature}" for feature in constant]


def state_action_coverage(state: NDArray[Any], actions: NDArray[Any]) -> float:
    """Return SACo: distinct (state, joint action) pairs over rows; state (T, S), actions (T, N, ...)."""
    pairs = np.stack([_rounded_hashes(state), _rounded_hashes(actions)], axis=1)
    return float(len(np.unique(row_hashes(pairs))) / len(pairs))


def _rounded_hashes(array: NDArray[Any]) -> NDArray[np.uint64]:
    if np.issubdtype(array.dtype, np.integer):
        return row_hashes(array)
    # Adding zero turns -0.0, whose bits differ, into 0.0.
    chunks = [
        row_hashes(np.round(array[start : start + CHUNK_ROWS], SACO_DECIMALS) + 0.0)
        for start in range(0, len(array), CHUNK_ROWS)
    ]
    return np.concatenate(chunks)


def state_cells_of(state: NDArray[np.float32], cells: int, seed: int) -> IntArray:
    """Assign each state (T, S) to one of `cells` cells by its sides of random hyperplanes, (T,).

    States are scaled to unit spread first. Where `cells` is no power of two, some cells are joined.
    """
    planes = math.ceil(math.log2(cells))
    if planes == 0:
        return np.zeros(len(state), np.int64)
    mean = state.mean(axis=0, dtype=np.float64)
    std = np.array([state[:, feature].std(dtype=np.float64) for feature in range(state.shape[1])])
    std[std <= 1e-6 * np.maximum(1.0, np.abs(mean))] = np.inf
    random = np.random.default_rng(seed)
    directions = random.standard_normal((state.shape[1], planes))
    # Planes that all went through the mean would cut a state of few features into few cells.
    offsets = random.uniform(-OFFSET_SPREADS, OFFSET_SPREADS, planes) * np.linalg.norm(directions, axis=0)
    normals = directions / std[:, None]
    codes: IntArray = np.empty(len(state), np.int64)
    for start in range(0, len(state), CHUNK_ROWS):
        signs = (state[start : start + CHUNK_ROWS] - mean) @ normals > offsets
        codes[start : start + CHUNK_ROWS] = signs @ (1 << np.arange(planes))
    return codes % cells


def action_codes(actions: NDArray[Any], spec: MultiAgentSpec, bins: int) -> IntArray:
    """Number each agent's action from 0, equal numbers for equal actions, (T, N).

    Continuous actions (T, N, A) are cut into `bins` equal parts of their bounds per dimension; only
    combinations that occur get a number.
    """
    if spec.discrete:
        return actions.astype(np.int64)
    low, high = np.array(spec.action_low), np.array(spec.action_high)
    codes = np.zeros(actions.shape[:2], np.int64)
    for dimension in range(spec.action_size):
        scaled = (actions[:, :, dimension] - low[dimension]) / (high[dimension] - low[dimension])
        codes = codes * bins + np.clip((scaled * bins).astype(np.int64), 0, bins - 1)
        codes = np.unique(codes, return_inverse=True)[1].reshape(codes.shape)
    return codes


def joint_action_coverage(codes: IntArray, actions_per_agent: int) -> float:
    """Return distinct joint actions over those there could be, or over rows if these are fewer."""
    possible: int = min(actions_per_agent ** codes.shape[1], len(codes))
    return int(_joint_codes(codes).max() + 1) / possible


def factorisation_gap(codes: IntArray, cells: IntArray) -> float:
    """Return sum_i H(a_i | cell) - H(a | cell) in nats: what policies per agent cannot represent.

    codes: (T, N); cells: (T,). Zero where agents act independently given the cell, except for the
    bias of few samples, which the same figure of permuted actions measures.
    """
    n_codes = int(codes.max()) + 1
    per_cell = np.bincount(cells)
    single = sum(
        _conditional_entropy(np.bincount(cells * n_codes + codes[:, agent]), n_codes, per_cell)
        for agent in range(codes.shape[1])
    )
    joint = _joint_codes(np.column_stack([cells, codes]))
    first = np.empty(int(joint.max()) + 1, np.int64)
    first[joint] = cells
    counts = np.bincount(joint)
    return float(single - _entropy(counts, per_cell[first]))


def _conditional_entropy(counts: IntArray, n_codes: int, per_cell: IntArray) -> float:
    occupied = np.flatnonzero(counts)
    return _entropy(counts[occupied], per_cell[occupied // n_codes])


def _entropy(counts: IntArray, per_cell: IntArray) -> float:
    """Return H(a | cell) from the counts of (cell, a) and of each one's cell."""
    return float(-(counts * np.log(counts / per_cell)).sum() / counts.sum())


def _joint_codes(codes: IntArray) -> IntArray:
    """Number the distinct rows of codes (T, M) densely, (T,)."""
    joint = np.zeros(len(codes), np.int64)
    for column in codes.T:
        # Dense after each column, so that the product cannot overflow.
        joint = np.unique(joint * (int(column.max()) + 1) + column, return_inverse=True)[1]
    return joint


def permute_within_cells(codes: IntArray, cells: IntArray, seed: int) -> IntArray:
    """Shuffle each agent's actions (T, N) among the rows of a cell: same marginals, no coordination."""
    random = np.random.default_rng(seed)
    by_cell = np.argsort(cells, kind="stable")
    permuted = np.empty_like(codes)
    for agent in range(codes.shape[1]):
        shuffled = np.lexsort((random.random(len(cells)), cells))
        permuted[by_cell, agent] = codes[shuffled, agent]
    return permuted


@dataclass(frozen=True)
class Bimodality:
    """Hold Sarle's coefficient for each (cell, agent, dimension) with enough rows, and the rows."""

    values: FloatVector
    weights: FloatVector


def bimodality_coefficients(actions: NDArray[Any], cells: IntArray, n_cells: int) -> Bimodality:
    """Measure (skew^2 + 1) / kurtosis of each action dimension in each cell; actions (T, N, A).

    5/9 for a uniform, 1/3 for a normal, 1 for a two-point distribution; corrected for sample size.
    """
    count = np.bincount(cells, minlength=n_cells).astype(np.float64)
    enough = count >= LEAST_ROWS_FOR_SHAPE
    n = count[enough]
    values, weights = [], []
    for column in actions.reshape(len(actions), -1).T.astype(np.float64):
        mean = np.bincount(cells, column, n_cells) / np.maximum(count, 1)
        centred = column - mean[cells]
        second, third, fourth = (
            np.bincount(cells, centred**power, n_cells)[enough] / n for power in (2, 3, 4)
        )
        # An action that does not vary in a cell has one mode, and no shape.
        varies = second > 1e-12
        m, var = n[varies], second[varies]
        skew = third[varies] / var**1.5 * np.sqrt(m * (m - 1)) / (m - 2)
        excess = (m - 1) / ((m - 2) * (m - 3)) * ((m + 1) * (fourth[varies] / var**2 - 3) + 6)
        values.append((skew**2 + 1) / (excess + 3 * (m - 1) ** 2 / ((m - 2) * (m - 3))))
        weights.append(m)
    return Bimodality(np.concatenate(values), np.concatenate(weights))


def _weighted_mean(measured: Bimodality | None, above: float | None = None) -> float | None:
    if measured is None or len(measured.values) == 0:
        return None
    values = measured.values if above is None else (measured.values > above).astype(np.float64)
    return float(np.average(values, weights=measured.weights))


def _summary(values: FloatVector) -> dict[str, float]:
    q25, median, q75 = np.quantile(values, [0.25, 0.5, 0.75])
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        "q25": float(q25),
        "median": float(median),
        "q75": float(q75),
        "max": float(values.max()),
    }


def histogram(values: NDArray[Any]) -> Histogram:
    """Count values in equal bins between the smallest and the largest; one bin if all are equal."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return Histogram(np.array([low - 0.5, high + 0.5]), np.array([len(values)]))
    counts, edges = np.histogram(values, bins=HISTOGRAM_BINS, range=(low, high))
    return Histogram(edges.astype(np.float64), counts)


def integer_histogram(values: IntArray) -> Histogram:
    """Count integers in bins of equal whole width, at most HISTOGRAM_BINS or so of them."""
    low, high = int(values.min()), int(values.max())
    width = max(1, math.ceil((high - low + 1) / HISTOGRAM_BINS))
    bins = (high - low) // width + 1
    edges = low - 0.5 + width * np.arange(bins + 1, dtype=np.float64)
    return Histogram(edges, np.bincount((values - low) // width, minlength=bins))


def action_histograms(rows: EpisodeRows, spec: MultiAgentSpec) -> list[tuple[str, int, Histogram]]:
    """Count each agent's actions: (agent, dimension, histogram); dimension 0 where discrete."""
    actions = rows.actions[rows.train_rows]
    if spec.discrete:
        edges = np.arange(spec.action_size + 1, dtype=np.float64) - 0.5
        return [
            (agent, 0, Histogram(edges, np.bincount(actions[:, i], minlength=spec.action_size)))
            for i, agent in enumerate(spec.agent_ids)
        ]
    histograms = []
    for i, agent in enumerate(spec.agent_ids):
        for dimension in range(spec.action_size):
            bounds = (spec.action_low[dimension], spec.action_high[dimension])
            # Clipped, so that what leaves a bound by rounding is counted at it.
            column = np.clip(actions[:, i, dimension].astype(np.float64), *bounds)
            counts, edges = np.histogram(column, bins=HISTOGRAM_BINS, range=bounds)
            histograms.append((agent, dimension, Histogram(edges.astype(np.float64), counts)))
    return histograms
