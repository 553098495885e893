"""Play whole episodes with an actor: returns, an animated picture, time per joint action.

Environments are anything with the shape of `Environment`, so nothing here depends on how they are made.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from macflow.types import Actor, BatchObs, BoolArray, DataError, Environment, Seen

FRAME_MS = 100
LAST_FRAME_MS = 1000
MAX_FRAMES = 200
GIF_BYTES = 500_000
# Longest side in pixels and number of colours: the first pair that fits GIF_BYTES is taken.
GIF_SIZES = ((480, 64), (360, 32), (240, 16))


@dataclass(frozen=True)
class RolloutResult:
    """What each episode came to; entry i belongs to seed `seed + i`."""

    returns: NDArray[np.float64]  # (episodes,) undiscounted sum of the agents' mean reward
    lengths: NDArray[np.int64]  # (episodes,) transitions
    terminated: BoolArray  # (episodes,) ended by the environment, not by its time limit


@dataclass(frozen=True)
class Latency:
    """Microseconds from an observation to a joint action."""

    p50: float
    p95: float


def rollout(env: Environment, actor: Actor, episodes: int, seed: int) -> RolloutResult:
    """Play `episodes` episodes; number i gets seed `seed + i` for environment and actor alike.

    Episodes run in waves of `env.n_envs`, which changes none of them, up to how an actor's
    arithmetic rounds in a batch of that size.

    Raises:
        DataError: where `episodes` is not positive, or an episode outlives `env.max_steps`.
    """
    if episodes < 1:
        raise DataError(f"`episodes`: at least 1 (received {episodes})")
    waves = [_wave(env, actor, seed + first) for first in range(0, episodes, env.n_envs)]
    return RolloutResult(
        returns=np.concatenate([wave.returns for wave in waves])[:episodes],
        lengths=np.concatenate([wave.lengths for wave in waves])[:episodes],
        terminated=np.concatenate([wave.terminated for wave in waves])[:episodes],
    )


def _wave(env: Environment, actor: Actor, first_seed: int) -> RolloutResult:
    seeds = range(first_seed, first_seed + env.n_envs)
    actor.reset(seeds)
    seen: Seen = env.reset(seeds)
    returns = np.zeros(env.n_envs)
    lengths = np.zeros(env.n_envs, np.int64)
    running = np.ones(env.n_envs, np.bool_)
    for _ in range(env.max_steps):
        step = env.step(actor.act(seen))
        returns += np.where(running, step.rewards.mean(axis=1, dtype=np.float64), 0.0)
        lengths += running
        running &= ~(step.terminated | step.truncated)
        if not running.any():
            return RolloutResult(returns, lengths, step.terminated.copy())
        seen = step
    late = first_seed + int(running.argmax())
    raise DataError(f"episode of seed {late} did not end within `max_steps` = {env.max_steps} steps")


def returns_table(results: Mapping[str, RolloutResult]) -> pl.DataFrame:
    """Return actor, episode, return and length, a row per episode of each actor."""
    return pl.concat(
        pl.DataFrame(
            {
                "actor": [name] * len(result.returns),
                "episode": np.arange(len(result.returns)),
                "return": result.returns,
                "length": result.lengths,
            }
        )
        for name, result in results.items()
    )


def record_gif(env: Environment, actor: Actor, seed: int, path: Path) -> None:
    """Draw the episode of `seed` as a looping GIF of about ten frames a second.

    Equal frames give equal bytes. Long episodes are thinned to `MAX_FRAMES`, and size and colours
    reduced until the file is below `GIF_BYTES`, or as small as `GIF_SIZES` goes.
    """
    frames = _frames(env, actor, seed)
    if len(frames) > MAX_FRAMES:
        frames = [frames[i] for i in np.linspace(0, len(frames) - 1, MAX_FRAMES).round().astype(int)]
    for side, colours in GIF_SIZES:
        content = _encode_gif(frames, side, colours)
        if len(content) <= GIF_BYTES:
            break
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _frames(env: Environment, actor: Actor, seed: int) -> list[NDArray[np.uint8]]:
    seeds = range(seed, seed + env.n_envs)
    actor.reset(seeds)
    seen: Seen = env.reset(seeds)
    frames = [env.render(0)]
    for _ in range(env.max_steps):
        step = env.step(actor.act(seen))
        frames.append(env.render(0))
        if step.terminated[0] or step.truncated[0]:
            break
        seen = step
    return frames


def _encode_gif(frames: Sequence[NDArray[np.uint8]], side: int, colours: int) -> bytes:
    images = [_fit(Image.fromarray(frame), side) for frame in frames]
    # One palette for all frames, from a sample of them, keeps colours still and the file small.
    sample = images[:: max(1, len(images) // 8)]
    width, height = images[0].size
    sheet = Image.new("RGB", (width, height * len(sample)))
    for i, image in enumerate(sample):
        sheet.paste(image, (0, i * height))
    palette = sheet.quantize(colours, dither=Image.Dither.NONE)
    flat = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    file = io.BytesIO()
    flat[0].save(
        file,
        format="GIF",
        save_all=True,
        append_images=flat[1:],
        duration=[FRAME_MS] * (len(flat) - 1) + [LAST_FRAME_MS],
        loop=0,
    )
    return file.getvalue()


def _fit(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Enlarged pixels stay sharp; reduced ones are averaged.
    return image.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)


def latency_us(
    actor: Actor,
    seen: Seen,
    repeats: int = 300,
    warm_up: int = 30,
) -> Latency:
    """Measure the time per joint action, one environment at a time.

    Args:
        seen: M situations, played in turn.
    """
    actor.reset([0])
    times = np.empty(repeats)
    for i in range(-warm_up, repeats):
        row = slice(i % len(seen.obs), i % len(seen.obs) + 1)
        legal = None if seen.legal_actions is None else seen.legal_actions[row]
        one = BatchObs(seen.obs[row], seen.state[row], legal)
        started = time.perf_counter_ns()
        actor.act(one)
        if i >= 0:
            times[i] = (time.perf_counter_ns() - started) / 1000
    p50, p95 = np.percentile(times, (50, 95))
    return Latency(float(p50), float(p95))
