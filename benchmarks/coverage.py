"""Choose episodes of a recorded dataset by quality and by coverage, and write the study that trains on them.

    python benchmarks/coverage.py mpe-spread/medium-replay --episodes 500 --out build/coverage
    python benchmarks/study.py build/coverage/study.yaml --seeds 0 1 2

All subsets have the same number of episodes. `random` is a fair sample; `worst` and `best` are the ends by
return; `narrow` are the episodes nearest to one of them, `broad` those of which each is the farthest from all
before it, by the distance of their mean states and actions. Prints what share of the cells that the whole
occupies (random hyperplanes of the state, bins of an agent's action) a subset occupies.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from macflow.catalogue import RecordedDataset, dataset_named
from macflow.data.minari_store import read_minari, write_minari
from macflow.data.rows import stack_episodes
from macflow.data.statistics import action_codes, state_cells_of
from macflow.stages.record import record_dataset

CELLS, BINS = 256, 5
Chosen = NDArray[np.int64]


def main() -> None:
    """Record, choose and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", help="a recorded dataset of `macflow dataset list`")
    parser.add_argument("--episodes", type=int, default=500, help="in each subset")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the fair sample, and of where narrow and broad begin"
    )
    parser.add_argument("--out", type=Path, default=Path("build/coverage"))
    arguments = parser.parse_args()
    named = dataset_named(arguments.dataset)
    if not isinstance(named, RecordedDataset):
        parser.error(f"`dataset`: must be one that is recorded here (received {arguments.dataset!r})")
    whole = arguments.out / "whole"
    if not whole.exists():
        record_dataset(whole, named, {}, None, 0)
    episodes, spec, meta = read_minari(whole)
    if not 0 < arguments.episodes < len(episodes):
        parser.error(f"`--episodes`: must lie in 1..{len(episodes) - 1} (received {arguments.episodes})")
    rows = stack_episodes(episodes, spec)
    features = np.array(
        [[*e.state.mean(0), *e.state.std(0), *e.actions.reshape(e.length, -1).mean(0)] for e in episodes]
    )
    features = (features - features.mean(0)) / (features.std(0) + 1e-6)
    returns = np.array([episode.team_return for episode in episodes])
    cells = state_cells_of(rows.state[rows.train_rows], CELLS, 0)
    codes = action_codes(rows.actions[rows.train_rows], spec, BINS)
    n = spec.n_agents
    triples = [np.repeat(cells, n), np.tile(np.arange(n), len(cells)), codes.reshape(-1)]
    places = np.unique(np.column_stack(triples), axis=0, return_inverse=True)[1]
    owner = np.repeat(rows.episode_of_row[rows.train_rows], n)
    variants = {}
    print("| subset | mean return | cells of the whole |\n|---|---|---|")
    for name, picks in subsets(features, returns, arguments.episodes, arguments.seed).items():
        folder = arguments.out / name
        if not folder.exists():
            chosen = [episodes[i] for i in np.sort(picks)]
            write_minari(folder, f"coverage/{name}-v0", chosen, spec, meta["env"], {"name": name})
        share = len(np.unique(places[np.isin(owner, picks)])) / len(np.unique(places))
        variants[name] = {"prepare": {"raw": str(folder.absolute())}}
        print(f"| {name} | {returns[picks].mean():.2f} | {share:.2f} |", flush=True)
    study = {"datasets": [arguments.dataset], "variants": variants}
    (arguments.out / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))


def subsets(
    features: NDArray[np.float64], returns: NDArray[np.float64], keep: int, seed: int
) -> dict[str, Chosen]:
    """Return episodes by the name of what they are chosen by, given features (E, F) and returns (E,)."""
    rng = np.random.default_rng(seed)
    first = int(rng.integers(len(returns)))
    ranked = np.argsort(returns, kind="stable")
    return {
        "random": rng.choice(len(returns), keep, replace=False),
        "worst": ranked[:keep],
        "best": ranked[-keep:],
        "narrow": np.argsort(distances(features, first), kind="stable")[:keep],
        "broad": farthest_first(features, first, keep),
    }


def farthest_first(features: NDArray[np.float64], first: int, keep: int) -> Chosen:
    """Return `keep` rows, each the one farthest from all before it.

    Source: Gonzalez, "Clustering to Minimize the Maximum Intercluster Distance", 1985.
    """
    picks = [first]
    nearest = distances(features, first)
    while len(picks) < keep:
        picks.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distances(features, picks[-1]))
    return np.array(picks)


def distances(features: NDArray[np.float64], row: int) -> NDArray[np.float64]:
    """Return the Euclidean distances of all rows to one."""
    return np.asarray(np.linalg.norm(features - features[row], axis=1))


if __name__ == "__main__":
    main()
