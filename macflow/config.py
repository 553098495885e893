"""`params.yaml` as frozen, validated models: one class per section, no defaults, no unknown keys.

Values and the reasons for them stand in `params.yaml`; rules stand here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from macflow.types import ATTENTION_HEADS, ConfigError

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
# What the learning rate does over a training's steps: stay, or fall along half a cosine to zero.
LearningRateSchedule = Literal["constant", "cosine"]
Hidden = Annotated[tuple[Positive, ...], Field(min_length=1)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class DatasetName(RootModel[Annotated[str, Field(min_length=1)]]):
    """What to train on, by its name in `macflow.catalogue`."""

    model_config = ConfigDict(frozen=True)


class RecordParams(Section):
    # Passed to the environment's constructor; the registry entry checks names and values.
    kwargs: dict[str, Any]
    # null: as many as the catalogue says.
    episodes: Positive | None
    seed: Natural


class PrepareParams(Section):
    # Folder of the Minari dataset to ingest: the record stage's output, or one of your own, which
    # takes the place of the dataset that `dataset` names.
    raw: str
    # Largest |reward| and |observation| that is believed.
    max_abs_reward: PositiveFloat
    max_abs_observation: PositiveFloat
    # Largest share of transitions that may be exact copies of another.
    max_duplicate_fraction: Fraction


class DescribeParams(Section):
    # Random-hyperplane cells of the state for the conditional statistics.
    state_cells: Positive
    # Bins per action dimension for coverage and entropy.
    action_bins: Positive
    seed: Natural


class TrainingParams(Section):
    """What all training stages share."""

    seed: Natural
    # Torch threads; part of the arithmetic's order, hence of the result's bytes.
    threads: Positive
    device: Literal["cpu", "cuda"]
    # Steps between checkpoints, and between rows of the curves.
    checkpoint_every: Positive
    log_every: Positive


class FlowParams(Section):
    # Folder of an earlier flow of the same shape to begin from; null: from random weights. DVC does not watch
    # it, the flow's manifest records its digest.
    init: str | None
    # joint: one field over all agents (Eq. 4). individual: one per agent (the paper's ablation).
    scope: Literal["joint", "individual"]
    # velocity: squared error (Eq. 4). endpoint: the same flow of discrete actions, by cross-entropy.
    objective: Literal["velocity", "endpoint"]
    # mlp: all agents' observations and actions in one vector. transformer: one token per agent.
    arch: Literal["mlp", "transformer"]
    # Widths of the layers, or of the transformer's blocks.
    hidden: Hidden
    steps: Positive
    batch_size: Positive
    learning_rate: PositiveFloat
    schedule: LearningRateSchedule
    # Euler steps of the sampler.
    euler_steps: Positive

    @field_validator("arch")
    @classmethod
    def _attention_is_joint(cls, arch: str, info: ValidationInfo) -> str:
        if arch == "transformer" and info.data.get("scope") == "individual":
            raise ValueError("`transformer` joins agents by attention: it needs `flow.scope: joint`")
        return arch

    @field_validator("hidden")
    @classmethod
    def _blocks_of_one_width(cls, hidden: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if info.data.get("arch") == "transformer" and (len(set(hidden)) > 1 or hidden[0] % ATTENTION_HEADS):
            raise ValueError(
                f"a transformer's blocks have one width, a multiple of its {ATTENTION_HEADS} heads"
            )
        return hidden


class TeacherParams(Section):
    # K: noises, and samples of the frozen flow, kept per dataset row.
    samples: Positive
    seed: Natural


class CriticParams(Section):
    # mean and qmix keep IGM. Ablations: none trains each Q_i on its own, central is one Q of everything.
    mixer: Literal["mean", "qmix", "none", "central"]
    # own: Q_i(o_i, a_i). state: Q_i(s, a_i); IGM holds at every state, and policies still act on their own.
    sees: Literal["own", "state"]
    # Where the target's next action comes from: see docs/adr/0001.
    next_action: Literal["flow", "flow_best_of", "in_sample"]
    hidden: Hidden
    # C: critics in the ensemble, and how their values become one.
    ensemble: Positive
    aggregate: Literal["mean", "min"]
    discount: Annotated[float, Field(ge=0, lt=1)]
    polyak_tau: Annotated[float, Field(gt=0, le=1)]
    steps: Positive
    batch_size: Positive
    learning_rate: PositiveFloat
    schedule: LearningRateSchedule


class DistillParams(Section):
    # Weight of the distillation term against the normalised Q term (Eq. 9).
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    # false leaves the Q term out: plain distillation (Eq. 7).
    q_term: bool
    # frozen: as trained before. policy: goes on learning, next actions from the policies: see docs/adr/0001.
    critic: Literal["frozen", "policy"]
    # shared: one net, agent id appended. separate: one net per agent.
    sharing: Literal["shared", "separate"]
    # individual: each agent its own. common: all see the joint noise, drawn from a shared seed and step.
    noise: Literal["individual", "common"]
    # Standard deviation of the noise that agents act with; they are trained at 1. 0: no chance in acting.
    acting_noise: Annotated[float, Field(ge=0, le=1)]
    # M: noises that an agent draws to play the action that its own Q_i values most. 1: no choice.
    best_of: Positive
    hidden: Hidden
    steps: Positive
    batch_size: Positive
    learning_rate: PositiveFloat
    schedule: LearningRateSchedule
    # Steps between measurements of the bounds of Props. 4.2 and 4.3.
    diagnose_every: Positive

    @field_validator("critic")
    @classmethod
    def _somebody_follows_what_learns(cls, critic: str, info: ValidationInfo) -> str:
        if critic == "policy" and info.data.get("q_term") is False:
            raise ValueError("without `distill.q_term` nothing follows the critics that go on learning")
        return critic

    @field_validator("best_of")
    @classmethod
    def _something_to_choose_among(cls, best_of: int, info: ValidationInfo) -> int:
        if best_of > 1 and info.data.get("acting_noise") == 0:
            raise ValueError("without `distill.acting_noise` all of an agent's actions are the same")
        if best_of > 1 and info.data.get("noise") == "common":
            raise ValueError(
                "agents that each choose their best noise no longer share it: `distill.noise: individual`"
            )
        return best_of


class EvaluateParams(Section):
    episodes: Positive
    seed: Natural
    # Environments stepped together, and processes that step them.
    n_envs: Positive
    workers: Positive


class ChangeParams(Section):
    """The environment's becoming another while agents learn in it."""

    # Environment steps after which episodes are played with these keywords on top of the data's.
    after: Positive
    kwargs: Annotated[dict[str, Any], Field(min_length=1)]
    # true: what was recorded or played before is left out of batches from then on.
    forget: bool


class FinetuneParams(Section):
    # offline: from the offline policies and critics. scratch: from random weights, to compare with.
    start: Literal["offline", "scratch"]
    # Steps of the environment to learn from; the last episodes are played to their end.
    env_steps: Positive
    # Episodes played together between gradient steps.
    n_envs: Positive
    # Of the first online episode.
    seed: Natural
    # Gradient steps per environment step, after the first `warm_up` environment steps.
    updates_per_step: PositiveFloat
    warm_up: Natural
    batch_size: Positive
    learning_rate: PositiveFloat
    schedule: LearningRateSchedule
    # Share of each batch that is recorded data; the rest was played online.
    offline_fraction: Annotated[float, Field(ge=0, lt=1)]
    # The newest transitions played online that batches are drawn from.
    replay_size: Positive
    # Weight of the distillation term at the beginning and at the end; between them it changes linearly.
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    alpha_last: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    # On top of the policies' own noise. Continuous: standard deviation, actions from -1 to 1; discrete:
    # probability of a uniform legal action.
    action_noise: Fraction
    # refreshed: the flow goes on learning to imitate, now also what is played.
    flow: Literal["frozen", "refreshed"]
    # Environment steps between evaluations, by which the guard keeps the best policies.
    # Their episodes are their own.
    evaluate_every: Positive
    evaluate_episodes: Annotated[int, Field(ge=2)]
    evaluate_seed: Natural
    change: ChangeParams | None

    @field_validator("warm_up")
    @classmethod
    def _something_is_learnt(cls, warm_up: int, info: ValidationInfo) -> int:
        steps, updates = info.data.get("env_steps"), info.data.get("updates_per_step")
        if steps is not None and updates is not None and updates * (steps - warm_up) < 1:
            raise ValueError(
                "must leave a gradient step: `finetune.updates_per_step` times the steps after it"
            )
        return warm_up

    @field_validator("change")
    @classmethod
    def _a_change_is_met(cls, change: ChangeParams | None, info: ValidationInfo) -> ChangeParams | None:
        if change is not None and change.after >= info.data.get("env_steps", change.after + 1):
            raise ValueError("`after` must be fewer than `finetune.env_steps`, or it never comes")
        return change


class DiagnoseParams(Section):
    # States, and joint actions per state, of the optimal-transport and bound estimates.
    states: Positive
    samples: Annotated[int, Field(ge=2)]
    seed: Natural
    # q_collapse: raised where |Q| exceeds this multiple of |r|max / (1 - discount).
    q_collapse_ratio: PositiveFloat
    # factorisation_failure: raised where W2 exceeds this multiple of the flow's spread.
    factorisation_ratio: PositiveFloat
    # mode_dropping: raised where more than this share of the flow's modes is not covered.
    mode_dropping_fraction: Fraction
    # Signatures that stop the pipeline where they are raised.
    fail_on: tuple[Literal["q_collapse", "factorisation_failure", "mode_dropping"], ...]


class ReportParams(Section):
    title: str


class Params(Section):
    """All of `params.yaml`."""

    dataset: DatasetName
    record: RecordParams
    prepare: PrepareParams
    describe: DescribeParams
    training: TrainingParams
    flow: FlowParams
    teacher: TeacherParams
    critic: CriticParams
    distill: DistillParams
    evaluate: EvaluateParams
    diagnose: DiagnoseParams
    finetune: FinetuneParams
    report: ReportParams


ModelT = TypeVar("ModelT", bound=BaseModel)


def load_section(path: Path, name: str, kind: type[ModelT]) -> ModelT:
    """Read and validate section `name` of a params file.

    Raises:
        ConfigError: naming the file, field, rule and received value.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: file not found") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(raw, dict) or name not in raw:
        raise ConfigError(f"{path}: section `{name}` is missing")
    return _validated(path, raw[name], kind, name)


def check_params(path: Path, raw: Any) -> Params:
    """Validate what is to become the params file `path`; raises as `load_section` does."""
    return _validated(path, raw, Params)


def _validated(path: Path, raw: Any, kind: type[ModelT], *names: str) -> ModelT:
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        problems = "; ".join(
            f"`{'.'.join([*names, *map(str, e['loc'])])}`: {e['msg']} (received {e['input']!r})"
            for e in error.errors()
        )
        raise ConfigError(f"{path}: {problems}") from None
