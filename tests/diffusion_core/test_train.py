"""The training loop: a run that was stopped and resumed is the run that was not, whatever stopped it."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from diffusion_core import checkpoint
from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.ema import Ema
from diffusion_core.errors import WorkbenchError
from diffusion_core.grid import uniform
from diffusion_core.loss import Draws, denoising_loss
from diffusion_core.nn.mlp import ResidualMLP
from diffusion_core.oracles import GaussianMixture
from diffusion_core.run import Run, read_metrics
from diffusion_core.sample import sample
from diffusion_core.schedule import Cosine
from diffusion_core.solvers import heun
from diffusion_core.train import TrainConfig, fit, rows_of_step
from tests.diffusion_core import toys
from tests.diffusion_core.worlds import vector

REPOSITORY = Path(__file__).parents[2]
FILES = ("model.safetensors", "training.safetensors")


def files_of(run: Path) -> dict[str, bytes]:
    newest = checkpoint.listing(run)[-1]
    return {name: (newest / name).read_bytes() for name in FILES}


def records_of(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k != "steps_per_second"} for r in read_metrics(run)]


def judge(model: nn.Module, step: int) -> dict[str, float]:
    return {"weight": float(model.layer.weight.sum())}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    toys.train(path, evaluate=judge, evaluate_every=8)
    return path


class Stop:
    """Sends this process SIGINT, or raises, at the beginning of the ``at``-th batch."""

    def __init__(self, at: int, how: str) -> None:
        self.left, self.how = at, how

    def __call__(self, rows: Tensor) -> None:
        self.left -= 1
        if self.left == 0:
            if self.how == "signal":
                os.kill(os.getpid(), signal.SIGINT)
            else:
                raise RuntimeError("the data set fell over")


@pytest.mark.parametrize("how", ["signal", "exception"])
@pytest.mark.parametrize("stops", [(1,), (4,), (7,), (19,), (20,), (6, 2, 5)], ids=str)
def test_a_stopped_and_resumed_run_ends_bit_for_bit_where_an_undisturbed_one_ends(tmp_path, undisturbed, stops, how):
    path = tmp_path / "run"
    for at in stops:
        expected = KeyboardInterrupt if how == "signal" else RuntimeError
        with pytest.raises(expected):
            toys.train(path, toys.Points(before=Stop(at, how)), evaluate=judge, evaluate_every=8)
    toys.train(path, evaluate=judge, evaluate_every=8)
    assert files_of(path) == files_of(undisturbed)
    assert records_of(path) == records_of(undisturbed)


def test_the_undisturbed_run_recorded_every_loss_once_and_every_evaluation(undisturbed):
    records = records_of(undisturbed)
    assert [r["step"] for r in records if "loss" in r] == [3, 6, 9, 12, 15, 18, 20]
    assert [r["step"] for r in records if "weight" in r] == [8, 16, 20]


def test_a_run_killed_between_checkpoint_and_evaluation_catches_up(tmp_path, undisturbed):
    path = tmp_path / "run"

    def fall_over(model: nn.Module, step: int) -> dict[str, float]:
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        toys.train(path, evaluate=fall_over, evaluate_every=8)
    assert [p.name for p in checkpoint.listing(path)] == ["step_0000004", "step_0000008"]
    toys.train(path, evaluate=judge, evaluate_every=8)
    assert records_of(path) == records_of(undisturbed)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    path = tmp_path / "run"
    toys.train(path, evaluate=judge, evaluate_every=8)
    before, records = files_of(path), (path / "metrics.jsonl").read_text()
    average = toys.train(path, evaluate=judge, evaluate_every=8)
    assert files_of(path) == before and (path / "metrics.jsonl").read_text() == records
    saved = checkpoint.load(checkpoint.listing(path)[-1]).tensors("model")
    assert all(torch.equal(value, saved[name]) for name, value in average.state_dict().items())


def test_only_the_newest_two_checkpoints_keep_what_resuming_needs_and_only_keep_many_stay(tmp_path):
    toys.train(tmp_path, training=toys.config(keep=3))
    paths = checkpoint.listing(tmp_path)
    assert [p.name for p in paths] == ["step_0000012", "step_0000016", "step_0000020"]
    assert [(p / "training.safetensors").exists() for p in paths] == [False, True, True]


@given(n=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 2**31), first=st.integers(0, 5))
def test_every_epoch_shows_every_sample_once(n, batch_size, seed, first):
    steps = range(math.ceil((first + 3) * n / batch_size) + 1)
    seen = torch.cat([rows_of_step(step, batch_size, n, seed) for step in steps])
    for epoch in range(first, first + 3):
        assert seen[epoch * n : (epoch + 1) * n].sort().values.tolist() == list(range(n))


def test_rows_do_not_depend_on_what_was_asked_before():
    steps = list(range(30))
    forwards = {step: rows_of_step(step, 7, 20, 3) for step in steps}
    backwards = {step: rows_of_step(step, 7, 20, 3) for step in reversed(steps)}
    assert all(torch.equal(forwards[step], backwards[step]) for step in steps)


def test_epochs_and_seeds_are_shuffled_differently():
    epochs = [tuple(rows_of_step(step, 30, 30, seed).tolist()) for seed in (0, 1) for step in range(4)]
    assert len(set(epochs)) == 8 and tuple(range(30)) not in epochs


@pytest.mark.parametrize(("steps", "warmup"), [(100, 10), (100, 0), (10, 10), (5, 20)])
def test_the_learning_rate_is_a_linear_ramp_then_half_a_cosine(steps, warmup):
    config = TrainConfig(steps=steps, warmup_steps=warmup, learning_rate=0.2)
    for step in range(steps):
        if step < warmup:
            expected = 0.2 * (step + 1) / warmup
        else:
            expected = 0.2 * math.cos(0.5 * math.pi * (step - warmup) / (steps - warmup)) ** 2
        assert config.rate(step) == pytest.approx(expected, rel=1e-12)


def test_the_optimizer_runs_at_the_scheduled_rate(tmp_path):
    """AdamW's first step moves every weight by its rate (bias-corrected moments cancel), and decays it."""
    training = toys.config(steps=1, gradient_clip=0.0, eps=1e-30, weight_decay=0.1)
    toys.train(tmp_path, training=training)
    raw = checkpoint.load(checkpoint.listing(tmp_path)[-1]).tensors("training")
    rate, start = training.rate(0), toys.Line().layer.weight.detach()
    moved = (raw["model.layer.weight"] - start * (1.0 - rate * 0.1)).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, rate), rtol=1e-4, atol=0.0)


def test_the_average_is_the_recursion_done_by_hand(tmp_path):
    """Every step is a checkpoint; folding their raw weights by the formula must give their averages."""
    training = toys.config(checkpoint_every=1, ema=Ema(power=0.6, inv_gamma=2.0, max_decay=0.8))
    seen: dict[int, Tensor] = {}

    def remember(model: nn.Module, step: int) -> dict[str, float]:
        training_file = checkpoint.load(checkpoint.listing(tmp_path)[-1]).tensors("training")
        seen[step] = training_file["model.layer.weight"].double()
        return {}

    average = toys.train(tmp_path, training=training, evaluate=remember, evaluate_every=1)
    expected = toys.Line().layer.weight.detach().double()
    for step in range(1, 21):
        decay = min(1.0 - (1.0 + (step - 1) / 2.0) ** -0.6, 0.8)
        expected = decay * expected + (1.0 - decay) * seen[step]
    torch.testing.assert_close(average.layer.weight.double(), expected, rtol=1e-6, atol=1e-7)
    assert not torch.equal(average.layer.weight.double(), seen[20])


def test_a_loss_that_is_not_finite_names_step_and_samples_and_leaves_earlier_checkpoints(tmp_path):
    dataset = toys.Points()
    poisoned = int(rows_of_step(9, 5, 24, 42)[2])
    second = max(step for step in range(20) if poisoned in rows_of_step(step, 5, 24, 42).tolist())
    calls = iter(range(20))

    def poison(rows: Tensor) -> None:
        if next(calls) == second:
            dataset.y[poisoned] = math.inf

    dataset.before = poison
    with pytest.raises(WorkbenchError) as caught:
        toys.train(tmp_path, dataset)
    message = str(caught.value)
    assert f"loss of step {second} is inf" in message
    assert str(rows_of_step(second, 5, 24, 42).tolist()) in message
    assert "\n" not in message and "learning_rate" in message
    kept = checkpoint.listing(tmp_path)
    assert [checkpoint.load(p).step for p in kept] == list(range(4, second + 1, 4)) and kept
    assert all(torch.isfinite(v).all() for p in kept for v in checkpoint.load(p).tensors("model").values())


def test_weights_that_are_not_finite_never_become_a_checkpoint(tmp_path):
    """sqrt(0) is a finite loss with an infinite slope."""

    class Root(toys.Line):
        def forward(self, batch: dict[str, Tensor], draws: Draws) -> Tensor:
            if batch["x"].isnan().any():
                return (self.layer.weight - self.layer.weight).abs().sum().sqrt().expand(5)
            return super().forward(batch, draws)

    dataset, calls = toys.Points(), iter(range(20))

    def poison(rows: Tensor) -> None:
        if next(calls) == 7:
            dataset.x[rows[0]] = math.nan

    dataset.before = poison
    run = Run(tmp_path)
    with pytest.raises(WorkbenchError, match=r"after step 7 layer\.weight .* not finite"):
        fit(Root(), dataset, toys.config(), run, saved_config={}, meta=toys.META, device="cpu")
    assert [checkpoint.load(p).step for p in checkpoint.listing(tmp_path)] == [4]


def start_toy(run: Path, *words: str) -> subprocess.Popen[str]:
    run.mkdir()
    command = [sys.executable, "-m", "tests.diffusion_core.toys", str(run), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_steps(run: Path, process: subprocess.Popen[str], steps: int) -> None:
    for _ in range(2400):
        assert process.poll() is None, process.communicate()[1]
        if len(read_metrics(run)) >= steps:
            return
        time.sleep(0.05)
    raise AssertionError("the toy training did not get going in two minutes")


def test_ctrl_c_saves_and_says_how_to_resume_and_a_second_one_stops_at_once(tmp_path):
    polite, stuck = start_toy(tmp_path / "polite"), start_toy(tmp_path / "stuck", "stuck")
    try:
        wait_for_steps(tmp_path / "polite", polite, 4)
        polite.send_signal(signal.SIGINT)
        error = polite.communicate(timeout=30)[1].splitlines()[-1]
        saved = checkpoint.load(checkpoint.listing(tmp_path / "polite")[-1])
        assert polite.returncode == 130
        assert error.startswith(f"error: stopped at step {saved.step} of 1000000")
        assert error.endswith(f"resume={tmp_path / 'polite'}")
        assert saved.step == len(read_metrics(tmp_path / "polite")) >= 4
        wait_for_steps(tmp_path / "stuck", stuck, 8)
        time.sleep(0.5)
        stuck.send_signal(signal.SIGINT)
        time.sleep(1.5)
        assert stuck.poll() is None  # it waits for the end of the step, which takes a minute
        stuck.send_signal(signal.SIGINT)
        error = stuck.communicate(timeout=10)[1].splitlines()[-1]
        assert stuck.returncode == 130 and error.startswith("error: stopped at once")
    finally:
        for process in (polite, stuck):
            process.kill()
            process.communicate()


def test_a_batch_that_does_not_divide_among_the_processes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.Accelerator.num_processes", property(lambda self: 2))
    with pytest.raises(WorkbenchError, match="batch_size=5 on 2 processes; expected a multiple of 2"):
        toys.train(tmp_path)


class MixtureModel(nn.Module):
    """A denoiser of points in the plane, seen as chunks of horizon 1."""

    def __init__(self) -> None:
        super().__init__()
        network = ResidualMLP(horizon=1, dim=2, cond_dim=0, width=64, depth=2)
        self.denoiser = NetworkDenoiser(network, Cosine(), "v")

    def forward(self, batch: Tensor, draws: Draws) -> Tensor:
        return denoising_loss(self.denoiser, batch, batch.new_zeros(len(batch), 0), draws)


class Draw:
    """Samples of the mixture as a data set."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, rows: Tensor) -> Tensor:
        return self.x[rows]


def test_what_is_trained_on_a_mixture_samples_the_mixture(tmp_path):
    """The whole path against closed-form truth: loss, loop, average, conversion, solver."""
    schedule, generator = Cosine(), torch.Generator().manual_seed(1)
    means = torch.tensor([[1.0, -0.6], [-0.9, 0.7], [0.2, 1.2]], dtype=torch.float64)
    truth = GaussianMixture(schedule, vector(0.5, 0.3, 0.2), means, vector(0.2, 0.25, 0.2))
    torch.manual_seed(0)
    training = TrainConfig(steps=800, batch_size=256, learning_rate=3e-3, warmup_steps=50, checkpoint_every=0)
    data = Draw(truth.sample(20_000, generator).float()[:, None])
    average = fit(MixtureModel(), data, training, Run(tmp_path), saved_config={}, meta=toys.META, device="cpu")

    # no prediction has a smaller loss than the exact posterior mean; what is left above it must be little
    n = 2000
    x0, t = truth.sample(n, generator), torch.rand(n, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    x_t = alpha * x0 + sigma * noise
    exact_x0 = torch.cat([truth.bind(t[i : i + 1])(x_t[i : i + 1], 0) for i in range(n)])
    exact = (alpha * x_t - exact_x0) / sigma
    with torch.no_grad():
        learned = average.denoiser(x_t.float()[:, None], t, torch.zeros(n, 0))[:, 0].double()
    first, last = (read_metrics(tmp_path)[i]["loss"] for i in (0, -1))
    least = float(((exact - (alpha * noise - sigma * x0)) ** 2).mean())
    assert first > least + 0.1 and last < least + 0.05
    assert float(((learned - exact) ** 2).mean()) < 0.01

    n = 1000
    x = torch.randn(n, 1, 2, generator=generator)
    got = sample(average.denoiser, heun(schedule, uniform(20, start=1.0, end=0.0)), x, torch.zeros(n, 0))[:, 0].double()
    drawn = truth.sample(200_000, generator)
    for k in range(3):
        share, place, width = _mode(got, means, k)
        true_share, true_place, true_width = _mode(drawn, means, k)
        assert abs(share - true_share) < 5.0 * math.sqrt(true_share * (1.0 - true_share) / n)
        assert ((place - true_place).abs() < 5.0 * true_width / math.sqrt(n * true_share)).all()
        assert ((width / true_width - 1.0).abs() < 0.25).all()


def _mode(x: Tensor, means: Tensor, k: int) -> tuple[float, Tensor, Tensor]:
    """Of the points nearest to mode k: their share, mean and standard deviation."""
    mine = x[torch.cdist(x, means).argmin(1) == k]
    return len(mine) / len(x), mine.mean(0), mine.std(0)
