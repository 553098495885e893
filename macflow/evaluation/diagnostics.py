"""How far the one-step policies are from the flow, what that may cost, and signs that training failed.

Props. 4.2 and 4.3 of Lee et al., "Multi-agent Coordination via Flow Matching", ICLR 2026:

    W2(pi_w, pi_phi) <= sqrt(E ||mu_w(o, z) - mu_phi(o, z)||^2)
    |E Q_tot(pi_w) - E Q_tot(pi_phi)| <= L_Q W2(pi_w, pi_phi)

Joint actions are in the flow's action space: [-1, 1] per dimension, or one-hot. Shapes follow
`macflow.types`, with B states and M samples per state; everything is a function of its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import cdist
from torch import Tensor

from macflow.evaluation.transport import transport
from macflow.types import DataError

# Which state (P,), joint actions (P, N, A) -> Q_tot (P,), differentiable in the actions.
JointValue = Callable[[Tensor, Tensor], Tensor]
Array = NDArray[np.float64]

# Points whose gradient counts for L_Q; all pairs at the same state count in any case.
GRADIENT_POINTS = 2048
# Agents times points that pass through the critic at once.
CRITIC_CHUNK = 8192
# A slope over less than this distance is float32 noise; the gradient stands for it.
MIN_SLOPE_DISTANCE = 1e-3
# Root mean squared difference per action dimension that is not held against a policy: 5% of [-1, 1].
ACTION_TOLERANCE = 0.1
# Share of float32 rounding in a mean of values.
FLOAT32_SLACK = 1e-5
# Rewards below this are no rewards.
MIN_VALUE_LIMIT = 1e-3

MAX_MODES = 8
# Mean silhouette above which groups count as apart ("reasonable structure": Kaufman and Rousseeuw, 1990).
MODE_SILHOUETTE = 0.5
# A policy covers a mode where it plays it at least at this share of the flow's own rate.
COVERED_SHARE = 0.1
# Standard errors that make a difference of means clear.
CLEAR_ERRORS = 2.0

MI_BINS = 3
MI_SHUFFLES = 20


@dataclass(frozen=True)
class PolicyDiagnostics:
    """Both sides of Props. 4.2 and 4.3, and what puts them in proportion."""

    w2: float
    coupling_bound: float
    value_gap: float
    lipschitz_q: float
    value_gap_bound: float
    # Root mean squared distance of the flow's joint actions from their mean at the same state,
    # which is the W2 of a policy that only plays that mean.
    flow_spread: float
    q_policy: float
    q_flow: float

    @property
    def w2_bound_holds(self) -> bool:
        return self.w2 <= self.coupling_bound * (1 + FLOAT32_SLACK)

    @property
    def value_gap_bound_holds(self) -> bool:
        slack = FLOAT32_SLACK * max(abs(self.q_policy), abs(self.q_flow))
        return self.value_gap <= self.value_gap_bound + slack


@dataclass(frozen=True)
class Comparison:
    """Policy and flow at the same states, each from the same noises."""

    policy: Array  # (B, M, N * A)
    flow: Array  # (B, M, N * A)
    q_policy: Array  # (B, M)
    q_flow: Array  # (B, M)
    w2: Array  # (B,)
    lipschitz_q: float

    @property
    def q_abs_max(self) -> float:
        return float(max(np.abs(self.q_policy).max(), np.abs(self.q_flow).max()))

    @property
    def summary(self) -> PolicyDiagnostics:
        w2 = _root_mean_square(self.w2)
        return PolicyDiagnostics(
            w2=w2,
            coupling_bound=float(np.sqrt(np.square(self.policy - self.flow).sum(axis=2).mean())),
            value_gap=float(abs(self.q_policy.mean() - self.q_flow.mean())),
            lipschitz_q=self.lipschitz_q,
            value_gap_bound=self.lipschitz_q * w2,
            flow_spread=float(np.sqrt(self.flow.var(axis=1).sum(axis=1).mean())),
            q_policy=float(self.q_policy.mean()),
            q_flow=float(self.q_flow.mean()),
        )


def policy_diagnostics(
    policy_actions: Tensor, flow_actions: Tensor, q_total: JointValue, legal_actions: Tensor | None = None
) -> PolicyDiagnostics:
    """Measure Props. 4.2 and 4.3: see `compare`."""
    return compare(policy_actions, flow_actions, q_total, legal_actions).summary


def compare(
    policy_actions: Tensor, flow_actions: Tensor, q_total: JointValue, legal_actions: Tensor | None = None
) -> Comparison:
    """Compare the policies' joint actions with the flow's at the same states.

    `lipschitz_q` is the largest slope seen: of the gradient at sampled actions, and between every
    policy and flow action at the same state. It is a lower estimate of the true constant, but the
    second part makes Prop. 4.3 hold on these samples, so that a violation means a mistake.

    Args:
        policy_actions: (B, M, N, A) mu_w(o, z).
        flow_actions: (B, M, N, A) mu_phi(o, z), sample m from the same noise as the policy's m.
        q_total: Q_tot at state b, an index (P,) into B.
        legal_actions: (B, N, A) bool where actions are discrete: Q_tot then only counts as it
            changes along the simplices of the legal actions.

    Raises:
        DataError: where an action or value is not finite.
    """
    b, m = policy_actions.shape[:2]
    states = torch.arange(b, device=policy_actions.device).repeat_interleave(m)
    both = torch.cat([policy_actions.flatten(0, 1), flow_actions.flatten(0, 1)])  # (2 * B * M, N, A)
    values = _values(q_total, states.repeat(2), both).reshape(2, b, m)
    policy, flow = _numpy(policy_actions.flatten(2)), _numpy(flow_actions.flatten(2))
    for name, array in (("policy's actions", policy), ("flow's actions", flow), ("critic's values", values)):
        if not np.isfinite(array).all():
            raise DataError(f"the {name} are not all finite: {np.isfinite(array).mean():.1%} are")
    slope = _largest_gradient(q_total, states.repeat(2), both, legal_actions)
    w2 = np.empty(b)
    for i in range(b):
        squares = cdist(policy[i], flow[i], "sqeuclidean")
        w2[i] = transport(squares)
        distances = np.sqrt(squares)
        apart = distances > MIN_SLOPE_DISTANCE
        rises = np.abs(values[0, i, :, None] - values[1, i, None, :])
        slope = max(slope, float((rises[apart] / distances[apart]).max(initial=0.0)))
    return Comparison(policy, flow, values[0], values[1], w2, slope)


def _values(q_total: JointValue, states: Tensor, actions: Tensor) -> Array:
    with torch.no_grad():
        parts = [q_total(s, a) for s, a in _chunks(states, actions)]
    return _numpy(torch.cat(parts))


def _chunks(states: Tensor, actions: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    size = max(1, CRITIC_CHUNK // actions.shape[1])
    for start in range(0, len(states), size):
        yield states[start : start + size], actions[start : start + size]


def _largest_gradient(
    q_total: JointValue, states: Tensor, actions: Tensor, legal_actions: Tensor | None
) -> float:
    count = min(GRADIENT_POINTS, len(actions))
    picks = torch.arange(count, device=actions.device) * len(actions) // count
    states, actions = states[picks], actions[picks]
    largest = 0.0
    for s, a in _chunks(states, actions):
        point = a.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(q_total(s, point).sum(), point)  # (P, N, A)
        if legal_actions is not None:
            legal = legal_actions[s]
            slope = slope * legal
            slope = (slope - slope.sum(-1, keepdim=True) / legal.sum(-1, keepdim=True)) * legal
        largest = max(largest, float(slope.flatten(1).norm(dim=1).max()))
    return largest


@dataclass(frozen=True)
class Mode:
    """A group of the flow's joint actions at one state, and whether the policies play it."""

    state: int
    mass: float  # share of the flow's samples
    policy_mass: float  # share of the policies' samples
    q_mean: float
    q_policy: float  # mean Q_tot of the policies at this state
    covered: bool
    # Clearly lower Q_tot than the policies': leaving it is what Q-maximisation is for.
    worse: bool

    @property
    def dropped(self) -> bool:
        return not self.covered and not self.worse


def find_modes(points: Array) -> NDArray[np.int64]:
    """Group points (M, D) into modes and return each point's mode (M,), counted from 0.

    Ward's hierarchy is cut where the mean silhouette is largest; without a cut above
    `MODE_SILHOUETTE` all points are one mode.
    """
    most = min(MAX_MODES, len(np.unique(points, axis=0)))
    best = np.zeros(len(points), np.int64)
    if most < 2:
        return best
    tree = linkage(points, "ward")
    distances = cdist(points, points)
    highest = MODE_SILHOUETTE
    for k in range(2, most + 1):
        labels = fcluster(tree, k, "maxclust") - 1
        score = _silhouette(distances, labels)
        if score > highest:
            highest, best = score, labels.astype(np.int64)
    return best


def _silhouette(distances: Array, labels: NDArray[np.int64]) -> float:
    """Return the mean silhouette: 1 for tight groups far apart, 0 for no groups. Rousseeuw, 1987."""
    k = int(labels.max()) + 1
    if k < 2:
        return 0.0
    member = np.eye(k)[labels]  # (M, k)
    sizes = member.sum(axis=0)
    sums = distances @ member  # (M, k)
    rows = np.arange(len(labels))
    own = sums[rows, labels] / np.maximum(sizes[labels] - 1, 1)
    means = sums / sizes
    means[rows, labels] = np.inf
    nearest = means.min(axis=1)
    scale = np.maximum(own, nearest)
    score = np.where((sizes[labels] > 1) & (scale > 0), (nearest - own) / np.where(scale > 0, scale, 1), 0.0)
    return float(score.mean())


def policy_modes(comparison: Comparison) -> list[Mode]:
    """Find the flow's modes at every state and say which of them the policies cover.

    A policy sample belongs to the nearest mode's centre if it is as near as 95% of that mode's own
    samples, or within a quarter of the way to the next mode, or within `ACTION_TOLERANCE`.
    """
    modes = []
    for state in range(len(comparison.flow)):
        flow, policy = comparison.flow[state], comparison.policy[state]
        labels = find_modes(flow)
        k = int(labels.max()) + 1
        centres = np.stack([flow[labels == j].mean(axis=0) for j in range(k)])
        to_centres = cdist(policy, centres)
        nearest = to_centres.argmin(axis=1)
        q_policy, q_flow = comparison.q_policy[state], comparison.q_flow[state]
        gaps = cdist(centres, centres) + np.diag(np.full(k, np.inf))
        for j in range(k):
            inside = labels == j
            own = np.quantile(np.linalg.norm(flow[inside] - centres[j], axis=1), 0.95)
            apart = 0.0 if k == 1 else gaps[j].min() / 4
            radius = max(own, apart, ACTION_TOLERANCE * np.sqrt(flow.shape[1]))
            mass = float(inside.mean())
            policy_mass = float(((nearest == j) & (to_centres[:, j] <= radius)).mean())
            modes.append(
                Mode(
                    state=state,
                    mass=mass,
                    policy_mass=policy_mass,
                    q_mean=float(q_flow[inside].mean()),
                    q_policy=float(q_policy.mean()),
                    covered=policy_mass > 0 and policy_mass >= COVERED_SHARE * mass,
                    worse=_clearly_above(q_policy, q_flow[inside]),
                )
            )
    return modes


def _clearly_above(high: Array, low: Array) -> bool:
    error = np.sqrt(_mean_variance(high) + _mean_variance(low))
    return bool(high.mean() - low.mean() > CLEAR_ERRORS * error)


def _mean_variance(values: Array) -> float:
    return float(values.var(ddof=1) / len(values)) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Check:
    """One failure signature: raised where its value is above its threshold."""

    value: float
    threshold: float
    meaning: str

    @property
    def raised(self) -> bool:
        return self.value > self.threshold

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers and the verdict as plain JSON types."""
        return {"value": self.value, "threshold": self.threshold, "raised": self.raised}


def check_q_collapse(q_abs_max: float, reward_abs_max: float, discount: float, threshold: float) -> Check:
    """Compare the largest |Q| with what rewards allow, |r|max / (1 - discount), in the critic's units."""
    limit = max(reward_abs_max / (1 - discount), MIN_VALUE_LIMIT)
    return Check(
        q_abs_max / limit,
        threshold,
        "Largest |Q_tot| as a multiple of the largest value that the recorded rewards allow, "
        f"|r|max / (1 - discount) = {limit:.4g}. Above the threshold the critic's values have left the "
        "possible range, so the policies were pushed towards numbers that mean nothing.",
    )


def check_factorisation(comparison: Comparison, threshold: float) -> Check:
    """Compare W2 with the flow's spread, over states where the distance has not paid.

    Q-maximisation moves policies away from the flow on purpose, and raises E Q_tot where it does.
    A distance that gains no value is what independent agents lose by not playing as one.
    """
    gains = [
        _clearly_positive(policy - flow)
        for policy, flow in zip(comparison.q_policy, comparison.q_flow, strict=True)
    ]
    spread = max(comparison.summary.flow_spread, ACTION_TOLERANCE * math.sqrt(comparison.flow.shape[2]))
    return Check(
        _root_mean_square(np.where(gains, 0.0, comparison.w2)) / spread,
        threshold,
        "Distance (W2) between the policies' and the flow's joint actions as a multiple of the flow's own "
        "spread, counted where the policies gain no clear Q_tot by being elsewhere "
        f"({len(gains) - sum(gains)} of {len(gains)} states). 1 is the distance of always playing the flow's "
        "mean. Above the threshold the agents, each choosing alone, no longer make up the joint actions that "
        "the flow learnt from the data.",
    )


def _clearly_positive(differences: Array) -> bool:
    return bool(differences.mean() > CLEAR_ERRORS * np.sqrt(_mean_variance(differences)))


def check_mode_dropping(modes: list[Mode], threshold: float) -> Check:
    """Weigh the flow's modes that the policies do not play though they are worth it."""
    total = sum(mode.mass for mode in modes)
    dropped = sum(mode.mass for mode in modes if mode.dropped)
    left = sum(mode.mass for mode in modes if not mode.covered and mode.worse)
    return Check(
        dropped / total,
        threshold,
        "Share of the flow's joint behaviour, by modes found at each state, that the policies never play "
        "although its Q_tot is not clearly below their own. Above the threshold good ways of acting that the "
        f"data shows were lost. (A further {left / total:.0%} was left for something with a higher Q_tot, "
        "which is the purpose of training.)",
    )


@dataclass(frozen=True)
class MutualInformation:
    """Mean over states and pairs of agents, in nats."""

    joint: float  # plug-in estimate on the actions as they were played together
    factorised: float  # the same after shuffling each agent's actions apart: the estimator's bias

    @property
    def corrected(self) -> float:
        return self.joint - self.factorised


def mutual_information(actions: Tensor, discrete: bool, seed: int) -> MutualInformation:
    """Estimate how much one agent's action tells of another's, given the state.

    Continuous actions are cut into `MI_BINS` equal bins per dimension of [-1, 1]; one-hot and
    probability vectors count as their largest entry. The plug-in estimate is biased upwards by
    about (cells - 1)^2 / 2M; shuffling samples within a state leaves only that bias.

    Args:
        actions: (B, M, N, A): M samples at (about) the same state, for each of B states.
    """
    codes = _action_codes(_numpy(actions), discrete)  # (B, M, N)
    b, m, n = codes.shape
    pairs = list(combinations(range(n), 2))
    if not pairs:
        return MutualInformation(0.0, 0.0)
    rng = np.random.default_rng(seed)
    joint = float(np.mean([_plug_in(codes[:, :, i], codes[:, :, j]) for i, j in pairs]))
    factorised = []
    for _ in range(MI_SHUFFLES):
        shuffled = np.take_along_axis(codes, rng.random((b, m, n)).argsort(axis=1), axis=1)
        factorised.append(np.mean([_plug_in(shuffled[:, :, i], shuffled[:, :, j]) for i, j in pairs]))
    return MutualInformation(joint, float(np.mean(factorised)))


def _action_codes(actions: Array, discrete: bool) -> NDArray[np.int64]:
    """Number each agent's actions from 0, apart for each state: the fewer codes, the smaller the tables."""
    if discrete:
        cells = actions.argmax(axis=3)
    else:
        digits = np.clip(((actions + 1) / 2 * MI_BINS).astype(np.int64), 0, MI_BINS - 1)
        cells = np.zeros(digits.shape[:3], np.int64)
        for d in range(digits.shape[3]):
            codes = cells * MI_BINS + digits[:, :, :, d]
            # Renumbering keeps the codes small whatever the number of dimensions.
            cells = np.unique(codes, return_inverse=True)[1].reshape(codes.shape)
    codes = np.empty(cells.shape, np.int64)
    for state in range(cells.shape[0]):
        for agent in range(cells.shape[2]):
            codes[state, :, agent] = np.unique(cells[state, :, agent], return_inverse=True)[1]
    return codes


def _plug_in(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Return the plug-in mutual information of two code arrays (B, M), averaged over B."""
    b, m = first.shape
    rows, columns = int(first.max()) + 1, int(second.max()) + 1
    cell = (np.arange(b)[:, None] * rows + first) * columns + second
    table = np.bincount(cell.ravel(), minlength=b * rows * columns).reshape(b, rows, columns) / m
    joint = _entropy(table.reshape(b, -1))
    return float((_entropy(table.sum(axis=2)) + _entropy(table.sum(axis=1)) - joint).mean())


def _entropy(probabilities: Array) -> Array:
    logs = np.log(probabilities, where=probabilities > 0, out=np.zeros_like(probabilities))
    entropy: Array = -(probabilities * logs).sum(axis=1)
    return entropy


def nearest_rows(points: Tensor, queries: Tensor, count: int, seed: int) -> NDArray[np.int64]:
    """Return the `count` rows of `points` (R, S) nearest to each of `queries` (B, S): (B, count).

    Ties fall in a random order, so that equal states give a fair sample of their rows.
    """
    order = np.random.default_rng(seed).permutation(len(points))
    count = min(count, len(points))
    found = np.empty((len(queries), count), np.int64)
    shuffled = points[torch.from_numpy(order)]
    for i, query in enumerate(queries):
        squares = (shuffled - query).square().sum(dim=1).numpy()
        found[i] = order[np.argsort(squares, kind="stable")[:count]]
    return found


def _root_mean_square(values: Array) -> float:
    return float(np.sqrt(np.square(values).mean()))


def _numpy(values: Tensor) -> Array:
    return values.detach().cpu().numpy().astype(np.float64)
