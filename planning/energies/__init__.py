"""Energies of trajectories: what a plan should not do, said when the plan is made.

A cost maps places (batch, horizon, 2), m, to (batch,) and can be differentiated; a trajectory has the density
``exp(-cost)`` times that of its prior (`planning.compose`). Costs add, and numbers scale them::

    cost = Walls(maze, 0.25) + 0.5 * Length() - 2.0 * Via((3.0, 1.0), 0.5)

Several robots are an axis more, (batch, robots, horizon, 2): a cost of one trajectory is then the sum over robots, and
`Separation` keeps them apart.
"""

from planning.energies.algebra import Cost, Sum, checked
from planning.energies.motion import Length, Separation, Smooth, Speed, every_pair
from planning.energies.place import Goal, Through, Value, Via
from planning.energies.solid import Discs, Walls, between, clearance

__all__ = [
    "Cost",
    "Discs",
    "Goal",
    "Length",
    "Separation",
    "Smooth",
    "Speed",
    "Sum",
    "Through",
    "Value",
    "Via",
    "Walls",
    "between",
    "checked",
    "clearance",
    "every_pair",
]
