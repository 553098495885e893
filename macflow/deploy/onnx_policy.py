"""Act by exported graphs, with numpy and onnxruntime alone: neither torch nor the policy bundle is needed.

from macflow.deploy.onnx_policy import OnnxPolicy

policy = OnnxPolicy("exported", seed=7)
policy.act({"agent_0": obs_0, "agent_1": obs_1, "agent_2": obs_2})

alone = OnnxPolicy("exported", seed=7, agent="agent_0")
alone.act({"agent_0": obs_0})
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike, NDArray

from macflow.acting import checked_legal, checked_obs, standard_normal

JOINT, MANIFEST = "joint", "export.json"


class OnnxPolicy:
    """The policies of `macflow export policy`: the actions of `macflow.load_policy` to rounding.

    Noise is drawn as there: with individual noise by (seed, step, agent), with common noise by (seed, step).
    """

    def __init__(self, path: str | Path, seed: int = 0, agent: str | None = None) -> None:
        """Load the graph of all agents, or of one.

        Raises:
            ValueError: naming the file or the agent that is unknown.
        """
        folder = Path(path)
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != "onnx":
            raise ValueError(f"{folder / MANIFEST}: `format` must be onnx (received {manifest['format']!r})")
        spec = manifest["spec"]
        self.agent_ids: list[str] = list(spec["agent_ids"])
        if agent is not None and agent not in self.agent_ids:
            raise ValueError(f"agent id must be one of {self.agent_ids}, received {agent!r}")
        self.agent = agent
        self._obs_dims = dict(zip(self.agent_ids, spec["obs_dims"], strict=True))
        self._action_size: int = spec["action_size"]
        self._discrete = spec["action_kind"] == "discrete"
        self._common = manifest["noise"] == "common"
        self._best_of, self._noisy = manifest["acting"]["best_of"], manifest["acting"]["noise"] > 0
        options = onnxruntime.SessionOptions()
        # A pass this small gains nothing from more threads.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        name = agent or JOINT
        self._session = onnxruntime.InferenceSession(
            folder / manifest["graphs"][name], options, providers=["CPUExecutionProvider"]
        )
        self.seed(seed)

    def seed(self, seed: int, step: int = 0) -> None:
        """Restart the noise at a step."""
        self._seed, self._step = seed, step

    def act(
        self, obs: Mapping[str, ArrayLike], legal_actions: Mapping[str, ArrayLike] | None = None
    ) -> dict[str, Any]:
        """Choose actions from raw observations: of all agents, or of the one that was loaded.

        Args:
            obs: agent id -> observation (O_i,). legal_actions: agent id -> bool (A,); all legal where None.

        Returns:
            agent id -> float32 (A,) within the environment's bounds, or an int.

        Raises:
            ValueError: naming the agent, the rule and the received value.
        """
        agents = self.agent_ids if self.agent is None else [self.agent]
        if set(obs) != set(agents):
            raise ValueError(f"`obs` must hold {agents}, received {list(obs)}")
        feed: dict[str, NDArray[Any]] = {"obs": self._observations(agents, obs)}
        if self._noisy:
            feed["noise"] = self._draw()
        if self._discrete:
            legal = np.ones((1, len(agents), self._action_size), np.bool_)
            for row, agent in enumerate(agents):
                if legal_actions is not None and agent in legal_actions:
                    legal[0, row] = checked_legal(agent, self._action_size, legal_actions[agent])
            feed["legal_actions"] = legal if self.agent is None else legal[:, 0]
        self._step += 1
        actions = self._session.run(["actions"], feed)[0]
        rows = actions[0] if self.agent is None else actions
        return {agent: int(rows[i]) if self._discrete else rows[i] for i, agent in enumerate(agents)}

    def _observations(self, agents: list[str], obs: Mapping[str, ArrayLike]) -> NDArray[np.float32]:
        padded = max(self._obs_dims.values()) if self.agent is None else self._obs_dims[self.agent]
        rows = np.zeros((1, len(agents), padded), np.float32)
        for row, agent in enumerate(agents):
            size = self._obs_dims[agent]
            rows[0, row, :size] = checked_obs(agent, size, obs[agent])
        return rows if self.agent is None else rows[:, 0]

    def _draw(self) -> NDArray[np.float32]:
        m, n, a = self._best_of, len(self.agent_ids), self._action_size
        if self._common:
            return standard_normal(self._seed, (self._step,), (m, n, a))[None]
        if self.agent is not None:
            return standard_normal(self._seed, (self._step, self.agent_ids.index(self.agent)), (m, a))[None]
        draws = [standard_normal(self._seed, (self._step, i), (m, a)) for i in range(n)]
        return np.stack(draws, axis=1)[None]
