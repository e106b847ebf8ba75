"""Controllers learned from the same transitions as the priors: behaviour cloning, and implicit Q-learning.

Both see the state and the goal and answer with an action, at every step; neither plans, nor sees the map. They are
trained when they are first asked for in a maze, a minute or three on one core, and kept as long as the process lives.

    cloning   min E |pi(s, g) - a|^2
    IQL       V: min E L_tau(min_k Q_k(s, a, g) - V(s, g)),  L_tau(u) = |tau - 1(u < 0)| u^2
              Q: min E (r + gamma (1 - r) V(s', g) - Q(s, a, g))^2
              pi: min E exp(beta A) |pi(s, g) - a|^2,  A = min_k Q_k - V, the weight at most 100

with the reward r = 1 in the goal, where an episode of learning ends: in the data the goal changes then.

Source: Kostrikov et al. 2022, "Offline Reinforcement Learning with Implicit Q-Learning" (arXiv 2110.06169), its losses;
a goal as part of the state, half of them places that the same stream came to later, is ours.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from diffusion_core.errors import WorkbenchError, require_at_least
from envs.maze2d import GOAL_RADIUS, MAPS
from planning.data import sources
from planning.data.transitions import Transitions
from planning.plan import Problem
from planning.trajectories import breaks

logger = logging.getLogger("workbench.planning")

SPEED = 5.0
"""Scale of velocities, m/s."""


class Features(nn.Module):
    """State and goal, and waves of both places: walls are a metre thick."""

    def __init__(self, waves: int = 64) -> None:
        super().__init__()
        self.register_buffer("frequencies", 1.5 * torch.randn(4, waves))
        self.frequencies: Tensor
        self.width = 6 + 2 * waves

    def forward(self, state: Float[Tensor, "batch 4"], goal: Float[Tensor, "batch 2"]) -> Float[Tensor, "batch width"]:
        """What networks see."""
        angles = torch.cat([state[:, :2], goal], 1) @ self.frequencies
        return torch.cat(
            [state[:, :2] / 5.0 - 1.0, state[:, 2:] / SPEED, goal / 5.0 - 1.0, angles.sin(), angles.cos()], 1
        )


def perceptron(inlet: int, outlet: int, width: int = 256) -> nn.Sequential:
    """Three layers."""
    return nn.Sequential(
        nn.Linear(inlet, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outlet)
    )


class Actor(nn.Module):
    """``tanh`` of a network of state and goal; a controller."""

    def __init__(self) -> None:
        super().__init__()
        self.features = Features()
        self.network = perceptron(self.features.width, 2)

    def forward(self, state: Float[Tensor, "batch 4"], goal: Float[Tensor, "batch 2"]) -> Float[Tensor, "batch 2"]:
        """The force in units of 100 N."""
        return torch.tanh(self.network(self.features(state, goal)))

    @torch.no_grad()
    def act(self, state: Float[np.ndarray, "4"], goal: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2"]:
        """The same for one state."""
        seen = (torch.as_tensor(x, dtype=torch.float32)[None] for x in (state, goal))
        return self(*seen)[0].double().numpy()


class Steps:
    """Transitions to learn from, a goal with each.

    Args:
        stream: of one maze.
        later: share of goals that are places where the same stream is within so many steps.
        horizon: of these, steps.
    """

    def __init__(self, stream: Transitions, later: float = 0.5, horizon: int = 300) -> None:
        self.state, self.action, self.goal = (
            torch.as_tensor(x) for x in (stream.observations, stream.actions, stream.goals)
        )
        last = np.flatnonzero(breaks(stream.observations[:, :2]))
        self.end = torch.as_tensor(last[np.searchsorted(last, np.arange(len(stream)))])
        self.later, self.horizon = later, horizon

    def batch(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """States, actions, next states, goals, and whether the next state is in the goal."""
        rows = torch.randint(len(self.state) - 1, (n,), generator=generator)
        end = self.end[rows]
        # the last step of a stream has none after it: the one before is taken
        rows = torch.where(rows == end, (rows - 1).clamp(min=0), rows)
        ahead = (rows + 1 + (torch.rand(n, generator=generator) * self.horizon).long()).minimum(end)
        own = torch.rand(n, generator=generator) >= self.later
        goal = torch.where(own[:, None], self.goal[rows], self.state[ahead, :2])
        reached = (torch.linalg.vector_norm(self.state[rows + 1, :2] - goal, dim=1) <= GOAL_RADIUS).float()
        return self.state[rows], self.action[rows], self.state[rows + 1], goal, reached


@dataclass
class Learner:
    """Trains a controller when a maze is first asked for.

    Args:
        steps: of training.
        batch_size: transitions in each.
        learning_rate: of Adam.
        data_steps, seed: of the generated transitions, as the priors'; the seed is that of the training, too.
    """

    steps: int = 10_000
    batch_size: int = 512
    learning_rate: float = 1e-3
    data_steps: int = 1_000_000
    seed: int = 0
    trained: dict[str, Actor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        require_at_least(1, {"steps": self.steps, "batch_size": self.batch_size, "data_steps": self.data_steps})

    def __call__(self, problem: Problem, seed: int) -> Actor:
        """The controller; the same for all problems of a maze, whatever stands in it.

        Raises:
            WorkbenchError: there are no demonstrations of this maze.
        """
        names = [name for name, rows in MAPS.items() if tuple(rows) == problem.maze.rows]
        if not names:
            raise WorkbenchError(
                f"{type(self).__name__}: got a map of your own; expected one of {', '.join(MAPS)}, of which there are "
                "demonstrations to learn from: choose one."
            )
        if names[0] not in self.trained:
            stream = sources.load(names[0], "generate", self.data_steps, 0)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                self.trained[names[0]] = self.learned(Steps(stream), torch.Generator().manual_seed(self.seed))
        return self.trained[names[0]]

    def learned(self, steps: Steps, generator: torch.Generator) -> Actor:
        """The controller after training."""
        raise NotImplementedError

    def _optimizer(self, *networks: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for network in networks for p in network.parameters()], self.learning_rate)


@dataclass
class Clone(Learner):
    """Behaviour cloning."""

    def learned(self, steps: Steps, generator: torch.Generator) -> Actor:
        """The actor that does what was done towards the same goal."""
        actor = Actor()
        optimizer = self._optimizer(actor)
        steps.later = 0.0
        for _ in tqdm(range(self.steps), "cloning", disable=None):
            state, action, _, goal, _ = steps.batch(self.batch_size, generator)
            optimizer.zero_grad()
            (actor(state, goal) - action).square().sum(1).mean().backward()
            optimizer.step()
        return actor.eval().requires_grad_(False)


@dataclass
class Iql(Learner):
    """Implicit Q-learning.

    Args:
        discount: gamma, of a step of 0.01 s.
        expectile: tau.
        temperature: beta.
        target: share of the new weights that the target of Q takes in each step.
    """

    discount: float = 0.99
    expectile: float = 0.9
    temperature: float = 10.0
    target: float = 0.005

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0.0 < self.discount < 1.0 and 0.5 <= self.expectile < 1.0 and self.temperature >= 0.0):
            raise WorkbenchError(
                f"iql: got discount={self.discount}, expectile={self.expectile}, temperature={self.temperature}; "
                "expected them in (0, 1), in [0.5, 1) and at least 0: correct them."
            )

    def learned(self, steps: Steps, generator: torch.Generator) -> Actor:
        """The actor of the advantage-weighted actions."""
        actor, features = Actor(), Features()
        value, critic = perceptron(features.width, 1), perceptron(features.width + 2, 2)
        target = copy.deepcopy(critic)
        optimizer = self._optimizer(actor, value, critic)
        for _ in tqdm(range(self.steps), "implicit Q-learning", disable=None):
            state, action, after, goal, reached = steps.batch(self.batch_size, generator)
            with torch.no_grad():
                here, there = features(state, goal), features(after, goal)
                taken = torch.cat([here, action], 1)
                q = target(taken).amin(1)
                aim = reached + self.discount * (1.0 - reached) * value(there)[:, 0]
            ahead = q - value(here)[:, 0]
            weight = (self.temperature * ahead.detach()).exp().clamp(max=100.0)
            loss = (
                expectile(ahead, self.expectile).mean()
                + (critic(taken) - aim[:, None]).square().sum(1).mean()
                + (weight * (actor(state, goal) - action).square().sum(1)).mean()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for old, new in zip(target.parameters(), critic.parameters(), strict=True):
                    old.lerp_(new, self.target)
        return actor.eval().requires_grad_(False)


def expectile(u: Float[Tensor, " n"], tau: float) -> Float[Tensor, " n"]:
    """``|tau - 1(u < 0)| u^2``."""
    return torch.where(u < 0.0, 1.0 - tau, tau) * u.square()
