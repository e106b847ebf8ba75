"""A search over samples of a prior: what it finds, keeps and refuses; and the critic that it believes."""

from typing import Any

import numpy as np
import pytest
import torch

from diffusion_core import configure
from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.noise import Shared
from diffusion_core.normalize import MinMax
from envs.pointmaze import POINT, PointMaze
from planning import evaluate, follow
from planning.config import PlanningConfig
from planning.critic import StrideCritic
from planning.prior import assemble, sampling_table
from planning.tree import EACH, LEAST, Reached, TreePlanner


def planner(*overrides: str, rounds: int = 60) -> TreePlanner:
    """Of an untrained prior."""
    asked = ["task=pointmaze_medium", "preset=smoke", "planner.durations=[77]", *overrides]
    config = configure.composed(PlanningConfig, "planning.conf", "train", asked)
    prior = assemble(config, MinMax(torch.tensor([-4.0, -4.0]), torch.tensor([24.0, 24.0]))).requires_grad_(False)
    return TreePlanner(prior, sampling_table(config, prior), 77, rounds, POINT)


class Straight(TreePlanner):
    """Samples that are straight lines anywhere, believed as far as the map has room: the search's part alone."""

    def _drawn(self, places: list[Reached], goal: Any, noise: Shared) -> tuple[np.ndarray, list[int]]:
        starts = np.repeat(np.stack([one.xy for one in places]), EACH, 0)
        if goal is None:
            angle = 2.0 * np.pi * torch.rand(len(starts), generator=noise.generator).double().numpy()
            ends = starts + 6.0 * np.stack([np.cos(angle), np.sin(angle)], -1)
        else:
            ends = np.repeat(goal[None], len(starts), 0)
        share = np.linspace(0.0, 1.0, self.prior.horizon)[:, None]
        xy = starts[:, None] + share * (ends - starts)[:, None]
        free = self.maze.clearance(xy.reshape(-1, 2)).reshape(xy.shape[:2]) >= POINT.radius
        return xy, free[:, 1:].astype(int).cumprod(1).sum(1).tolist()


@pytest.mark.parametrize("task", [0, 3])
def test_the_search_comes_to_the_goal_and_its_plan_is_free(task: int) -> None:
    env = PointMaze("medium", render_mode=None)
    problem = follow.tasks(env, 1, 0)[task]
    one = planner()
    straight = Straight(one.prior, one.table, 77, 200, POINT)
    straight.maze = env.maze
    plan = straight(problem, 0)
    np.testing.assert_allclose(plan.xy[[0, -1]], [problem.start[:2], problem.goal], atol=1e-9)
    assert plan.clearance(env.maze) >= POINT.radius - 0.05
    # consecutive pieces fit together
    assert np.linalg.norm(np.diff(plan.xy, axis=0), axis=1).max() < 1.0
    again = straight(problem, 0)
    np.testing.assert_array_equal(plan.xy, again.xy)


def test_where_nothing_is_believed_the_plan_stays() -> None:
    env = PointMaze("medium", render_mode=None)
    problem = follow.tasks(env, 1, 0)[0]
    one = planner(rounds=2)
    assert one.prior.critic is not None
    torch.nn.init.zeros_(one.prior.critic.network[-1].weight)
    torch.nn.init.constant_(one.prior.critic.network[-1].bias, LEAST - 1.0)
    plan = one(problem, 0)
    assert len(plan.xy) == 1
    assert all(len(way) == 1 for way in one.segments)


def test_one_odd_stride_is_believed_and_a_run_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    env = PointMaze("medium", render_mode=None)
    problem = follow.tasks(env, 1, 0)[0]
    one = planner()
    critic = one.prior.critic
    assert critic is not None
    strides = one.prior.horizon - 1
    for odd, kept in ((1, strides), (3, 10)):
        ratio = torch.zeros(EACH, strides)
        ratio[:, 10 : 10 + odd] = -8.0

        def said(xy: Any, dt: Any, ratio: torch.Tensor = ratio) -> torch.Tensor:
            return ratio

        monkeypatch.setattr(critic, "forward", said)
        start = Reached(problem.start[:2], 0, None, np.zeros((0, 2)))
        _, believed = one._drawn([start], None, Shared(torch.Generator().manual_seed(0)))
        assert believed == [kept - (odd == 3)] * EACH


def test_a_critic_shown_strides_anywhere_knows_where_nobody_goes() -> None:
    def taught(anywhere: float) -> tuple[float, float]:
        torch.manual_seed(0)
        critic = StrideCritic(width=64, features=32, anywhere=anywhere)
        optimizer = torch.optim.Adam(critic.parameters(), 3e-3)
        generator = torch.Generator().manual_seed(0)
        for _ in range(300):
            # two corridors along x, a wall between them
            x = 10.0 * torch.rand(128, 1, generator=generator) + 0.3 * torch.arange(8)
            y = 6.0 * torch.randint(2, (128, 1), generator=generator) + torch.rand(128, 1, generator=generator)
            xy = torch.stack([x, y.expand(-1, 8)], -1)
            optimizer.zero_grad()
            critic.loss(xy, torch.full((128,), 0.2), Draws(generator)).mean().backward()
            optimizer.step()
        places = torch.tensor([[5.0, 0.5], [5.0, 3.5]])
        found = critic.ratio(places, torch.tensor([[0.3, 0.0]] * 2), torch.full((2,), 0.2))
        return float(found[0]), float(found[1])

    inside, wall = taught(0.5)
    assert inside > 0.0
    assert wall < inside - 3.0
    with pytest.raises(WorkbenchError, match="expected a share"):
        StrideCritic(anywhere=1.5)


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(WorkbenchError, match="prior without a critic"):
        planner("critic=false")
    config = configure.composed(
        PlanningConfig, "planning.conf", "train", ["task=maze2d_large", "preset=smoke", "planner.tree=5"]
    )
    with pytest.raises(WorkbenchError, match="point maze and a critic"):
        evaluate.check(config, config.evaluation)
