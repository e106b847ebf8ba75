"""Noise sources: laws of their draws, and paths that more steps refine."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffusion_core import grid as grids
from diffusion_core.errors import WorkbenchError
from diffusion_core.noise import Brownian, On, PerSample, Shared
from diffusion_core.sample import sample
from diffusion_core.schedule import Linear
from diffusion_core.solvers import ddpm, dpm_solver_pp_2m_sde
from tests.diffusion_core.worlds import mixture, vector

CPU = torch.device("cpu")


def uniform_error(u: Tensor) -> float:
    """The Kolmogorov-Smirnov distance to the uniform distribution, times sqrt(n)."""
    u, n = u.flatten().double().sort().values, u.numel()
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return math.sqrt(n) * float(torch.maximum((steps[1:] - u).abs(), (u - steps[:-1]).abs()).max())


@pytest.mark.parametrize(
    "source",
    [
        Shared(torch.Generator().manual_seed(0)),
        PerSample.from_seeds(range(20)),
        Brownian(range(20), torch.linspace(0.0, 1.0, 9, dtype=torch.float64)),
    ],
    ids=["shared", "own", "brownian"],
)
def test_normals_are_normal_and_uniforms_uniform(source):
    normals = [source.normal((20, 200), torch.float64, CPU) for _ in range(3)]
    uniforms = [source.uniform((20, 200), torch.float64, CPU) for _ in range(3)]
    # 1.95 is exceeded once in a thousand
    for values in normals:
        assert uniform_error(torch.special.ndtr(values)) < 1.95
    for values in uniforms:
        assert uniform_error(values) < 1.95
    fresh = torch.stack(
        [torch.special.ndtri(u.clamp(1e-12)).flatten() for u in uniforms] + [v.flatten() for v in normals]
    )
    correlation = torch.corrcoef(fresh) - torch.eye(6, dtype=torch.float64)
    assert float(correlation.abs().max()) < 4.5 / math.sqrt(4000)


def test_a_source_on_a_device_draws_what_the_source_draws():
    on = On(PerSample.from_seeds([1, 2]), CPU)
    direct = PerSample.from_seeds([1, 2])
    assert torch.equal(on.normal((2, 3), torch.float32), direct.normal((2, 3), torch.float32, CPU))
    assert torch.equal(on.uniform((2, 3), torch.float64), direct.uniform((2, 3), torch.float64, CPU))


def increments(clock: Tensor, seeds=range(4), **ends: float) -> Tensor:
    """Unnormalised, (steps, batch, 3)."""
    noise = Brownian(seeds, clock, **ends)
    steps = [noise.normal((len(seeds), 3), torch.float64, CPU) for _ in range(len(clock) - 1)]
    return torch.stack(steps) * clock.diff().abs().sqrt()[:, None, None]


def test_finer_steps_add_up_to_the_coarse_ones():
    fine = torch.linspace(-3.0, 5.0, 33, dtype=torch.float64)
    coarse = fine[::4]
    torch.testing.assert_close(increments(fine).unflatten(0, (8, 4)).sum(1), increments(coarse), rtol=1e-10, atol=1e-10)
    # a part of the path is the same part
    part = increments(fine[8:20], first=-3.0, last=5.0)
    torch.testing.assert_close(part, increments(fine)[8:19], rtol=1e-10, atol=1e-10)


def test_a_path_does_not_depend_on_its_batch():
    clock = vector(0.0, 0.3, 1.0)
    assert torch.equal(increments(clock, [7, 3, 9])[:, 1], increments(clock, [3])[:, 0])


@pytest.mark.parametrize("solver", [ddpm, dpm_solver_pp_2m_sde], ids=lambda solver: solver.__name__)
def test_more_steps_on_one_path_converge_to_one_sample(solver):
    schedule, seeds = Linear(), range(40)
    data, ends = mixture(schedule), schedule.log_snr(vector(0.9, 0.1)).tolist()
    x = torch.randn(40, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def run(n: int, path: bool) -> Tensor:
        grid = grids.log_snr_uniform(schedule, n + 1, start=0.9, end=0.1)[:-1]
        noise = Brownian(seeds, schedule.log_snr(grid), *ends) if path else PerSample.from_seeds(range(n, n + 40))
        return sample(data, solver(schedule, grid), x, noise=noise)

    def gap(path: bool) -> float:
        return float((run(32, path) - run(128, path)).abs().mean())

    assert gap(True) < 0.35 * gap(False)


def test_a_clock_that_turns_or_draws_that_run_out_are_refused():
    with pytest.raises(WorkbenchError, match="expected finite, strictly monotone times"):
        Brownian([0], vector(0.0, 2.0, 1.0))
    with pytest.raises(WorkbenchError, match="expected finite, strictly monotone times"):
        Brownian([0], vector(0.0, 2.0), first=0.5, last=3.0)
    noise = Brownian([0], vector(0.0, 1.0))
    noise.normal((1, 2), torch.float32, CPU)
    with pytest.raises(WorkbenchError, match="got draw 2 for a batch of 1; expected at most 1 draws"):
        noise.normal((1, 2), torch.float32, CPU)
