"""The contracts: our own classes keep them, and each broken promise is named."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_core import solvers
from diffusion_core.contracts import check_denoiser, check_process, check_schedule, check_solver
from diffusion_core.denoise import Denoiser, Evaluate, NetworkDenoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts import Energy
from diffusion_core.guidance import classifier_free
from diffusion_core.nn.mlp import ResidualMLP
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.process.joint import Joint
from diffusion_core.schedule import Linear, Schedule
from diffusion_core.solvers import Table, ddim
from tests.diffusion_core.worlds import SCHEDULES, gaussian, plane_mixture

TABLES = [
    solver
    for name, solver in vars(solvers).items()
    if name in solvers.__all__
    and inspect.isfunction(solver)
    and [*inspect.signature(solver).parameters][:2] == ["schedule", "grid"]
    and all(p.default is not p.empty for p in [*inspect.signature(solver).parameters.values()][2:])
    # the end of its steps is exact for the end of a flow, which a mean is not
    and solver is not solvers.consistency
]


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_our_schedules_keep_the_contract(schedule):
    check_schedule(schedule)


@pytest.mark.parametrize("solver", TABLES, ids=lambda solver: solver.__name__)
def test_our_solvers_keep_the_contract(solver):
    check_solver(solver)


def state() -> Tensor:
    return torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_our_denoisers_and_processes_keep_the_contract():
    linear = Linear()
    cond, x = (torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)) for shape in ((4,), (2, 5)))
    model = NetworkDenoiser(ResidualMLP(2, 5, 4, width=16, depth=1), linear, "eps")
    check_denoiser(model, x, cond=cond)
    check_denoiser(classifier_free(model, torch.zeros(1, 4), 2.0), x, cond=cond)
    check_denoiser(plane_mixture(linear), state())
    check_denoiser(plane_mixture(linear) * gaussian(linear) * Energy(lambda x0: x0.sum(1)), state())
    check_process(Gaussian(linear), state())
    check_process(Joint({"a": Gaussian(linear), "b": Gaussian(linear)}), {"a": state(), "b": state()[:, :1]})


# --- broken promises ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bent(Schedule):
    """The linear schedule with one method replaced."""

    wrong: str

    def alpha(self, t: Tensor) -> Tensor:
        value = Linear().alpha(t)
        return value.float() if self.wrong == "dtype" else value - 0.5 if self.wrong == "negative" else value

    def sigma(self, t: Tensor) -> Tensor:
        return Linear().sigma(1.0 - t) if self.wrong == "backwards" else Linear().sigma(t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return Linear().d_alpha(t) * (0.5 if self.wrong == "derivative" else 1.0)

    def d_sigma(self, t: Tensor) -> Tensor:
        return Linear().d_sigma(t)

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return Linear().t_of_log_snr(log_snr * (1.01 if self.wrong == "inverse" else 1.0))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("dtype", "Bent.alpha: got torch.float32"),
        ("negative", "Bent.alpha: got -.*expected finite numbers >= 0"),
        ("backwards", "Bent.log_snr: got values that do not fall"),
        ("derivative", "Bent.d_alpha: got a derivative"),
        ("inverse", "Bent.t_of_log_snr: got times"),
    ],
)
def test_a_broken_schedule_is_named(wrong, message):
    with pytest.raises(WorkbenchError, match=message):
        check_schedule(Bent(wrong))


class Broken(Denoiser):
    """A denoiser with one promise broken."""

    process = Gaussian(Linear())

    def __init__(self, wrong: str) -> None:
        self.wrong, self.calls = wrong, 0

    def bind(self, times: Any, cond: Any = None) -> Evaluate:
        def evaluate(x: Tensor, i: int) -> Tensor:
            self.calls += 1
            match self.wrong:
                case "reads":
                    return x * float(x.mean())
                case "in place":
                    return x.mul_(0.5)
                case "state":
                    return x * self.calls
                case "batch":
                    return x - x.mean(0)
            return x / 0.0

        return evaluate


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("reads", "read tensors on the host"),
        ("in place", "changed x in place"),
        ("state", "no state between evaluations"),
        ("batch", "every sample on its own"),
        ("infinite", "not finite"),
    ],
)
def test_a_broken_denoiser_is_named(wrong, message):
    with pytest.raises(WorkbenchError, match=f"Broken: .*{message}"):
        check_denoiser(Broken(wrong), state())


@dataclass(frozen=True)
class Odd(Gaussian):
    """A Gaussian process with one promise broken; in a test only, where a concrete class may be bent."""

    wrong: str = ""

    def corrupt(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        match self.wrong:
            case "impure":
                return super().corrupt(x0, t, torch.randn_like(x0))
            case "batch":
                return super().corrupt(x0, t, noise - noise.mean())
            case "late":
                return super().corrupt(x0, 0.5 + 0.5 * t, noise)
        return super().corrupt(x0, t, noise)[:, :1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [("impure", "pure function"), ("batch", "sample on its own"), ("late", "at t = 0"), ("shape", "the shapes of x0")],
)
def test_a_broken_process_is_named(wrong, message):
    with pytest.raises(WorkbenchError, match=f"Odd.corrupt: .*{message}"):
        check_process(Odd(Linear(), wrong), state())


def halved(schedule: Schedule, grid: Tensor) -> Table:
    table = ddim(schedule, grid)
    return replace(table, estimate=0.5 * table.estimate)


def turning(schedule: Schedule, grid: Tensor) -> Table:
    return ddim(schedule, grid.sort(descending=True).values)


def short(schedule: Schedule, grid: Tensor) -> Table:
    return ddim(schedule, grid[:-1])


@pytest.mark.parametrize(
    ("solver", "message"),
    [(halved, "an error that goes to 0"), (turning, "took a grid that turns"), (short, "expected the grid's 0.95 and")],
)
def test_a_broken_solver_is_named(solver, message):
    with pytest.raises(WorkbenchError, match=message):
        check_solver(solver)
