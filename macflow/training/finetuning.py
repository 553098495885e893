"""Keep learning in the live environment: play, mix what was played with the recorded data, take steps.

Nothing here knows how environments are made: an `Arena` plays and judges.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from macflow.algorithms.distillation import distillation_loss
from macflow.algorithms.flow_matching import flow_matching_loss
from macflow.data.episode import Episode
from macflow.data.rows import EpisodeRows, stack_episodes
from macflow.data.sampler import ReplaySampler, TransitionSampler, join_batches
from macflow.nets.critic import FactoredCritic
from macflow.policy import Policy
from macflow.training.actor_critic import CriticLearner
from macflow.training.artifacts import CriticArtifact, FlowArtifact, TeacherArtifact
from macflow.training.checkpoint import CheckpointFile, TrainingState
from macflow.training.exploration import Explorer
from macflow.training.loop import CurveLog, adam, descend, learning_rate_of, set_learning_rate
from macflow.types import Actor, Batch, DataError, MultiAgentSpec

# What an arena finds in a policy: `return_mean` and its interval, `return_ci95_low` and `return_ci95_high`.
Judgement = Mapping[str, float]


@dataclass(frozen=True)
class FinetuneSettings:
    """How it is learnt, and for how long; `config.FinetuneParams` says what each setting means."""

    env_steps: int
    updates_per_step: float
    warm_up: int
    batch_size: int
    learning_rate: float
    schedule: Literal["constant", "cosine"]
    offline_fraction: float
    replay_size: int
    alpha: float
    alpha_last: float
    action_noise: float
    flow: Literal["frozen", "refreshed"]
    evaluate_every: int
    # Of the first episode that is played.
    seed: int


@dataclass(frozen=True)
class Arena:
    """An environment to learn in, as far as learning needs it."""

    # Plays one wave of whole episodes with consecutive seeds, the first of which is given.
    play: Callable[[Actor, int], list[Episode]]
    # Judges on episodes of their own, always the same.
    judge: Callable[[Policy], Judgement]


@dataclass(frozen=True)
class Change:
    """The environment's becoming another while agents learn in it."""

    # Environment steps after which episodes are played there.
    after: int
    arena: Arena
    # Whether batches then leave out what was played or recorded before.
    forget: bool


class FineTuner:
    """The nets and the data, and one gradient step of the critics, the policies and, if asked, the flow."""

    def __init__(
        self,
        policy: Policy,
        critic: CriticArtifact,
        flow: FlowArtifact,
        recorded: TransitionSampler,
        teacher: TeacherArtifact,
        settings: FinetuneSettings,
        generator: torch.Generator,
    ) -> None:
        """Go on from the nets given, in place, on the generator's device.

        Args:
            policy: acts on the CPU; learns as a copy on the device.
            recorded: the offline data. teacher: samples of the flow at their rows.
        """
        device = generator.device
        self.policy = policy
        self.net = copy.deepcopy(policy.net).to(device).requires_grad_(True)
        self.flow = flow
        self.settings = settings
        self.recorded = recorded
        self.recorded_teacher = teacher
        self.offline_fraction = settings.offline_fraction
        self.replay = ReplaySampler(flow.spec, flow.normalizer, settings.replay_size, device)
        empty = torch.zeros((0, *teacher.noise.shape[1:]), device=device)
        self.replay_teacher = TeacherArtifact(empty, empty)
        self.learner = CriticLearner(critic, self.net)
        # What the guard keeps: the policies, and the critics that they may choose their actions by.
        self.best_net, self.best_critic = copy.deepcopy(self.net), copy.deepcopy(critic.critic)
        modules: dict[str, nn.Module] = {
            "policy": self.net,
            "critic": critic.critic,
            "target": self.learner.target,
            "best_policy": self.best_net,
            "best_critic": self.best_critic,
        }
        trained = [*self.net.parameters(), *critic.critic.parameters()]
        if settings.flow == "refreshed":
            modules["flow"] = flow.field
            trained += flow.field.parameters()
        self.state = TrainingState(modules, adam(trained), generator)

    def take_in(self, rows: EpisodeRows, number: int) -> None:
        """Add a wave of episodes, with samples of the flow at their rows.

        Args:
            number: of the wave; the samples' noise is made from it, so that it can be made again.
        """
        first = len(self.replay.obs)
        self.replay.append(rows)
        if self.settings.flow == "refreshed":
            return
        k = self.recorded_teacher.samples
        obs = self.replay.obs[first:].repeat_interleave(k, dim=0)
        legal = None
        if self.replay.legal_actions is not None:
            legal = self.replay.legal_actions[first:].repeat_interleave(k, dim=0)
        generator = torch.Generator(obs.device).manual_seed(self.settings.seed + number)
        noise = torch.randn(
            (len(obs), *self.recorded_teacher.noise.shape[2:]), generator=generator, device=obs.device
        )
        actions = self.flow.sample(obs, noise, legal)
        held = self.replay_teacher
        shape = (-1, *held.noise.shape[1:])
        self.replay_teacher = TeacherArtifact(
            torch.cat([held.noise, noise.reshape(shape)]), torch.cat([held.actions, actions.reshape(shape)])
        )

    def forget(self) -> None:
        """Leave what was recorded, and what was played so far, out of batches from here on."""
        self.replay.forget()
        self.offline_fraction = 0.0

    def step(self, alpha: float) -> dict[str, Tensor]:
        """Take one step of critics and policies (Eq. 1, 9) on a mixed batch and return scalars to log."""
        state, settings = self.state, self.settings
        batch, noise, teacher = self._mixed(settings.batch_size)
        info = self.learner.step(batch, state.optimizer, state.generator)
        if settings.flow == "refreshed":
            info["flow_loss"] = self._refresh(batch)
            noise = torch.randn(batch.actions.shape, generator=state.generator, device=batch.actions.device)
            teacher = self.flow.sample(batch.obs, noise, batch.legal_actions)
        artifact = self.learner.artifact
        loss, found = distillation_loss(
            self.net,
            artifact.critic,
            batch.obs,
            batch.state,
            noise,
            teacher,
            batch.legal_actions,
            alpha,
            artifact.aggregate,
            inward=True,
        )
        descend(state.optimizer, loss)
        return info | found

    def acting(self) -> Policy:
        """Return the policy with the weights as they are now, on the CPU; the next call changes it."""
        return self._on_cpu(self.net, self.learner.critic)

    def best(self) -> Policy:
        """Return the same policy with the weights that the guard keeps, likewise."""
        return self._on_cpu(self.best_net, self.best_critic)

    def keep_as_best(self) -> None:
        """Let the guard keep the weights as they are now."""
        self.best_net.load_state_dict(self.net.state_dict())
        self.best_critic.load_state_dict(self.learner.critic.state_dict())

    def _on_cpu(self, net: nn.Module, critic: nn.Module) -> Policy:
        self.policy.net.load_state_dict(net.state_dict())
        if self.policy.values is not None and isinstance(critic, FactoredCritic):
            self.policy.values.agents.load_state_dict(critic.agents.state_dict())
        return self.policy

    def _mixed(self, size: int) -> tuple[Batch, Tensor, Tensor]:
        """Return a batch with one noise and its sample of the flow per transition, each (B, N, A)."""
        generator = self.state.generator
        offline = round(size * self.offline_fraction)
        parts = []
        for sampler, teacher, count in (
            (self.recorded, self.recorded_teacher, offline),
            (self.replay, self.replay_teacher, size - offline),
        ):
            if count:
                batch = sampler.sample(count, generator)
                if self.settings.flow == "refreshed":
                    parts.append((batch, batch.actions, batch.actions))
                else:
                    parts.append((batch, *teacher.draw(batch.rows, generator)))
        batches, noises, samples = zip(*parts, strict=True)
        return join_batches(batches), torch.cat(noises), torch.cat(samples)

    def _refresh(self, batch: Batch) -> Tensor:
        flow = self.flow
        flow.field.requires_grad_(True)
        loss, info = flow_matching_loss(
            flow.field, batch.obs, batch.actions, batch.legal_actions, flow.objective, self.state.generator
        )
        descend(self.state.optimizer, loss)
        flow.field.requires_grad_(False)
        return info["loss"]


class Waves:
    """The episodes played so far, wave by wave in a folder: what a checkpoint does not hold."""

    def __init__(self, folder: Path, spec: MultiAgentSpec) -> None:
        self.folder = folder
        self.spec = spec
        self.held: list[EpisodeRows] = []

    def add(self, episodes: Sequence[Episode]) -> EpisodeRows:
        """Write the next wave and return its rows."""
        rows = stack_episodes(episodes, self.spec)
        names = (field.name for field in fields(EpisodeRows))
        arrays = {name: array for name in names if (array := getattr(rows, name)) is not None}
        file = self._file(len(self.held))
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_suffix(".new")
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, fresh)
        fresh.replace(file)
        self.held.append(rows)
        return rows

    def restore(self, count: int) -> None:
        """Read the first `count` waves; what lies beyond them will be written again.

        Raises:
            DataError: naming the file that is missing.
        """
        for number in range(count):
            file = self._file(number)
            if not file.is_file():
                raise DataError(f"{file}: not found, but the checkpoint beside it was made after it")
            arrays: dict[str, Any] = load_file(file)
            self.held.append(EpisodeRows(**{"legal_actions": None, **arrays}))

    def episodes(self) -> list[Episode]:
        """Return all episodes in the order in which they were played."""
        return [episode for rows in self.held for episode in rows.episodes()]

    def remove(self) -> None:
        """Delete the files."""
        for file in self.folder.glob("*"):
            file.unlink()
        if self.folder.is_dir():
            self.folder.rmdir()

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"


def fine_tune(
    name: str,
    tuner: FineTuner,
    arena: Arena,
    change: Change | None,
    waves: Waves,
    checkpoint: CheckpointFile,
    checkpoint_every: int,
    log_every: int,
) -> None:
    """Play and learn until `env_steps` are played, resuming from `checkpoint` where it fits.

    Waves of whole episodes and the steps due after each alternate, so checkpoints lie between episodes and
    need nothing of the environment. `tuner.state.curves["evaluations"]` gets a row per judgement: of the
    policies as they are (`return_mean` and interval) and of what the guard keeps (`kept_return`, judged in
    the same arena on the same episodes; `kept_env_steps` is its age).

    Raises:
        TrainingDivergedError: a loss is no longer finite.
    """
    state, settings = tuner.state, tuner.settings
    counters = state.counters
    if checkpoint.restore(state):
        counters = state.counters
        waves.restore(counters["waves"])
        for number, rows in enumerate(waves.held):
            if change is not None and change.forget and number == counters.get("changed_at"):
                tuner.forget()
            tuner.take_in(rows, number)
        print(
            f"{name}: resumed at environment step {counters['env_steps']} of {settings.env_steps}", flush=True
        )
    else:
        # Of another run: first what would ask for the waves, then the waves.
        checkpoint.remove()
        waves.remove()
        counters |= {"env_steps": 0, "episodes": 0, "waves": 0}
        _judge(tuner, arena, name)
    log = CurveLog(name, state, _updates(settings, settings.env_steps), log_every)
    rate = learning_rate_of(settings.schedule, settings.learning_rate, settings.env_steps)
    explorer = Explorer(tuner.acting(), settings.action_noise)
    while counters["env_steps"] < settings.env_steps:
        if change is not None and counters["env_steps"] >= change.after and "changed_at" not in counters:
            counters["changed_at"] = counters["waves"]
            if change.forget:
                tuner.forget()
            _judge_anew(tuner, change.arena, name)
        if change is not None and "changed_at" in counters:
            arena = change.arena
        # What the explorer plays by: a judgement may have left other weights there.
        tuner.acting()
        rows = waves.add(arena.play(explorer, settings.seed + counters["episodes"]))
        tuner.take_in(rows, counters["waves"])
        before = counters["env_steps"]
        counters["waves"] += 1
        counters["episodes"] += rows.n_episodes
        counters["env_steps"] += len(rows.train_rows)
        set_learning_rate(state.optimizer, rate(before))
        alpha = settings.alpha + (settings.alpha_last - settings.alpha) * before / settings.env_steps
        first = state.step
        while state.step < _updates(settings, counters["env_steps"]):
            log.count(tuner.step(alpha))
        last = counters["env_steps"] >= settings.env_steps
        if counters["env_steps"] // settings.evaluate_every > before // settings.evaluate_every or last:
            _judge(tuner, arena, name)
        if state.step // checkpoint_every > first // checkpoint_every and not last:
            log.keep()
            checkpoint.save(state)
    log.close()


def _updates(settings: FinetuneSettings, env_steps: int) -> int:
    """Return how many gradient steps are due after `env_steps`."""
    return int(settings.updates_per_step * max(0, env_steps - settings.warm_up))


def _judge(tuner: FineTuner, arena: Arena, name: str) -> None:
    """Add a row of evaluations; the guard keeps what returns more than anything before."""
    rows = tuner.state.curves.setdefault("evaluations", [])
    found = arena.judge(tuner.acting())
    kept = (rows[-1]["kept_return"], rows[-1]["kept_env_steps"]) if rows else (-np.inf, 0)
    _add_row(tuner, found, kept, name)


def _judge_anew(tuner: FineTuner, arena: Arena, name: str) -> None:
    """Add a row after a change: what the guard keeps is judged again there, and so are the policies."""
    rows = tuner.state.curves["evaluations"]
    kept = (arena.judge(tuner.best())["return_mean"], rows[-1]["kept_env_steps"])
    _add_row(tuner, arena.judge(tuner.acting()), kept, name)


def _add_row(tuner: FineTuner, found: Judgement, kept: tuple[float, float], name: str) -> None:
    state = tuner.state
    env_steps = state.counters["env_steps"]
    if found["return_mean"] > kept[0]:
        tuner.keep_as_best()
        kept = (found["return_mean"], env_steps)
    row: dict[str, float] = {
        "env_steps": env_steps,
        "updates": state.step,
        "changed": int("changed_at" in state.counters),
    }
    row |= dict(found) | {"kept_return": kept[0], "kept_env_steps": kept[1]}
    state.curves["evaluations"].append(row)
    print(f"{name}: {env_steps} environment steps: mean return {found['return_mean']:.2f}", flush=True)
