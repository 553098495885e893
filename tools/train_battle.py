"""Train the agents of a SMAX battle: for a scenario that no script wins, to record it with some day.

    python tools/train_battle.py 5m_vs_6m --steps 20000000 --out battles

MAPPO (Yu et al., *The Surprising Effectiveness of PPO in Cooperative Multi-Agent Games*, 2022): one net
of all agents chooses from an agent's own observation, one critic values the state; both are trained by PPO
with generalised advantage estimation. Every `--every` steps the policy is written to `OUT/STEP.safetensors`,
and its mean return and share of victories, actions drawn, to `OUT/progress.jsonl`. Needs `macflow[smax]`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import train_state
from safetensors.numpy import save_file

from macflow.envs.smax import programs

HIDDEN = (128, 128)
BATTLES, ROLLOUT = 256, 64
EPOCHS, MINIBATCHES = 4, 4
DISCOUNT, TRACE = 0.99, 0.95
CLIP, ENTROPY, GRADIENT_NORM = 0.2, 0.003, 0.5
LEARNING_RATE = 1e-3
TEST_BATTLES = 512
# What illegal actions get for a logit.
NEVER = -1e9


class Mlp(nn.Module):
    """Hidden layers with ReLU, `outputs` numbers at the end, of the given scale."""

    outputs: int
    scale: float

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for size in HIDDEN:
            x = nn.relu(nn.Dense(size, kernel_init=nn.initializers.orthogonal(2**0.5))(x))
        return nn.Dense(self.outputs, kernel_init=nn.initializers.orthogonal(self.scale))(x)


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

    def __init__(self, scenario: str, updates: int, seed: int) -> None:
        self.env = programs(scenario).env
        self.updates = updates
        agents, actions = len(self.env.agents), int(self.env.num_ally_actions)
        # Flax and optax say too little of their types to be checked.
        self.actor: Any = Mlp(actions, 0.01)
        self.critic: Any = Mlp(1, 1.0)
        state: Any = train_state.TrainState
        key, actor_key, critic_key, start_key = jax.random.split(jax.random.PRNGKey(seed), 4)

        def net(model: Any, key: Any, inputs: int) -> Any:
            # Adam's epsilon is that of the paper's code; the rate falls to zero over the training.
            rate = optax.linear_schedule(LEARNING_RATE, 0.0, updates * EPOCHS * MINIBATCHES)
            optimiser = optax.chain(optax.clip_by_global_norm(GRADIENT_NORM), optax.adam(rate, eps=1e-5))
            parameters = model.init(key, jnp.zeros((1, inputs)))
            return state.create(apply_fn=model.apply, params=parameters, tx=optimiser)

        self.nets = (
            net(self.actor, actor_key, int(self.env.obs_size)),
            net(self.critic, critic_key, int(self.env.state_size)),
        )
        self.battles = jax.jit(jax.vmap(self._start))(jax.random.split(start_key, BATTLES))
        self.key = key
        self.agents = agents
        self._update = jax.jit(self._one_update)
        self._test = jax.jit(self._play)

    def update(self) -> None:
        """Play a rollout and learn from it."""
        self.nets, self.battles, self.key = self._update(self.nets, self.battles, self.key)

    def test(self, seed: int) -> tuple[float, float, float]:
        """Return mean return, its deviation and the share of victories."""
        keys = jax.random.split(jax.random.PRNGKey(seed), TEST_BATTLES)
        returns, won = self._test(self.nets[0].params, keys)
        return float(returns.mean()), float(returns.std()), float(won.mean())

    def _start(self, key: Any) -> Any:
        _, battle = self.env.reset(key)
        # Python numbers leave weak types in it, which a loop does not carry.
        return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), battle)

    def _see(self, battle: Any) -> tuple[Any, Any, Any]:
        obs, legal = self.env.get_obs(battle), self.env.get_avail_actions(battle)
        return (
            jnp.stack([obs[agent] for agent in self.env.agents]),
            self.env.get_world_state(battle),
            jnp.stack([legal[agent] for agent in self.env.agents]).astype(jnp.bool_),
        )

    def _logits(self, parameters: Any, obs: Any, legal: Any) -> Any:
        return jnp.where(legal, self.actor.apply(parameters, obs), NEVER)

    def _advance(self, key: Any, battle: Any, actions: Any) -> tuple[Any, Any, Any, Any]:
        by_agent = {agent: actions[i] for i, agent in enumerate(self.env.agents)}
        _, stepped, rewards, dones, _ = self.env.step_env(key, battle, by_agent)
        alive = stepped.state.unit_alive
        won = alive[: self.env.num_allies].any() & ~alive[self.env.num_allies :].any()
        return stepped, rewards[self.env.agents[0]], dones["__all__"], won

    def _one_update(self, nets: Any, battles: Any, key: Any) -> tuple[Any, Any, Any]:
        actor, critic = nets

        def moment(carry: tuple[Any, Any], _: None) -> tuple[Any, Moment]:
            battles, key = carry
            key, draw, move, fresh = jax.random.split(key, 4)
            obs, state, legal = jax.vmap(self._see)(battles)
            logits = self._logits(actor.params, obs, legal)
            action = jax.random.categorical(draw, logits)
            chosen = _of(jax.nn.log_softmax(logits), action)
            value = self.critic.apply(critic.params, state)[:, 0]
            stepped, reward, ended, _ = jax.vmap(self._advance)(
                jax.random.split(move, BATTLES), battles, action
            )
            started = jax.vmap(self._start)(jax.random.split(fresh, BATTLES))
            battles = jax.tree.map(
                lambda new, old: jnp.where(ended.reshape((-1,) + (1,) * (new.ndim - 1)), new, old),
                started,
                stepped,
            )
            return (battles, key), Moment(obs, state, legal, action, chosen, value, reward, ended)

        (battles, key), seen = jax.lax.scan(moment, (battles, key), None, ROLLOUT)
        _, state, _ = jax.vmap(self._see)(battles)
        last = self.critic.apply(critic.params, state)[:, 0]

        def back(carry: tuple[Any, Any], at: Moment) -> tuple[Any, Any]:
            advantage, following = carry
            alive = 1.0 - at.ended
            error = at.reward + DISCOUNT * following * alive - at.value
            advantage = error + DISCOUNT * TRACE * alive * advantage
            return (advantage, at.value), advantage

        _, advantages = jax.lax.scan(back, (jnp.zeros_like(last), last), seen, reverse=True)
        rows = jax.tree.map(
            lambda x: x.reshape((-1, *x.shape[2:])), (seen, advantages, advantages + seen.value)
        )

        def epoch(carry: Any, _: None) -> tuple[Any, None]:
            nets, key = carry
            key, shuffle = jax.random.split(key)
            order = jax.random.permutation(shuffle, BATTLES * ROLLOUT).reshape(MINIBATCHES, -1)
            nets, _ = jax.lax.scan(
                lambda nets, part: (self._learn(nets, *jax.tree.map(lambda x: x[part], rows)), None),
                nets,
                order,
            )
            return (nets, key), None

        (nets, key), _ = jax.lax.scan(epoch, ((actor, critic), key), None, EPOCHS)
        return nets, battles, key

    def _learn(self, nets: Any, seen: Moment, advantage: Any, target: Any) -> Any:
        actor, critic = nets
        scaled = ((advantage - advantage.mean()) / (advantage.std() + 1e-8))[:, None]
        # The dead choose nothing.
        chooses = seen.legal[:, :, 0]

        def policy_loss(parameters: Any) -> Any:
            log_probabilities = jax.nn.log_softmax(self._logits(parameters, seen.obs, seen.legal))
            ratio = jnp.exp(_of(log_probabilities, seen.action) - seen.log_probability)
            gain = jnp.minimum(ratio * scaled, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * scaled)
            entropy = -(jnp.exp(log_probabilities) * jnp.where(seen.legal, log_probabilities, 0.0)).sum(2)
            return -((gain + ENTROPY * entropy) * chooses).sum() / jnp.maximum(1, chooses.sum())

        def value_loss(parameters: Any) -> Any:
            return ((self.critic.apply(parameters, seen.state)[:, 0] - target) ** 2).mean()

        actor = actor.apply_gradients(grads=jax.grad(policy_loss)(actor.params))
        critic = critic.apply_gradients(grads=jax.grad(value_loss)(critic.params))
        return actor, critic

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
    """Return an actor's weights in the layout of the robots' controllers: w0, b0, w1, ..."""
    dense = parameters["params"]
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for index in range(len(HIDDEN) + 1):
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
    parser.add_argument("--every", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder of the levels")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    per_update = BATTLES * ROLLOUT
    trainer = Trainer(given.scenario, given.steps // per_update, given.seed)
    for number in range(1, trainer.updates + 1):
        trainer.update()
        steps = number * per_update
        if steps // given.every == (steps - per_update) // given.every and number != trainer.updates:
            continue
        mean, deviation, won = trainer.test(seed=given.seed + 1)
        row = {
            "steps": steps,
            "return_mean": round(mean, 3),
            "return_std": round(deviation, 3),
            "won": round(won, 3),
        }
        save_file(layers(trainer.nets[0].params), given.out / f"{steps}.safetensors")
        with (given.out / "progress.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
