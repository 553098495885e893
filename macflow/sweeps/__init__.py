"""Sweeps: every method on every dataset with every seed, as runs that are never done twice."""
