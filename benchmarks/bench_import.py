"""Time `macflow dataset import` of a synthetic OG-MARL vault; print JSON.

    python benchmarks/bench_import.py                       # 1M transitions in episodes of 1000 steps
    python benchmarks/bench_import.py --episode-steps 25    # the same in episodes of 25 steps
    python benchmarks/bench_import.py --vault vaults/x.vlt  # only write the vault, and keep it

Wall time includes starting Python. Peak memory is sampled over the whole process tree.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

AGENTS, OBS, ACTION, STATE = 3, 18, 2, 54
SAMPLE_SECONDS = 0.05
# Vaults declare a time axis without an end, in chunks of this many bytes (flashbax 0.1.3).
ENDLESS = 10**13
CHUNK_BYTES = 1 << 22
COMMAND = ("dataset", "import", "bench.vlt", "--from", "og-marl", "--to", "raw")


def main() -> None:
    """Generate, import, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--transitions", type=int, default=1_000_000)
    parser.add_argument("--episode-steps", type=int, default=1000)
    parser.add_argument("--vault", type=Path, help="write the vault to this new folder, and stop")
    arguments = parser.parse_args()
    arrays = synthetic_arrays(arguments.transitions, arguments.episode_steps)
    if arguments.vault is not None:
        write_vault(arguments.vault / "Synthetic", arrays)
        return
    with tempfile.TemporaryDirectory(prefix="macflow-bench-") as name:
        folder = Path(name)
        write_vault(folder / "bench.vlt/Synthetic", arrays)
        del arrays
        size = sum(file.stat().st_size for file in (folder / "bench.vlt").rglob("*") if file.is_file())
        measured = run(folder)
    print(
        json.dumps(
            {
                "rows": arguments.transitions,
                "episode_steps": arguments.episode_steps,
                "vault_mb": round(size / 1e6, 1),
                **measured,
                "cpu_count": os.cpu_count(),
                "load_average": round(os.getloadavg()[0], 1),
            },
            indent=2,
        )
    )


def synthetic_arrays(rows: int, episode_steps: int) -> dict[str, NDArray[Any]]:
    """Return the arrays (1, rows, ...) of a vault of random episodes that a time limit ended."""
    random = np.random.default_rng(0)
    obs = random.standard_normal((1, rows, AGENTS, OBS), np.float32)
    last = np.arange(1, rows + 1) % episode_steps == 0
    flags = np.broadcast_to(last[None, :, None], (1, rows, AGENTS))
    return {
        "observations": obs,
        "actions": np.tanh(random.standard_normal((1, rows, AGENTS, ACTION), np.float32)),
        "rewards": random.standard_normal((1, rows, AGENTS), np.float32),
        "terminals": np.zeros((1, rows, AGENTS), np.float32),
        "truncations": flags.astype(np.float32),
        "infos.state": obs.reshape(1, rows, STATE),
    }


def write_vault(folder: Path, arrays: Mapping[str, NDArray[Any]], buffer: int = 8) -> None:
    """Write arrays (B, rows, ...) by dotted names as the UID folder `folder` of a vault, as flashbax does.

    The metadata tell the writer's buffer, which is larger than the data by `buffer` rows.
    """
    import tensorstore

    folder.mkdir(parents=True)

    def store(name: str, array: NDArray[Any], metadata: Mapping[str, Any]) -> None:
        spec = {
            "driver": "zarr",
            "kvstore": {
                "driver": "ocdbt",
                "base": {"driver": "file", "path": f"{folder.resolve()}/"},
                "path": f"{name}/",
            },
            "metadata": dict(metadata),
        }
        target = tensorstore.open(
            spec, dtype=array.dtype.name, shape=metadata["shape"], create=True, open=True
        ).result()
        (target if name == "vault_index" else target[:, : array.shape[1]]).write(array).result()

    meta: dict[str, Any] = {"version": 1.2, "structure_shape": {}, "structure_dtype": {}}
    for name, array in arrays.items():
        batch, rows, *row = array.shape
        chunk = max(1, CHUNK_BYTES // (array.itemsize * int(np.prod(row, dtype=int))))
        store(
            f"{name}.",
            array,
            {
                "shape": [batch, ENDLESS, *row],
                "chunks": [batch, chunk, *row],
                "compressor": {"id": "gzip", "level": 5},
            },
        )
        *parents, leaf = name.split(".")
        for kind, text in (
            ("structure_shape", str((batch, rows + buffer, *row))),
            ("structure_dtype", array.dtype.name),
        ):
            tree = meta[kind]
            for parent in parents:
                tree = tree.setdefault(parent, {})
            tree[leaf] = text
    rows = next(iter(arrays.values())).shape[1]
    store("vault_index", np.array([rows], np.int32), {"shape": [1], "chunks": [1]})
    (folder / "metadata.json").write_text(json.dumps(meta), encoding="utf-8")


def run(folder: Path) -> dict[str, Any]:
    """Import the vault in `folder` as users do; return what the command told, its time and peak memory."""
    started, before = time.perf_counter(), os.times()
    process = psutil.Popen(
        [Path(sys.executable).with_name("macflow"), *COMMAND],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    peak = 0
    while process.poll() is None:
        try:
            peak = max(
                peak, sum(one.memory_info().rss for one in [process, *process.children(recursive=True)])
            )
        except psutil.NoSuchProcess:
            pass
        time.sleep(SAMPLE_SECONDS)
    wall, after = time.perf_counter() - started, os.times()
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, "import")
    size = sum(file.stat().st_size for file in (folder / "raw").rglob("*") if file.is_file())
    return {
        "told": process.stdout.read().splitlines(),
        "wall_seconds": round(wall, 1),
        # Of all processes and threads: what the time would be on one idle core.
        "cpu_seconds": round(
            after.children_user + after.children_system - before.children_user - before.children_system,
            1,
        ),
        "peak_memory_mb": round(peak / 1e6, 1),
        "minari_mb": round(size / 1e6, 1),
    }


if __name__ == "__main__":
    main()
