"""Tell in a few lines what a dataset holds, recorded or prepared."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from macflow.data.expectations import Limits, validate
from macflow.data.hdf5_reader import StructureError
from macflow.data.minari_metadata import find_dataset, read_metadata
from macflow.data.minari_store import read_minari_rows
from macflow.data.prepared import DATASET_FILE, load_rows
from macflow.data.rows import EpisodeRows
from macflow.data.statistics import describe
from macflow.types import MultiAgentSpec

STATE_CELLS, ACTION_BINS, SEED = 256, 5, 0
# How large values may be and how many may repeat is the prepare stage's to say.
NO_LIMITS = Limits(math.inf, math.inf, 1.0)
MAX_NAMES = 8


def describe_text(path: Path) -> str:
    """Describe the prepared or Minari dataset at `path`: agents, counts, returns, quality, validation.

    A recorded dataset is validated on the way; its failures are part of the text, not an error.
    """
    if (path / DATASET_FILE).is_file():
        rows, spec, meta = load_rows(path)
        source = meta["source"]
        lines = _head(f"prepared dataset {path}", meta["env"], source.get("behaviour"), spec)
        validation = "passed when it was prepared"
    else:
        spec, meta = read_metadata(find_dataset(path))
        lines = _head(f"Minari dataset {meta['dataset_id']} in {path}", meta["env"], meta["behaviour"], spec)
        try:
            rows, _, _ = read_minari_rows(path)
        except StructureError as error:
            return "\n".join([*lines, _line("validation", f"failed: {error}")])
        found = validate(meta["dataset_id"], rows, spec, NO_LIMITS)
        validation = f"all {len(found.outcomes)} expectations met" if found.success else found.message()
    measurable = validation.startswith(("all", "passed"))
    return "\n".join(
        [*lines, *(_measured(rows, spec) if measurable else []), _line("validation", validation)]
    )


def _head(title: str, env: dict[str, Any] | None, behaviour: Any, spec: MultiAgentSpec) -> list[str]:
    names = ", ".join(spec.agent_ids[:MAX_NAMES]) + (", ..." if spec.n_agents > MAX_NAMES else "")
    sizes = "/".join(str(size) for size in sorted(set(spec.obs_dims)))
    bounds = sorted(set(zip(spec.action_low, spec.action_high, strict=True)))
    actions = (
        f"{spec.action_size} discrete"
        if spec.discrete
        else f"{spec.action_size} continuous in " + ", ".join(f"[{low:g}, {high:g}]" for low, high in bounds)
    )
    recorded = behaviour.get("name", behaviour) if isinstance(behaviour, dict) else behaviour
    return [
        title,
        _line("environment", "unknown" if env is None else f"{env['id']} {env['kwargs'] or ''}".rstrip()),
        _line("behaviour", "unknown" if recorded is None else recorded),
        _line("agents", f"{spec.n_agents}: {names}"),
        _line("observations", f"{sizes} per agent; state {spec.state_size}"),
        _line("actions", actions),
    ]


def _measured(rows: EpisodeRows, spec: MultiAgentSpec) -> list[str]:
    found = describe(rows, spec, state_cells=STATE_CELLS, action_bins=ACTION_BINS, seed=SEED)
    returns, length = found["return"], found["length"]
    gap = found["factorisation_gap_nats"] - found["factorisation_gap_baseline_nats"]
    constant = found["constant_features"]
    bimodality = found["bimodality_mean"]
    return [
        _line("size", f"{found['episodes']:,} episodes, {found['transitions']:,} transitions"),
        _line("lengths", f"{length['min']:g} to {length['max']:g}, median {length['median']:g}"),
        _line(
            "ends",
            f"{found['terminated_fraction']:.1%} terminated, {found['truncated_fraction']:.1%} truncated",
        ),
        _line(
            "returns",
            f"mean {returns['mean']:.4g}, std {returns['std']:.4g}, min {returns['min']:.4g}, "
            f"median {returns['median']:.4g}, max {returns['max']:.4g}",
        ),
        _line(
            "copies",
            f"{found['duplicate_transitions']:,} transitions, {found['duplicate_episodes']:,} episodes",
        ),
        _line("coverage", f"SACo {found['saco']:.3f}, joint actions {found['joint_action_coverage']:.3f}"),
        _line("coordination", f"{gap:.3f} nats beyond what the state tells"),
        _line("bimodality", "does not apply" if bimodality is None else f"{bimodality:.3f} (uniform 0.556)"),
        _line("constant", ", ".join(constant[:MAX_NAMES]) + (" ..." if len(constant) > MAX_NAMES else ""))
        if constant
        else _line("constant", "no feature"),
    ]


def _line(name: str, value: Any) -> str:
    return f"  {name:<13} {value}"
