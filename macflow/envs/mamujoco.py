"""Multi-agent MuJoCo of the `gymnasium-robotics` package: one robot, its joints shared out to agents.

Peng et al., *FACMAC: Factored Multi-Agent Centralised Policy Gradients*, 2021.
Physics, observations and rewards are the package's own. The state is the whole robot's observation,
as the single-agent task of Gymnasium gives it.
"""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import mujoco
import numpy as np
from farama_notifications import notifications
from gymnasium import spaces
from PIL import Image, ImageDraw

from macflow.envs.base import AgentAction, Frame, JointEnv, Transition
from macflow.types import FloatArray

# The package prints its makers' notice at every import. This one is about hands, which are not used here; a
# notice about anything else is still printed.
_NOTICES: dict[str, str] = notifications.get("gymnasium_robotics", {})
for _version in [version for version, text in _NOTICES.items() if text.startswith("AdroitHand")]:
    del _NOTICES[_version]

from gymnasium_robotics import mamujoco_v1  # noqa: E402

WIDTH, HEIGHT, GROUND = 480, 240, 210
# Pixels per metre.
SCALE = 80
COLOURS = ((46, 92, 138), (94, 148, 190), (214, 116, 60), (232, 170, 100), (90, 140, 90), (150, 190, 140))


def _hear(message: str) -> None:
    """Log what MuJoCo warns of; by itself it would write MUJOCO_LOG.TXT into the working folder."""
    # The cheetah's own model file has it; nothing for a user to do.
    if "settotalmass" not in message:
        logging.getLogger(__name__).warning("MuJoCo: %s", message)


mujoco.set_mju_user_warning(_hear)

SLIDE = int(mujoco.mjtJoint.mjJNT_SLIDE)
SPHERE, CAPSULE = int(mujoco.mjtGeom.mjGEOM_SPHERE), int(mujoco.mjtGeom.mjGEOM_CAPSULE)


class MultiAgentMujoco(JointEnv):
    """A robot of Gymnasium whose actuators are partitioned among agents.

    An agent sees its own joints and those up to `agent_obsk` joints away, so observations differ in
    size; with `None` it sees the whole robot. All agents share the robot's reward. Falling over
    terminates, the time limit truncates.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "name": "macflow_mamujoco",
        "render_modes": ["rgb_array"],
        "render_fps": 20,
    }

    def __init__(self, scenario: str, partition: str, max_cycles: int, agent_obsk: int | None) -> None:
        self._raw = mamujoco_v1.parallel_env(
            scenario,
            partition,
            agent_obsk=agent_obsk,
            max_episode_steps=max_cycles,
        )
        self.max_cycles = max_cycles
        self.render_mode = "rgb_array"
        self.possible_agents = list(self._raw.possible_agents)
        self.agents: list[str] = []
        robot = self._raw.single_agent_env
        # The package's spaces are float64, in which no one else here counts.
        self.state_space = spaces.Box(-np.inf, np.inf, robot.observation_space.shape, np.float32)
        self._observation_spaces = {
            agent: spaces.Box(-np.inf, np.inf, self._raw.observation_space(agent).shape, np.float32)
            for agent in self.possible_agents
        }

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        space: spaces.Space[Any] = self._raw.action_space(agent)
        return space

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, FloatArray], dict[str, dict[str, Any]]]:
        obs, _ = self._raw.reset(seed=seed, options=options)
        self.agents = list(self.possible_agents)
        return _float32(obs), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, AgentAction]) -> Transition:
        obs, rewards, terminations, truncations, _ = self._raw.step(actions)
        infos: dict[str, dict[str, Any]] = {agent: {} for agent in self.possible_agents}
        self.agents = list(self._raw.agents)
        return _float32(obs), rewards, terminations, truncations, infos

    def state(self) -> FloatArray:
        state: FloatArray = self._raw.state().astype(np.float32)
        return state

    def render(self) -> Frame:
        """Draw the robot from its side, in Pillow: MuJoCo's own renderer wants OpenGL, which servers lack."""
        robot = self._raw.single_agent_env.unwrapped
        return draw_side(robot.model, robot.data)

    def close(self) -> None:
        self._raw.close()


def draw_side(model: Any, data: Any) -> Frame:
    """Project the model's capsules and spheres on the plane of x and z, centred on the robot."""
    canvas = Image.new("RGB", (WIDTH, HEIGHT), (246, 247, 249))
    draw = ImageDraw.Draw(canvas)
    centre = float(data.qpos[0]) if model.jnt_type[0] == SLIDE else float(data.xpos[1][0])

    def point(at: FloatArray) -> tuple[float, float]:
        return WIDTH / 2 + (float(at[0]) - centre) * SCALE, GROUND - float(at[2]) * SCALE

    draw.rectangle((0, GROUND, WIDTH, HEIGHT), fill=(222, 226, 230))
    first = int(np.floor(centre - WIDTH / SCALE))
    for metre in range(first, first + 2 * WIDTH // SCALE + 2):
        x, _ = point(np.array([metre, 0.0, 0.0]))
        draw.line((x, GROUND, x, GROUND + 12), fill=(150, 157, 165), width=2)
    for index in range(model.ngeom):
        if model.geom_type[index] not in (SPHERE, CAPSULE):
            continue
        half = model.geom_size[index][1] if model.geom_type[index] == CAPSULE else 0.0
        axis = data.geom_xmat[index].reshape(3, 3)[:, 2] * half
        ends = [point(data.geom_xpos[index] - axis), point(data.geom_xpos[index] + axis)]
        radius = max(2.0, float(model.geom_size[index][0]) * SCALE)
        colour = COLOURS[int(model.geom_bodyid[index]) % len(COLOURS)]
        draw.line((*ends[0], *ends[1]), fill=colour, width=round(2 * radius))
        for x, y in ends:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return np.asarray(canvas)


def _float32(observations: dict[str, Any]) -> dict[str, FloatArray]:
    return {agent: obs.astype(np.float32) for agent, obs in observations.items()}
