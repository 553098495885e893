"""Data card: what a dataset is, where it comes from, what it holds, what the checks found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from macflow.data.expectations import validate
from macflow.data.hdf5_reader import StructureError
from macflow.data.minari_metadata import find_dataset, read_metadata
from macflow.data.minari_store import read_minari_rows
from macflow.data.prepared import DATASET_FILE, read_dataset_json
from macflow.data.show import ACTION_BINS, NO_LIMITS, SEED, STATE_CELLS
from macflow.data.statistics import describe
from macflow.lineage.cards import (
    Subject,
    agent_rows,
    environment_rows,
    front_matter,
    plain,
    source_rows,
    templates,
)

WEIGHTS = "macflow/envs/weights"
STATISTICS = "metrics/describe.json"
VALIDATION = "reports/validation/validation.json"
# As hubs name them.
SIZES = (
    ("n<1K", 10**3),
    ("1K<n<10K", 10**4),
    ("10K<n<100K", 10**5),
    ("100K<n<1M", 10**6),
    ("1M<n<10M", 10**7),
)
LARGEST = "10M<n<100M"


@dataclass(frozen=True)
class DatasetFacts:
    """Everything that a data card says; what is None is unknown."""

    title: str
    # What was looked at, in words.
    subject: str
    env: Mapping[str, Any] | None
    # What the agents see and do; empty where unknown.
    agents: Sequence[tuple[str, Any]]
    source: Sequence[tuple[str, Any]]
    episodes: int | None
    transitions: int | None
    # Mean, std, min, max of the undiscounted team return, as far as known.
    returns: Mapping[str, Any]
    # As metrics/describe.json has them.
    statistics: Mapping[str, Any] | None = None
    statistics_from: str = ""
    # As validation.json has them.
    expectations: Sequence[Mapping[str, Any]] | None = None
    expectations_from: str = ""
    licence: str | None = None
    limits: Sequence[str] = ()
    missing: Sequence[str] = field(default=())


def dataset_facts(path: Path) -> DatasetFacts:
    """Collect what is known of the prepared or Minari dataset at `path`.

    Raises:
        DataError: naming the file that is missing or malformed.
    """
    return _prepared(path) if (path / DATASET_FILE).is_file() else _recorded(path)


def dataset_card(facts: DatasetFacts) -> str:
    """Return a data card as Markdown with front matter."""
    tags = ["macflow", "offline-reinforcement-learning", "multi-agent"]
    head: dict[str, Any] = {
        "pretty_name": plain(facts.title),
        "license": facts.licence or "unknown",
        "task_categories": ["reinforcement-learning"],
        "tags": tags + ([] if facts.env is None else [plain(facts.env["id"])]),
    }
    if facts.transitions is not None:
        wanted = facts.transitions
        head["size_categories"] = [next((name for name, end in SIZES if wanted < end), LARGEST)]
    return templates().get_template("dataset_card.md.j2").render(facts=facts, front_matter=front_matter(head))


def _prepared(path: Path) -> DatasetFacts:
    meta, spec = read_dataset_json(path)
    subject = Subject(path)
    statistics, validation = subject.metrics(STATISTICS), subject.metrics(VALIDATION)
    source = meta["source"]
    expectations = None if validation.content is None else validation.content["expectations"]
    rows = source_rows(source)
    if subject.project is not None and "record" in subject.stages:
        md5 = subject.project.lock.inputs("record").get(WEIGHTS)
        rows.append((f"{WEIGHTS} at the recording, DVC's hash", md5))
    return DatasetFacts(
        title=source.get("dataset_id") or path.name,
        subject=f"the prepared dataset {path}",
        env=meta["env"],
        agents=agent_rows(spec),
        source=[*environment_rows(meta["env"]), *rows],
        episodes=meta["counts"]["episodes"],
        transitions=meta["counts"]["transitions"],
        returns=meta["returns"],
        statistics=statistics.content,
        statistics_from=f"From {STATISTICS}.",
        expectations=expectations,
        expectations_from=f"From {VALIDATION}.",
        limits=_limits(meta["env"], source.get("agents_inferred"), statistics.content),
        missing=[found.missing for found in (statistics, validation) if found.missing],
    )


def _recorded(path: Path) -> DatasetFacts:
    folder = find_dataset(path)
    spec, meta = read_metadata(folder)
    common: dict[str, Any] = {
        "title": meta["dataset_id"] or path.name,
        "subject": f"the Minari dataset {path}",
        "env": meta["env"],
        "agents": agent_rows(spec),
        "source": [
            *environment_rows(meta["env"]),
            *source_rows({"dataset_id": meta["dataset_id"], "behaviour": meta["behaviour"]}),
        ],
        "episodes": meta["total_episodes"],
        "transitions": meta["total_steps"],
    }
    try:
        rows, _, _ = read_minari_rows(path)
    except StructureError as error:
        failed = " ".join(str(error).split())
        limits = [f"It cannot be read as agents' episodes: {failed}", *_limits(meta["env"], None, None)]
        return DatasetFacts(**common, returns={}, limits=limits)
    found = validate(meta["dataset_id"], rows, spec, NO_LIMITS)
    statistics = (
        describe(rows, spec, state_cells=STATE_CELLS, action_bins=ACTION_BINS, seed=SEED)
        if found.success
        else None
    )
    return DatasetFacts(
        **common,
        returns={} if statistics is None else statistics["return"],
        statistics=statistics,
        statistics_from="Computed for this card.",
        expectations=found.to_dict()["expectations"],
        expectations_from="Checked for this card, without limits on sizes and copies.",
        limits=_limits(meta["env"], meta["inferred"], statistics),
        missing=() if found.success else ["statistics: of a dataset that fails its checks there are none"],
    )


def _limits(
    env: Mapping[str, Any] | None, inferred: bool | None, statistics: Mapping[str, Any] | None
) -> list[str]:
    """Say what the facts themselves show; judgements are left to people."""
    found = []
    if env is None:
        found.append(
            "Which environment made it is unknown, so policies of it cannot be evaluated as they are."
        )
    elif env.get("version") is None:
        found.append("Which version of the environment made it is unknown.")
    if inferred:
        found.append("The source does not name its agents: names and state were inferred from its spaces.")
    if statistics is not None:
        if constant := statistics["constant_features"]:
            found.append(f"{len(constant)} features of observations and state never change.")
        if copies := statistics["duplicate_transitions"]:
            found.append(f"{copies:,} transitions are exact copies of another.")
        if statistics["terminated_fraction"] == 0:
            found.append("No episode ends by itself: all were cut at a time limit.")
    return found
