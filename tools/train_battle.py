"""Train the agents of a SMAX battle, for a scenario that no script wins.

    python tools/train_battle.py 5m_vs_6m --steps 20000000 --out battles

MAPPO (Yu et al., *The Surprising Effectiveness of PPO in Cooperative Multi-Agent Games*, 2022): one net
of all agents chooses from an agent's own observation and index, one critic values the state and the time;
both are trained by PPO with generalised advantage estimation. Every `--every` steps the policy is written to
`OUT/STEP.safetensors`, and its mean return and share of victories, actions drawn, to `OUT/progress.jsonl`;
`OUT/settings.json` says how it was trained. Needs `macflow[smax]`.

On a GPU, with JAX's build for it, a few thousand battles take hardly longer than a few hundred:

    JAX_PLATFORMS=cuda python tools/train_battle.py 5m_vs_6m --steps 1000000000 --minutes 8 \\
        --battles 2048 --rollout 128 --minibatches 16 --hidden 256 256 --every 10000000 --out battles
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import save_file

from macflow.envs.smax import programs
from macflow.files import write_json

TRACE = 0.95
TEST_BATTLES = 512
# What illegal actions get for a logit.
NEVER = -1e9
# Of a unit in the state: health, position (2, in lengths), weapon cooldown, type (6).
UNIT_FEATURES = 10


@dataclass(frozen=True)
class Settings:
    """How it is learnt; the command line has an option for each."""

    seed: int = 0
    # Played side by side, this many steps between two updates.
    battles: int = 256
    rollout: int = 64
    # Passes over a rollout, and the parts of one pass.
    epochs: int = 4
    minibatches: int = 4
    hidden: tuple[int, ...] = (128, 128)
    # Falls to zero over the training.
    learning_rate: float = 1e-3
    clip: float = 0.2
    entropy: float = 0.003
    discount: float = 0.99
    gradient_norm: float = 0.5


class Mlp(nn.Module):
    """Hidden layers with ReLU, `outputs` numbers at the end, of the given scale."""

    hidden: tuple[int, ...]
    outputs: int
    scale: float

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for size in self.hidden:
            x = nn.relu(nn.Dense(size, kernel_init=nn.initializers.orthogonal(2**0.5))(x))
        return nn.Dense(self.outputs, kernel_init=nn.initializers.orthogonal(self.scale))(x)


class Net(NamedTuple):
    """Weights of a net, and what its optimiser remembers."""

    parameters: Any
    memory: Any


class Moment(NamedTuple):
    """One step of all battles; agents' arrays are (battles, N, ...)."""

    obs: Any
    state: Any
    legal: Any
    action: Any
    log_probability: Any
    value: Any
    reward: Any
    ended: Any


class Trainer:
    """MAPPO on one scenario, a jitted update per rollout of all battles."""

    def __init__(self, scenario: str, settings: Settings) -> None:
        self.env = programs(scenario).env
        self.settings = settings
        self.per_update = settings.battles * settings.rollout
        self.index = jnp.eye(len(self.env.agents))
        # Flax and optax say too little of their types to be checked.
        self.actor: Any = Mlp(settings.hidden, int(self.env.num_ally_actions), 0.01)
        self.critic: Any = Mlp(settings.hidden, 1, 1.0)
        # Adam's epsilon is that of the paper's code; the rate comes with each update.
        self.optimiser: Any = optax.chain(
            optax.clip_by_global_norm(settings.gradient_norm), optax.scale_by_adam(eps=1e-5)
        )
        key, actor_key, critic_key, start_key = jax.random.split(jax.random.PRNGKey(settings.seed), 4)
        self.battles = jax.jit(jax.vmap(self._start))(jax.random.split(start_key, settings.battles))
        obs, state, _ = jax.vmap(self._see)(self.battles)
        self.nets = (self._net(self.actor, actor_key, obs), self._net(self.critic, critic_key, state))
        self.key = key
        self._update = jax.jit(self._one_update)
        self._test = jax.jit(self._play)

    def update(self, rate: float) -> None:
        """Play a rollout and learn from it at a learning rate; returns when that is done."""
        self.nets, self.battles, self.key = self._update(self.nets, self.battles, self.key, jnp.float32(rate))
        # One program makes all three.
        self.key.block_until_ready()

    def test(self, seed: int) -> tuple[float, float, float]:
        """Return mean return, its deviation and the share of victories."""
        keys = jax.random.split(jax.random.PRNGKey(seed), TEST_BATTLES)
        returns, won = self._test(self.nets[0].parameters, keys)
        return float(returns.mean()), float(returns.std()), float(won.mean())

    def _net(self, model: Any, key: Any, inputs: Any) -> Net:
        parameters = model.init(key, inputs[:1])
        return Net(parameters, self.optimiser.init(parameters))

    def _start(self, key: Any) -> Any:
        _, battle = self.env.reset(key)
        # Python numbers leave weak types in it, which a loop does not carry.
        return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), battle)

    def _see(self, battle: Any) -> tuple[Any, Any, Any]:
        obs, legal = self.env.get_obs(battle), self.env.get_avail_actions(battle)
        own = jnp.stack([obs[agent] for agent in self.env.agents])
        return (
            jnp.concatenate([own, self.index], axis=1),
            self._scaled(self.env.get_world_state(battle), battle),
            jnp.stack([legal[agent] for agent in self.env.agents]).astype(jnp.bool_),
        )

    def _scaled(self, state: Any, battle: Any) -> Any:
        """Return the state with positions in shares of the map, and the share of the time that is over."""
        units = len(self.env.all_agents)
        scale = jnp.ones(UNIT_FEATURES).at[1:3].set(1 / jnp.array([self.env.map_width, self.env.map_height]))
        over = battle.state.step / self.env.max_steps
        seen, rest = jnp.split(state, [units * UNIT_FEATURES])
        return jnp.concatenate([seen * jnp.tile(scale, units), rest, over[None]])

    def _logits(self, parameters: Any, obs: Any, legal: Any) -> Any:
        return jnp.where(legal, self.actor.apply(parameters, obs), NEVER)

    def _advance(self, key: Any, battle: Any, actions: Any) -> tuple[Any, Any, Any, Any]:
        by_agent = {agent: actions[i] for i, agent in enumerate(self.env.agents)}
        _, stepped, rewards, dones, _ = self.env.step_env(key, battle, by_agent)
        alive = stepped.state.unit_alive
        won = alive[: self.env.num_allies].any() & ~alive[self.env.num_allies :].any()
        return stepped, rewards[self.env.agents[0]], dones["__all__"], won

    def _one_update(self, nets: Any, battles: Any, key: Any, rate: Any) -> tuple[Any, Any, Any]:
        settings = self.settings
        actor, critic = nets

        def moment(carry: tuple[Any, Any], _: None) -> tuple[Any, Moment]:
            battles, key = carry
            key, draw, move, fresh = jax.random.split(key, 4)
            obs, state, legal = jax.vmap(self._see)(battles)
            logits = self._logits(actor.parameters, obs, legal)
            action = jax.random.categorical(draw, logits)
            chosen = _of(jax.nn.log_softmax(logits), action)
            value = self.critic.apply(critic.parameters, state)[:, 0]
            stepped, reward, ended, _ = jax.vmap(self._advance)(
                jax.random.split(move, settings.battles), battles, action
            )
            started = jax.vmap(self._start)(jax.random.split(fresh, settings.battles))
            battles = jax.tree.map(
                lambda new, old: jnp.where(ended.reshape((-1,) + (1,) * (new.ndim - 1)), new, old),
                started,
                stepped,
            )
            return (battles, key), Moment(obs, state, legal, action, chosen, value, reward, ended)

        (battles, key), seen = jax.lax.scan(moment, (battles, key), None, settings.rollout)
        _, state, _ = jax.vmap(self._see)(battles)
        last = self.critic.apply(critic.parameters, state)[:, 0]

        def back(carry: tuple[Any, Any], at: Moment) -> tuple[Any, Any]:
            advantage, following = carry
            alive = 1.0 - at.ended
            error = at.reward + settings.discount * following * alive - at.value
            advantage = error + settings.discount * TRACE * alive * advantage
            return (advantage, at.value), advantage

        _, advantages = jax.lax.scan(back, (jnp.zeros_like(last), last), seen, reverse=True)
        rows = jax.tree.map(
            lambda x: x.reshape((-1, *x.shape[2:])), (seen, advantages, advantages + seen.value)
        )

        def epoch(carry: Any, _: None) -> tuple[Any, None]:
            nets, key = carry
            key, shuffle = jax.random.split(key)
            order = jax.random.permutation(shuffle, self.per_update).reshape(settings.minibatches, -1)
            nets, _ = jax.lax.scan(
                lambda nets, part: (self._learn(nets, rate, *jax.tree.map(lambda x: x[part], rows)), None),
                nets,
                order,
            )
            return (nets, key), None

        (nets, key), _ = jax.lax.scan(epoch, ((actor, critic), key), None, settings.epochs)
        return nets, battles, key

    def _learn(self, nets: Any, rate: Any, seen: Moment, advantage: Any, target: Any) -> Any:
        actor, critic = nets
        clip, entropy_weight = self.settings.clip, self.settings.entropy
        scaled = ((advantage - advantage.mean()) / (advantage.std() + 1e-8))[:, None]
        # The dead choose nothing.
        chooses = seen.legal[:, :, 0]

        def policy_loss(parameters: Any) -> Any:
            log_probabilities = jax.nn.log_softmax(self._logits(parameters, seen.obs, seen.legal))
            ratio = jnp.exp(_of(log_probabilities, seen.action) - seen.log_probability)
            gain = jnp.minimum(ratio * scaled, jnp.clip(ratio, 1 - clip, 1 + clip) * scaled)
            entropy = -(jnp.exp(log_probabilities) * jnp.where(seen.legal, log_probabilities, 0.0)).sum(2)
            return -((gain + entropy_weight * entropy) * chooses).sum() / jnp.maximum(1, chooses.sum())

        def value_loss(parameters: Any) -> Any:
            return ((self.critic.apply(parameters, seen.state)[:, 0] - target) ** 2).mean()

        return (
            self._descended(actor, jax.grad(policy_loss)(actor.parameters), rate),
            self._descended(critic, jax.grad(value_loss)(critic.parameters), rate),
        )

    def _descended(self, net: Net, gradient: Any, rate: Any) -> Net:
        step, memory = self.optimiser.update(gradient, net.memory)
        return Net(jax.tree.map(lambda x, d: x - rate * d, net.parameters, step), memory)

    def _play(self, parameters: Any, keys: Any) -> tuple[Any, Any]:
        battles = jax.vmap(self._start)(keys)

        def step(carry: Any, number: Any) -> tuple[Any, None]:
            battles, returns, over, won = carry
            each = jax.vmap(jax.random.fold_in, (0, None))(keys, number + 1)
            draw, move = jnp.moveaxis(jax.vmap(jax.random.split)(each), 1, 0)
            obs, _, legal = jax.vmap(self._see)(battles)
            action = jax.vmap(jax.random.categorical)(draw, self._logits(parameters, obs, legal))
            battles, reward, ended, victory = jax.vmap(self._advance)(move, battles, action)
            won = won | (~over & victory)
            return (battles, returns + jnp.where(over, 0.0, reward), over | ended, won), None

        nothing = jnp.zeros(len(keys))
        never = jnp.zeros(len(keys), jnp.bool_)
        steps = jnp.arange(self.env.max_steps)
        (_, returns, _, won), _ = jax.lax.scan(step, (battles, nothing, never, never), steps)
        return returns, won


def _of(values: Any, index: Any) -> Any:
    return jnp.take_along_axis(values, index[..., None], axis=-1)[..., 0]


def layers(parameters: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Return an actor's weights in the layout of the robots' controllers: w0, b0, w1, ...

    Its input is the agent's observation and, after it, a one for the agent's own place in the team and
    zeros for the others'.
    """
    dense = parameters["params"]
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for index in range(len(dense)):
        arrays[f"w{index}"] = np.asarray(dense[f"Dense_{index}"]["kernel"], np.float32)
        arrays[f"b{index}"] = np.asarray(dense[f"Dense_{index}"]["bias"], np.float32)
    return arrays


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and write the levels."""
    parser = argparse.ArgumentParser(description="Train the agents of a SMAX battle.")
    parser.add_argument("scenario", help="of jaxmarl: 5m_vs_6m, 3m, ...")
    parser.add_argument(
        "--steps", type=int, default=20_000_000, help="of the environment, all battles together"
    )
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop then, if the steps are not done by then"
    )
    parser.add_argument("--every", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, required=True, help="folder of the levels")
    for setting in fields(Settings):
        several = isinstance(setting.default, tuple)
        parser.add_argument(
            f"--{setting.name.replace('_', '-')}",
            type=int if several else type(setting.default),
            nargs="+" if several else None,
            default=setting.default,
            help="default: %(default)s",
        )
    given = parser.parse_args(arguments)
    chosen = {setting.name: getattr(given, setting.name) for setting in fields(Settings)}
    settings = Settings(**chosen | {"hidden": tuple(given.hidden)})
    if settings.battles * settings.rollout % settings.minibatches:
        parser.error(
            f"--minibatches: must divide the {settings.battles * settings.rollout} moments of a rollout "
            f"(received {settings.minibatches})"
        )
    begun = time.monotonic()
    given.out.mkdir(parents=True, exist_ok=True)
    write_json(given.out / "settings.json", {"scenario": given.scenario, **asdict(settings)})
    trainer = Trainer(given.scenario, settings)
    steps, done = 0, 0.0
    while done < 1:
        # The rate falls by what comes to its end sooner, the steps or the time.
        trainer.update(settings.learning_rate * (1 - done))
        before, steps = steps, steps + trainer.per_update
        seconds = time.monotonic() - begun
        done = max(steps / given.steps, seconds / (60 * given.minutes))
        if steps // given.every == before // given.every and done < 1:
            continue
        mean, deviation, won = trainer.test(seed=settings.seed + 1)
        row = {
            "steps": steps,
            "seconds": round(seconds, 1),
            "return_mean": round(mean, 3),
            "return_std": round(deviation, 3),
            "won": round(won, 3),
        }
        save_file(layers(trainer.nets[0].parameters), given.out / f"{steps}.safetensors")
        with (given.out / "progress.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
