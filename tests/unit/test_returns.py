"""Bootstrap intervals and normalised summaries of returns."""

from __future__ import annotations

import numpy as np
import pytest

from macflow.evaluation.returns import bootstrap_mean, summarise_returns
from macflow.types import DataError


def test_interval_of_a_normal_sample_is_close_to_the_textbook_one() -> None:
    sample = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = bootstrap_mean(sample, seed=0)
    half = 1.96 * sample.std(ddof=1) / 20
    assert found.mean == pytest.approx(sample.mean())
    assert found.low == pytest.approx(sample.mean() - half, abs=0.05)
    assert found.high == pytest.approx(sample.mean() + half, abs=0.05)


def test_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    found = [bootstrap_mean(rng.exponential(1.0, 60), seed=i) for i in range(100)]
    covered = sum(i.low <= 1.0 <= i.high for i in found if i.low is not None and i.high is not None)
    assert 88 <= covered <= 100


def test_interval_leans_with_a_skewed_sample() -> None:
    sample = np.random.default_rng(2).lognormal(0, 1, 50)
    found = bootstrap_mean(sample, seed=0)
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.mean > found.mean - found.low


def test_same_seed_gives_the_same_interval() -> None:
    sample = np.random.default_rng(0).normal(size=30)
    assert bootstrap_mean(sample, 5) == bootstrap_mean(sample, 5) != bootstrap_mean(sample, 6)


def test_constant_and_single_values() -> None:
    constant = bootstrap_mean(np.full(20, 0.1), seed=0)
    assert (constant.low, constant.mean, constant.high) == pytest.approx((0.1, 0.1, 0.1))
    single = bootstrap_mean([4.0], seed=0)
    assert (single.mean, single.low, single.high) == (4.0, None, None)


@pytest.mark.parametrize("values", [[0.0, 1.0], [1.0] * 199 + [0.0], [0.0, 0.0, 1e-9]])
def test_nearly_degenerate_samples_still_have_a_finite_interval(values: list[float]) -> None:
    found = bootstrap_mean(values, seed=0)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.mean <= found.high


@pytest.mark.parametrize("values", [[], [1.0, np.nan], [np.inf], [[1.0, 2.0]]])
def test_no_mean_of_nothing_or_of_what_is_not_finite(values: list[float]) -> None:
    with pytest.raises(DataError, match="a mean needs"):
        bootstrap_mean(values, seed=0)


def test_summary_normalises_mean_and_interval_alike() -> None:
    returns = np.array([-30.0, -20.0, -10.0, -20.0])
    found = summarise_returns(returns, [25, 25, 25, 21], lambda value: value + 50, seed=0)
    assert found["return_mean"] == -20.0
    assert found["normalized_return"] == 30.0
    assert found["normalized_return_ci95_low"] == found["return_ci95_low"] + 50
    assert found["normalized_return_ci95_high"] == found["return_ci95_high"] + 50
    assert found["length_mean"] == 24.0
    assert len(found) == 7


def test_summary_without_references_has_no_normalised_return() -> None:
    found = summarise_returns([1.0, 2.0], [1, 1], None, seed=0)
    assert found["normalized_return"] is None
    assert found["normalized_return_ci95_high"] is None
    assert found["return_ci95_low"] is not None
