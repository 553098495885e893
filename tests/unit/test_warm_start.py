"""`flow.init`: training goes on from an earlier flow of the same shape, and refuses any other."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from data_samples import prepare_recorded

from macflow.files import digest, read_json
from macflow.stages import train_flow
from macflow.training.artifacts import load_flow
from macflow.types import DataError

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"


def train(root: Path, name: str, **flow: Any) -> Path:
    """Train a small flow in `root`; return its folder."""
    params = yaml.safe_load(PARAMS.read_text())
    params["training"] |= {"threads": 1, "log_every": 5}
    params["flow"] |= {"hidden": [16], "steps": 40, "batch_size": 32, "euler_steps": 2} | flow
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    out = root / name
    train_flow.main(
        argparse.Namespace(
            params=root / "params.yaml",
            data=root / "data",
            out=out / "flow",
            metrics=out / "metrics.json",
            plots=out / "plots",
        )
    )
    return out


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    prepare_recorded(tmp_path / "data", "game/xor", "mixed", 60)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_flow_goes_on_where_an_earlier_one_ended(workspace: Path) -> None:
    earlier = train(workspace, "earlier", steps=400, learning_rate=1e-2)
    on = train(workspace, "on", init=str(earlier / "flow"), steps=1, learning_rate=1e-30)
    before, after = load_flow(earlier / "flow"), load_flow(on / "flow")
    for old, new in zip(before.field.parameters(), after.field.parameters(), strict=True):
        torch.testing.assert_close(new, old)
    fresh = train(workspace, "fresh", steps=5)
    warm = train(workspace, "warm", init=str(earlier / "flow"), steps=5)
    first = {run.name: read_json(run / "metrics.json")["loss_first"] for run in (fresh, warm)}
    assert first["warm"] < 0.8 * first["fresh"]
    made_from = read_json(warm / "flow/flow.json")["made_from"]
    assert made_from[str(earlier / "flow")] == digest(earlier / "flow")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden": [24]}, r"hidden \[16\] \(needed: \[24\]\)"),
        ({"scope": "individual"}, r"scope joint \(needed: individual\)"),
        ({"objective": "endpoint"}, r"objective velocity \(needed: endpoint\)"),
    ],
)
def test_a_flow_of_another_shape_is_refused_by_what_differs(
    workspace: Path, change: dict[str, Any], said: str
) -> None:
    earlier = train(workspace, "earlier", steps=5)
    with pytest.raises(DataError, match="`flow.init`.*" + said):
        train(workspace, "on", init=str(earlier / "flow"), **change)
    assert not (workspace / "on").exists()


def test_a_flow_of_other_agents_is_refused(workspace: Path, tmp_path: Path) -> None:
    earlier = train(workspace, "earlier", steps=5)
    other = tmp_path / "other"
    other.mkdir()
    prepare_recorded(other / "data", "game/landmark", "expert", 20)
    with pytest.raises(DataError, match=r"`flow.init`.*n_agents 2 \(needed: 3\)"):
        train(other, "on", init=str(earlier / "flow"))
    with pytest.raises(DataError, match="nowhere"):
        train(workspace, "on", init=str(workspace / "nowhere"))
