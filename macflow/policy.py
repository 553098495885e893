"""The deployable policy bundle: one-step policies that act from their own observation, on nothing else.

`policy.safetensors` holds the weights, `policy.json` everything needed to act and to know what the
policy was made from; `values.safetensors` holds the critics Q_i(o_i, a_i) of policies that choose among
several actions (best-of-M). Neither the dataset, DVC nor the environment is needed. A folder `critic`
beside them, where there is one, is for the stage `diagnose` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from macflow.acting import checked_legal, checked_obs, standard_normal
from macflow.actions import decode_actions
from macflow.algorithms.distillation import masked_log_softmax
from macflow.algorithms.flow_matching import one_hot_of_best_legal
from macflow.data.normalizer import Normalizer
from macflow.files import read_json, write_json
from macflow.nets.critic import AgentValues, Aggregate, OwnValues
from macflow.nets.policy import Noise, OneStepPolicy, Sharing
from macflow.nets.weights import load_weights, save_weights
from macflow.types import ActionArray, BoolArray, DataError, FloatArray, MultiAgentSpec, Seen

SCHEMA_VERSION = 3


@dataclass(frozen=True)
class Acting:
    """How agents act by what they learnt; training knows nothing of it."""

    # Standard deviation of the noise to act with.
    noise: float
    # M: noises that an agent draws, to play the action that its own critic values most. 1: no choice.
    best_of: int

    def __post_init__(self) -> None:
        if not 0 <= self.noise <= 1:
            raise ValueError(f"`acting.noise` must lie in [0, 1], received {self.noise!r}")
        if self.best_of < 1:
            raise ValueError(f"`acting.best_of` must be 1 or more, received {self.best_of!r}")


class Policy:
    """Decentralised one-step policies of all agents, acting on raw observations.

    Acting together and acting alone give the same actions. With individual noise agent i draws from a
    stream of its own, by (seed, t, i). With common noise all agents draw the joint noise of
    step t from (seed, t): wherever they run, they need to share the seed and to count the same steps.

    With `best_of` M > 1 an agent draws M noises and plays the action that its own Q_i(o_i, a_i) values
    most: by IGM that is its part of a better joint action, and needs nobody else.
    """

    def __init__(
        self,
        spec: MultiAgentSpec,
        normalizer: Normalizer,
        net: OneStepPolicy,
        acting: Acting,
        values: OwnValues | None,
        manifest: Mapping[str, Any],
        seed: int = 0,
    ) -> None:
        self.acting = acting
        self.spec = spec
        self.normalizer = normalizer
        self.net = net
        self.values = values
        self.manifest = manifest
        self.seed(seed)

    def seed(self, seed: int, step: int = 0) -> None:
        """Restart every agent's noise at a step, so that an agent that joins late draws as the others do.

        Raises:
            ValueError: where a number is negative.
        """
        for name, value in (("seed", seed), ("step", step)):
            if value < 0:
                raise ValueError(f"`{name}` must be 0 or more, received {value}")
        self._seed = seed
        self._steps = [step] * self.spec.n_agents

    def act(
        self, obs: Mapping[str, ArrayLike], legal_actions: Mapping[str, ArrayLike] | None = None
    ) -> dict[str, Any]:
        """Choose actions for the agents in `obs`, each from its own observation.

        Args:
            obs: agent id -> observation (O_i,), in the environment's units.
            legal_actions: agent id -> bool (A,); discrete only, all legal where None.

        Returns:
            agent id -> float32 (A,) within the environment's bounds, or an int.

        Raises:
            ValueError: naming the agent, the rule and the received value.
        """
        n, a = self.spec.n_agents, self.spec.action_size
        rows = np.zeros((1, n, self.spec.obs_size), np.float32)
        legal = np.ones((1, n, a), np.bool_)
        indices = {agent: self._index(agent) for agent in obs}
        for agent, i in indices.items():
            rows[0, i, : self.spec.obs_dims[i]] = checked_obs(agent, self.spec.obs_dims[i], obs[agent])
            if legal_actions is not None and agent in legal_actions:
                legal[0, i] = checked_legal(agent, a, legal_actions[agent])
        masks = legal if self.spec.discrete else None
        chosen: dict[str, Any] = {}
        # Agents that have acted equally often share a pass: as a rule, all of them.
        for step in {self._steps[i] for i in indices.values()}:
            now = {agent: i for agent, i in indices.items() if self._steps[i] == step}
            noise = torch.from_numpy(self._noise_at(step, now.values())).unsqueeze(0)
            actions = self.act_batch(rows, noise, masks)[0]
            chosen |= {
                agent: int(actions[i]) if self.spec.discrete else actions[i] for agent, i in now.items()
            }
        for i in indices.values():
            self._steps[i] += 1
        return {agent: chosen[agent] for agent in obs}

    def agent(self, agent_id: str) -> AgentPolicy:
        """Return the policy of one agent, which needs that agent's observation alone."""
        self._index(agent_id)
        return AgentPolicy(self, agent_id)

    def actor(self) -> PolicyActor:
        """Return the policies as an `Actor` for batches of environments."""
        return PolicyActor(self)

    def act_batch(self, obs: FloatArray, noise: Tensor, legal_actions: BoolArray | None) -> ActionArray:
        """Map raw obs (E, N, O) and noise (E, M, N, A) to environment actions (E, N, A) or (E, N)."""
        e, m, n, a = noise.shape
        rows = torch.from_numpy(obs).repeat_interleave(m, dim=0)
        legal = None if legal_actions is None else torch.from_numpy(legal_actions).repeat_interleave(m, dim=0)
        out = self.sample(rows, noise.flatten(0, 1), legal)
        if legal is not None:
            out = one_hot_of_best_legal(out, legal)
        candidates = out.reshape(e, m, n, a)
        if self.values is None:
            return decode_actions(self.spec, candidates[:, 0])
        with torch.no_grad():
            q = self.values(self.normalizer.normalize_obs(rows), out).reshape(e, m, n)
        best = q.argmax(dim=1)[:, None, :, None].expand(e, 1, n, a)
        return decode_actions(self.spec, candidates.gather(1, best)[:, 0])

    @torch.no_grad()
    def sample(self, obs: Tensor, noise: Tensor, legal_actions: Tensor | None) -> Tensor:
        """Map raw obs (B, N, O) and noise (B, N, A) to the flow's action space (B, N, A).

        Continuous: clipped to [-1, 1]. Discrete: probabilities over the legal actions.
        """
        out: Tensor = self.net(self.normalizer.normalize_obs(obs), noise, legal_actions)
        if legal_actions is None:
            return out.clamp(-1.0, 1.0)
        return masked_log_softmax(out, legal_actions).exp()

    def _noise_at(self, step: int, agents: Iterable[int]) -> FloatArray:
        """Return the noise (M, N, A) of a step; with individual noise that of the given agents, else zero."""
        m, n, a = self.acting.best_of, self.spec.n_agents, self.spec.action_size
        if self.net.noise == "common":
            return self.acting.noise * standard_normal(self._seed, (step,), (m, n, a))
        noise = np.zeros((m, n, a), np.float32)
        for i in agents:
            noise[:, i] = self.acting.noise * standard_normal(self._seed, (step, i), (m, a))
        return noise

    def _index(self, agent: str) -> int:
        try:
            return self.spec.agent_ids.index(agent)
        except ValueError:
            raise ValueError(
                f"agent id must be one of {list(self.spec.agent_ids)}, received {agent!r}"
            ) from None


class AgentPolicy:
    """One agent's policy, deployable apart from the others."""

    def __init__(self, policy: Policy, agent_id: str) -> None:
        self._policy = policy
        self.agent_id = agent_id

    def act(self, obs: ArrayLike, legal_actions: ArrayLike | None = None) -> Any:
        """Choose this agent's action from its own observation (O_i,)."""
        legal = None if legal_actions is None else {self.agent_id: legal_actions}
        return self._policy.act({self.agent_id: obs}, legal)[self.agent_id]


# Environments seed their own streams with the same numbers; the policies' noise must not repeat them.
_NOISE_STREAM = 0x6E6F6973


class EpisodeNoise:
    """Noise for a batch of episodes, each from its own seed, whatever the batch it runs in."""

    def __init__(self, spec: MultiAgentSpec, draws: int = 1) -> None:
        """Take how many noises a step needs."""
        self.shape = (draws, spec.n_agents, spec.action_size)
        self.streams: list[np.random.Generator] = []

    def reset(self, seeds: Sequence[int]) -> None:
        """Begin one stream per seed."""
        self.streams = [np.random.default_rng([_NOISE_STREAM, seed]) for seed in seeds]

    def draw(self) -> Tensor:
        """Return the next noises of every episode: (E, M, N, A)."""
        return torch.from_numpy(np.stack([s.standard_normal(self.shape, np.float32) for s in self.streams]))


class PolicyActor:
    """Act by the one-step policies in a batch of environments."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.noise = EpisodeNoise(policy.spec, policy.acting.best_of)

    def reset(self, seeds: Sequence[int]) -> None:
        """Begin one episode per seed."""
        self.noise.reset(seeds)

    def act(self, seen: Seen) -> ActionArray:
        """Map raw observations (E, N, O) to environment actions."""
        noise = self.policy.acting.noise * self.noise.draw()
        return self.policy.act_batch(np.asarray(seen.obs, np.float32), noise, seen.legal_actions)


def save_policy(
    folder: Path,
    spec: MultiAgentSpec,
    normalizer: Normalizer,
    net: OneStepPolicy,
    acting: Acting,
    values: OwnValues | None,
    manifest: Mapping[str, Any],
) -> None:
    """Write the bundle; `manifest` adds environment, parameters, provenance."""
    save_weights(folder / "policy.safetensors", net)
    content: dict[str, Any] = {
        "spec": spec.to_dict(),
        "normalizer": normalizer.to_dict(),
        "noise": net.noise,
        "acting": asdict(acting),
    }
    if values is not None:
        content["values"] = {
            "ensemble": values.agents.ensemble,
            "hidden": list(values.agents.hidden),
            "aggregate": values.aggregate,
        }
        save_weights(folder / "values.safetensors", values)
    write_json(folder / "policy.json", {"schema_version": SCHEMA_VERSION} | content | dict(manifest))


def load_policy(path: str | Path, seed: int = 0) -> Policy:
    """Load a policy bundle folder.

    Args:
        seed: of the agents' noise streams.

    Raises:
        DataError: naming the file that is missing, malformed or of another schema version.
    """
    folder = Path(path)
    manifest = read_json(folder / "policy.json")
    values = None
    try:
        if manifest["schema_version"] != SCHEMA_VERSION:
            raise DataError(
                f"{folder / 'policy.json'}: `schema_version` must be {SCHEMA_VERSION}, "
                f"received {manifest['schema_version']!r}"
            )
        spec = MultiAgentSpec.from_dict(manifest["spec"])
        normalizer = Normalizer.from_dict(manifest["normalizer"])
        params = manifest["params"]["distill"]
        acting = Acting(**manifest["acting"])
        if manifest["noise"] not in get_args(Noise):
            raise DataError(
                f"{folder / 'policy.json'}: `noise` must be one of {', '.join(get_args(Noise))}, "
                f"received {manifest['noise']!r}"
            )
        net = build_policy(spec, params["sharing"], manifest["noise"], params["hidden"], torch.Generator())
        if acting.best_of > 1:
            values = _build_values(spec, **manifest["values"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / 'policy.json'}: not a policy manifest: {error!r}") from None
    load_weights(folder / "policy.safetensors", net)
    if values is not None:
        load_weights(folder / "values.safetensors", values)
    return Policy(spec, normalizer, net, acting, values, manifest, seed)


def _build_values(
    spec: MultiAgentSpec, ensemble: int, hidden: Sequence[int], aggregate: Aggregate
) -> OwnValues:
    agents = AgentValues(
        spec.n_agents, spec.obs_size, spec.action_size, spec.discrete, ensemble, hidden, torch.Generator()
    )
    return OwnValues(agents, aggregate)


def build_policy(
    spec: MultiAgentSpec,
    sharing: Sharing,
    noise: Noise,
    hidden: Sequence[int],
    generator: torch.Generator,
) -> OneStepPolicy:
    """Return fresh one-step policies for `spec`."""
    return OneStepPolicy(spec.n_agents, spec.obs_size, spec.action_size, sharing, noise, hidden, generator)
