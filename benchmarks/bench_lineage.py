"""Time `macflow lineage`: verify against `md5sum` on the same files, and a policy of long ago; print JSON.

    python benchmarks/bench_lineage.py                     # 1 GB, 50 commits
    python benchmarks/bench_lineage.py --megabytes 200 --commits 500

A project of its own is made with git and DVC in a temporary folder: three stages in a row, the first with
the bulk of the data. Wall times include starting Python. Both ways of hashing run by turns, with the files
in the page cache, and the best of each counts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAGES = """\
stages:
  record:
    cmd: exec python make.py data/raw {files} {size}
    deps: [make.py]
    outs: [data/raw]
  prepare:
    cmd: exec python make.py data/prepared 4 1000
    deps: [make.py, data/raw]
    outs: [data/prepared]
  distill:
    cmd: exec python make.py models/policy 2 1000
    params: [distill]
    deps: [make.py, data/prepared]
    outs: [models/policy]
"""
MAKE = """\
import os, sys
folder, files, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.makedirs(folder, exist_ok=True)
for index in range(files):
    with open(f"{folder}/{index}.bin", "wb") as file:
        file.write(os.urandom(size))
"""
FILE_BYTES = 32_000_000


def main() -> None:
    """Make the project, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=1000, help="of the project, its cache included")
    parser.add_argument("--commits", type=int, default=50, help="between the policy asked for and today")
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="macflow-bench-") as name:
        root = Path(name)
        make_project(root, arguments.megabytes)
        hashed = measure_verify(root, arguments.repeat)
        past = measure_history(root, arguments.commits, arguments.repeat)
    print(json.dumps({"cpus": os.cpu_count(), "verify": hashed, "history": past}, indent=2))


def make_project(root: Path, megabytes: int) -> None:
    """Run three stages under DVC and commit what they leave; DVC's cache is half of the bytes."""
    files = max(1, round(megabytes * 1e6 / 2 / FILE_BYTES))
    (root / "dvc.yaml").write_text(STAGES.format(files=files, size=FILE_BYTES))
    (root / "make.py").write_text(MAKE)
    (root / "params.yaml").write_text("distill:\n  alpha: 0.0000\n")
    run(root, "git", "init", "--quiet")
    run(root, "dvc", "init", "--quiet")
    run(root, "dvc", "repro", "--quiet")
    commit(root, "first")


def measure_verify(root: Path, repeat: int) -> dict[str, float]:
    """Compare `macflow lineage verify` with md5sum on every file that it hashes."""
    files = [p for folder in ("data", "models", ".dvc/cache") for p in (root / folder).rglob("*")]
    files = [p for p in files if p.is_file() and p.name != ".gitignore"]
    size = sum(p.stat().st_size for p in files)
    ours, theirs = [], []
    for _ in range(repeat):
        theirs.append(timed(root, "md5sum", *map(str, files)))
        ours.append(timed(root, *macflow("verify")))
    return {
        "files": len(files),
        "megabytes": round(size / 1e6, 1),
        "verify_s": round(min(ours), 3),
        "md5sum_s": round(min(theirs), 3),
        "verify_mb_per_s": round(size / 1e6 / min(ours), 1),
        "rate_against_md5sum": round(min(theirs) / min(ours), 3),
    }


def measure_history(root: Path, commits: int, repeat: int) -> dict[str, float]:
    """Add commits with another policy each, by the numbers in their lock; ask for the first one."""
    lock = (root / "dvc.lock").read_text()
    md5 = re.findall(r"md5: (\w+)\.dir", lock)[-1]
    for index in range(1, commits + 1):
        alpha = f"{index / 10000:.4f}"
        (root / "params.yaml").write_text(f"distill:\n  alpha: {alpha}\n")
        changed = lock.replace(md5, f"{index:032x}").replace("alpha: 0.0", f"alpha: {alpha}")
        (root / "dvc.lock").write_text(changed)
        commit(root, f"alpha {alpha}")
    times = [timed(root, *macflow(md5, "--format", "json")) for _ in range(repeat)]
    told = json.loads(run(root, *macflow(md5, "--format", "json")))
    policy = next(node for node in told["nodes"] if node["path"] == "models/policy")
    assert policy["made_by"]["commit"]["subject"] == "first"
    assert policy["made_by"]["params"]["distill.alpha"] == 0.0
    return {"commits": commits, "lineage_s": round(min(times), 3), "lineage_worst_s": round(max(times), 3)}


def macflow(*words: str) -> tuple[str, ...]:
    """Return the command line of `macflow lineage`."""
    return sys.executable, "-m", "macflow.cli", "lineage", *words


def commit(root: Path, message: str) -> None:
    """Commit everything."""
    run(root, "git", "add", "--all")
    identity = ("-c", "user.name=bench", "-c", "user.email=bench@example.org")
    run(root, "git", *identity, "commit", "--quiet", f"--message={message}")


def run(root: Path, *command: str) -> str:
    """Run a command that must succeed; return what it printed."""
    scripts = Path(sys.executable).parent
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
    }
    done = subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True, text=True)
    return done.stdout


def timed(root: Path, *command: str) -> float:
    """Return the wall time of a command that must succeed."""
    started = time.perf_counter()
    run(root, *command)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
