"""Read everything the report shows, checked and typed; nothing here knows how it will look."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from macflow.files import read_json
from macflow.report.lineage import Lineage, read_lineage
from macflow.report.numbers import fixed, number
from macflow.types import ConfigError, DataError

# One line of a CSV: numbers where asked for (None where not finite), text elsewhere.
Row = Mapping[str, Any]

MODELS = ("flow", "teacher", "critic", "policy")


class Facts(BaseModel):
    """Part of a metrics file: the fields the report needs; others are no concern of its."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Reference(Facts):
    random: float
    expert: float
    how: str


class Returns(Facts):
    return_mean: float
    return_ci95_low: float
    return_ci95_high: float
    normalized_return: float | None
    normalized_return_ci95_low: float | None
    normalized_return_ci95_high: float | None
    length_mean: float

    @property
    def normalised(self) -> tuple[float | None, float | None, float | None]:
        return (
            self.normalized_return,
            self.normalized_return_ci95_low,
            self.normalized_return_ci95_high,
        )


class DatasetReturns(Facts):
    return_mean: float
    normalized_return: float | None


class Evaluation(Facts):
    env: str
    episodes: int
    seed: int
    reference: Reference | None
    policy: Returns
    flow: Returns
    behaviour: Returns | None = None
    random: Returns
    dataset: DatasetReturns

    @model_validator(mode="after")
    def _normalised_with_a_reference(self) -> Self:
        measured = (self.policy, self.flow, self.behaviour, self.random)
        values = [v for r in measured if r for v in r.normalised]
        if self.reference is not None and None in (*values, self.dataset.normalized_return):
            raise ValueError("`reference` is given, so every `normalized_return` must be a number")
        return self


class MutualInformation(Facts):
    dataset: float
    flow: float
    policy: float


class Check(Facts):
    value: float
    threshold: float
    raised: bool
    meaning: str


class Diagnosis(Facts):
    w2: float
    w2_sampling: float
    coupling_bound: float
    w2_bound_holds: bool
    value_gap: float
    lipschitz_q: float
    value_gap_bound: float
    value_gap_bound_holds: bool
    flow_spread: float
    mutual_information: MutualInformation
    checks: dict[str, Check]


class Distribution(Facts):
    mean: float
    std: float
    min: float
    q25: float
    median: float
    q75: float
    max: float


class Description(Facts):
    episodes: int
    transitions: int
    returns: Distribution = Field(alias="return")
    length: Distribution
    terminated_fraction: float
    truncated_fraction: float
    constant_features: list[Any]
    duplicate_transitions: int
    duplicate_episodes: int
    saco: float
    joint_action_coverage: float
    factorisation_gap_nats: float
    factorisation_gap_baseline_nats: float
    bimodality_mean: float | None
    bimodality_share_above_uniform: float | None


class Expectation(Facts):
    name: str
    meaning: str
    success: bool
    # False where the check itself could not run.
    evaluated: bool
    failures: int
    first_failures: list[list[int]]
    note: str = ""


class Validation(Facts):
    success: bool
    expectations: list[Expectation]


class FlowTraining(Facts):
    loss_first: float
    loss_last: float
    steps: int


class CriticTraining(Facts):
    td_loss_last: float
    q_mean: float
    q_abs_max: float
    steps: int


class Distillation(Facts):
    distill_loss_first: float
    distill_loss_last: float
    w2_first: float
    w2_last: float
    q_mean: float | None
    steps: int


class Spec(Facts):
    agent_ids: list[str]
    obs_dims: list[int]
    state_size: int
    action_kind: str
    action_size: int


class Environment(Facts):
    id: str
    kwargs: dict[str, Any]
    version: str | None = None


class Source(Facts):
    kind: str
    # The folder that `prepare` read.
    path: str
    dataset_id: str | None = None
    behaviour: Any = None


class Dataset(Facts):
    source: Source
    env: Environment
    spec: Spec


@dataclass(frozen=True)
class Inputs:
    """Where the report reads; all folders as the other stages write them."""

    params: Path
    # What the stage `record` writes: other data were not made by it.
    recorded: Path
    metrics: Path
    plots: Path
    models: Path
    data: Path
    validation: Path
    lock: Path


@dataclass(frozen=True)
class Content:
    """All facts of one run of the pipeline. Tables are rows in file order."""

    # What params.yaml asks for.
    dataset_name: str
    # Where the data lie that are used in its stead, if they are; `dataset` and `record` had no part then.
    other_data: str | None
    params: Mapping[str, Mapping[str, Any]]
    dataset: Dataset
    description: Description
    validation: Validation
    evaluation: Evaluation
    diagnosis: Diagnosis
    flow_training: FlowTraining
    critic_training: CriticTraining
    distillation: Distillation
    return_bins: Sequence[Row]
    length_bins: Sequence[Row]
    action_bins: Sequence[Row]
    flow_curve: Sequence[Row]
    critic_curve: Sequence[Row]
    distill_curve: Sequence[Row]
    bound_curve: Sequence[Row]
    # Empty where there is one agent only.
    joint_actions: Sequence[Row]
    episode_gif: bytes
    lineage: Lineage


@dataclass(frozen=True)
class Attention:
    """Something a reader must not miss, and the section that shows it."""

    text: str
    section: str


def read_content(inputs: Inputs) -> Content:
    """Read and check every input of the report.

    Raises:
        DataError: a file is missing or a field breaks its rule; the message names both.
        ConfigError: the params file is missing or malformed.
    """
    dataset_name, params = read_params(inputs.params)
    # Of stages beyond this page.
    params.pop("finetune", None)
    metrics, plots = inputs.metrics, inputs.plots
    manifest = inputs.data / "dataset.json"
    dataset = read_facts(manifest, Dataset)
    manifests = [manifest, *(inputs.models / name / f"{name}.json" for name in MODELS)]
    bins = ("bin_left", "bin_right", "count")
    return Content(
        dataset_name=dataset_name,
        other_data=None if Path(dataset.source.path) == inputs.recorded else dataset.source.path,
        params=params,
        dataset=dataset,
        description=read_facts(metrics / "describe.json", Description),
        validation=read_facts(inputs.validation / "validation.json", Validation),
        evaluation=read_facts(metrics / "evaluate.json", Evaluation, plots / "evaluate/texts.json"),
        diagnosis=read_facts(metrics / "diagnose.json", Diagnosis, plots / "diagnose/texts.json"),
        flow_training=read_facts(metrics / "train_flow.json", FlowTraining),
        critic_training=read_facts(metrics / "train_critic.json", CriticTraining),
        distillation=read_facts(metrics / "distill.json", Distillation),
        return_bins=read_table(plots / "describe/returns.csv", bins),
        length_bins=read_table(plots / "describe/lengths.csv", bins),
        action_bins=read_table(plots / "describe/actions.csv", ("dim", *bins), ("agent",)),
        flow_curve=read_table(plots / "train_flow/curve.csv", ("step", "loss")),
        critic_curve=read_table(
            plots / "train_critic/curve.csv", ("step", "td_loss", "q_mean", "target_mean")
        ),
        distill_curve=read_table(plots / "distill/curve.csv", ("step", "distill_loss")),
        bound_curve=read_table(
            plots / "distill/diagnostics.csv",
            ("step", "w2", "coupling_bound", "value_gap", "value_gap_bound", "q_policy", "q_flow"),
        ),
        joint_actions=read_table(
            plots / "diagnose/actions.csv", ("state", "dim", "x", "y"), ("source",), may_be_empty=True
        ),
        episode_gif=read_gif(plots / "evaluate/episode.gif"),
        lineage=read_lineage(manifests, inputs.lock, params),
    )


def read_params(path: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """Read a params file: the dataset's name, and all sections in their order."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: file not found") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must hold sections (received {raw!r})")
    sections = {name: value for name, value in raw.items() if name != "dataset"}
    if not all(isinstance(section, dict) for section in sections.values()):
        raise ConfigError(f"{path}: every section must map names to values")
    if not isinstance(raw.get("dataset"), str):
        raise ConfigError(f"{path}: `dataset`: must be a name (received {raw.get('dataset')!r})")
    return raw["dataset"], sections


def read_table(
    path: Path, numeric: Sequence[str], text: Sequence[str] = (), may_be_empty: bool = False
) -> tuple[Row, ...]:
    """Read the named columns of a CSV with a header.

    Cells of `numeric` columns become floats, None where empty or not finite.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            lines, columns = list(reader), reader.fieldnames or ()
    except FileNotFoundError:
        raise DataError(f"{path}: file not found") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file: {error}") from None
    if missing := [name for name in (*numeric, *text) if name not in columns]:
        raise DataError(f"{path}: column `{missing[0]}` is missing (received {', '.join(columns)})")
    if not lines and not may_be_empty:
        raise DataError(f"{path}: holds no rows")
    return tuple(
        {name: line[name] for name in text} | {name: _cell(path, name, line[name]) for name in numeric}
        for line in lines
    )


def headline(evaluation: Evaluation) -> tuple[tuple[str, bool], ...]:
    """Say the result in one sentence: parts in order, and whether each is to be stressed."""
    mean, low, high = interval(evaluation, evaluation.policy)
    flow_mean, flow_low, flow_high = interval(evaluation, evaluation.flow)
    over_data, over_flow = mean - dataset_mean(evaluation), mean - flow_mean
    normalised = evaluation.reference is not None

    def distance(difference: float) -> str:
        return _size(abs(difference)) + (" points" if normalised else "")

    def place(difference: float) -> str:
        return f"{distance(difference)} {'below' if difference < 0 else 'above'}"

    if low <= flow_high and flow_low <= high:
        # The sign of a difference that the intervals do not separate would claim too much.
        place_to_flow, remark = "level with", f" ({distance(over_flow)} apart)"
    else:
        place_to_flow, remark = place(over_flow), ""
    return (
        (f"The one-step policy reaches a {'normalised ' if normalised else ''}return of ", False),
        (_size(mean), True),
        (f" (95% interval {_size(low)} to {_size(high)}), ", False),
        (place(over_data), True),
        (" the mean of its dataset and ", False),
        (place_to_flow, True),
        (f" the joint flow it was distilled from{remark}.", False),
    )


def interval(evaluation: Evaluation, returns: Returns) -> tuple[float, float, float]:
    """Return mean, low and high: normalised where the environment has a reference, else raw."""
    mean, low, high = returns.normalised
    if evaluation.reference is None or mean is None or low is None or high is None:
        return returns.return_mean, returns.return_ci95_low, returns.return_ci95_high
    return mean, low, high


def dataset_mean(evaluation: Evaluation) -> float:
    """Return the dataset's mean return in the unit of `interval`."""
    normalised = evaluation.dataset.normalized_return
    if evaluation.reference is None or normalised is None:
        return evaluation.dataset.return_mean
    return normalised


def attention(content: Content) -> tuple[Attention, ...]:
    """List what is wrong, most basic first: data, lineage, returns, bounds, failure signatures."""
    failed = [e.name for e in content.validation.expectations if not e.success]
    found = [Attention(f"Validation failed: {', '.join(failed)}", "validation")] if failed else []
    found += [Attention(text, "lineage") for text in content.lineage.warnings]
    found += [Attention(text, "returns") for text in _clearly_worse(content.evaluation)]
    if not content.diagnosis.w2_bound_holds:
        found.append(Attention("The bound of Prop. 4.2 does not hold", "diagnostics"))
    if not content.diagnosis.value_gap_bound_holds:
        found.append(Attention("The bound of Prop. 4.3 does not hold", "diagnostics"))
    for name, check in content.diagnosis.checks.items():
        if check.raised:
            found.append(
                Attention(
                    f"{check_title(name)} raised: {number(check.value)} against {number(check.threshold)}",
                    "diagnostics",
                )
            )
    return tuple(found)


def check_title(name: str) -> str:
    """Return a failure signature's name as prose: `q_collapse` is Q-collapse."""
    return {"q_collapse": "Q-collapse"}.get(name, name.replace("_", " ").capitalize())


def _clearly_worse(evaluation: Evaluation) -> list[str]:
    _, _, high = interval(evaluation, evaluation.policy)
    _, flow_low, _ = interval(evaluation, evaluation.flow)
    found = []
    if high < dataset_mean(evaluation):
        found.append("The one-step policy does worse than its dataset")
    if high < flow_low:
        found.append("The one-step policy does worse than the joint flow it was distilled from")
    return found


def _size(value: float) -> str:
    return fixed(value, 1)


FactsT = TypeVar("FactsT", bound=Facts)


def read_facts(path: Path, kind: type[FactsT], texts: Path | None = None) -> FactsT:
    """Read facts; `texts` is a second file with the sentences that belong to them."""
    content = read_json(path) if texts is None else _merged(read_json(path), read_json(texts))
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(f"`{'.'.join(map(str, e['loc']))}`: {e['msg']}" for e in error.errors())
        raise DataError(f"{path}: {problems}") from None


def _merged(facts: Any, texts: Any) -> Any:
    if not (isinstance(facts, dict) and isinstance(texts, dict)):
        return facts
    return facts | {key: _merged(facts[key], text) if key in facts else text for key, text in texts.items()}


def read_gif(path: Path) -> bytes:
    """Read a GIF; raises `DataError` where there is none."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: file not found") from None
    if not content.startswith((b"GIF87a", b"GIF89a")):
        raise DataError(f"{path}: not a GIF (received first bytes {content[:6]!r})")
    return content


def _cell(path: Path, column: str, cell: str | None) -> float | None:
    if not cell:
        return None
    try:
        value = float(cell)
    except ValueError:
        raise DataError(f"{path}: column `{column}` must hold numbers (received {cell!r})") from None
    return value if math.isfinite(value) else None
