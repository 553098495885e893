"""Keep levels of a controller's training for `macflow.envs.controllers`.

    python tools/keep_levels.py controllers/halfcheetah halfcheetah --command "..." \
        --expert 300000 --medium 60000 --replay 20000 40000

Copies the weights of the given steps into `macflow/envs/weights/ROBOT` and writes `training.json` beside
them: the command that trained, and of each level its steps and mean return without exploration.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from macflow.envs.controllers import FOLDER
from macflow.files import write_json


def main() -> None:
    """Copy and describe."""
    parser = argparse.ArgumentParser(description="Keep levels of a controller's training.")
    parser.add_argument("run", type=Path, help="--out of tools/train_controller.py")
    parser.add_argument("robot")
    parser.add_argument("--command", required=True, help="what trained them")
    parser.add_argument("--expert", type=int, required=True, help="steps after which the expert was kept")
    parser.add_argument("--medium", type=int, required=True)
    parser.add_argument("--replay", type=int, nargs="+", required=True, help="levels below medium")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in (arguments.run / "progress.jsonl").read_text().splitlines()]
    progress = {row["steps"]: row for row in rows}
    chosen = {"expert": arguments.expert, "medium": arguments.medium}
    chosen |= {f"replay-{index}": steps for index, steps in enumerate(sorted(arguments.replay), 1)}
    target = FOLDER / arguments.robot
    target.mkdir(parents=True, exist_ok=True)
    for name, steps in chosen.items():
        shutil.copyfile(arguments.run / f"{steps}.safetensors", target / f"{name}.safetensors")
    levels = {name: progress[steps] for name, steps in chosen.items()}
    write_json(target / "training.json", {"command": arguments.command, "levels": levels})


if __name__ == "__main__":
    main()
