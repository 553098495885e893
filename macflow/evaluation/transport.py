"""Exact optimal transport between clouds of points, by POT."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist

# POT imports every array library that it finds, which takes longer than all of its work here.
for _library in ("JAX", "TENSORFLOW", "CUPY"):
    os.environ.setdefault(f"POT_BACKEND_DISABLE_{_library}", "1")

import ot  # noqa: E402


def wasserstein2(x: ArrayLike, y: ArrayLike) -> float:
    """Return the exact 2-Wasserstein distance of two clouds of equally weighted points (n, D), (m, D)."""
    return transport(cdist(np.asarray(x, np.float64), np.asarray(y, np.float64), "sqeuclidean"))


def transport(squares: NDArray[np.float64]) -> float:
    """Return the 2-Wasserstein distance of equally weighted points from their squared distances (n, m)."""
    cost = ot.emd2([], [], squares, numItermax=10_000_000)
    return float(np.sqrt(max(float(cost), 0.0)))


def sampling_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Return the root mean square of the W2 between x[b] and y[b], (B, M, D) each.

    For two independent samples of one distribution that is what W2 reads where it is 0: the error that M
    samples leave, of the order M^(-1/D) in D > 2 dimensions.
    """
    pairs = zip(np.asarray(x, np.float64), np.asarray(y, np.float64), strict=True)
    return float(np.sqrt(np.mean([wasserstein2(a, b) ** 2 for a, b in pairs])))
