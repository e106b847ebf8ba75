"""Model-predictive path integral control with the ball's true motion, by the package ``pytorch-mppi``.

    cost = sum_k g(xy_k) + w max(room - clearance, 0) / room   over K random action sequences,   g the distance to go

Source: Williams et al. 2017, "Information Theoretic MPC" (doi 10.1109/ICRA.2017.7989202).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_core.errors import WorkbenchError, require_at_least
from envs.maze2d import RADIUS
from planning.ball import advance
from planning.energies.solid import clearance
from planning.peers.lattice import Lattice
from planning.plan import Problem
from planning.ways import MARGIN, Room


@dataclass(frozen=True)
class Mppi:
    """Makes an `MppiController` for a problem. It knows the map and the dynamics; needs no data.

    Args:
        to_go: "way": distances along the shortest ways, which a search found beforehand; "straight": as the crow
            flies, which leads into dead ends.
        samples: action sequences looked at each time.
        horizon: actions of each.
        hold: steps of 0.01 s for which an action is kept.
        temperature: of the weights exp(-cost / temperature).
        spread: standard deviation of the actions' noise.
        walls: w, the cost of a place in a wall for a step of ``hold``, m of way.
        room: clearance from which on a wall costs nothing, m.

    Raises:
        WorkbenchError: the package is not installed, or a number is out of range.
    """

    to_go: Literal["way", "straight"] = "way"
    samples: int = 256
    horizon: int = 12
    hold: int = 5
    temperature: float = 0.1
    spread: float = 1.0
    walls: float = 50.0
    room: float = RADIUS + MARGIN

    def __post_init__(self) -> None:
        require_at_least(1, {"samples": self.samples, "horizon": self.horizon, "hold": self.hold})
        if self.to_go not in ("way", "straight") or not (min(self.temperature, self.spread, self.room) > 0.0):
            raise WorkbenchError(
                f"mppi: got {self}; expected to_go 'way' or 'straight', and temperature, spread and room > 0: "
                "correct it."
            )
        if find_spec("pytorch_mppi") is None:
            raise WorkbenchError(
                "pytorch_mppi: got no such package; expected it for this peer: pip install 'pytorch-mppi>=0.9'."
            )

    def __call__(self, problem: Problem, seed: int) -> MppiController:
        """The controller.

        Raises:
            WorkbenchError: the search found no way to the goal ("straight" does not look for one).
        """
        return MppiController(self, problem, seed)


class MppiController:
    """Acts in one episode.

    Args:
        config: its numbers.
        problem: whose goal it goes to.
        seed: of the noise.
    """

    def __init__(self, config: Mppi, problem: Problem, seed: int) -> None:
        from pytorch_mppi import MPPI

        self.config, self.problem = config, problem
        self.goal = torch.as_tensor(problem.goal, dtype=torch.float32)
        if config.to_go == "way":
            lattice = Lattice(problem, Room.of(problem, config.room))
            lattice.way(problem.start[:2])
            self._field = torch.as_tensor(lattice.filled(), dtype=torch.float32)
            self._origin, self._spacing = lattice.place((0, 0)), lattice.spacing
        # the package draws from torch's one generator; this episode's state of it is put there and taken away again
        self._state = torch.Generator().manual_seed(seed).get_state()
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._state)
            self._mppi = MPPI(
                self._moved,
                self._cost,
                nx=4,
                noise_sigma=torch.eye(2) * config.spread**2,
                num_samples=config.samples,
                horizon=config.horizon,
                lambda_=config.temperature,
                u_min=-torch.ones(2),
                u_max=torch.ones(2),
            )
            self._state = torch.get_rng_state()
        self._force, self._left = np.zeros(2), 0

    @torch.no_grad()
    def act(self, state: Float[np.ndarray, "4"], goal: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2"]:
        """The force, kept for ``hold`` steps.

        Raises:
            WorkbenchError: another goal than the problem's.
        """
        if (goal != self.problem.goal).any():
            raise WorkbenchError("goal: got another than the controller's; expected one goal each: make a new one.")
        if self._left == 0:
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(self._state)
                force = self._mppi.command(torch.as_tensor(state, dtype=torch.float32))
                self._state = torch.get_rng_state()
            self._force, self._left = force.double().numpy(), self.config.hold
        self._left -= 1
        return self._force

    def to_go(self, xy: Float[Tensor, "k 2"]) -> Float[Tensor, " k"]:
        """Distance to the goal, m."""
        if self.config.to_go == "straight":
            return torch.linalg.vector_norm(xy - self.goal, dim=-1)
        # near the goal the lattice is coarser than the way
        size = torch.tensor(self._field.shape)
        at = (xy - torch.as_tensor(self._origin, dtype=xy.dtype)) / self._spacing
        at = torch.minimum(at.clamp(min=0.0), (size - 1.001).to(xy.dtype))
        low = at.long()
        (u, v), (i, j), f = (at - low).unbind(-1), low.unbind(-1), self._field
        below = (1 - u) * f[i, j] + u * f[i + 1, j]
        above = (1 - u) * f[i, j + 1] + u * f[i + 1, j + 1]
        return (1 - v) * below + v * above

    def _moved(self, state: Tensor, action: Tensor) -> Tensor:
        return torch.cat(advance(state[:, :2], state[:, 2:], action, self.config.hold), -1)

    def _cost(self, state: Tensor, action: Tensor) -> Tensor:
        xy = state[:, :2]
        # the place half-way back, too: at 5 m/s the ball goes 0.25 m between two states
        back = xy - state[:, 2:] * (self.config.hold * 0.005)
        room = clearance(self.problem.maze, torch.stack([xy, back])).amin(0)
        return self.to_go(xy) + self.config.walls * ((self.config.room - room) / self.config.room).clamp(min=0.0)
