"""StarCraft II micromanagement (SMACv1 and SMACv2) as a parallel environment, for owners of the game."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from macflow.envs.base import AgentAction, Frame, JointEnv, Transition
from macflow.envs.parallel import LegalDiscrete
from macflow.envs.smac_game import Battle
from macflow.envs.smac_picture import draw_battle
from macflow.types import DataError, FloatArray


class StarCraftBattle(JointEnv):
    """Units of one team, an agent each, against StarCraft II's own computer player.

    Agents share the reward: damage done, and prizes for kills and victory, scaled so that the enemies that
    an episode begins with are worth 20 (what they heal meanwhile can be shot once more). The dead stay, with
    no other legal action than 0. Victory, defeat and a draw terminate, the package's step limit truncates.
    `infos[agent]` has `action_mask` and, after each step, `battle_won`. Takes the keywords of `Battle`.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "name": "macflow_smac",
        "render_modes": ["rgb_array"],
        "render_fps": 3,
    }

    def __init__(
        self, map_name: str, new_game: bool, capabilities: Mapping[str, Mapping[str, Any]], **options: Any
    ) -> None:
        self._battle = Battle(map_name, new_game, capabilities, **options)
        info = self._battle.get_env_info()
        self.max_cycles = int(info["episode_limit"])
        self.render_mode = "rgb_array"
        self.possible_agents = [f"agent_{i}" for i in range(info["n_agents"])]
        self.agents: list[str] = []
        # Cooldowns and relative positions leave [-1, 1].
        self.state_space = spaces.Box(-np.inf, np.inf, (info["state_shape"],), np.float32)
        seen = spaces.Box(-np.inf, np.inf, (info["obs_shape"],), np.float32)
        self._observation_spaces = dict.fromkeys(self.possible_agents, seen)
        self._action_spaces = {agent: LegalDiscrete(info["n_actions"]) for agent in self.possible_agents}
        self._state = np.zeros(info["state_shape"], np.float32)
        self._seeds = np.random.default_rng()

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self._action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, FloatArray], dict[str, dict[str, Any]]]:
        if seed is None:
            seed = int(self._seeds.integers(2**31))
        else:
            self._seeds = np.random.default_rng(seed)
        self.agents = []
        obs, state = self._battle.begin(seed)
        self.agents = list(self.possible_agents)
        return self._observe(obs, state), {a: {"action_mask": self._mask(a)} for a in self.agents}

    def step(self, actions: dict[str, AgentAction]) -> Transition:
        """Take one action per agent.

        Raises:
            DataError: before `reset`, after the end, and on an action that is not legal.
            GameError: where the game has crashed; the episode is lost, `reset` works again.
        """
        if not self.agents:
            raise DataError("`step` needs a `reset` before it")
        joint = [self._checked(agent, actions[agent]) for agent in self.agents]
        acted, self.agents = self.agents, []
        reward, ended, info = self._battle.play(joint)
        observations = self._observe(*self._battle.look())
        truncated = bool(info.get("episode_limit", False))
        if not ended:
            self.agents = acted
        infos = {
            agent: {"action_mask": self._mask(agent), "battle_won": bool(info["battle_won"])}
            for agent in acted
        }
        return (
            observations,
            dict.fromkeys(acted, reward),
            dict.fromkeys(acted, ended and not truncated),
            dict.fromkeys(acted, truncated),
            infos,
        )

    def state(self) -> FloatArray:
        return self._state

    def render(self) -> Frame:
        return draw_battle(self._battle)

    def close(self) -> None:
        self._battle.close()

    def _mask(self, agent: str) -> NDArray[np.int8]:
        return self._action_spaces[agent].legal

    def _checked(self, agent: str, action: AgentAction) -> int:
        legal = self._mask(agent)
        if not 0 <= action < len(legal) or not legal[action]:
            raise DataError(
                f"`actions`: legal ones (received {action} for {agent}, "
                f"which may take {np.flatnonzero(legal).tolist()})"
            )
        return int(action)

    def _observe(self, obs: list[Any], state: Any) -> dict[str, FloatArray]:
        masks = np.array(self._battle.get_avail_actions(), np.int8)
        for agent, mask in zip(self.possible_agents, masks, strict=True):
            self._action_spaces[agent].legal = mask
        self._state = np.asarray(state, np.float32)
        return {
            agent: np.asarray(seen, np.float32) for agent, seen in zip(self.possible_agents, obs, strict=True)
        }
