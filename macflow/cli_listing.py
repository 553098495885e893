"""What `macflow dataset list` says of every dataset that has a name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from macflow.catalogue import Facts, PublishedDataset, RecordedDataset, all_datasets, read_facts
from macflow.envs.registry import ENVIRONMENTS, normalized_return, reference_returns

UNKNOWN = "-"


def describe_datasets(available: bool) -> list[dict[str, Any]]:
    """Return one entry of plain JSON types per dataset; `available` leaves out what cannot be had here.

    `missing` is what recording or importing needs first, `env` the environment to evaluate in and
    `env_missing` what that needs. Size and return are those of a recording with default keywords, None
    where nobody measured them.
    """
    facts = read_facts()
    found = [
        _published(entry) if isinstance(entry, PublishedDataset) else _recorded(entry, facts.get(entry.name))
        for entry in all_datasets().values()
    ]
    return [entry for entry in found if not (available and entry["missing"])]


def _recorded(dataset: RecordedDataset, facts: Facts | None) -> dict[str, Any]:
    reference = reference_returns(dataset.env_id, {})
    mean = None if facts is None else facts["return_mean"]
    return {
        "name": dataset.name,
        "kind": "recorded",
        "env": dataset.env_id,
        "behaviour": dataset.behaviour,
        "episodes": dataset.episodes,
        "transitions": None if facts is None else facts["transitions"],
        "bytes": None if facts is None else facts["bytes"],
        "return_mean": mean,
        "normalized_return": None
        if mean is None or reference is None
        else normalized_return(mean, reference),
        "missing": dataset.missing,
        "env_missing": dataset.missing,
    }


def _published(dataset: PublishedDataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "kind": "published",
        "env": dataset.env_id,
        "no_env": dataset.source.no_env or None,
        "url": dataset.source.url,
        "missing": dataset.missing,
        "env_missing": _missing(dataset.env_id),
    }


def _missing(env_id: str | None) -> str | None:
    if env_id is None:
        return None
    entry = ENVIRONMENTS.get(env_id)
    return entry.missing() if entry else f"{env_id} is not registered"


def listing_text(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return the entries as two tables; what is missing stands below them, once."""
    wanted = [entry[key] for key in ("missing", "env_missing") for entry in entries if entry[key]]
    marks = {reason: f"[{number}]" for number, reason in enumerate(dict.fromkeys(wanted), start=1)}
    recorded = [["recorded here", "episodes", "transitions", "MB", "mean return", "needs"]]
    published = [["published", "evaluated in", "needs"]]
    for entry in entries:
        if entry["kind"] == "recorded":
            size = UNKNOWN if entry["bytes"] is None else f"{entry['bytes'] / 1e6:.1f}"
            steps = UNKNOWN if entry["transitions"] is None else f"{entry['transitions']:,}"
            recorded.append(
                [
                    entry["name"],
                    f"{entry['episodes']:,}",
                    steps,
                    size,
                    _mean_return(entry),
                    marks.get(entry["missing"], ""),
                ]
            )
        else:
            where = entry["env"] or "no environment here"
            mark = marks.get(entry["env_missing"], "")
            published.append([entry["name"], f"{where} {mark}".rstrip(), marks.get(entry["missing"], "")])
    tables = [_table(recorded, numbers=range(1, 5)), _table(published, numbers=())]
    notes = [f"{mark} {reason}" for reason, mark in marks.items()]
    return "\n\n".join([*tables, *(["\n".join(notes)] if notes else [])])


def _mean_return(entry: Mapping[str, Any]) -> str:
    if entry["return_mean"] is None:
        return UNKNOWN
    score = entry["normalized_return"]
    return f"{entry['return_mean']:.2f}" + ("" if score is None else f" ({score:.0f})")


def _table(rows: Sequence[Sequence[str]], numbers: Sequence[int]) -> str:
    """Align columns; those of `numbers` to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
