"""Ingest a Minari dataset: check it, and write the canonical form that training reads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from macflow.config import PrepareParams, load_section
from macflow.data.expectations import Limits, Validation, refuse_structure, validate, write_reports
from macflow.data.hdf5_reader import StructureError
from macflow.data.minari_metadata import find_dataset, read_metadata
from macflow.data.minari_store import read_minari_rows
from macflow.data.prepared import write_prepared
from macflow.files import digest, write_json
from macflow.stages._common import run_stage
from macflow.types import DataError


def main(arguments: argparse.Namespace) -> None:
    """Check a Minari dataset and write its canonical form; refuse it with code 1 if a check fails."""
    params = load_section(arguments.params, "prepare", PrepareParams)
    limits = Limits(params.max_abs_reward, params.max_abs_observation, params.max_duplicate_fraction)
    try:
        rows, spec, meta = read_minari_rows(arguments.raw)
    except StructureError as error:
        spec, meta = read_metadata(find_dataset(arguments.raw))
        validation = refuse_structure(_name(arguments.raw, meta), error.problems, spec, limits)
        write_reports(arguments.validation, validation)
        raise _refusal(arguments.validation, validation) from None
    validation = validate(_name(arguments.raw, meta), rows, spec, limits)
    write_reports(arguments.validation, validation)
    if not validation.success:
        raise _refusal(arguments.validation, validation)
    raw_digest = digest(arguments.raw)
    write_prepared(
        arguments.out,
        rows,
        spec,
        env=meta["env"] and {"version": None, **meta["env"]},
        source={
            "kind": "minari",
            "path": str(arguments.raw),
            "sha256": raw_digest,
            "dataset_id": meta["dataset_id"],
            "minari_version": meta["minari_version"],
            "behaviour": meta["behaviour"],
            "agents_inferred": meta["inferred"],
        },
        made_from={str(arguments.raw): raw_digest},
        params={"prepare": params.model_dump()},
    )
    write_json(
        arguments.metrics,
        {
            "success": True,
            "expectations": len(validation.outcomes),
            "failed": 0,
            "episodes": validation.episodes,
            "transitions": validation.transitions,
        },
    )
    print(
        f"prepare: {validation.episodes} episodes, {validation.transitions} transitions, "
        f"all {len(validation.outcomes)} expectations met",
        flush=True,
    )


def _name(raw: Path, meta: dict[str, Any]) -> str:
    return meta["dataset_id"] or str(raw)


def _refusal(folder: Path, validation: Validation) -> DataError:
    return DataError(f"{validation.message()}\n  report: {folder / 'index.html'}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stage's paths."""
    parser.add_argument("--raw", type=Path, required=True, help="folder of a Minari dataset")
    parser.add_argument("--out", type=Path, required=True, help="folder of the prepared dataset")
    parser.add_argument("--validation", type=Path, required=True, help="folder of the validation report")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON file")


if __name__ == "__main__":
    run_stage("prepare", main, add_arguments)
