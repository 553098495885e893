"""Measure the policies against the flow: Props. 4.2 and 4.3, mutual information, failure signatures."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from macflow.actions import encode_actions
from macflow.algorithms.flow_matching import one_hot_of_best_legal
from macflow.config import DiagnoseParams, TrainingParams, load_section
from macflow.data.prepared import PreparedDataset, load_prepared
from macflow.evaluation.diagnostics import (
    Mode,
    MutualInformation,
    check_factorisation,
    check_mode_dropping,
    check_q_collapse,
    compare,
    mutual_information,
    nearest_rows,
    policy_modes,
)
from macflow.evaluation.transport import sampling_distance
from macflow.files import replace_directory, write_json
from macflow.policy import Policy, load_policy
from macflow.stages._common import run_stage
from macflow.training.artifacts import (
    CriticArtifact,
    FlowArtifact,
    TeacherArtifact,
    followed_critic,
    load_critic,
    load_flow,
    load_teacher,
)
from macflow.types import DataError, MacflowError

# Agents times rows that pass through a net at once.
CHUNK = 65_536
# Dataset rows searched for the neighbours of a state.
NEIGHBOUR_ROWS = 100_000
# States whose joint actions are drawn.
SHOWN_STATES = 4


class HealthError(MacflowError):
    """A failure signature was raised that `diagnose.fail_on` names."""


@dataclass(frozen=True)
class Models:
    """The dataset's rows and what acts on them, in the flow's action space."""

    dataset: PreparedDataset
    flow: FlowArtifact
    policy: Policy
    critic: CriticArtifact

    @property
    def discrete(self) -> bool:
        return self.dataset.spec.discrete

    def legal(self, rows: Tensor) -> Tensor | None:
        legal = self.dataset.legal_actions
        return None if legal is None else legal[rows]

    def policy_actions(self, rows: Tensor, noise: Tensor) -> Tensor:
        """Return the policies' joint actions (P, N, A) at `rows` (P,) from `noise` (P, N, A)."""
        legal = self.legal(rows)
        actions = self.policy.sample(self.dataset.obs[rows], noise, legal)
        # What agents do is the best action, not its probability.
        return actions if legal is None else one_hot_of_best_legal(actions, legal)

    def flow_actions(self, rows: Tensor, noise: Tensor) -> Tensor:
        """Return the flow's joint actions (P, N, A) at `rows` (P,) from `noise` (P, N, A)."""
        obs = self.flow.normalizer.normalize_obs(self.dataset.obs[rows])
        return self.flow.sample(obs, noise, self.legal(rows))

    def q_total(self, rows: Tensor, actions: Tensor) -> Tensor:
        """Return Q_tot (P,) of joint actions (P, N, A) at `rows` (P,)."""
        normalizer = self.flow.normalizer
        obs = normalizer.normalize_obs(self.dataset.obs[rows])
        return self.critic.q_total(obs, normalizer.normalize_state(self.dataset.state[rows]), actions)


def _chunks(rows: Tensor, noise: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    size = max(1, CHUNK // noise.shape[1])
    for start in range(0, len(rows), size):
        yield rows[start : start + size], noise[start : start + size]


def main(arguments: argparse.Namespace) -> None:
    """Measure how far the policies are from the flow, what that may cost, and signs of failure."""
    params = load_section(arguments.params, "diagnose", DiagnoseParams)
    torch.set_num_threads(load_section(arguments.params, "training", TrainingParams).threads)
    torch.set_flush_denormal(True)
    critic = followed_critic(arguments.policy, arguments.critic)
    models = Models(
        load_prepared(arguments.data),
        load_flow(arguments.flow),
        load_policy(arguments.policy),
        load_critic(critic),
    )
    spec = models.dataset.spec
    for folder, other in (
        (arguments.flow, models.flow.spec),
        (critic, models.critic.spec),
        (arguments.policy, models.policy.spec),
    ):
        if other != spec:
            raise DataError(f"{folder}: made for other agents than {arguments.data}")
    teacher = load_teacher(arguments.teacher)
    if len(teacher.noise) != len(models.dataset.obs):
        raise DataError(
            f"{arguments.teacher}: has samples for {len(teacher.noise)} rows, {arguments.data} has "
            f"{len(models.dataset.obs)}; run the teacher stage again"
        )
    generator = torch.Generator().manual_seed(params.seed)
    train_rows = models.dataset.train_rows
    states = train_rows[torch.randperm(len(train_rows), generator=generator)[: params.states]]  # (B,)

    shape = (len(states), params.samples, spec.n_agents, spec.action_size)
    noise = torch.randn(shape, generator=generator).flatten(0, 1)
    parts = list(_chunks(states.repeat_interleave(params.samples), noise))
    policy = torch.cat([models.policy_actions(*part) for part in parts]).reshape(shape)
    flow = torch.cat([models.flow_actions(*part) for part in parts]).reshape(shape)
    comparison = compare(
        policy, flow, lambda index, actions: models.q_total(states[index], actions), models.legal(states)
    )
    modes = policy_modes(comparison)
    around = _neighbourhoods(models, states, params)  # (B, M)
    information = _information(models, teacher, around, generator, params.seed)
    at_state = {
        name: mutual_information(actions, spec.discrete, params.seed)
        for name, actions in (("flow", flow), ("policy", policy))
    }
    with torch.no_grad():
        recorded = models.q_total(around.flatten(), _recorded(models, around.flatten()))
    again = torch.randn(noise.shape, generator=torch.Generator().manual_seed(params.seed + 1))
    parts = list(_chunks(states.repeat_interleave(params.samples), again))
    independent = torch.cat([models.flow_actions(*part) for part in parts]).reshape(shape)
    rewards = models.dataset.rewards[train_rows].mean(dim=1) / models.critic.reward_scale
    found = comparison.summary
    checks = {
        "q_collapse": check_q_collapse(
            max(comparison.q_abs_max, float(recorded.abs().max())),
            float(rewards.abs().max()),
            models.critic.discount,
            params.q_collapse_ratio,
        ),
        "factorisation_failure": check_factorisation(comparison, params.factorisation_ratio),
        "mode_dropping": check_mode_dropping(modes, params.mode_dropping_fraction),
    }
    for name, check in checks.items():
        verdict = "RAISED" if check.raised else "ok"
        print(f"diagnose: {name}: {check.value:.3g} (threshold {check.threshold:.3g}): {verdict}", flush=True)

    with replace_directory(arguments.plots) as folder:
        _modes_table(modes).write_csv(folder / "modes.csv")
        _actions_table(models, policy, flow, modes).write_csv(folder / "actions.csv")
        _information_table(information, at_state).write_csv(folder / "mutual_information.csv")
        # Sentences would drown the numbers in `dvc metrics show`.
        meanings = {name: {"meaning": check.meaning} for name, check in checks.items()}
        write_json(folder / "texts.json", {"checks": meanings})
    write_json(
        arguments.metrics,
        {
            "w2": found.w2,
            "w2_sampling": sampling_distance(flow.flatten(2), independent.flatten(2)),
            "coupling_bound": found.coupling_bound,
            "w2_bound_holds": found.w2_bound_holds,
            "value_gap": found.value_gap,
            "lipschitz_q": found.lipschitz_q,
            "value_gap_bound": found.value_gap_bound,
            "value_gap_bound_holds": found.value_gap_bound_holds,
            "flow_spread": found.flow_spread,
            "q_policy": found.q_policy,
            "q_flow": found.q_flow,
            "mutual_information": {name: value.corrected for name, value in information.items()},
            "checks": {name: check.to_dict() for name, check in checks.items()},
        },
    )
    stopping = [name for name in params.fail_on if checks[name].raised]
    if stopping:
        raise HealthError(
            f"{arguments.params}: `diagnose.fail_on`: "
            + "; ".join(
                f"{name} is {checks[name].value:.3g}, above its threshold of {checks[name].threshold:.3g}"
                for name in stopping
            )
            + f". {arguments.metrics} and {arguments.plots} have the details"
        )


def _neighbourhoods(models: Models, states: Tensor, params: DiagnoseParams) -> Tensor:
    """Return the dataset's rows (B, M) whose global state is nearest to that of `states` (B,)."""
    train_rows = models.dataset.train_rows
    generator = torch.Generator().manual_seed(params.seed)
    pool = train_rows[torch.randperm(len(train_rows), generator=generator)[:NEIGHBOUR_ROWS]]
    normalise = models.flow.normalizer.normalize_state
    points, queries = normalise(models.dataset.state[pool]), normalise(models.dataset.state[states])
    return pool[torch.from_numpy(nearest_rows(points, queries, params.samples, params.seed))]


def _information(
    models: Models, teacher: TeacherArtifact, around: Tensor, generator: torch.Generator, seed: int
) -> dict[str, MutualInformation]:
    """Measure dataset, flow and policy on the same neighbourhoods, one joint action per row.

    The dataset has one action per state, so near states stand for the same state; measured alike,
    the three compare. The flow's actions are those that the policy was distilled from.
    """
    rows = around.flatten()
    noise, flow = teacher.draw(rows, generator)
    policy = torch.cat([models.policy_actions(*part) for part in _chunks(rows, noise)])
    actions = {"dataset": _recorded(models, rows), "flow": flow, "policy": policy}
    return {
        name: mutual_information(a.reshape(*around.shape, *a.shape[1:]), models.discrete, seed)
        for name, a in actions.items()
    }


def _recorded(models: Models, rows: Tensor) -> Tensor:
    return encode_actions(models.dataset.spec, models.dataset.actions[rows])


def _modes_table(modes: list[Mode]) -> pl.DataFrame:
    return pl.DataFrame([asdict(mode) | {"dropped": mode.dropped} for mode in modes])


def _actions_table(models: Models, policy: Tensor, flow: Tensor, modes: list[Mode]) -> pl.DataFrame:
    """Tabulate the first two agents' actions, each against the other's, where the flow has most modes."""
    spec = models.dataset.spec
    counts = torch.zeros(len(flow), dtype=torch.int64)
    for mode in modes:
        counts[mode.state] += 1
    shown = torch.argsort(counts, descending=True, stable=True)[:SHOWN_STATES]
    tables = []
    for state in shown.tolist() if spec.n_agents > 1 else []:
        for source, actions in (("flow", flow[state]), ("policy", policy[state])):
            pairs = actions.argmax(dim=-1, keepdim=True) if spec.discrete else actions  # (M, N, dimensions)
            for dim in range(pairs.shape[2]):
                first, second = pairs[:, 0, dim].tolist(), pairs[:, 1, dim].tolist()
                tables.append(
                    pl.DataFrame({"x": first, "y": second}).select(
                        pl.lit(state).alias("state"),
                        pl.lit(source).alias("source"),
                        pl.lit(dim).alias("dim"),
                        "x",
                        "y",
                    )
                )
    columns = ("state", "source", "dim", "x", "y")
    return pl.concat(tables) if tables else pl.DataFrame({name: [] for name in columns})


def _information_table(
    information: dict[str, MutualInformation], at_state: dict[str, MutualInformation]
) -> pl.DataFrame:
    rows: list[dict[str, Any]] = [
        {"source": source, "given": given, "joint_nats": value.joint, "factorised_nats": value.factorised}
        for given, values in (("near states", information), ("one state", at_state))
        for source, value in values.items()
    ]
    return pl.DataFrame(rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the inputs and outputs."""
    for name in ("data", "flow", "teacher", "critic", "policy"):
        parser.add_argument(f"--{name}", type=Path, required=True, help=f"folder of the {name} artifact")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--plots", type=Path, required=True, help="folder of tables to write")


if __name__ == "__main__":
    run_stage("diagnose", main, add_arguments)
