"""Orchestration: the DVC pipeline as a Prefect flow. Imports nothing of macflow, so it needs no torch."""
