"""A second implementation: trajectories of diffusers' schedulers, step by step, with the same fixed network.

A cross-check and not the criterion: where diffusers is known to be wrong it is left out (DDIM with ``linspace``
spacing steps to other times than it lists; third-order DPM-Solver++ is not of third order; a flow shift is
applied twice). Their arithmetic and their tables are float32, which sets the tolerance.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffusion_core import grid as grids
from diffusion_core.denoise import Denoiser, NetworkDenoiser
from diffusion_core.noise import Shared
from diffusion_core.sample import trajectory
from diffusion_core.schedule import DiscreteBetas, RectifiedFlow, VarianceExploding, cosine_betas, linear_betas
from diffusion_core.solvers import (
    Solver,
    ddim,
    ddpm,
    dpm_solver_2s,
    dpm_solver_3s,
    dpm_solver_pp_2m,
    dpm_solver_pp_2s,
    dpm_solver_pp_3s,
    euler,
    heun,
)

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

N_TRAIN = 1000
BETAS: dict[str, DiscreteBetas] = {"linear": linear_betas(N_TRAIN), "squaredcos_cap_v2": cosine_betas(N_TRAIN)}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


class Fixed(nn.Module):
    """A smooth bounded function of x and of the integer step, as good as any trained network."""

    def __init__(self) -> None:
        super().__init__()
        weights = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
        self.mix, self.out = nn.Parameter(weights[0] / 3.0), nn.Parameter(weights[1] / 3.0)

    def at_step(self, x: Tensor, step: Tensor) -> Tensor:
        phase = (step.to(x.dtype) / N_TRAIN).reshape(-1, 1)
        return torch.tanh(x @ self.mix + phase) @ self.out

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        # the noisiest step is 999 for them and t = 1 for us
        return self.at_step(x, torch.round(t * N_TRAIN) - 1.0)


def start() -> Tensor:
    return torch.randn(16, 8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def theirs(scheduler, x: Tensor, **step) -> list[Tensor]:
    network, states = Fixed(), []
    for t in scheduler.timesteps:
        output = network.at_step(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, **step).prev_sample
        states.append(x)
    return states


def assert_same(ours: list[Tensor], others: list[Tensor], tolerance: float = 3e-5) -> None:
    assert len(ours) == len(others)
    for x, other in zip(ours, others, strict=True):
        scale = float(other.abs().max())
        torch.testing.assert_close(x, other, rtol=0, atol=tolerance * max(1.0, scale))


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("betas", BETAS)
def test_ddim(betas, prediction, spacing, eta):
    scheduler = diffusers.DDIMScheduler(
        beta_schedule=betas, prediction_type=prediction, timestep_spacing=spacing, clip_sample=False
    )
    scheduler.set_timesteps(20)
    others = theirs(scheduler, start(), eta=eta, generator=torch.Generator().manual_seed(2))
    schedule = BETAS[betas]
    table = ddim(schedule, getattr(grids, spacing)(N_TRAIN, 20), eta)
    denoiser = NetworkDenoiser(Fixed(), schedule, PREDICTIONS[prediction])
    noise = Shared(torch.Generator().manual_seed(2))
    assert_same([state.x for state in trajectory(denoiser, table, start(), noise=noise)], others, tolerance(betas))


def tolerance(betas: str) -> float:
    # cosine: alpha is 5e-5 at the start and eps is divided by it; their float32 table has 1e-4 of it wrong there
    return 3e-5 if betas == "linear" else 1e-3


@pytest.mark.parametrize("clip", [None, 0.7])
@pytest.mark.parametrize("steps", [20, 1000])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("variance", "theirs_variance"), [("small", "fixed_small"), ("large", "fixed_large")])
def test_ddpm(prediction, steps, clip, variance, theirs_variance):
    scheduler = diffusers.DDPMScheduler(
        prediction_type=prediction, timestep_spacing="trailing", variance_type=theirs_variance,
        clip_sample=clip is not None, clip_sample_range=clip or 1.0,
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    others = theirs(scheduler, start(), generator=torch.Generator().manual_seed(2))
    schedule = BETAS["linear"]
    table = ddpm(schedule, grids.trailing(N_TRAIN, steps), variance)
    denoiser = NetworkDenoiser(Fixed(), schedule, PREDICTIONS[prediction], clip)
    noise = Shared(torch.Generator().manual_seed(2))
    ours = [state.x for state in trajectory(denoiser, table, start(), noise=noise)]
    if variance == "large" and steps < N_TRAIN:
        # theirs adds noise to the finished sample unless the last of the steps is the first of the training
        ours, others = ours[:-1], others[:-1]
    assert_same(ours, others, 3e-5 if steps < N_TRAIN else 1e-4)


@pytest.mark.parametrize("steps", [1, 2, 8, 20])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_dpm_solver_pp_2m(prediction, steps):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type=prediction, timestep_spacing="trailing", algorithm_type="dpmsolver++", solver_order=2,
        solver_type="midpoint", final_sigmas_type="zero",
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    schedule = BETAS["linear"]
    denoiser = NetworkDenoiser(Fixed(), schedule, PREDICTIONS[prediction])
    table = dpm_solver_pp_2m(schedule, grids.trailing(N_TRAIN, steps))
    assert_same([state.x for state in trajectory(denoiser, table, start())], theirs(scheduler, start()))


class Scaled(Denoiser):
    """The eps network of a variance-preserving model seen from ``x / alpha``, as EulerDiscrete and Heun see it."""

    def __init__(self, schedule: VarianceExploding, steps: Tensor) -> None:
        self.schedule, self.steps = schedule, steps

    def bind(self, times, cond=None):
        network, sigmas = Fixed(), self.schedule.sigma(times).tolist()
        step_of = {round(s, 9): i for s, i in zip(self.sigmas, self.steps, strict=True)}

        def evaluate(x: Tensor, i: int) -> Tensor:
            sigma = sigmas[i]
            return x - sigma * network.at_step(x / (sigma**2 + 1.0) ** 0.5, step_of[round(sigma, 9)])

        return evaluate

    @property
    def sigmas(self) -> list[float]:
        schedule = BETAS["linear"]
        t = (self.steps.double() + 1.0) / N_TRAIN
        return (schedule.sigma(t) / schedule.alpha(t)).tolist()


@pytest.mark.parametrize(("name", "solver"), [("EulerDiscreteScheduler", euler), ("HeunDiscreteScheduler", heun)])
def test_euler_and_heun_in_the_noise_level(name, solver):
    scheduler = getattr(diffusers, name)(
        beta_schedule="linear", beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(15)
    steps = (grids.trailing(N_TRAIN, 15)[:-1] * N_TRAIN).round() - 1.0
    sigmas = Scaled(VarianceExploding(), steps).sigmas
    schedule = VarianceExploding(sigmas[0])
    grid = torch.tensor([*(s / sigmas[0] for s in sigmas), 0.0], dtype=torch.float64)
    x = start() * sigmas[0]
    ours = [state.x for state in trajectory(Scaled(schedule, steps), solver(schedule, grid), x)]
    others = theirs(scheduler, x)
    # Heun's list has its predictors too, which are no points of the trajectory
    assert_same(ours, [*others[1::2], others[-1]] if solver is heun else others, 1e-4)


def test_euler_is_ddim_of_the_rescaled_sample():
    scheduler = diffusers.EulerDiscreteScheduler(beta_schedule="linear", timestep_spacing="trailing")
    scheduler.set_timesteps(15)
    schedule = BETAS["linear"]
    grid = grids.trailing(N_TRAIN, 15)
    denoiser = NetworkDenoiser(Fixed(), schedule, "eps")
    ours = [state.x for state in trajectory(denoiser, ddim(schedule, grid), start())]
    scale = schedule.alpha(grid).float()
    others = [scale[i + 1] * x for i, x in enumerate(theirs(scheduler, start() / scale[0]))]
    assert_same(ours, others, 1e-4)


def test_flow_matching_euler_without_shift():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=N_TRAIN, shift=1.0)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / 20, 20))
    network, others, x = Fixed(), [], start()
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(network.at_step(x, t.round() - 1.0), t, x).prev_sample
            others.append(x)
    table = euler(RectifiedFlow(), grids.uniform(20))
    denoiser = NetworkDenoiser(network, RectifiedFlow(), "velocity")
    assert_same([state.x for state in trajectory(denoiser, table, start())], others)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ancestral_euler_in_the_noise_level_is_ddim_with_eta_one(eta):
    # without its noise it is the plain one
    name = "EulerAncestralDiscreteScheduler" if eta else "EulerDiscreteScheduler"
    scheduler = getattr(diffusers, name)(beta_schedule="linear", timestep_spacing="trailing")
    scheduler.set_timesteps(15)
    steps = (grids.trailing(N_TRAIN, 15)[:-1] * N_TRAIN).round() - 1.0
    sigmas = Scaled(VarianceExploding(), steps).sigmas
    schedule = VarianceExploding(sigmas[0])
    grid = torch.tensor([*(s / sigmas[0] for s in sigmas), 0.0], dtype=torch.float64)
    x, noise = start() * sigmas[0], Shared(torch.Generator().manual_seed(2))
    ours = trajectory(Scaled(schedule, steps), ddim(schedule, grid, eta), x, noise=noise)
    assert_same([s.x for s in ours], theirs(scheduler, x, generator=torch.Generator().manual_seed(2)), 1e-4)


class Smooth(nn.Module):
    """`Fixed` at any time, which remembers what it saw and said."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed, self.seen, self.said = Fixed(), [], []

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        self.seen.append(x)
        self.said.append(self.fixed.at_step(x, t * N_TRAIN))
        return self.said[-1]


@torch.no_grad()
def at_our_places(scheduler, sigmas: list[float], network: Smooth) -> list[Tensor]:
    """What a scheduler makes of our samples and our network's words, at our noise levels, stages among them.

    Their nodes inside a step are grid points, so these are given as such; the times are mere labels then.
    """
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = torch.tensor(sigmas)
    scheduler.timesteps = torch.arange(len(sigmas) - 1)
    scheduler.order_list = [*range(1, scheduler.config.solver_order + 1)] * (
        len(sigmas) // scheduler.config.solver_order
    )
    return [
        scheduler.step(said, t, seen).prev_sample
        for t, seen, said in zip(scheduler.timesteps, network.seen, network.said, strict=True)
    ]


@pytest.mark.parametrize(
    ("solver", "algorithm", "order"),
    [
        (dpm_solver_2s, "dpmsolver", 2),
        (dpm_solver_pp_2s, "dpmsolver++", 2),
        (dpm_solver_3s, "dpmsolver", 3),
        (dpm_solver_pp_3s, "dpmsolver++", 3),
    ],
    ids=["2s", "pp_2s", "3s", "pp_3s"],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_single_step_dpm_solvers(solver: Solver, algorithm: str, order: int):
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        algorithm_type=algorithm, solver_order=order, solver_type="midpoint", lower_order_final=False,
        final_sigmas_type="sigma_min",
    )  # fmt: skip
    schedule, network = BETAS["linear"], Smooth()
    table = solver(schedule, grids.trailing(N_TRAIN, 5)[:-1])
    states = list(trajectory(NetworkDenoiser(network, schedule, "eps"), table, start()))
    places = torch.cat([table.times, table.reached[-1:]])
    others = at_our_places(scheduler, (schedule.sigma(places) / schedule.alpha(places)).tolist(), network)
    ours = [*network.seen[1:], states[-1].x]
    # their third-order step has another second stage, the second-order step to that place, and not the paper's
    stage = torch.arange(len(ours)) % order
    published = [k for k in range(len(ours)) if order == 2 or stage[k] != 1]
    assert_same([ours[k] for k in published], [others[k] for k in published])


@torch.no_grad()
def test_dpm_2_in_the_noise_level_is_dpm_solver_2s():
    scheduler = diffusers.KDPM2DiscreteScheduler(
        beta_schedule="linear", beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(10)
    sigmas = [float(scheduler.sigmas[0]), *scheduler.sigmas[1:-1:2].tolist()]
    schedule = VarianceExploding(sigmas[0])
    grid = torch.tensor([s / sigmas[0] for s in sigmas], dtype=torch.float64)

    class Level(Denoiser):
        """eps as a function of the noise level, since theirs asks for a step that is no whole number."""

        def __init__(self) -> None:
            self.schedule = schedule

        def bind(self, times, cond=None):
            levels = schedule.sigma(times).tolist()
            return lambda x, i: x - levels[i] * eps(x, levels[i])

    def eps(x: Tensor, sigma: float) -> Tensor:
        return Fixed().at_step(x / (sigma**2 + 1.0) ** 0.5, torch.tensor(100.0 * math.log1p(sigma)))

    x = others = start() * sigmas[0]
    ends = []
    for i, t in enumerate(scheduler.timesteps):
        # the first of two evaluations is at the step's start, the second at its node
        inner = i % 2 == 1
        sigma = float(scheduler.sigmas_interpol[scheduler.step_index] if inner else scheduler.sigmas[i])
        others = scheduler.step(eps(others, sigma), t, others).prev_sample
        if inner or i == len(scheduler.timesteps) - 1:
            ends.append(others)
    ours = [state.x for state in trajectory(Level(), dpm_solver_2s(schedule, grid), x)]
    assert_same(ours, ends, 1e-4)


def test_edm_euler_and_the_preconditioning_of_f():
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    scheduler.set_timesteps(12)
    schedule, network, x = VarianceExploding(80.0), Fixed(), start() * 80.0
    others, state = [], x
    with torch.no_grad():
        for label in scheduler.timesteps:
            output = network.at_step(scheduler.scale_model_input(state, label), N_TRAIN * label)
            state = scheduler.step(output, label, state).prev_sample
            others.append(state)

    class Labelled(nn.Module):
        def forward(self, x: Tensor, label: Tensor, cond: object = None) -> Tensor:
            return network.at_step(x, N_TRAIN * label)

    table = euler(schedule, grids.karras(schedule, 12, sigma_max=80.0, sigma_min=0.002))
    denoiser = NetworkDenoiser(Labelled(), schedule, "F")
    assert_same([state.x for state in trajectory(denoiser, table, x)], others)
