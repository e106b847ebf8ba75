"""Diffusion forcing: a noise level of its own for every node."""

import numpy as np
import pytest
import torch

from diffusion_core import configure
from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts import Energy
from diffusion_core.loss import denoising_loss
from diffusion_core.loss.weighting import snr
from diffusion_core.nn.mlp import ResidualMLP
from diffusion_core.normalize import MinMax
from diffusion_core.times import token_times
from envs.maze2d import MAPS, Maze
from planning.config import PlanningConfig
from planning.plan import Problem
from planning.planner import DiffusionPlanner
from planning.prior import TrajectoryPrior, assemble, sampling_table


def config(*overrides: str) -> PlanningConfig:
    asked = ["task=maze2d_large", "preset=smoke", "network=mlp_forcing", "forcing=0.5", *overrides]
    return configure.composed(PlanningConfig, "planning.conf", "train", asked)


def prior(asked: PlanningConfig) -> TrajectoryPrior:
    torch.manual_seed(0)
    found = assemble(asked, MinMax(torch.tensor([0.3, 0.3]), torch.tensor([7.3, 10.3]))).requires_grad_(False)
    torch.nn.init.normal_(found.denoiser.network.outlet.weight, std=0.1)
    return found


def test_levels_are_of_the_token_or_of_the_sample() -> None:
    t = token_times(Draws(torch.Generator().manual_seed(0)), 4000, 5, share=0.25)
    same = (t == t[:, :1]).all(1)
    assert abs(float(same.double().mean()) - 0.75) < 4.0 * (0.25 * 0.75 / 4000) ** 0.5
    assert abs(float(t.mean()) - 0.5) < 0.02
    assert len(t[~same].unique()) == t[~same].numel()


def test_one_time_for_all_tokens_is_that_of_the_sample() -> None:
    torch.manual_seed(0)
    network = ResidualMLP(6, 2, 3, width=32, depth=2, token_times=True)
    torch.nn.init.normal_(network.outlet.weight)
    x, t, cond = torch.randn(4, 6, 2), torch.rand(4), torch.randn(4, 3)
    torch.testing.assert_close(network(x, t, cond), network(x, t[:, None].expand(-1, 6), cond))
    other = t[:, None].repeat(1, 6)
    other[:, 2], other[:, 3] = 0.9, 0.1
    assert not torch.allclose(network(x, other, cond), network(x, other.flip(1), cond))


def test_the_loss_weighs_every_token_by_its_own_time() -> None:
    model = prior(config()).denoiser
    x0, cond = torch.randn(8, 32, 2), torch.zeros(8, 3)

    def loss(times: torch.Tensor) -> torch.Tensor:
        return denoising_loss(model, x0, cond, Draws(torch.Generator().manual_seed(1)), lambda d, n: times, snr)

    t = torch.rand(8, dtype=torch.float64) * 0.8 + 0.1
    torch.testing.assert_close(loss(t), loss(t[:, None].expand(-1, 32)), rtol=1e-4, atol=1e-5)


def test_plans_are_drawn_node_after_node() -> None:
    asked = config("planner.delay=1", "steps=4", "planner.walls=0.5", "planner.candidates=3")
    model = prior(asked)
    table = sampling_table(asked, model)
    assert table.times.shape == (4 + 31, 1, 32)
    # the first node arrives while the last has not begun
    assert float(table.times[4, 0, 0]) == 0.0 and float(table.times[4, 0, -1]) == pytest.approx(0.98)
    planner = DiffusionPlanner(model, table, asked.planner)
    maze = Maze(MAPS["large"])
    problem = Problem(maze, np.array([0.8, 0.8, 0.0, 0.0]), np.array([6.8, 8.8]))
    xy = planner.candidates([problem], [0])[0]
    assert np.isfinite(xy).all()
    np.testing.assert_allclose(xy[:, [0, -1]], np.tile([[0.8, 0.8], [6.8, 8.8]], (3, 1, 1)), atol=1e-4)
    np.testing.assert_array_equal(xy, planner.candidates([problem], [0])[0])


def test_a_strength_that_changes_with_time_has_no_meaning_there() -> None:
    asked = config("planner.delay=1", "steps=4")
    model = prior(asked)
    times = sampling_table(asked, model).times
    changing = model.denoiser * Energy(lambda x: x.square().flatten(1).sum(1)) ** (lambda t: t)
    with pytest.raises(WorkbenchError, match="choose a constant"):
        changing.bind(times, torch.zeros(1, 3))


def test_settings_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(WorkbenchError, match="choose network=mlp_forcing"):
        config("network=mlp")
    with pytest.raises(WorkbenchError, match=r"train with forcing=0\.5"):
        config("forcing=0", "network=mlp", "planner.delay=2")
    with pytest.raises(WorkbenchError, match="expected a chance"):
        config("forcing=2")
