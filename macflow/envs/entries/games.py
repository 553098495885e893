"""Games of macflow's own, each with one difficulty and a known optimum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated

from pydantic import Field

from macflow.envs.base import JointEnv
from macflow.envs.behaviours import Agreement, Behaviour, JointChoice, Skill, Uniform, covering
from macflow.envs.entry import EnvEntry, Fraction, Kwargs, Reference, StepLimit, measured
from macflow.types import FloatArray, MultiAgentSpec


class LandmarkKwargs(Kwargs):
    n_agents: Annotated[int, Field(ge=3, le=40)] = 3
    max_cycles: StepLimit = 5


class TableKwargs(Kwargs):
    pass


class PayoffKwargs(Kwargs):
    n_agents: Annotated[int, Field(ge=2)] = 2
    # Interaction intensity: 0 scores each agent alone, 1 their agreement alone.
    zeta: Fraction = 1.0


XOR = ((0.0, 1.0), (1.0, 0.0))
RARE_OPTIMUM = ((0.0, 1.0), (1.0, 2.0))


def _landmark(kwargs: LandmarkKwargs) -> JointEnv:
    from macflow.envs.games import LandmarkGame

    return LandmarkGame(**kwargs.model_dump())


def _landmark_skills(spec: MultiAgentSpec) -> tuple[Skill, Skill]:
    # Noise in proportion to the landmarks' radius, which shrinks with the number of agents.
    return Skill(vigour=0.6, noise=0.17 / spec.n_agents**0.5), Skill(
        vigour=1.0, noise=0.017 / spec.n_agents**0.5
    )


def _leap(targets: FloatArray, velocity: FloatArray) -> FloatArray:
    """Reach the target in one step."""
    from macflow.envs.games import LandmarkGame

    return targets / LandmarkGame.STRIDE


def _table(table: tuple[tuple[float, ...], ...]) -> Callable[[TableKwargs], JointEnv]:
    def make(kwargs: TableKwargs) -> JointEnv:
        from macflow.envs.games import table_game

        return table_game(table)

    return make


def _payoff(kwargs: PayoffKwargs) -> JointEnv:
    from macflow.envs.games import payoff_game

    return payoff_game(**kwargs.model_dump())


def _table_reference(table: tuple[tuple[float, ...], ...]) -> Callable[[TableKwargs], Reference]:
    values = [value for row in table for value in row]
    return lambda kwargs: {
        "random": sum(values) / len(values),
        "expert": max(values),
        "how": "known: mean and maximum of the payoff table",
    }


def _agreement(together: float) -> Behaviour:
    return lambda spec: Agreement(spec, mean=0.6, deviation=0.15, together=together)


def _payoff_reference(kwargs: PayoffKwargs) -> Reference:
    return {
        "random": (1 - kwargs.zeta) / 3,
        "expert": 1.0,
        "how": "known: E[a^2] = 1/3 and E[a_i a_j] = 0 for uniform actions; the optimum is 1",
    }


def _version() -> str:
    return "macflow games 1"


def _by_agents(returns: Mapping[int, tuple[float, float]]) -> Mapping[str, Reference]:
    found: dict[str, Reference] = {}
    for n_agents, (random, expert) in returns.items():
        found |= measured("game/landmark", {"n_agents": n_agents}, random, expert, max_cycles=5)
    return found


ENTRIES: Mapping[str, EnvEntry] = MappingProxyType(
    {
        "game/landmark": EnvEntry(
            description="3 to 40 agents leap to cover as many landmarks; optimum 1 per step",
            kwargs=LandmarkKwargs,
            make=_landmark,
            action_kind="continuous",
            version=_version,
            behaviours=covering(_landmark_skills, _leap, has_velocity=False),
            references=_by_agents(
                {
                    3: (0.581, 4.787),
                    5: (0.588, 4.787),
                    10: (0.583, 4.788),
                    20: (0.552, 4.788),
                    40: (0.546, 4.787),
                }
            ),
        ),
        "game/xor": EnvEntry(
            description="two agents, one step: reward 1 where they choose differently",
            kwargs=TableKwargs,
            make=_table(XOR),
            action_kind="discrete",
            version=_version,
            behaviours=MappingProxyType(
                {"mixed": lambda spec: JointChoice(spec, {(0, 1): 0.5, (1, 0): 0.5}), "random": Uniform}
            ),
            derive_reference=_table_reference(XOR),
        ),
        "game/payoff": EnvEntry(
            description="agents choose a number in [-1, 1], one step: size counts, and with `zeta` agreement",
            kwargs=PayoffKwargs,
            make=_payoff,
            action_kind="continuous",
            version=_version,
            behaviours=MappingProxyType(
                {"mixed": _agreement(1.0)}
                | {f"together-{share}": _agreement(share / 100) for share in (0, 25, 50, 75)}
                | {"random": Uniform}
            ),
            derive_reference=_payoff_reference,
        ),
        "game/rare-optimum": EnvEntry(
            description="two agents, one step: (0, 1) and (1, 0) pay 1, (1, 1) pays 2",
            kwargs=TableKwargs,
            make=_table(RARE_OPTIMUM),
            action_kind="discrete",
            version=_version,
            behaviours=MappingProxyType(
                {
                    "mostly-suboptimal": lambda spec: JointChoice(
                        spec, {(0, 1): 0.485, (1, 0): 0.485, (1, 1): 0.03}
                    ),
                    "random": Uniform,
                }
            ),
            derive_reference=_table_reference(RARE_OPTIMUM),
        ),
    }
)
