"""Who may import whom: types, files <- nets <- algorithms <- training <- stages; data, envs stand apart."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Part of macflow -> the other parts that it may import. Only stages and the command line join them all.
MAY_IMPORT: dict[str, set[str]] = {
    "types": set(),
    "files": {"types"},
    "config": {"types"},
    "actions": {"types"},
    "data": {"types", "files", "actions"},
    "envs": {"types", "files"},
    "nets": {"types", "files", "actions"},
    "algorithms": {"types", "files", "actions", "nets"},
    "acting": {"types"},
    "policy": {"types", "files", "acting", "actions", "nets", "algorithms", "data"},
    "export": {"files", "actions", "nets", "algorithms", "policy"},
    "training": {"types", "files", "actions", "nets", "algorithms", "policy", "data"},
    "evaluation": {"types", "files", "actions", "nets", "algorithms", "policy"},
    "report": {"types", "files"},
    # A deployed agent: no data, no environment.
    "deploy": {"types", "acting", "policy"},
    # Runs of stages beside DVC, and studies over them.
    "runs": {"types", "files"},
    "tuning": {"types", "files", "config", "runs", "report"},
    "parent": set(),
    "sweeps": {"types", "files", "parent", "runs"},
    "params_file": {"types", "files", "config"},
    # What a project's records say of each other, attestations, promotion, cards: no training, no torch.
    "lineage": {"types", "files", "data", "report"},
    # Names what environments record and importers fetch, so it knows both.
    "catalogue": {"types", "files", "envs", "data"},
}
EVERYTHING = {
    "stages",
    "cli",
    "cli_baseline",
    "cli_common",
    "cli_cards",
    "cli_dataset",
    "cli_export",
    "cli_lineage",
    "cli_listing",
    "cli_promote",
    "cli_run",
    "cli_sweep",
    "cli_signing",
    "cli_tune",
}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def part(path: Path) -> str:
    relative = path.relative_to(ROOT / "macflow")
    return relative.parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Return the dotted names that a file imports, wherever in it the import stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute, so that they can be read"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", modules("macflow"), ids=lambda p: str(p.relative_to(ROOT)))
def test_macflow_imports_point_one_way(path: Path) -> None:
    own = part(path)
    if own in EVERYTHING or own == "__init__":  # the package's face exports lazily what lies inside
        return
    assert own in MAY_IMPORT, f"{own}: say in this test what it may import"
    used = {name.split(".")[1] for name in imported(path) if name.startswith("macflow.")} - {own}
    assert used <= MAY_IMPORT[own], (
        f"{path.relative_to(ROOT)} must not import {sorted(used - MAY_IMPORT[own])}"
    )


@pytest.mark.parametrize("path", modules("flows"), ids=lambda p: str(p.relative_to(ROOT)))
def test_flows_import_nothing_of_macflow_and_no_torch(path: Path) -> None:
    heavy = {name for name in imported(path) if name.split(".")[0] in {"macflow", "torch"}}
    assert not heavy, f"orchestration starts stages as processes: {sorted(heavy)}"


@pytest.mark.parametrize("path", modules("macflow"), ids=lambda p: str(p.relative_to(ROOT)))
def test_macflow_knows_no_orchestrator(path: Path) -> None:
    tools = {name for name in imported(path) if name.split(".")[0] in {"flows", "prefect", "dvc"}}
    assert not tools, f"the library and its stages run without Prefect and DVC: {sorted(tools)}"
