"""Settings that hold for every test."""

from __future__ import annotations

import os

# Before any import of the libraries that would otherwise report to their makers.
os.environ.update(DO_NOT_TRACK="1", DVC_NO_ANALYTICS="1", GX_ANALYTICS_ENABLED="false")
