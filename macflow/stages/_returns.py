"""What the stages that play episodes say of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from macflow.envs.entry import Reference
from macflow.envs.registry import normalized_return
from macflow.evaluation.returns import summarise_returns
from macflow.evaluation.rollout import RolloutResult


def summarise_results(
    results: Mapping[str, RolloutResult], reference: Reference | None, seed: int
) -> dict[str, Any]:
    """Return the summary of each actor's episodes by its name, and the `reference` that normalises them."""
    normalise = None if reference is None else partial(normalized_return, reference=reference)
    scale = reference and {"random": reference["random"], "expert": reference["expert"]}
    return {
        name: summarise_returns(result.returns, result.lengths, normalise, seed)
        for name, result in results.items()
    } | {"reference": scale}
