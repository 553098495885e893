"""Run the pipeline's stages in a folder of their own, with parameters of their own.

The commands are those of dvc.yaml; DVC itself is left out, so a measurement leaves the
repository's dvc.lock and outputs alone.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from macflow.sweeps.plan import merged

ROOT = Path(__file__).resolve().parent.parent


def make_workspace(
    folder: Path,
    *overrides: Mapping[str, Any],
    reuse: Path | None = None,
    artifacts: Iterable[str] = (),
) -> Path:
    """Write `params.yaml` (the repository's, then each override) and copy `artifacts` from `reuse`.

    Raises:
        FileExistsError: `folder` holds a run with other parameters, which would pass for the one asked for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    for override in overrides:
        params = merged(params, override)
    text, file = yaml.safe_dump(params, sort_keys=False), folder / "params.yaml"
    if file.exists() and file.read_text() != text:
        raise FileExistsError(
            f"{file}: of a run with other parameters; remove {folder} or name another --workspace"
        )
    file.write_text(text)
    for artifact in artifacts:
        if reuse is not None and not (folder / artifact).exists():
            shutil.copytree(reuse / artifact, folder / artifact)
    return folder


def run_stages(folder: Path, stages: Iterable[str]) -> None:
    """Run dvc.yaml's commands of `stages`, in the order given, inside `folder`.

    Raises:
        subprocess.CalledProcessError: a stage failed; its output has been shown.
    """
    for stage in stages:
        print(f"== {folder.name}: {stage}", flush=True)
        subprocess.run(stage_command(folder, stage), cwd=folder, check=True, env=stage_environment())


def stage_command(folder: Path, stage: str) -> list[str]:
    """Return dvc.yaml's command of a stage with the parameters of `folder`."""
    definition = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    params: dict[str, Any] = yaml.safe_load((folder / "params.yaml").read_text())
    # DVC's templating, as far as dvc.yaml uses it in commands: ${section.key}.
    text = re.sub(r"\$\{(\w+)\.(\w+)\}", lambda m: str(params[m[1]][m[2]]), definition[stage]["cmd"])
    return [sys.executable, *shlex.split(text.removeprefix("exec python "))]


def stage_environment() -> dict[str, str]:
    """Return an environment in which stages run the project's own sources, whatever is installed."""
    return os.environ | {"PYTHONPATH": str(ROOT)}
