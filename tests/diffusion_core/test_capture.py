"""The whole loop as one unit gives what the loop gives."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_core import grid as grids
from diffusion_core.capture import capture
from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.guidance import classifier_free
from diffusion_core.noise import PerSample, Shared
from diffusion_core.sample import sample
from diffusion_core.schedule import linear_betas
from diffusion_core.solvers import Solver, ddim, ddpm, dpm_solver_pp_2m, heun

COMPILED: tuple[Solver, ...] = (ddim, ddpm, dpm_solver_pp_2m, heun)
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Small(nn.Module):
    """A network as small as a policy's, with a condition."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(12, 32), nn.SiLU(), nn.Linear(32, 8))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.layers(torch.cat([x, cond, t[:, None]], 1))


def inputs(seed: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, cond = torch.randn(4, 8, generator=generator), torch.randn(4, 3, generator=generator)
    return x.to(device), cond.to(device)


def model(device: str = "cpu") -> NetworkDenoiser:
    return NetworkDenoiser(Small(), linear_betas(), "eps", clip=2.0).to(device)


def test_the_compiled_loop_is_the_loop():
    # in a process of its own: what checks shapes while testing cannot be compiled
    run = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [solver.__name__ for solver in COMPILED] + ["guided"]


def check_compiled(solver: Solver) -> None:
    # fullgraph: one graph for all steps, with no step back into Python
    denoiser, table = model(), solver(linear_betas(), grids.trailing(1000, 6))
    captured = capture(denoiser, table, *inputs(0), PerSample.from_seeds(range(4)), how="compile", backend="aot_eager")
    for seed in (1, 2):
        x, cond = inputs(seed)
        seeds = range(seed, seed + 4)
        eager = sample(denoiser, table, x, cond, PerSample.from_seeds(seeds))
        torch.testing.assert_close(captured(x, cond, PerSample.from_seeds(seeds)), eager, rtol=0, atol=1e-6)


def check_guided() -> None:
    """A guided loop is captured too, and follows its weights."""
    table, (x, cond) = ddim(linear_betas(), grids.trailing(1000, 4)), inputs(0)
    denoiser = model()
    guided = classifier_free(denoiser, torch.zeros(4, 3), 3.0)
    captured = capture(guided, table, x, cond, how="compile", backend="aot_eager")
    torch.testing.assert_close(captured(x, cond), sample(guided, table, x, cond), rtol=0, atol=1e-5)
    with torch.no_grad():
        denoiser.network.layers[2].bias += 0.5
    torch.testing.assert_close(captured(x, cond), sample(guided, table, x, cond), rtol=0, atol=1e-5)


def test_other_shapes_than_the_example_are_refused():
    table = ddim(linear_betas(), grids.trailing(1000, 2))
    captured = capture(model(), table, *inputs(0), how="compile", backend="eager")
    x, cond = inputs(1)
    with pytest.raises(WorkbenchError, match=r"got x of \[\(3, 8\)\]; expected \[\(4, 8\)\]"):
        captured(x[:3], cond)
    with pytest.raises(WorkbenchError, match="got cond of"):
        captured(x)


def test_a_cuda_graph_of_a_sample_elsewhere_is_refused():
    with pytest.raises(WorkbenchError, match=r'on cpu for a CUDA graph; expected .*how="compile"'):
        capture(model(), ddim(linear_betas(), grids.trailing(1000, 2)), *inputs(0))


def test_a_captured_loop_that_adds_noise_asks_for_its_source():
    table = ddpm(linear_betas(), grids.trailing(1000, 2))
    captured: Any = capture(model(), table, *inputs(0), PerSample.from_seeds(range(4)), how="compile", backend="eager")
    with pytest.raises(WorkbenchError, match="got noise=None"):
        captured(*inputs(1))


@GPU
@pytest.mark.parametrize("solver", [ddim, ddpm, heun], ids=lambda solver: solver.__name__)
@pytest.mark.parametrize("inside", [True, False], ids=["drawn inside", "drawn before"])
def test_a_replayed_graph_is_the_loop(solver, inside):
    denoiser, table = model("cuda"), solver(linear_betas(), grids.trailing(1000, 6))

    def source(seed: int):
        if inside:
            return Shared(torch.Generator("cuda").manual_seed(seed))
        return PerSample.from_seeds(range(seed, seed + 4))

    example = source(0)
    captured = capture(denoiser, table, *inputs(0, "cuda"), example)
    for seed in (1, 2):
        x, cond = inputs(seed, "cuda")
        eager = sample(denoiser, table, x, cond, source(seed))
        if isinstance(example, Shared):
            example.generator.manual_seed(seed)
        again = example if inside else source(seed)
        torch.testing.assert_close(captured(x, cond, again), eager, rtol=0, atol=1e-5)


if __name__ == "__main__":
    for compiled in COMPILED:
        check_compiled(compiled)
        sys.stdout.write(f"{compiled.__name__}\n")
    check_guided()
    sys.stdout.write("guided\n")
