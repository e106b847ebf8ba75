"""The sampling loop: what it must not do (read tensors, keep state, touch its input) and what it must."""

from __future__ import annotations

import inspect
from collections import Counter
from itertools import zip_longest

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion_core import grid as grids
from diffusion_core import solvers
from diffusion_core.contracts import HostReads
from diffusion_core.denoise import Denoiser, NetworkDenoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts import Energy, Known, given
from diffusion_core.guidance import Interval, classifier_free
from diffusion_core.noise import PerSample, Shared
from diffusion_core.sample import bound, loop, sample, script, trajectory
from diffusion_core.schedule import Cosine, Linear, linear_betas
from diffusion_core.solvers import Solver, ddim, ddpm, dpm_solver_pp_2m, euler, heun
from tests.diffusion_core.worlds import plane_mixture

SOLVERS = (ddpm, ddim, euler, heun, dpm_solver_pp_2m)
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.__name__)


def start(batch: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(batch, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shared(seed: int = 7) -> Shared:
    return Shared(torch.Generator().manual_seed(seed))


@every_solver
def test_the_sample_is_the_end_of_the_trajectory_at_the_times_of_the_grid(solver):
    data, grid = plane_mixture(Linear()), grids.uniform(9)
    table = solver(Linear(), grid)
    states = list(trajectory(data, table, start(), noise=shared()))
    assert [state.t for state in states] == grid[1:].tolist()
    assert torch.equal(states[-1].x, sample(data, table, start(), noise=shared()))
    if solver in (ddpm, ddim, dpm_solver_pp_2m):
        # exact in the noise level, so that a step to t = 0 ends at the estimate itself
        torch.testing.assert_close(states[-1].x, states[-1].estimate, rtol=1e-12, atol=1e-12)


@every_solver
def test_the_start_is_not_modified(solver):
    x = start()
    sample(plane_mixture(Linear()), solver(Linear(), grids.uniform(5)), x, noise=shared())
    assert torch.equal(x, start())


def test_states_already_given_out_are_not_modified_by_later_steps():
    data, table = plane_mixture(Linear()), dpm_solver_pp_2m(Linear(), grids.uniform(8))
    copies = [(state, state.x.clone(), state.estimate.clone()) for state in trajectory(data, table, start())]
    assert all(torch.equal(state.x, x) and torch.equal(state.estimate, x0_hat) for state, x, x0_hat in copies)


def test_a_warm_start_is_a_sliced_grid():
    data, grid = plane_mixture(Linear()), grids.uniform(8)
    states = list(trajectory(data, ddim(Linear(), grid), start()))
    assert torch.equal(sample(data, ddim(Linear(), grid[3:]), states[2].x), states[-1].x)


@pytest.mark.parametrize("solver", [ddpm, heun, dpm_solver_pp_2m], ids=lambda solver: solver.__name__)
def test_two_runs_interleaved_are_two_runs_apart(solver):
    data, table = plane_mixture(Linear()), solver(Linear(), grids.uniform(7))
    a, b = start(seed=1), start(4, seed=2)
    pairs = zip_longest(
        trajectory(data, table, a, noise=shared(1)), trajectory(data, table, b, noise=shared(2)), fillvalue=None
    )
    *_, (end_a, end_b) = pairs
    assert torch.equal(end_a.x, sample(data, table, a, noise=shared(1)))
    assert torch.equal(end_b.x, sample(data, table, b, noise=shared(2)))


def test_gradients_are_off_in_the_loop_and_as_they_were_outside_it():
    network = nn.Linear(2, 2, dtype=torch.float64)
    seen: list[bool] = []

    class Watch(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: object) -> Tensor:
            seen.append(torch.is_grad_enabled())
            return network(x)

    denoiser, table = NetworkDenoiser(Watch(), Linear(), "eps"), ddim(Linear(), grids.uniform(3))
    outside = [torch.is_grad_enabled() for _ in trajectory(denoiser, table, start())]
    end = sample(denoiser, table, start())
    assert seen == [False] * 6 and outside == [True] * 3 and not end.requires_grad


# --- noise ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [[3], [5, 3], [9, 8, 7, 3, 1]])
def test_a_sample_with_its_own_seed_does_not_depend_on_its_batch(seeds):
    # bitwise: the oracle, unlike a matrix product, rounds the same in every batch size
    data, table = plane_mixture(Linear()), ddpm(Linear(), grids.uniform(6))
    starts = {seed: start(1, seed) for seed in seeds}

    def run(batch: list[int]) -> Tensor:
        return sample(data, table, torch.cat([starts[s] for s in batch]), noise=PerSample.from_seeds(batch))

    whole = run(seeds)
    assert torch.equal(whole[seeds.index(3)], run([3])[0])
    assert torch.equal(whole.flip(0), run(seeds[::-1]))


def test_different_seeds_give_different_samples_and_one_seed_the_same():
    data, table, x = plane_mixture(Linear()), ddpm(Linear(), grids.uniform(6)), start(1).expand(2, 2)
    same, different = (sample(data, table, x, noise=PerSample.from_seeds(seeds)) for seeds in ([1, 1], [1, 2]))
    assert torch.equal(same[0], same[1]) and not torch.allclose(different[0], different[1], atol=1e-3)
    assert torch.equal(same[0], different[0])


def test_a_wrong_number_of_seeds_is_refused():
    with pytest.raises(WorkbenchError, match="got a batch of 6, expected 2"):
        sample(plane_mixture(Linear()), ddpm(Linear(), grids.uniform(3)), start(), noise=PerSample.from_seeds([1, 2]))


@pytest.mark.parametrize("source", [lambda: shared(), lambda: PerSample.from_seeds([1, 2, 3])], ids=["one", "own"])
def test_successive_draws_are_fresh(source):
    noise = source()
    first, second = (noise.normal((3, 1000), torch.float64, torch.device("cpu")) for _ in range(2))
    correlation = float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])
    assert abs(correlation) < 4.0 / 3000**0.5
    assert abs(float(first.var()) - 1.0) < 4.0 * (2.0 / 3000) ** 0.5


def test_a_table_that_adds_noise_is_refused_without_a_source_before_any_step():
    class Never(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: object) -> Tensor:
            raise AssertionError("the network was called")

    denoiser = NetworkDenoiser(Never(), Linear(), "eps")
    with pytest.raises(WorkbenchError, match="noise=None; expected"):
        sample(denoiser, ddpm(Linear(), grids.uniform(3)), start())


def test_a_zero_terminal_snr_grid_is_refused_for_eps_before_any_step():
    denoiser = NetworkDenoiser(nn.Identity(), Cosine(), "eps")
    with pytest.raises(WorkbenchError, match="eps prediction: at t=1"):
        sample(denoiser, ddim(Cosine(), grids.uniform(3)), start())


@pytest.mark.parametrize("solver", [ddpm, dpm_solver_pp_2m], ids=lambda solver: solver.__name__)
def test_single_precision_samples_stay_single_and_close_to_double(solver):
    schedule = linear_betas()
    data, table = plane_mixture(schedule), solver(schedule, grids.trailing(1000, 50))

    class Single(Denoiser):
        def bind(self, times, cond=None):
            evaluate = data.bind(times, cond)
            return lambda x, i: evaluate(x.double(), i).float()

    noise = PerSample.from_seeds(range(6))  # draws in float32 whatever is asked for
    single = sample(Single(), table, start().float(), noise=noise)
    double = sample(data, table, start().float().double(), noise=PerSample.from_seeds(range(6)))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-5)


# --- cost -----------------------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Counts the aten operations that run, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class Constant(nn.Module):
    """A model that costs nothing: the operations that remain are the loop's."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.output = torch.zeros_like(like)

    def forward(self, x: Tensor, t: Tensor, cond: object) -> Tensor:
        return self.output if len(x) == len(self.output) else torch.zeros_like(x)


def operations_per_step(solver, prediction, seed: int = 0) -> tuple[float, Counter[str]]:
    """Operations that one more step costs, and those among them that read a value.

    From two lengths, so that what a run does once cancels; views, which compute nothing, are not counted.
    """
    x = start(seed=seed).float()
    denoiser = NetworkDenoiser(Constant(x), Linear(), prediction)
    counts = []
    for n in (20, 40):
        table = solver(Linear(), grids.uniform(n))
        sample(denoiser, table, x, noise=shared())  # what is made once for a plan
        noise = shared()
        with Operations() as operations:
            sample(denoiser, table, x, noise=noise)
        counts.append(operations.counts)
    more = counts[1] - counts[0]
    reads = Counter({name: more[name] for name in ("_local_scalar_dense", "item", "nonzero", "_to_copy") if more[name]})
    views = more["unbind"] + more["select"] + more["expand"]
    return (sum(more.values()) - views) / 20, reads


LIMITS = {
    # products and sums of a row, the prediction's conversion folded into it; a draw is two: with its copy to where x is
    "ddim": 2,
    "euler": 2,
    "ddpm": 4,
    "consistency": 4,
    "heun": 6,
    "edm": 6,
    "dpm_solver_2s": 6,
    "dpm_solver_pp_2s": 6,
    "dpm_solver_3s": 10,
    "dpm_solver_pp_3s": 10,
    "dpm_solver_2m": 4,
    "dpm_solver_pp_2m": 4,
    "dpm_solver_pp_2m_sde": 6,
    "dpm_solver_3m": 6,
    "dpm_solver_pp_3m": 6,
    "dpm_solver_pp_3m_sde": 8,
    "deis": 6,
    "lms": 8,
    "unipc": 6,
    "sa_solver": 10,
    # a hundred Langevin steps at every level, and its change
    "annealed_langevin": 402,
}


def table_solvers() -> dict[str, Solver]:
    """Every exported function of (schedule, grid) that has a default for all else."""
    found = {}
    for name in solvers.__all__:
        solver = getattr(solvers, name)
        if inspect.isfunction(solver):
            arguments = [*inspect.signature(solver).parameters.values()]
            if [a.name for a in arguments[:2]] == ["schedule", "grid"] and all(
                a.default is not a.empty for a in arguments[2:]
            ):
                found[name] = solver
    return found


def test_every_exported_solver_has_its_limit():
    assert table_solvers().keys() == LIMITS.keys()


@pytest.mark.parametrize("name", LIMITS)
def test_a_step_costs_a_fixed_number_of_operations_and_reads_no_value(name):
    operations, reads = operations_per_step(table_solvers()[name], "eps")
    assert not reads
    assert operations <= LIMITS[name]
    # the same for other data: it stands in the table
    assert operations == operations_per_step(table_solvers()[name], "eps", seed=5)[0]


@pytest.mark.parametrize(
    ("solver", "prediction", "limit"), [(ddim, "x0", 2), (ddim, "v", 2), (euler, "velocity", 2), (ddim, "F", 3)]
)
def test_no_prediction_costs_more_than_another(solver, prediction, limit):
    operations, reads = operations_per_step(solver, prediction)
    assert not reads
    assert operations <= limit


@pytest.mark.parametrize(
    "expression",
    [
        lambda model: classifier_free(model, torch.zeros(1, 3), 3.0),
        lambda model: classifier_free(model, torch.zeros(1, 3), Interval(3.0, 0.2, 0.6)),
        lambda model: model * given(model, torch.ones(6, 3)) ** 0.5 * Energy(lambda x0: x0.sum(1), through="estimate"),
        lambda model: model * Energy(lambda x0: x0.sum(1)) * Known(torch.tensor([True, False]), torch.zeros(2)),
    ],
    ids=["guided", "interval", "product", "energy and known"],
)
def test_an_expression_reads_no_value(expression):
    x = start().float()
    model = NetworkDenoiser(Constant(x), Linear(), "eps")
    denoiser, cond = expression(model), torch.ones(6, 3)
    table = ddim(Linear(), grids.uniform(10, 0.99))
    evaluate, plan = bound(denoiser, table, cond)
    rows = script(plan)
    x = start().float()
    with HostReads() as reads, torch.no_grad():
        for _ in loop(rows, evaluate, plan, x, None):
            pass
    assert not reads.seen


def test_the_counter_of_operations_sees_a_read():
    with Operations() as operations:
        float(torch.ones(1).sum())
    assert operations.counts["_local_scalar_dense"] == 1
