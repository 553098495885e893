"""Examples go into params.yaml, which keeps its comments and its order."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from macflow.config import check_params
from macflow.sweeps.plan import merged
from macflow.types import ConfigError
from tools.use_example import use_example

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.fixture
def params(tmp_path: Path) -> Path:
    return Path(shutil.copy(ROOT / "params.yaml", tmp_path))


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_what_the_benchmarks_run_and_changes_nothing_else(
    example: Path, params: Path
) -> None:
    before = params.read_text(encoding="utf-8")
    changed = use_example(example, params)
    # An independent merge, that of sweeps.
    assert load(params) == merged(load(ROOT / "params.yaml"), load(example))
    check_params(params, load(params))
    after = params.read_text(encoding="utf-8")
    assert [line for line in after.splitlines() if "#" in line] == [
        line for line in before.splitlines() if "#" in line
    ]
    differing = [
        pair for pair in zip(before.splitlines(), after.splitlines(), strict=True) if len(set(pair)) > 1
    ]
    assert len(differing) == len(changed) > 0
    assert use_example(example, params) == []
    assert params.read_text(encoding="utf-8") == after


def test_keywords_are_replaced_as_a_whole(params: Path, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("record: {kwargs: {n_agents: 5, max_cycles: 10}}\n")
    (tmp_path / "b.yaml").write_text("record: {kwargs: {local_ratio: 0.1}}\n")
    assert use_example(tmp_path / "a.yaml", params) == [
        "record.kwargs: {} -> {'n_agents': 5, 'max_cycles': 10}"
    ]
    use_example(tmp_path / "b.yaml", params)
    assert load(params)["record"] == {"kwargs": {"local_ratio": 0.1}, "episodes": None, "seed": 0}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("dataset: mpe-spread/meduim", "`dataset`: no dataset has this name; near names: mpe-spread/expert"),
        ("flwo: {steps: 3}", r"`flwo`: there is no such parameter \(received"),
        ("flow: {step: 3}", r"`flow\.step`: there is no such parameter \(received 3\)"),
        ("flow: {steps: -3}", r"params\.yaml: `flow\.steps`: .*greater than 0 \(received -3\)"),
        (
            "flow: {scope: individual, arch: transformer}",
            r"params\.yaml: `flow\.arch`: .*needs `flow\.scope: joint` \(received 'transformer'\)",
        ),
        (
            "flow: {arch: transformer, hidden: [64, 32]}",
            r"`flow\.hidden`: .*one width.*\(received \[64, 32\]\)",
        ),
        ("flow: {arch: transformer, hidden: [30]}", r"`flow\.hidden`: .*multiple of its 4 heads"),
        ("flow: 3", r"params\.yaml: `flow`: .*\(received 3\)"),
        ("- 3", r"example\.yaml: must map names to values"),
        ("a: [", r"example\.yaml: not valid YAML"),
    ],
)
def test_a_wrong_example_changes_nothing(params: Path, tmp_path: Path, text: str, told: str) -> None:
    before = params.read_bytes()
    (tmp_path / "example.yaml").write_text(text)
    with pytest.raises(ConfigError, match=told):
        use_example(tmp_path / "example.yaml", params)
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: file not found"):
        use_example(tmp_path / "nowhere.yaml", params)
    assert params.read_bytes() == before
