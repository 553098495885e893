"""Flows on disk come back as they went, whatever their net; what does not fit together is refused."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from data_samples import ENV, make_episodes, make_spec

from macflow.config import FlowParams
from macflow.data.normalizer import Normalizer
from macflow.data.prepared import write_prepared
from macflow.data.rows import stack_episodes
from macflow.stages import train_flow
from macflow.training.artifacts import FlowArtifact, build_field, load_flow, save_flow
from macflow.types import ConfigError, DataError

PARAMS: dict[str, Any] = {
    "init": None,
    "scope": "joint",
    "arch": "mlp",
    "objective": "velocity",
    "hidden": [16, 16],
    "steps": 2,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "schedule": "constant",
    "euler_steps": 4,
}
FLOWS = [
    {},
    {"scope": "individual"},
    {"arch": "transformer"},
    {"arch": "transformer", "objective": "endpoint"},
]


def make_flow(params: FlowParams) -> FlowArtifact:
    spec = make_spec(discrete=True)
    normalizer = Normalizer.from_dict(
        {
            "obs_mean": [[0.5] * 4] * 2,
            "obs_std": [[2.0] * 4] * 2,
            "state_mean": [0.0] * 8,
            "state_std": [1.0] * 8,
            "reward_scale": 1.0,
        }
    )
    field = build_field(
        spec, params.scope, params.arch, params.hidden, torch.Generator().manual_seed(3)
    ).requires_grad_(False)
    return FlowArtifact(spec, normalizer, field, params.objective, params.euler_steps)


@pytest.mark.parametrize("changes", FLOWS, ids=str)
def test_a_loaded_flow_samples_what_the_saved_one_does(tmp_path: Path, changes: dict[str, Any]) -> None:
    params = FlowParams(**PARAMS | changes)
    flow = make_flow(params)
    save_flow(tmp_path, flow, {"params": {"flow": params.model_dump(mode="json")}})
    loaded = load_flow(tmp_path)
    assert type(loaded.field) is type(flow.field)
    g = torch.Generator().manual_seed(0)
    obs, noise = torch.randn(64, 2, 4, generator=g), torch.randn(64, 2, 3, generator=g)
    legal = torch.rand(64, 2, 3, generator=g) < 0.7
    legal[..., 0] = True
    sample = loaded.sample(obs, noise, legal)
    assert torch.equal(sample, flow.sample(obs, noise, legal))
    assert len(sample.unique(dim=0)) > 1


def test_weights_of_another_net_are_refused_by_file(tmp_path: Path) -> None:
    flow = make_flow(FlowParams(**PARAMS))
    other = FlowParams(**PARAMS | {"arch": "transformer"}).model_dump(mode="json")
    save_flow(tmp_path, flow, {"params": {"flow": other}})
    with pytest.raises(DataError, match=r"flow\.safetensors: weights do not fit"):
        load_flow(tmp_path)


def test_endpoints_of_continuous_actions_are_refused_by_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = make_spec()
    rows = stack_episodes(make_episodes(spec, [3, 4]), spec)
    write_prepared(tmp_path / "data", rows, spec, env=ENV, source={"kind": "test"}, made_from={}, params={})
    sections = {
        "flow": PARAMS | {"objective": "endpoint"},
        "training": {"seed": 0, "threads": 1, "device": "cpu", "checkpoint_every": 5, "log_every": 1},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(sections))
    folders = {name: tmp_path / name for name in ("data", "out", "metrics", "plots")}
    with pytest.raises(ConfigError, match=r"params\.yaml: `flow\.objective`: .*continuous.*'endpoint'"):
        train_flow.main(Namespace(params=tmp_path / "params.yaml", **folders))
    assert not (tmp_path / "out").exists()
