"""Mean returns with an honest interval, and on the scale from random (0) to expert (100)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from macflow.types import DataError

RESAMPLES = 9999
# Resampled values held at once, so that memory does not grow with the number of episodes.
BATCH_VALUES = 2_000_000


@dataclass(frozen=True)
class Interval:
    """A mean and its bootstrap confidence interval; one value alone has no interval."""

    mean: float
    low: float | None
    high: float | None


def bootstrap_mean(values: ArrayLike, seed: int, confidence: float = 0.95) -> Interval:
    """Return the mean of `values` with its bias-corrected and accelerated bootstrap interval.

    Source: Efron, "Better Bootstrap Confidence Intervals", JASA 1987.

    Raises:
        DataError: where there is no value, or one is not finite.
    """
    sample = np.asarray(values, np.float64)
    if sample.ndim != 1 or not len(sample):
        raise DataError(f"a mean needs at least one value in one dimension (received shape {sample.shape})")
    if not np.isfinite(sample).all():
        raise DataError(f"a mean needs finite values (received {sample[~np.isfinite(sample)][0]})")
    mean = float(sample.mean())
    if len(sample) == 1:
        return Interval(mean, None, None)
    if np.ptp(sample) == 0:
        return Interval(mean, mean, mean)
    low, high = _interval(sample, seed, confidence, "BCa")
    if not (np.isfinite(low) and np.isfinite(high)):
        # The correction is undefined where the resampled means pile up on one value.
        low, high = _interval(sample, seed, confidence, "percentile")
    return Interval(mean, low, high)


def _interval(sample: NDArray[np.float64], seed: int, confidence: float, method: str) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (sample,),
            np.mean,
            confidence_level=confidence,
            n_resamples=RESAMPLES,
            batch=max(1, BATCH_VALUES // len(sample)),
            method=method,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return float(found.low), float(found.high)


def summarise_returns(
    returns: ArrayLike,
    lengths: ArrayLike,
    normalise: Callable[[float], float] | None,
    seed: int,
) -> dict[str, Any]:
    """Return the mean return, its interval, both normalised, and the mean length, as plain numbers.

    Args:
        normalise: increasing map to the scale of 0 (random) to 100 (expert); None where the
            environment has no such references, which leaves the normalised entries None.
    """
    interval = bootstrap_mean(returns, seed)
    entries = {
        "return_mean": interval.mean,
        "return_ci95_low": interval.low,
        "return_ci95_high": interval.high,
    }
    normalised = {
        key.replace("return", "normalized_return"): (
            None if value is None or normalise is None else normalise(value)
        )
        for key, value in entries.items()
    }
    normalised["normalized_return"] = normalised.pop("normalized_return_mean")
    return entries | normalised | {"length_mean": float(np.mean(np.asarray(lengths)))}
