"""Model card: what a policy is for, how it was made, what was measured, and where it has its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from macflow.files import read_json
from macflow.lineage.attestation import attestation_of
from macflow.lineage.cards import (
    Metrics,
    Subject,
    agent_rows,
    checked_mapping,
    environment_rows,
    front_matter,
    plain,
    source_rows,
    templates,
)
from macflow.types import DataError, MultiAgentSpec

MANIFEST = "policy.json"
DIAGNOSIS = "metrics/diagnose.json"
TIMINGS = "metrics/timings/evaluate.json"
RUN_CARDS = "metrics/run_cards"
# Rows of the returns' table: key in the metrics, what it is.
OFFLINE_ROWS = (
    ("policy", "this policy"),
    ("flow", "joint flow it was distilled from, centralised"),
    ("behaviour", "behaviour that recorded the data"),
    ("dataset", "the dataset's episodes"),
    ("random", "random actions"),
)
FINETUNED_ROWS = (
    ("kept", "this policy, the best of the evaluations while it learned"),
    ("last", "the policy after the last step"),
    ("offline", "the policy before it went on learning"),
)


def policy_card(path: Path, baselines: Sequence[Path]) -> str:
    """Return a model card of the bundle at `path` as Markdown with front matter.

    Args:
        baselines: files that `macflow baseline evaluate --json` wrote.

    Raises:
        DataError: naming the file that is missing or malformed.
    """
    file = path / MANIFEST
    manifest = checked_mapping(file, read_json(file), "spec", "acting", "params", "made_from")
    spec = MultiAgentSpec.from_dict(manifest["spec"])
    env = manifest.get("env")
    if env is not None:
        checked_mapping(file, env, "kwargs")
    if lacking := {"noise", "best_of"} - manifest["acting"].keys():
        raise DataError(f"{file}: `acting.{min(lacking)}` is missing")
    source = manifest.get("source") or {}
    subject = Subject(path)
    finetuned = "finetune" in manifest["params"]
    evaluation = subject.metrics("metrics/evaluate_finetuned.json" if finetuned else "metrics/evaluate.json")
    diagnosis = subject.metrics(DIAGNOSIS)
    run_card = (
        Metrics(RUN_CARDS, None, "versions and machine: no dvc.lock says which stage made these bytes")
        if subject.stage is None
        else subject.beside(f"{RUN_CARDS}/{subject.stage}.json")
    )
    timings = subject.beside(TIMINGS)
    measured = evaluation.content
    returns = _returns(measured, FINETUNED_ROWS if finetuned else OFFLINE_ROWS)
    # That file times models/policy, whatever else is evaluated.
    latency = None
    if not finetuned and measured is not None and timings.content is not None:
        latency = checked_mapping(Path(TIMINGS), timings.content, "policy")["policy"]
    checks = {} if diagnosis.content is None else diagnosis.content["checks"]
    title = f"MAC-Flow policy for {'an unknown environment' if env is None else env['id']}"
    attestation = attestation_of(path)
    missing = [found.missing for found in (evaluation, diagnosis, run_card) if found.missing]
    if latency is None:
        missing.append("latency: no measurement of this policy")
    if not baselines:
        missing.append("baselines: no measurement of other methods was named (--baseline FILE)")
    return templates().get_template("policy_card.md.j2").render(
        title=title,
        front_matter=front_matter(_head(title, env, source, returns)),
        path=str(path),
        env=env,
        environment=environment_rows(env),
        agents=agent_rows(spec),
        acting={"noise_mode": manifest.get("noise"), **manifest["acting"]},
        source=source_rows(source),
        finetuned=finetuned,
        stages=list(subject.stages),
        params=subject.params or manifest["params"],
        all_params=subject.params is not None,
        made_from=manifest["made_from"],
        run_card=run_card.content,
        evaluation=measured,
        returns=returns,
        baselines=[_baseline(file) for file in baselines],
        latency=latency,
        diagnosis=diagnosis.content,
        checks=checks,
        warnings=_warnings(checks, diagnosis.content, returns),
        attestation=attestation.name if attestation.is_file() else None,
        missing=missing,
    )  # fmt: skip


def _returns(
    measured: Mapping[str, Any] | None, rows: Sequence[tuple[str, str]]
) -> list[tuple[str, Mapping[str, Any]]]:
    if measured is None:
        return []
    return [(text, measured[key]) for key, text in rows if measured.get(key) is not None]


def _baseline(file: Path) -> Mapping[str, Any]:
    content = checked_mapping(file, read_json(file), "settings", "env_kwargs")
    wanted = ("method", "env", "episodes", "seed", "return_mean")
    if lacking := [name for name in wanted if name not in content]:
        raise DataError(
            f"{file}: `{lacking[0]}` is missing; `macflow baseline evaluate --json FILE` writes such a file"
        )
    return content


def _warnings(
    checks: Mapping[str, Any],
    diagnosis: Mapping[str, Any] | None,
    returns: Sequence[tuple[str, Mapping[str, Any]]],
) -> list[str]:
    """Say what the diagnosis and the returns themselves warn of."""
    found = [
        f"{name.replace('_', ' ')} was raised: {check['value']:.4g}, threshold {check['threshold']:.4g}"
        for name, check in checks.items()
        if check["raised"]
    ]
    if diagnosis is not None:
        bounds = {"w2_bound_holds": "Prop. 4.2", "value_gap_bound_holds": "Prop. 4.3"}
        found += [f"the bound of {text} does not hold" for key, text in bounds.items() if not diagnosis[key]]
    if returns:
        _, own = returns[0]
        high = own.get("return_ci95_high")
        found += [
            f"clearly worse than: {text} (mean return {other['return_mean']:.4g})"
            for text, other in returns[1:]
            if high is not None and high < other.get("return_ci95_low", other["return_mean"])
        ]
    return found


def _head(
    title: str,
    env: Mapping[str, Any] | None,
    source: Mapping[str, Any],
    returns: Sequence[tuple[str, Mapping[str, Any]]],
) -> dict[str, Any]:
    head: dict[str, Any] = {
        "library_name": "macflow",
        "license": "unknown",
        "pipeline_tag": "reinforcement-learning",
        "tags": ["macflow", "offline-reinforcement-learning", "multi-agent"],
    }
    if env is None:
        return head
    name = plain(env["id"])
    head["tags"].append(name)
    if returns:
        own = returns[0][1]
        metrics = [{"type": "mean_reward", "name": "mean team return", "value": own["return_mean"]}]
        if own.get("normalized_return") is not None:
            metrics.append(
                {
                    "type": "normalized_return",
                    "name": "0 random, 100 expert reference",
                    "value": own["normalized_return"],
                }
            )
        result = {
            "task": {"type": "reinforcement-learning", "name": "offline multi-agent reinforcement learning"},
            "dataset": {"name": plain(source.get("dataset_id") or "unknown"), "type": name},
            "metrics": [metric | {"verified": False} for metric in metrics],
        }
        head["model-index"] = [{"name": plain(title), "results": [result]}]
    return head
