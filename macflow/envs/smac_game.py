"""One battle of the `smacv2` package, repaired where it would spoil datasets.

Samvelyan et al., *The StarCraft Multi-Agent Challenge*, 2019; Ellis et al., *SMACv2: An Improved Benchmark
for Cooperative Multi-Agent Reinforcement Learning*, 2022. Spaces, observations, states, rewards and legal
actions are the package's own. docs/starcraft.md lists what is repaired, and why.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from macflow.envs.smac_protobuf import install_protocol
from macflow.types import MacflowError

install_protocol()

from pysc2 import maps  # noqa: E402 - what they import has just been made importable
from pysc2.lib import protocol, remote_controller, sc_process  # noqa: E402
from s2clientprotocol import sc2api_pb2  # noqa: E402
from smacv2.env.starcraft2 import starcraft2  # noqa: E402
from smacv2.env.starcraft2.distributions import Distribution, get_distribution  # noqa: E402

# Draws of teams and places before a map is given up on.
SPAWN_ATTEMPTS = 10
# Game loops to wait for killed units to be gone, two at a time.
KILL_ATTEMPTS = 100

# What the package does with a battle: observations by agent, state.
Start = tuple[list[Any], Any]


class GameError(MacflowError):
    """StarCraft II failed to start, or ended or refused to answer in the middle of an episode."""


_FAILURES = (
    GameError,
    protocol.ProtocolError,
    protocol.ConnectionError,
    remote_controller.ConnectError,
    remote_controller.RequestError,
    sc_process.SC2LaunchError,
)


class Battle(starcraft2.StarCraft2Env):  # type: ignore[misc]
    """A battle whose episodes depend on their seed alone, as far as the game itself does.

    Args:
        map_name: as the package registers it.
        new_game: create a game of its own, from the episode's seed, for every episode. Otherwise the units
            are killed and born again in one game, as the package does, and its random numbers run on.
        capabilities: teams and places to draw each episode, as `capability_config` of the package; fixed by
            the map where empty. Not changed.
        options: keywords of the package's `StarCraft2Env`.
    """

    # Of the package: the last observation; None, both, where no game is running.
    _obs: Any
    _sc2_proc: Any
    _controller: Any

    def __init__(
        self, map_name: str, new_game: bool, capabilities: Mapping[str, Mapping[str, Any]], **options: Any
    ) -> None:
        # Each its own dictionaries: the package writes into them.
        config = {key: {**value, "env_key": key} for key, value in capabilities.items()}
        super().__init__(
            map_name=map_name,
            capability_config=config,
            # Changes nothing but that the time limit is told from the end of the battle.
            continuing_episode=True,
            **options,
        )
        self._new_game = new_game
        self._distributions = [get_distribution(c["dist_type"])(c) for c in config.values()]
        self._random = random.getstate()
        self._numpy_random = np.random.get_state()  # noqa: NPY002 - what the package draws from

    def begin(self, seed: int) -> Start:
        """Begin the episode of `seed`; return observations and state.

        Raises:
            GameError: where the game cannot be started, or its units do not appear.
        """
        sequence = np.random.SeedSequence(seed)
        game, python, numpy = (int(word) for word in sequence.generate_state(3))
        self._seed = game
        self._random = random.Random(python).getstate()  # noqa: S311 - no secret
        self._numpy_random = np.random.RandomState(numpy).get_state()
        _reseed(self._distributions, sequence)
        with self._own_random_numbers():
            for _ in range(SPAWN_ATTEMPTS):
                drawn: dict[str, Any] = {}
                for distribution in self._distributions:
                    drawn |= distribution.generate()
                try:
                    return self._reset_surely(drawn)
                except starcraft2.CannotResetException:
                    # Whatever half of the teams is there would fight along.
                    self.close()
        raise GameError(
            f"{self.map_name}: StarCraft II did not create all units in {SPAWN_ATTEMPTS} attempts "
            f"(episode of seed {seed})"
        )

    def play(self, actions: Sequence[int]) -> tuple[float, bool, dict[str, Any]]:
        """Take legal actions; return reward, whether the episode ended, and the package's `info`.

        Raises:
            GameError: where the game has crashed. The episode is lost; `begin` starts another process.
        """
        with self._own_random_numbers():
            try:
                reward, ended, info = self.step(list(actions))
            except _FAILURES as error:
                self.close()
                raise GameError(
                    f"{self.map_name}: StarCraft II ended or failed in step {self._episode_steps + 1} of an "
                    f"episode, which has to be dropped ({error.__cause__ or error.__context__ or error})"
                ) from error
        return float(reward), bool(ended), info

    def look(self) -> Start:
        """Return observations and state; to be called once per step, because looking draws numbers."""
        with self._own_random_numbers():
            return self.get_obs(), self.get_state()

    def full_restart(self) -> None:
        """Refuse what the package does about a lost connection: to go on in another battle, silently."""
        raise GameError("the connection was lost")

    def close(self) -> None:
        super().close()
        self._sc2_proc = None
        self._controller = None

    def init_units(self, *args: Any, **kwargs: Any) -> None:
        super().init_units(*args, **kwargs)
        # The package adds up the health of the first episode's enemies, so the scale of all later rewards
        # would depend on it.
        health = sum(unit.health_max + unit.shield_max for unit in self.enemies.values())
        self.max_reward = self.n_enemies * self.reward_death_value + self.reward_win + health

    def get_unit_type_id(self, unit: Any, ally: bool) -> int:
        if ally and not self._generated:
            # The package lost an `else` here: it overwrites this with the number of an enemy's type.
            return int(unit.unit_type - self._min_unit_type)
        return int(super().get_unit_type_id(unit, ally))

    @property
    def _generated(self) -> bool:
        """Tell whether teams are drawn; otherwise the map brings them."""
        return bool(self._distributions)

    # The package launches until the first episode has ended, even where a game is running, and restarts
    # from then on, even where none is.
    def _launch(self) -> None:
        self._start()

    def _restart(self) -> None:
        self._start()

    def _start(self) -> None:
        if self._sc2_proc is None:
            super()._launch()
        elif self._new_game:
            self._create_game()
        else:
            self._clear_map()

    def _reset_surely(self, drawn: dict[str, Any]) -> Start:
        """Reset; where a game that was running fails, do so once more in a new process."""
        fresh = self._sc2_proc is None
        try:
            return self.reset(drawn)  # type: ignore[no-any-return]
        except _FAILURES as error:
            self.close()
            if fresh:
                raise self._no_start(error) from error
        try:
            return self.reset(drawn)  # type: ignore[no-any-return]
        except _FAILURES as error:
            self.close()
            raise self._no_start(error) from error

    def _no_start(self, error: Exception) -> GameError:
        return GameError(f"{self.map_name}: StarCraft II did not begin an episode ({error})")

    def _create_game(self) -> None:
        """Leave the game and create another from `_seed` in the same process."""
        controller = self._controller
        if controller.status == remote_controller.Status.in_game:
            controller.leave()
        path = maps.get(self.map_name).path
        create = sc2api_pb2.RequestCreateGame(
            local_map=sc2api_pb2.LocalMap(map_path=path, map_data=self._run_config.map_data(path)),
            realtime=False,
            random_seed=self._seed,
        )
        create.player_setup.add(type=sc2api_pb2.Participant)
        create.player_setup.add(
            type=sc2api_pb2.Computer,
            race=starcraft2.races[self._bot_race],
            difficulty=starcraft2.difficulties[self.difficulty],
        )
        controller.create_game(create)
        controller.join_game(self.game)

    def _clear_map(self) -> None:
        """Kill all units. The maps of SMACv1 bring the next ones at once, so they are never empty."""
        self._kill_units([unit.tag for unit in self._obs.observation.raw_data.units])
        self._controller.step(2)
        if not self._generated:
            return
        for _ in range(KILL_ATTEMPTS):
            self._obs = self._controller.observe()
            if not self._obs.observation.raw_data.units:
                return
            self._controller.step(2)
        raise GameError("killed units did not disappear")

    @contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """Let the package, which draws from the process's generators, draw from this episode's own."""
        outer, outer_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
        random.setstate(self._random)
        np.random.set_state(self._numpy_random)  # noqa: NPY002
        try:
            yield
        finally:
            self._random, self._numpy_random = random.getstate(), np.random.get_state()  # noqa: NPY002
            random.setstate(outer)
            np.random.set_state(outer_numpy)  # noqa: NPY002


def _reseed(distributions: Sequence[Distribution], sequence: np.random.SeedSequence) -> None:
    """Give every generator inside the package's distributions a seed of its own."""
    for distribution in distributions:
        for name, value in sorted(vars(distribution).items()):
            if isinstance(value, np.random.Generator):
                setattr(distribution, name, np.random.default_rng(sequence.spawn(1)[0]))
            elif isinstance(value, Distribution):
                _reseed([value], sequence)
