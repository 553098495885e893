"""The training loop: exact resumption, curves, refusal of NaN, checkpoints that fit or are ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from macflow.nets.stacked import StackedMLP
from macflow.training.checkpoint import CheckpointFile, TrainingState
from macflow.training.loop import TrainingDivergedError, adam, descend, learning_rate_of, train, write_curve


class Interrupted(Exception):
    pass


def make_state(seed: int = 0) -> TrainingState:
    net = StackedMLP(1, 3, [8], 2, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)
    return TrainingState({"net": net}, adam(list(net.parameters())), generator)


def run(
    state: TrainingState, path: Path, steps: int, stop_after: int | None = None, fingerprint: str = "f"
) -> None:
    net = state.modules["net"]

    def step() -> dict[str, Tensor]:
        if stop_after is not None and state.step == stop_after:
            raise Interrupted
        x = torch.randn(1, 16, 3, generator=state.generator)
        loss = (net(x) - x[..., :2]).square().mean()
        state.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        state.optimizer.step()
        return {"loss": loss.detach()}

    def observe() -> dict[str, float]:
        return {"norm": float(sum(p.detach().square().sum() for p in net.parameters()))}

    rate = learning_rate_of("cosine", 1e-2, steps)
    train("test", state, steps, step, rate, CheckpointFile(path, fingerprint), 10, 7, observe, 15)


@pytest.mark.parametrize("stop_after", [10, 13, 29])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, stop_after: int) -> None:
    whole = make_state()
    run(whole, tmp_path / "a.safetensors", 40)
    with pytest.raises(Interrupted):
        run(make_state(), tmp_path / "b.safetensors", 40, stop_after)
    resumed = make_state(seed=1)
    run(resumed, tmp_path / "b.safetensors", 40)
    for a, b in zip(whole.modules["net"].parameters(), resumed.modules["net"].parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole.curves == resumed.curves
    assert torch.equal(whole.generator.get_state(), resumed.generator.get_state())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [0.2, 0.2, 0.2, 0.2]), ("cosine", [0.2, 0.1 * (1 + 0.5**0.5), 0.1, 0.1 * (1 - 0.5**0.5)])],
)
def test_each_step_is_taken_at_its_learning_rate(
    tmp_path: Path, schedule: Literal["constant", "cosine"], expected: list[float]
) -> None:
    state = make_state()
    used: list[float] = []

    def step() -> dict[str, Tensor]:
        used.extend(group["lr"] for group in state.optimizer.param_groups)
        return {"x": torch.zeros(())}

    file = CheckpointFile(tmp_path / "c.safetensors", "f")
    train("test", state, 4, step, learning_rate_of(schedule, 0.2, 4), file, 10, 10)
    assert used == pytest.approx(expected)


def test_curves_average_over_their_interval_and_end_at_the_last_step(tmp_path: Path) -> None:
    state = make_state()
    values = iter(range(1, 11))
    train(
        "test",
        state,
        10,
        lambda: {"x": torch.tensor(float(next(values)))},
        learning_rate_of("constant", 1e-2, 10),
        CheckpointFile(tmp_path / "c.safetensors", "f"),
        100,
        4,
    )
    assert state.curves["curve"] == [
        {"step": 4, "x": 2.5},
        {"step": 8, "x": 6.5},
        {"step": 10, "x": 9.5},
    ]
    write_curve(tmp_path / "curve.csv", state.curves["curve"])
    assert (tmp_path / "curve.csv").read_text() == "step,x\n4,2.5\n8,6.5\n10,9.5\n"


def test_checkpoint_of_another_fingerprint_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(Interrupted):
        run(make_state(), path, 40, 25)
    assert not CheckpointFile(path, "other").restore(make_state())
    assert CheckpointFile(path, "f").restore(make_state())


@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage"])
def test_unreadable_checkpoint_means_a_fresh_start(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "c.safetensors"
    if damage != "missing":
        with pytest.raises(Interrupted):
            run(make_state(), path, 40, 25)
        path.write_bytes(path.read_bytes()[:100] if damage == "truncated" else b"\x00" * 64)
    assert not CheckpointFile(path, "f").restore(make_state())


def test_checkpoint_holds_moments_and_generator(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(Interrupted):
        run(make_state(), path, 40, 25)
    keys = load_file(path).keys()
    assert "generator" in keys
    assert {"optimizer.0.exp_avg", "optimizer.0.exp_avg_sq", "optimizer.0.step"} <= set(keys)


def test_non_finite_loss_is_refused_with_its_name_and_steps(tmp_path: Path) -> None:
    with pytest.raises(TrainingDivergedError, match="`x` became nan between steps 0 and 5 of test"):
        train(
            "test",
            make_state(),
            20,
            lambda: {"x": torch.tensor(float("nan"))},
            learning_rate_of("constant", 1e-2, 20),
            CheckpointFile(tmp_path / "c.safetensors", "f"),
            10,
            5,
        )


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs an NVIDIA GPU: docs/benchmarks.md has its last run"
)
@pytest.mark.parametrize("stop_after", [None, 3, 11])
@pytest.mark.parametrize("period", [1, 2])
def test_replayed_steps_on_a_gpu_equal_ordinary_ones(
    tmp_path: Path, stop_after: int | None, period: int
) -> None:
    def trained(replayed: int | None, steps: int) -> TrainingState:
        net = StackedMLP(2, 3, [16], 1, torch.Generator().manual_seed(0), layer_norm=True).cuda()
        generator = torch.Generator("cuda").manual_seed(1)
        optimizer = adam(list(net.parameters()))
        state = TrainingState({"net": net}, optimizer, generator)

        def step() -> dict[str, Tensor]:
            x = torch.randn(2, 32, 3, generator=generator, device="cuda") * (1 + state.step % period)
            loss = (net(x) - x.sum(dim=-1, keepdim=True)).square().mean()
            descend(optimizer, loss)
            return {"loss": loss.detach()}

        rate = learning_rate_of("cosine", 0.01, 30)
        checkpoint = CheckpointFile(tmp_path / f"{replayed}.safetensors", "same")
        train("net", state, steps, step, rate, checkpoint, 2, 5, period=replayed)
        return state

    ordinary = trained(None, 30)
    if stop_after is not None:
        trained(period, stop_after)
    replayed = trained(period, 30)
    for a, b in zip(*(state.modules["net"].parameters() for state in (ordinary, replayed)), strict=True):
        assert torch.equal(a, b)
    if stop_after is None:
        assert ordinary.curves == replayed.curves
