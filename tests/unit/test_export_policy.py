"""Exported policies: the same actions as the bundle's, together and alone, without torch."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_policy import write_bundle
from typer.testing import CliRunner

from macflow.actions import decode_actions
from macflow.cli import app
from macflow.deploy.timing import acting_times
from macflow.export import ActingGraph, export_policy
from macflow.files import digest
from macflow.policy import Policy, load_policy

# Export by PyTorch takes seconds a graph.
pytestmark = pytest.mark.timeout(180)

CASES = [
    {"discrete": discrete, "sharing": sharing, "noise": noise, "acting_noise": scale, "best_of": best_of}
    for discrete, sharing, noise, scale, best_of in itertools.product(
        (False, True), ("shared", "separate"), ("individual", "common"), (0.0, 0.7), (1, 3)
    )
    # Among several actions an agent chooses only if noise makes them differ.
    if scale or best_of == 1
]
WRITTEN: dict[str, dict[str, Any]] = {
    "plain": {"acting_noise": 0.0},
    "noisy": {"sharing": "separate", "acting_noise": 0.7, "best_of": 3},
    "legal": {"discrete": True, "noise": "common", "best_of": 2},
}


def named(case: dict[str, Any]) -> str:
    return "-".join(str(value) for value in case.values())


def situations(policy: Policy, count: int) -> tuple[np.ndarray, torch.Tensor, np.ndarray]:
    """Return raw observations (E, N, O), standard noise (E, M, N, A) and legal actions (E, N, A)."""
    spec, random = policy.spec, np.random.default_rng(1)
    obs = random.standard_normal((count, spec.n_agents, spec.obs_size), np.float32)
    for i, size in enumerate(spec.obs_dims):
        obs[:, i, size:] = 0
    noise = random.standard_normal(
        (count, policy.acting.best_of, spec.n_agents, spec.action_size), np.float32
    )
    legal = random.random((count, spec.n_agents, spec.action_size)) < 0.6
    legal[..., 0] = True
    return obs, torch.from_numpy(noise), legal


@pytest.mark.parametrize("case", CASES, ids=named)
def test_graphs_act_as_the_policies_do(tmp_path: Path, case: dict[str, Any]) -> None:
    policy = write_bundle(tmp_path / "p", **case)
    obs, noise, legal = situations(policy, 50)
    masks = legal if policy.spec.discrete else None
    wanted = policy.act_batch(obs, policy.acting.noise * noise, masks)
    inputs = {"obs": torch.from_numpy(obs)}
    inputs |= {"noise": noise} if policy.acting.noise else {}
    inputs |= {"legal_actions": torch.from_numpy(legal)} if policy.spec.discrete else {}
    graph = ActingGraph(policy)
    assert inputs.keys() == graph.example().keys()
    np.testing.assert_allclose(graph(**inputs).detach(), wanted, atol=1e-5)
    for i, size in enumerate(policy.spec.obs_dims):
        alone = {name: tensor[:, i] for name, tensor in inputs.items() if name != "noise"}
        alone["obs"] = alone["obs"][:, :size]
        if policy.acting.noise:
            alone["noise"] = noise if policy.net.noise == "common" else noise[:, :, i]
        acted = ActingGraph(policy, i)(**alone)
        np.testing.assert_allclose(acted.detach(), wanted[:, i], atol=1e-5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a bundle and its export for each of `WRITTEN`."""
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module, reason="pip install 'macflow[export]'")
    root = tmp_path_factory.mktemp("exported")
    for name, case in WRITTEN.items():
        write_bundle(root / name, **case)
        told = CliRunner().invoke(
            app, ["export", "policy", str(root / name), "--out", str(root / f"{name}-onnx"), "--json"]
        )
        assert told.exit_code == 0, told.output
        assert json.loads(told.stdout)["files"] == ["joint.onnx", "left.onnx", "right.onnx"]
    return root


ACT = """
import sys
sys.modules["torch"] = None
import json
from macflow.deploy.onnx_policy import OnnxPolicy
folder, legal = sys.argv[1], json.loads(sys.argv[2])
obs = {"left": [0.1, -0.2, 0.3], "right": [0.1, 0.2, -0.3, 0.4]}
together = OnnxPolicy(folder, seed=7)
alone = {agent: OnnxPolicy(folder, seed=7, agent=agent) for agent in obs}
plain = lambda action: action if isinstance(action, int) else action.tolist()
for _ in range(4):
    acted = {agent: plain(action) for agent, action in together.act(obs, legal).items()}
    apart = {agent: plain(alone[agent].act({agent: seen}, legal)[agent]) for agent, seen in obs.items()}
    print(json.dumps([acted, apart]))
"""


@pytest.mark.parametrize("name", WRITTEN)
def test_onnx_acts_as_the_bundle_does_without_torch(exported: Path, name: str) -> None:
    policy = load_policy(exported / name, seed=7)
    legal = {"left": [0, 1, 1], "right": [1, 0, 0]} if policy.spec.discrete else None
    done = subprocess.run(
        [sys.executable, "-c", ACT, str(exported / f"{name}-onnx"), json.dumps(legal)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    obs = {"left": [0.1, -0.2, 0.3], "right": [0.1, 0.2, -0.3, 0.4]}
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    for line in lines:
        wanted = policy.act(obs, legal)
        for acted in json.loads(line):
            for agent, action in wanted.items():
                np.testing.assert_allclose(acted[agent], action, atol=1e-5)


def test_onnx_takes_any_number_of_situations(exported: Path) -> None:
    import onnxruntime

    policy = load_policy(exported / "noisy")
    obs, noise, _ = situations(policy, 33)
    session = onnxruntime.InferenceSession(exported / "noisy-onnx/joint.onnx")
    (acted,) = session.run(["actions"], {"obs": obs, "noise": noise.numpy()})
    np.testing.assert_allclose(acted, policy.act_batch(obs, 0.7 * noise, None), atol=1e-5)


def test_the_manifest_says_what_it_was_made_from(exported: Path) -> None:
    manifest = json.loads((exported / "legal-onnx/export.json").read_text())
    assert manifest["policy_digest"] == digest(exported / "legal")
    assert manifest["noise"] == "common"
    assert manifest["acting"] == {"noise": 1.0, "best_of": 2}


@pytest.mark.parametrize(
    ("options", "obs", "message"),
    [
        ({"agent": "middle"}, None, "agent id must be one of"),
        ({}, {"left": [0.0] * 3}, "must hold"),
        ({}, {"left": [0.0] * 4, "right": [0.0] * 4}, r"must have shape \(3,\), received \(4,\)"),
        ({"agent": "left"}, {"left": [0.0, 0.0, float("nan")]}, "must be finite"),
    ],
)
def test_what_an_export_cannot_answer_is_refused(
    exported: Path, options: dict[str, Any], obs: Any, message: str
) -> None:
    from macflow.deploy.onnx_policy import OnnxPolicy

    with pytest.raises(ValueError, match=message):
        OnnxPolicy(exported / "plain-onnx", **options).act(obs)


def test_torch_programs_act_as_the_bundle_does(tmp_path: Path) -> None:
    policy = write_bundle(tmp_path / "p", acting_noise=0.5)
    (tmp_path / "out").mkdir()
    files = export_policy(tmp_path / "p", policy, tmp_path / "out", "torch")
    assert [file.name for file in files] == ["joint.pt2", "left.pt2", "right.pt2"]
    obs, noise, _ = situations(policy, 7)
    program = torch.export.load(files[0]).module()
    acted = program(obs=torch.from_numpy(obs), noise=noise)
    np.testing.assert_allclose(acted.detach(), policy.act_batch(obs, 0.5 * noise, None), atol=1e-5)
    out = policy.sample(torch.from_numpy(obs), 0.5 * noise[:, 0], None)
    np.testing.assert_allclose(acted.detach(), decode_actions(policy.spec, out), atol=1e-5)


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    write_bundle(tmp_path / "p")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    told = CliRunner().invoke(app, ["export", "policy", str(tmp_path / "p"), "--out", str(tmp_path / "out")])
    assert told.exit_code == 1
    assert "holds something already" in str(told.exception)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]


def test_times_are_of_what_acts(exported: Path) -> None:
    told = CliRunner().invoke(
        app,
        ["bench", "act", str(exported / "plain"), "--exported", str(exported / "plain-onnx"),
         "--repeats", "100", "--json"],
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)["joint_action_us"]
    assert found.keys() == {"bundle", "export"}
    for times in found.values():
        assert 0 < times["p50"] <= times["p95"] <= times["p99"]


def test_every_repetition_is_timed() -> None:
    calls = []

    class Slow:
        def act(self, obs: Any, legal_actions: Any = None) -> dict[str, Any]:
            calls.append(obs)
            return {}

    from test_policy import make_spec

    times = acting_times(Slow(), make_spec(False), 100)
    assert len(calls) == 300
    assert {agent: array.shape for agent, array in calls[0].items()} == {"left": (3,), "right": (4,)}
    assert times["p50"] > 0
