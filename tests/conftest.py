"""Settings that hold for every test."""

from __future__ import annotations

import os

# Before any import of the libraries that would otherwise report to their makers.
os.environ.update(DO_NOT_TRACK="1", DVC_NO_ANALYTICS="1", GX_ANALYTICS_ENABLED="false")

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _denormals() -> Iterator[None]:
    """Undo what stages that run inside a test set for the whole process: NumPy counts on denormals."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
