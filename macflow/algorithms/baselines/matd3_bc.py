"""MATD3+BC: centralised twin critics, delayed deterministic policies, behaviour cloning beside the value.

Source: Fujimoto and Gu, "A Minimalist Approach to Offline Reinforcement Learning", NeurIPS 2021;
Ackermann et al., "Reducing Overestimation Bias in Multi-Agent Domains Using Double Centralized
Critics", 2019.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from macflow.algorithms.baselines.learner import (
    CriticSettings,
    Learner,
    Loss,
    Positive,
    PositiveFloat,
    RecordedBatch,
    Weight,
)
from macflow.algorithms.baselines.parts import DeterministicPolicy, gumbel
from macflow.algorithms.distillation import Q_SCALE_FLOOR, masked_log_softmax
from macflow.algorithms.flow_matching import one_hot_of_best_legal
from macflow.algorithms.igm_critic import critic_loss, polyak_update, td_target
from macflow.nets.critic import CentralCritic
from macflow.types import MultiAgentSpec


class MATD3BCSettings(CriticSettings):
    """Settings of MATD3+BC, with the defaults of TD3+BC."""

    # Weight of the normalised value against the cloning term, which has weight 1.
    alpha: Weight = 2.5
    # Smoothing of the target's next action: standard deviation, and its bound.
    target_noise: Weight = 0.2
    target_noise_clip: PositiveFloat = 0.5
    # Steps of the critics per step of the policies.
    policy_delay: Positive = 2


class MATD3BC(Learner):
    """Maximise alpha Q(o, pi(o)) / mean |Q| minus the distance of pi to the recorded actions."""

    steps: Tensor

    def __init__(
        self,
        spec: MultiAgentSpec,
        settings: MATD3BCSettings,
        hidden: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.policy = DeterministicPolicy(spec, hidden, generator)
        sizes = (spec.n_agents, spec.obs_size, spec.action_size, spec.state_size)
        self.critic = CentralCritic(*sizes, settings.sees, settings.ensemble, hidden, generator)
        self.target_policy = copy.deepcopy(self.policy).requires_grad_(False)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.period = settings.policy_delay
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        # `steps` as a number that no GPU has to be asked for; None before the first step.
        self.taken: int | None = None

    def losses(
        self, batch: RecordedBatch, generator: torch.Generator
    ) -> tuple[list[Loss], dict[str, Tensor]]:
        """Return the critics' TD error and, every `policy_delay` steps, the policies' loss."""
        self.taken = (int(self.steps) if self.taken is None else self.taken) + 1
        self.steps += 1
        candidates = self._next_actions(batch, generator).unsqueeze(1)
        y = td_target(self.target_critic, batch, candidates, self.settings.discount, "min")
        td, info = critic_loss(self.critic, batch, y)
        losses: list[Loss] = [(td, list(self.critic.parameters()))]
        moves = self._policy_moves()
        # Evaluated every step, so that the curve's rows are means over the same number of values.
        with torch.set_grad_enabled(moves):
            loss, policy_info = self._policy_loss(batch, generator)
        if moves:
            losses.append((loss, list(self.policy.parameters())))
        return losses, info | policy_info

    def follow(self) -> None:
        """Move the targets where the policies have moved."""
        if self._policy_moves():
            polyak_update(self.target_critic, self.critic, self.settings.polyak_tau)
            polyak_update(self.target_policy, self.policy, self.settings.polyak_tau)

    def act(self, obs: Tensor, state: Tensor, noise: Tensor, legal_actions: Tensor | None) -> Tensor:
        """Take the policies' action, or the most likely legal one."""
        out: Tensor = self.policy(obs)
        return out if legal_actions is None else one_hot_of_best_legal(out, legal_actions)

    def _policy_moves(self) -> bool:
        return self.taken is not None and self.taken % self.settings.policy_delay == 0

    @torch.no_grad()
    def _next_actions(self, batch: RecordedBatch, generator: torch.Generator) -> Tensor:
        out: Tensor = self.target_policy(batch.next_obs)
        noise = torch.randn(out.shape, generator=generator, device=out.device)
        if batch.next_legal_actions is not None:
            # Chance smooths the target of discrete actions.
            scores = masked_log_softmax(out, batch.next_legal_actions) + gumbel(noise)
            return one_hot_of_best_legal(scores, batch.next_legal_actions)
        bound = self.settings.target_noise_clip
        return (out + (self.settings.target_noise * noise).clamp(-bound, bound)).clamp(-1.0, 1.0)

    def _policy_loss(
        self, batch: RecordedBatch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        out = self.policy(batch.obs)
        if batch.legal_actions is None:
            actions = out
            distance = functional.mse_loss(out, batch.actions)
        else:
            logs = masked_log_softmax(out, batch.legal_actions)
            distance = -logs.gather(-1, batch.actions.argmax(dim=-1, keepdim=True)).mean()
            noise = gumbel(torch.randn(out.shape, generator=generator, device=out.device))
            drawn = one_hot_of_best_legal((logs + noise).detach(), batch.legal_actions)
            # The critic sees a joint action that can be played; the gradient is the softmax's.
            actions = drawn + logs.exp() - logs.exp().detach()
        q = self.critic(batch.obs, batch.state, actions)[0]  # (B,)
        weight = self.settings.alpha / q.detach().abs().mean().clamp_min(Q_SCALE_FLOOR)
        loss = distance - weight * q.mean()
        return loss, {"bc_loss": distance.detach(), "q_policy": q.detach().mean()}
