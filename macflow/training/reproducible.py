"""What makes the same training end with the same bytes: torch's settings, and the code that it is of."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch

import macflow
from macflow.files import digest


def prepare_torch(threads: int) -> None:
    """Set torch up for arithmetic that repeats, for the whole process."""
    # Without it cuBLAS refuses to compute deterministically; read when the GPU is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Denormals make a CPU step several times slower once a net's activations have saturated.
    torch.set_flush_denormal(True)


def code_digest() -> str:
    """Return the digest of this package's sources: a checkpoint made by others must not be continued."""
    root = Path(macflow.__file__).parent
    files = sorted(root.rglob("*.py"))
    return hashlib.sha256("".join(f"{f.relative_to(root)}{digest(f)}" for f in files).encode()).hexdigest()
