"""Policies as graphs for other runtimes: observations in the environment's units in, its own actions out.

Each graph is one pass: normalisation, the one-step policies (Eq. 7), the choice among M actions by the
agents' own critics, actions scaled to the environment's bounds. Noise is an input, drawn by whoever runs it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from macflow.actions import of_legal
from macflow.algorithms.flow_matching import one_hot_of_best_legal
from macflow.files import digest, write_json
from macflow.nets.critic import aggregate_ensemble
from macflow.nets.stacked import StackedMLP
from macflow.policy import Policy

Format = Literal["onnx", "torch"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2"}
JOINT = "joint"
MANIFEST = "export.json"
SCHEMA_VERSION = 1
# Operators of ONNX that the graphs are written in; runtimes of the last years know them.
OPSET = 18
# Any but 1, which an exporter takes for a constant.
EXAMPLE_BATCH = 2


class ActingGraph(nn.Module):
    """What agents do, as one pass over tensors: all of them together, or one alone.

    Inputs, in this order, as far as the policy needs them (B: any number of situations):

        obs            float32 (B, N, O), the agents' observations padded with zeros; of one agent (B, O_i)
        noise          float32 (B, M, N, A), standard normal; with individual noise of one agent (B, M, A).
                       None where agents act without noise
        legal_actions  bool (B, N, A); of one agent (B, A). Discrete only

    The output `actions` is float32 (B, N, A) within the environment's bounds, or int64 (B, N); of one agent
    (B, A) or (B,).
    """

    mean: Tensor
    std: Tensor
    ids: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, policy: Policy, agent: int | None = None) -> None:
        """Take the weights of `policy`; `agent`: the index of the one that acts alone."""
        super().__init__()
        spec, agents = policy.spec, list(range(policy.spec.n_agents)) if agent is None else [agent]
        self.agent = agent
        self.discrete = spec.discrete
        self.action_size = spec.action_size
        self.padding = 0 if agent is None else spec.obs_size - spec.obs_dims[agent]
        self.separate = policy.net.sharing == "separate"
        self.common = policy.net.noise == "common"
        self.acting = policy.acting
        self.net = _copies(policy.net.net, agents) if self.separate else copy.deepcopy(policy.net.net)
        self.values = copy.deepcopy(policy.values)
        for name, array in (("mean", policy.normalizer.obs_mean), ("std", policy.normalizer.obs_std)):
            self.register_buffer(name, torch.from_numpy(array[agents].copy()))
        self.register_buffer("ids", torch.eye(spec.n_agents)[agents])
        self.register_buffer("low", torch.tensor(spec.action_low))
        self.register_buffer("high", torch.tensor(spec.action_high))

    def forward(
        self, obs: Tensor, noise: Tensor | None = None, legal_actions: Tensor | None = None
    ) -> Tensor:
        """Map situations to actions; shapes as the class says."""
        if self.agent is not None:
            obs = functional.pad(obs, (0, self.padding)).unsqueeze(1)
            legal_actions = None if legal_actions is None else legal_actions.unsqueeze(1)
        obs = (obs - self.mean) / self.std
        chosen = self._chosen(obs, self._seen_noise(obs, noise, legal_actions), legal_actions)
        if self.discrete:
            actions = chosen.argmax(dim=-1)
        else:
            actions = self.low + (chosen + 1) / 2 * (self.high - self.low)
        return actions if self.agent is None else actions[:, 0]

    def _seen_noise(self, obs: Tensor, noise: Tensor | None, legal_actions: Tensor | None) -> Tensor:
        """Return the noise as each agent's net takes it: (B, M, G, A), common (B, M, G, N A)."""
        b, g, _ = obs.shape
        m = self.acting.best_of
        if noise is None:
            size = self.ids.shape[1] * self.action_size if self.common else self.action_size
            return obs.new_zeros((b, m, g, size))
        noise = self.acting.noise * noise
        if self.common:
            return noise.flatten(2).unsqueeze(2).expand(b, m, g, -1)
        if self.agent is not None:
            noise = noise.unsqueeze(2)
        return of_legal(noise, None if legal_actions is None else legal_actions.unsqueeze(1))

    def _chosen(self, obs: Tensor, noise: Tensor, legal_actions: Tensor | None) -> Tensor:
        """Return what agents play (B, G, A), before it is scaled to the environment's bounds."""
        b, m, g, _ = noise.shape
        rows = obs.unsqueeze(1).expand(b, m, g, obs.shape[2])
        x = torch.cat([rows, noise], dim=-1)
        out: Tensor
        if self.separate:
            out = self.net(x.flatten(0, 1).transpose(0, 1)).transpose(0, 1)
        else:
            out = self.net(self._with_ids(x).reshape(1, b * m * g, -1))
        out = out.reshape(b, m, g, self.action_size)
        if legal_actions is None:
            out = out.clamp(-1.0, 1.0)
        else:
            out = one_hot_of_best_legal(out, legal_actions.unsqueeze(1).expand(b, m, g, self.action_size))
        if self.values is None:
            return out[:, 0]
        best = self._own_values(rows, out).argmax(dim=1)[:, None, :, None].expand(b, 1, g, self.action_size)
        return out.gather(1, best)[:, 0]

    def _own_values(self, rows: Tensor, actions: Tensor) -> Tensor:
        """Return each agent's Q_i of each of its M actions: (B, M, G)."""
        if self.values is None:
            raise ValueError("policies that choose nothing have no critics")
        b, m, g, _ = actions.shape
        agents = self.values.agents
        seen = rows if self.discrete else torch.cat([rows, actions], dim=-1)
        x = self._with_ids(seen).reshape(1, b * m * g, -1).expand(agents.ensemble, -1, -1)
        q = agents.net(x).reshape(agents.ensemble, b * m, g, -1)
        q = (q * actions.flatten(0, 1)).sum(dim=-1) if self.discrete else q.squeeze(-1)
        return aggregate_ensemble(q, self.values.aggregate).reshape(b, m, g)

    def _with_ids(self, x: Tensor) -> Tensor:
        b, m, g, _ = x.shape
        return torch.cat([x, self.ids.expand(b, m, g, self.ids.shape[1])], dim=-1)

    def example(self) -> dict[str, Tensor]:
        """Return inputs of the right shapes by their names."""
        g, n = len(self.ids), self.ids.shape[1]
        alone = self.agent is not None
        b, m, a, o = EXAMPLE_BATCH, self.acting.best_of, self.action_size, self.mean.shape[1] - self.padding
        inputs = {"obs": torch.zeros((b, o) if alone else (b, g, o))}
        if self.acting.noise > 0:
            inputs["noise"] = torch.zeros((b, m, a) if alone and not self.common else (b, m, n, a))
        if self.discrete:
            inputs["legal_actions"] = torch.ones((b, a) if alone else (b, g, a), dtype=torch.bool)
        return inputs


def export_policy(bundle: Path, policy: Policy, folder: Path, form: Format) -> list[Path]:
    """Write the graphs of a policy into `folder`: all agents together, and each by itself.

    `export.json` says what they are and how their noise is drawn.

    Args:
        bundle: where `policy` was loaded from; its digest is kept.
    """
    graphs: dict[str, int | None] = {JOINT: None}
    graphs |= {agent: index for index, agent in enumerate(policy.spec.agent_ids)}
    files = []
    for name, agent in graphs.items():
        graph = ActingGraph(policy, agent).eval()
        file = folder / f"{name}{SUFFIXES[form]}"
        _write(graph, file, form)
        files.append(file)
    write_json(
        folder / MANIFEST,
        {
            "schema_version": SCHEMA_VERSION,
            "format": form,
            "spec": policy.spec.to_dict(),
            "noise": policy.net.noise,
            "acting": asdict(policy.acting),
            "graphs": {name: f"{name}{SUFFIXES[form]}" for name in graphs},
            "policy_digest": digest(bundle),
        },
    )
    return files


def _write(graph: ActingGraph, file: Path, form: Format) -> None:
    inputs = graph.example()
    batch = torch.export.Dim("batch")
    shapes = {name: {0: batch} for name in inputs}
    with warnings.catch_warnings():
        # Of what the exporter calls itself, and of one name for the batch of several inputs.
        warnings.simplefilter("ignore")
        if form == "torch":
            torch.export.save(torch.export.export(graph, (), inputs, dynamic_shapes=shapes), file)
            return
        torch.onnx.export(
            graph,
            (),
            file,
            kwargs=inputs,
            input_names=list(inputs),
            output_names=["actions"],
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _copies(net: StackedMLP, chosen: Sequence[int]) -> StackedMLP:
    """Return a stacked net with the chosen ones of its copies."""
    out = copy.deepcopy(net)
    for parameter in out.parameters():
        parameter.data = parameter.data[list(chosen)].clone()
    return out
