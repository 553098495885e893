"""SMAX, the StarCraft-like battles of the `jaxmarl` package, stepped in batches on the CPU.

Rutherford et al., *JaxMARL: Multi-Agent RL Environments and Algorithms in JAX*, 2024.
Battles, observations, rewards and the scripted enemy are the package's own. Its `done` merges victory,
defeat and time limit, and its `step` starts again by itself; here the three are told apart and nothing
starts again.

Random numbers: an episode's key is made of its seed (`episode_keys`); the start takes `fold_in(key, 0)`
and step t (from 1) takes `fold_in(key, t)`, so an episode depends on its seed and actions alone.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import os
import platform
import stat
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from macflow.envs.base import BatchStep, Frame, check_actions, check_seeds
from macflow.types import ActionArray, BatchObs, BoolArray, ConfigError, DataError, MultiAgentSpec

# Copies that are stepped by one call. JAX compiles for every batch size, so there is one only: more
# copies take several calls, fewer are padded.
CHUNK = 32
# Stay (or, for the dead, lie): the moves come before it, attacks on enemy 0, 1, ... behind it.
STOP = 4

Colour = tuple[int, int, int]

_SIZE = 480  # width and height of a picture, in pixels
_GROUND, _TEXT, _DEAD = (250, 250, 247), (30, 30, 30), (190, 190, 190)
# Allies, enemies.
_TEAMS: tuple[Colour, Colour] = ((45, 100, 200), (205, 60, 50))
_PALE: tuple[Colour, Colour] = ((205, 220, 245), (250, 212, 205))
_SHOTS: tuple[Colour, Colour] = ((130, 165, 225), (235, 150, 140))


@dataclass(frozen=True)
class Programs:
    """The compiled functions of a scenario; arrays have CHUNK copies in front."""

    env: Any  # jaxmarl's HeuristicEnemySMAX
    # keys -> battles, view
    reset: Callable[[Any], tuple[Any, dict[str, Any]]]
    # keys, battles, finished, actions (CHUNK, N) -> battles, view and what the step led to
    step: Callable[[Any, Any, Any, Any], tuple[Any, dict[str, Any]]]


class SmaxBatch:
    """E copies of one SMAX scenario, each against the package's scripted enemy.

    All agents share the reward: the share of the enemies' health removed, and 1 for a victory, so
    returns lie in [0, 2]. A battle terminates when a side is dead; the time limit truncates.
    Illegal actions raise `DataError`; the dead may only stop.
    """

    def __init__(self, scenario: str, n_envs: int) -> None:
        if n_envs < 1:
            raise ConfigError(f"`n_envs`: at least 1 (received {n_envs})")
        self._programs = programs(scenario)
        env = self._programs.env
        self.n_envs = n_envs
        self.max_steps = int(env.max_steps)
        actions = int(env.num_ally_actions)
        self.spec = MultiAgentSpec(
            agent_ids=tuple(env.agents),
            obs_dims=(int(env.obs_size),) * len(env.agents),
            state_size=int(env.state_size),
            action_kind="discrete",
            action_size=actions,
            action_low=(-1.0,) * actions,
            action_high=(1.0,) * actions,
        )
        self._padded = -(-n_envs // CHUNK) * CHUNK
        self._chunks = [slice(first, first + CHUNK) for first in range(0, self._padded, CHUNK)]
        # By chunk: keys and battles, which stay JAX arrays, and the last view.
        self._keys: list[Any] = []
        self._battles: list[Any] = []
        self._views: list[dict[str, Any]] = []
        self._terminated = np.zeros(self._padded, np.bool_)
        self._truncated = np.zeros(self._padded, np.bool_)
        self._won = np.zeros(self._padded, np.bool_)
        self._actions = np.full((self._padded, self.spec.n_agents), STOP, np.int32)

    @property
    def won(self) -> BoolArray:
        """Tell which copies (E,) ended in victory: every enemy dead and an ally alive."""
        return self._won[: self.n_envs].copy()

    def reset(self, seeds: Sequence[int]) -> BatchObs:
        check_seeds(seeds, self.n_envs)
        padded = [*seeds, *[0] * (self._padded - self.n_envs)]
        self._keys = [episode_keys(padded[part]) for part in self._chunks]
        started = [self._programs.reset(keys) for keys in self._keys]
        self._battles = [battles for battles, _ in started]
        self._views = [view for _, view in started]
        self._terminated[:] = False
        # What only fills up a chunk is over from the start.
        self._truncated[:] = np.arange(self._padded) >= self.n_envs
        self._won[:] = False
        self._actions[:] = STOP
        return BatchObs(self._gather("obs"), self._gather("state"), self._gather("legal"))

    def step(self, actions: ActionArray) -> BatchStep:
        if not self._battles:
            raise DataError("`step` needs a `reset` before it")
        self._actions[: self.n_envs] = self._legal(check_actions(actions, self.spec, self.n_envs))
        finished = self._terminated | self._truncated
        # Calls return before their work is done, so all chunks are under way before the first is waited for.
        running = [c for c, part in enumerate(self._chunks) if not finished[part].all()]
        for c in running:
            part = self._chunks[c]
            self._battles[c], self._views[c] = self._programs.step(
                self._keys[c], self._battles[c], finished[part], self._actions[part]
            )
        rewards = np.zeros(self._padded, np.float32)
        for c in running:
            part, view = self._chunks[c], self._views[c]
            rewards[part] = view["reward"]
            self._terminated[part] |= view["terminated"]
            self._truncated[part] |= view["truncated"]
            self._won[part] |= view["won"]
        return BatchStep(
            self._gather("obs"),
            self._gather("state"),
            self._gather("legal"),
            np.repeat(rewards[: self.n_envs, None], self.spec.n_agents, axis=1),
            self._terminated[: self.n_envs].copy(),
            self._truncated[: self.n_envs].copy(),
        )

    def render(self, index: int) -> Frame:
        if not self._battles:
            raise DataError("`render` needs a `reset` before it")
        if not 0 <= index < self.n_envs:
            raise DataError(f"`index`: 0 to {self.n_envs - 1} (received {index})")
        chunk, row = divmod(index, CHUNK)
        battle = self._battles[chunk].state
        return _draw(
            self._programs.env,
            **{
                name: np.asarray(getattr(battle, name))[row]
                for name in ("unit_positions", "unit_health", "unit_types", "prev_attack_actions", "step")
            },
        )

    def close(self) -> None:
        self._keys, self._battles, self._views = [], [], []

    def _gather(self, name: str) -> NDArray[Any]:
        """Copy one array of all chunks, without what fills them up."""
        rows = np.concatenate([np.asarray(view[name]) for view in self._views])
        return rows[: self.n_envs]

    def _legal(self, actions: ActionArray) -> ActionArray:
        """Refuse illegal actions of battles that go on."""
        allowed = np.take_along_axis(self._gather("legal"), actions[:, :, None], axis=2)[:, :, 0]
        over = (self._terminated | self._truncated)[: self.n_envs]
        wrong = ~allowed & ~over[:, None]
        if wrong.any():
            e, n = map(int, np.argwhere(wrong)[0])
            raise DataError(
                f"`actions`: legal ones (received {actions[e, n]} for environment {e}, agent {n}, "
                f"which may take {np.flatnonzero(self._views[e // CHUNK]['legal'][e % CHUNK, n]).tolist()})"
            )
        return actions


def episode_keys(seeds: Sequence[int]) -> Any:
    """Return a JAX random key per seed, (E,); any natural number is a seed of its own."""
    import jax
    import jax.numpy as jnp

    bits = np.stack([np.random.SeedSequence(seed).generate_state(2, np.uint32) for seed in seeds])
    return jax.random.wrap_key_data(jnp.asarray(bits), impl="threefry2x32")


@functools.cache
def programs(scenario: str) -> Programs:
    """Return the functions of a scenario of jaxmarl, compiled once per process at their first call."""
    _configure_jax()
    import jax
    import jax.numpy as jnp

    with _without_other_environments():
        smax = importlib.import_module("jaxmarl.environments.smax.heuristic_enemy_smax_env")
        scenarios = importlib.import_module("jaxmarl.environments.smax.smax_env").MAP_NAME_TO_SCENARIO
    env = smax.HeuristicEnemySMAX(scenario=scenarios[scenario])
    n = env.num_allies

    def view(battles: Any) -> dict[str, Any]:
        obs = jax.vmap(env.get_obs)(battles)
        legal = jax.vmap(env.get_avail_actions)(battles)
        return {
            "obs": jnp.stack([obs[agent] for agent in env.agents], axis=1),
            "state": jax.vmap(env.get_world_state)(battles),
            "legal": jnp.stack([legal[agent] for agent in env.agents], axis=1).astype(jnp.bool_),
        }

    def reset(keys: Any) -> tuple[Any, dict[str, Any]]:
        _, battles = jax.vmap(env.reset)(jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys))
        # Python numbers leave weak types in it, with which `step` would be compiled a second time.
        battles = jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), battles)
        return battles, view(battles)

    def step(keys: Any, battles: Any, finished: Any, actions: Any) -> tuple[Any, dict[str, Any]]:
        keys = jax.vmap(jax.random.fold_in)(keys, battles.state.step + 1)
        by_agent = {agent: actions[:, i] for i, agent in enumerate(env.agents)}
        _, stepped, rewards, _, _ = jax.vmap(env.step_env)(keys, battles, by_agent)

        def frozen(before: Any, after: Any) -> Any:
            return jnp.where(finished.reshape((-1,) + (1,) * (before.ndim - 1)), before, after)

        battles = jax.tree.map(frozen, battles, stepped)
        alive = battles.state.unit_alive
        allies, enemies = alive[:, :n].any(axis=1), alive[:, n:].any(axis=1)
        return battles, view(battles) | {
            "reward": jnp.where(finished, 0.0, rewards[env.agents[0]]),
            "terminated": ~finished & ~(allies & enemies),
            "truncated": ~finished & allies & enemies & (battles.state.step >= env.max_steps),
            "won": ~finished & allies & ~enemies,
        }

    return Programs(env, jax.jit(reset), jax.jit(step))


@contextlib.contextmanager
def _without_other_environments() -> Iterator[None]:
    """Let modules of jaxmarl's SMAX be imported without its packages' `__init__`.

    Those import (and print, and partly compile) two dozen other environments, which takes seconds.
    """
    names = ("jaxmarl", "jaxmarl.environments")
    if any(name in sys.modules for name in names):
        yield
        return
    found = importlib.util.find_spec("jaxmarl")
    if found is None or not found.submodule_search_locations:
        raise ConfigError("jaxmarl is not installed; install it with: pip install 'macflow[smax]'")
    folder = Path(found.submodule_search_locations[0])
    for name, path in zip(names, (folder, folder / "environments"), strict=True):
        stand_in = types.ModuleType(name)
        stand_in.__path__ = [str(path)]
        sys.modules[name] = stand_in
    try:
        yield
    finally:
        # Whoever imports them by name gets the real ones.
        for name in names:
            del sys.modules[name]


def _configure_jax() -> None:
    """Keep JAX on the CPU and its compiled programs on disk, unless the user said otherwise."""
    import jax

    config: Any = jax.config
    if config.jax_platforms is None:
        config.update("jax_platforms", "cpu")
    if config.jax_compilation_cache_dir is None:
        folder = None
        # Without a home folder, `Path.home` has none to return.
        with contextlib.suppress(RuntimeError):
            folder = _private_folder(_cache_folder())
        if folder is not None:
            config.update("jax_compilation_cache_dir", str(folder))
            config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
            config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _cache_folder() -> Path:
    """Return the user's folder for programs compiled on this kind of processor."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification has relative paths ignored.
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    processor = [platform.machine(), platform.system()]
    # A home folder can be shared by machines; code for one processor can be illegal on another.
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        processor += sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    digest = hashlib.sha256("\n".join(processor).encode()).hexdigest()[:16]
    return root / "macflow" / "jax" / digest


def _private_folder(folder: Path) -> Path | None:
    """Create a folder that nobody else can write to; None where there can be none.

    What lies in it is run as machine code.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError:
        return None
    if hasattr(os, "getuid") and status.st_uid != os.getuid():
        return None
    if os.name == "posix" and stat.S_IMODE(status.st_mode) & (stat.S_IWGRP | stat.S_IWOTH):
        return None
    return folder if os.access(folder, os.W_OK) else None


def _draw(
    env: Any,
    unit_positions: NDArray[Any],
    unit_health: NDArray[Any],
    unit_types: NDArray[Any],
    prev_attack_actions: NDArray[Any],
    step: NDArray[Any],
) -> Frame:
    """Draw one battle: allies blue, enemies red, discs filled in proportion to health, lines for shots."""
    picture = Image.new("RGB", (_SIZE, _SIZE), _GROUND)
    draw = ImageDraw.Draw(picture)
    scale = np.array([_SIZE / env.map_width, -_SIZE / env.map_height])
    centres = np.array([0, _SIZE]) + unit_positions * scale
    radii = np.asarray(env.unit_type_radiuses)[unit_types] * scale[0]
    ranges = np.asarray(env.unit_type_attack_ranges)[unit_types]
    share = unit_health / np.asarray(env.unit_type_health)[unit_types]
    n = env.num_allies
    for i, action in enumerate(prev_attack_actions.astype(np.int64)):
        if action <= STOP or share[i] <= 0:
            continue
        # The enemy counts its targets, our units, backwards.
        target = n + action - STOP - 1 if i < n else n - (action - STOP)
        if np.linalg.norm(unit_positions[i] - unit_positions[target]) < ranges[i]:
            draw.line((*centres[i], *centres[target]), _SHOTS[int(i >= n)], 1)
    for i, (x, y) in enumerate(centres):
        r, team = radii[i], int(i >= n)
        if share[i] <= 0:
            r *= 0.5
            draw.line((x - r, y - r, x + r, y + r), _DEAD, 2)
            draw.line((x - r, y + r, x + r, y - r), _DEAD, 2)
            continue
        box = (x - r, y - r, x + r, y + r)
        draw.ellipse(box, _PALE[team], _TEAMS[team])
        draw.pieslice(box, -90, -90 + 360 * float(share[i]), _TEAMS[team])
        draw.text((x, y - r - 1), env.unit_type_shorthands[unit_types[i]], _TEXT, anchor="mb")
    allies, enemies = int((share[:n] > 0).sum()), int((share[n:] > 0).sum())
    draw.text((6, 6), f"step {int(step)}   allies {allies}   enemies {enemies}", _TEXT)
    return np.asarray(picture)
