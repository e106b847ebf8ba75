"""Controllers that learn from transitions: what they learn from, what they minimise, and that they arrive."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion_core.errors import WorkbenchError
from envs.maze2d import GOAL_RADIUS, MAPS, Maze, Maze2d
from planning.data.generate import generate
from planning.execute import Gains, execute
from planning.peers.offline import Actor, Clone, Iql, Steps, expectile
from planning.plan import Problem

OPEN = ("#####", "#OOO#", "#OOO#", "#OOO#", "#####")


def problem(start=(2.8, 0.8), goal=(0.8, 0.8), rows=MAPS["umaze"]) -> Problem:
    return Problem(Maze(rows), np.array([*start, 0.0, 0.0]), np.array(goal))


@pytest.fixture(scope="module")
def stream():
    return generate("umaze", 4000, seed=0)


def test_batches_are_steps_of_the_stream_and_goals_of_its_own_or_later_places(stream):
    steps = Steps(stream, later=0.5)
    state, action, after, goal, reached = steps.batch(500, torch.Generator().manual_seed(0))
    found = torch.as_tensor(stream.observations)
    own = 0
    for k in range(500):
        row = int((found[:-1] == state[k]).all(1).nonzero()[0])
        assert torch.equal(after[k], found[row + 1]) and torch.equal(action[k], torch.as_tensor(stream.actions[row]))
        is_own = torch.equal(goal[k], torch.as_tensor(stream.goals[row]))
        own += is_own
        assert is_own or bool((found[row + 1 : row + 302, :2] == goal[k]).all(1).any())
        assert bool(reached[k]) == (float(torch.linalg.vector_norm(after[k, :2] - goal[k])) <= GOAL_RADIUS)
    assert 190 < own < 310


def test_the_expectile_weighs_both_sides():
    u = torch.tensor([-2.0, 0.0, 2.0])
    assert expectile(u, 0.9).tolist() == pytest.approx([0.4, 0.0, 3.6])
    # its minimum over a constant is the expectile: of two equally likely values, tau of the way
    values = torch.tensor([0.0, 1.0])
    losses = [float(expectile(values - m, 0.8).sum()) for m in torch.linspace(0, 1, 101)]
    assert np.argmin(losses) == 80


def test_a_clone_does_what_was_done(stream):
    learner = Clone(steps=250, batch_size=128)
    actor = learner.learned(Steps(stream), torch.Generator().manual_seed(0))
    rows = slice(0, 2000)
    seen = [torch.as_tensor(x[rows]) for x in (stream.observations, stream.goals)]
    error = (actor(*seen) - torch.as_tensor(stream.actions[rows])).square().sum(1).mean()
    # what it would be if nothing but the mean were learned
    assert float(error) < 0.5 * float(stream.actions[rows].var(0).sum())
    force = actor.act(stream.observations[0].astype(float), stream.goals[0].astype(float))
    assert force.shape == (2,) and np.abs(force).max() <= 1.0


def test_q_learning_prefers_what_reached_the_goal():
    """Of two actions in the data, both as frequent, cloning learns the mean and IQL the one that arrives."""

    class Choice(Steps):
        def __init__(self) -> None: ...

        def batch(self, n, generator):
            good = torch.rand(n, generator=generator) < 0.5
            state = torch.zeros(n, 4)
            action = torch.where(good, 0.8, -0.8)[:, None] * torch.tensor([1.0, 0.0])
            after = torch.where(good, 1.0, -1.0)[:, None] * torch.tensor([1.0, 0.0, 0.0, 0.0])
            return state, action, after, torch.tensor([[1.0, 0.0]]).expand(n, 2), good.float()

    found = {}
    torch.manual_seed(0)
    for learner in (Clone(steps=100, batch_size=16), Iql(steps=300, batch_size=16)):
        actor = learner.learned(Choice(), torch.Generator().manual_seed(0))
        found[type(learner)] = actor.act(np.zeros(4), np.array([1.0, 0.0]))
    assert abs(found[Clone][0]) < 0.2 and found[Iql][0] > 0.6


def test_a_maze_is_learned_once_and_the_controller_is_carried_out(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    learner = Clone(steps=30, batch_size=32, data_steps=3000)
    actor = learner(problem(), 0)
    assert isinstance(actor, Actor) and learner(problem((0.8, 0.8), (2.8, 0.8)), 1) is actor
    episode = execute(Maze2d("umaze", max_steps=20), problem(), actor, 0, Gains())
    assert len(episode.actions) == 20 and episode.valid is None
    again = Clone(steps=30, batch_size=32, data_steps=3000)(problem(), 0)
    np.testing.assert_array_equal(
        again.act(problem().start, problem().goal), actor.act(problem().start, problem().goal)
    )


def test_what_cannot_be_learned_is_refused():
    with pytest.raises(WorkbenchError, match="got a map of your own"):
        Clone()(problem((2.0, 2.0), (1.0, 1.0), OPEN), 0)
    with pytest.raises(WorkbenchError, match=r"expectile=0\.2"):
        Iql(expectile=0.2)
    with pytest.raises(WorkbenchError, match="steps"):
        Clone(steps=0)
