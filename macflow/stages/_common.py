"""What every stage does around its work: arguments, error messages, run card, dying with its parent."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from macflow.files import digest, dvc_md5, write_json
from macflow.parent import die_with_parent
from macflow.types import MacflowError

RUN_CARDS = Path("metrics/run_cards")
# Beside the latest run's card, that of the run which first made each output: for git to keep.
KEPT_CARDS = Path("metrics/made")
# What a stage's result depends on, besides data.
SOURCES = ("macflow", "dvc.yaml", "params.yaml")
CARD_PACKAGES = (
    "macflow",
    "torch",
    "numpy",
    "polars",
    "minari",
    "gymnasium",
    "pettingzoo",
    "mpe2",
    "great-expectations",
    "pot",
    "dvc",
    "prefect",
)


def run_stage(
    name: str,
    main: Callable[[argparse.Namespace], None],
    add_arguments: Callable[[argparse.ArgumentParser], None],
) -> None:
    """Run `main` as the DVC stage `name`; end the process with code 1 and one message on our errors.

    Writes `metrics/run_cards/NAME.json` after success: the facts that differ between identical
    runs (times, versions, machine), which DVC therefore does not hash. The card of the first run that
    made an output is kept as `metrics/made/NAME-HASH.json`: an equal output adds no file.
    """
    die_with_parent()
    parser = argparse.ArgumentParser(prog=f"python -m macflow.stages.{name}", description=main.__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file")
    add_arguments(parser)
    arguments = parser.parse_args()
    started = time.time()
    try:
        main(arguments)
    except MacflowError as error:
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    _write_run_card(name, started, _main_output(arguments))


def _main_output(arguments: argparse.Namespace) -> Path:
    """Return what the stage is there to write; one that only measures writes plots."""
    path: Path = arguments.out if "out" in arguments else arguments.plots
    return path


def _write_run_card(name: str, started: float, output: Path) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    changed = _git("status", "--porcelain", "--", *SOURCES)
    made = {"path": output.as_posix(), "md5": dvc_md5(output), "sha256": digest(output)}
    card: dict[str, Any] = {
        "stage": name,
        "output": made,
        "started_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "wall_seconds": round(time.time() - started, 3),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
        "peak_memory_mb": round(usage.ru_maxrss / 1024, 1),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(changed),
        "git_changed": sorted(line.split(maxsplit=1)[1] for line in (changed or "").splitlines()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "packages": {package: _version(package) for package in CARD_PACKAGES},
    }
    write_json(RUN_CARDS / f"{name}.json", card)
    kept = KEPT_CARDS / f"{name}-{made['md5'][:16]}.json"
    if not kept.exists():
        write_json(kept, card)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
