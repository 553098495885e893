"""A joint diffusion policy over all agents' actions, and the best of several of its samples by a critic.

Sources: Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020; Nichol and Dhariwal,
"Improved Denoising Diffusion Probabilistic Models", ICML 2021 (schedule); Song et al., "Denoising
Diffusion Implicit Models", ICLR 2021 (sampler); Salimans and Ho, "Progressive Distillation for Fast
Sampling of Diffusion Models", ICLR 2022 (what the net predicts); Hansen-Estruch et al., "IDQL", 2023
(the best of several samples).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field, field_validator
from torch import Tensor

from macflow.actions import of_legal
from macflow.algorithms.baselines.learner import (
    CriticSettings,
    Learner,
    Loss,
    Positive,
    RecordedBatch,
)
from macflow.algorithms.baselines.parts import factored_critic
from macflow.algorithms.flow_matching import mean_of_legal, one_hot_of_best_legal
from macflow.algorithms.igm_critic import polyak_update, td_target
from macflow.nets.velocity import VelocityField
from macflow.types import MultiAgentSpec

# T: noise levels of the training, the most that a sample can pass through.
NOISE_LEVELS = 200
SCHEDULE_OFFSET = 0.008
MAX_BETA = 0.999


class DiffusionSettings(CriticSettings):
    """Settings of the joint diffusion policy."""

    # Denoising steps of the sampler.
    sampling_steps: Annotated[int, Field(ge=1, le=NOISE_LEVELS)] = 20
    # Joint actions that the critic chooses from. 1: no critic, plain behaviour cloning.
    samples: Positive = 16

    @field_validator("sampling_steps")
    @classmethod
    def _several_steps(cls, steps: int) -> int:
        if steps < 5:
            raise ValueError("fewer than 5 denoising steps are not a sampler of this policy")
        return steps


class Diffusion(Learner):
    """Denoise a joint action that sees all observations; take the best of `samples` by Q_tot."""

    signal: Tensor  # (T + 1,) sqrt(alpha bar), 1 at level 0
    spread: Tensor  # (T + 1,) sqrt(1 - alpha bar)

    def __init__(
        self,
        spec: MultiAgentSpec,
        settings: DiffusionSettings,
        hidden: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.noises = settings.samples
        n, o, a = spec.n_agents, spec.obs_size, spec.action_size
        # As `discrete`, it takes the level in as sines and cosines.
        self.net = VelocityField(n, o, a, True, "joint", hidden, generator)
        self.critic = self.target_critic = None
        if settings.samples > 1:
            self.critic = factored_critic(spec, "mean", settings.sees, settings.ensemble, hidden, generator)
            self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
            self.acts_on_state = settings.sees == "state"
        share = cosine_schedule()
        self.register_buffer("signal", share.sqrt().float(), persistent=False)
        self.register_buffer("spread", (1 - share).sqrt().float(), persistent=False)

    def losses(
        self, batch: RecordedBatch, generator: torch.Generator
    ) -> tuple[list[Loss], dict[str, Tensor]]:
        """Return the denoising error E ||v(x, t, o) - (signal eps - spread a)||^2 and the TD error.

        x = signal a + spread eps. The TD error is that of the recorded next actions; transitions
        after which none is recorded, and which do not terminate, are left out.
        """
        loss = self._denoising_loss(batch, generator)
        losses: list[Loss] = [(loss, list(self.net.parameters()))]
        info = {"denoising_loss": loss.detach()}
        if self.critic is not None and self.target_critic is not None:
            y = td_target(
                self.target_critic, batch, batch.next_actions.unsqueeze(1), self.settings.discount, "mean"
            )
            q = self.critic.trained_values(batch.obs, batch.state, batch.actions)  # (C, B, 1)
            used = torch.maximum(batch.next_known, 1 - batch.bootstrap_mask)
            errors = (q - y).square().squeeze(-1) * used
            td = (errors.sum(dim=-1) / used.sum().clamp_min(1.0)).sum()
            losses.append((td, list(self.critic.parameters())))
            info |= {"td_loss": td.detach() / len(q), "q_mean": q.detach().mean()}
        return losses, info

    def follow(self) -> None:
        """Move the target critics."""
        if self.critic is not None and self.target_critic is not None:
            polyak_update(self.target_critic, self.critic, self.settings.polyak_tau)

    @torch.no_grad()
    def act(self, obs: Tensor, state: Tensor, noise: Tensor, legal_actions: Tensor | None) -> Tensor:
        """Denoise each of the noises, and take the joint action of the largest Q_tot."""
        b, k, n, a = noise.shape
        obs, state = (seen.repeat_interleave(k, dim=0) for seen in (obs, state))
        legal = None if legal_actions is None else legal_actions.repeat_interleave(k, dim=0)
        actions = self.sample(obs, noise.reshape(b * k, n, a), legal)
        if self.critic is None:
            return actions
        best = self.critic(obs, state, actions).mean(dim=0).reshape(b, k).argmax(dim=1)
        return actions.reshape(b, k, n, a)[torch.arange(b, device=best.device), best]

    @torch.no_grad()
    def sample(self, obs: Tensor, noise: Tensor, legal_actions: Tensor | None) -> Tensor:
        """Map obs (B, N, O) and noise (B, N, A) to joint actions (B, N, A) by deterministic DDIM steps."""
        x = clean = of_legal(noise, legal_actions)
        steps = self.settings.sampling_steps
        levels = [round(NOISE_LEVELS * (steps - i) / steps) for i in range(steps + 1)]
        for level, following in itertools.pairwise(levels):
            signal, spread = self.signal[level], self.spread[level]
            v = of_legal(self.net(self._time(level, x), obs, x), legal_actions)
            clean = (signal * x - spread * v).clamp(-1.0, 1.0)
            eps = (x - signal * clean) / spread
            x = self.signal[following] * clean + self.spread[following] * eps
        return clean if legal_actions is None else one_hot_of_best_legal(clean, legal_actions)

    def _denoising_loss(self, batch: RecordedBatch, generator: torch.Generator) -> Tensor:
        b, device = len(batch.actions), batch.actions.device
        level = torch.randint(1, NOISE_LEVELS + 1, (b,), generator=generator, device=device)
        eps = torch.randn(batch.actions.shape, generator=generator, device=device)
        eps = of_legal(eps, batch.legal_actions)
        signal, spread = self.signal[level][:, None, None], self.spread[level][:, None, None]
        x = signal * batch.actions + spread * eps
        out = self.net((level / NOISE_LEVELS).unsqueeze(1), batch.obs, x)
        error = (out - (signal * eps - spread * batch.actions)).square()
        return mean_of_legal(error, batch.legal_actions)

    def _time(self, level: int, x: Tensor) -> Tensor:
        return torch.full((len(x), 1), level / NOISE_LEVELS, dtype=x.dtype, device=x.device)


def cosine_schedule() -> Tensor:
    """Return alpha bar of the levels 0 to T, (T + 1,) float64: the share of the signal's variance."""
    t = torch.arange(NOISE_LEVELS + 1, dtype=torch.float64) / NOISE_LEVELS
    wanted = torch.cos((t + SCHEDULE_OFFSET) / (1 + SCHEDULE_OFFSET) * math.pi / 2).square()
    betas = (1 - wanted[1:] / wanted[:-1]).clamp_max(MAX_BETA)
    return torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, dim=0)])
