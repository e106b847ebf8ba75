"""Defects on the torus and on rotations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from diffusion_core.process import igso3, so3
from diffusion_core.process.so3 import SO3
from diffusion_core.process.torus import Torus
from diffusion_core.solvers import so3 as so3_solvers
from diffusion_core.solvers import torus as torus_solvers
from diffusion_core.solvers.so3 import Geodesic
from diffusion_core.solvers.table import Table
from diffusion_core.solvers.torus import Wrapped
from tests.diffusion_core import test_so3, test_torus

Patch = pytest.MonkeyPatch


def none(patch: Patch) -> None:
    """The defect is in what the check is given."""


def seven_images(d: Tensor, sigma: Tensor, period: float) -> Tensor:
    """The wrapped normal's score cut at three images on either side, at any sigma: published so, far off at 2."""
    images = d[..., None] + period * torch.arange(-3.0, 4.0, dtype=torch.float64)
    share = (-0.5 * (images / sigma) ** 2).softmax(-1)
    return -(share * images).sum(-1) / sigma**2


def edited(solver: test_torus.TorusSolver, edit: Callable[[Table, Torus], Table]) -> test_torus.TorusSolver:
    return lambda process, grid: Wrapped(edit(solver(process, grid).table, process), process.period)


def forward_noise(table: Table, process: Torus) -> Table:
    """The noise of q(x_t | x_s) where the posterior's belongs."""
    sigma = process.schedule.sigma
    return replace(table, noise=(sigma(table.times) ** 2 - sigma(table.reached) ** 2).sqrt())


def half_the_drift(table: Table, process: Torus | SO3) -> Table:
    return replace(table, estimate=0.5 * table.estimate)


def evenly_stepped_adams(table: Table, process: Torus) -> Table:
    """3/2 and -1/2 although the steps in u are uneven."""
    gain = table.estimate.sum(1)
    estimate = torch.stack([1.5 * gain, -0.5 * gain], 1)
    estimate[0] = table.estimate[0]
    return replace(table, estimate=estimate)


def corrector_with_noise(factor: float) -> Callable[..., Wrapped]:
    def corrected(plan: Wrapped, process: Torus, steps: int, size: float) -> Wrapped:
        right = torus_solvers.corrected(plan, process, steps, size)
        return replace(right, table=replace(right.table, noise=factor * right.table.noise))

    return corrected


def log_by_the_trace(rotation: Tensor) -> Tensor:
    trace = rotation.diagonal(dim1=-2, dim2=-1).sum(-1)
    angle = torch.arccos((0.5 * (trace - 1.0)).clamp(-1.0, 1.0))
    odd = rotation - rotation.mT
    axis = torch.stack([odd[..., 2, 1], odd[..., 0, 2], odd[..., 1, 0]], -1)
    return 0.5 * axis / torch.sinc(angle / math.pi).clamp(min=1e-12)[..., None]


def flat_angles(patch: Patch) -> None:
    # the rotation vector drawn from a normal at any sigma, as if rotations were flat
    patch.setattr(igso3, "stretch", lambda radius, sigma: sigma.expand_as(radius))


def one_image(patch: Patch) -> None:
    patch.setattr(igso3, "_IMAGES", 1)
    patch.setattr(igso3, "SWITCH", 9.0)


@dataclass(frozen=True, eq=False)
class FromTheLeft(Geodesic):
    """Increments in the laboratory's frame with scores of the body's."""

    def begin(self, x, noise):
        increment = self.table.begin(torch.zeros_like(x[..., 0]), noise)
        return lambda x, score, i: so3.exp(increment(torch.zeros_like(score), score, i)) @ x


def from_the_left(process: SO3, grid: Tensor) -> Geodesic:
    return FromTheLeft(so3_solvers.geodesic_walk(process, grid).table)


def rotations_edited(solver: test_so3.RotationSolver, edit: Callable[[Table, SO3], Table]) -> test_so3.RotationSolver:
    return lambda process, grid: Geodesic(edit(solver(process, grid).table, process))


ancestral, flow_of = torus_solvers.ancestral, test_torus.flow_of

DEFECTS: dict[str, tuple[Callable[[Patch], None], Callable[[], None]]] = {
    "torus: score of seven images, sigma 2": (none, lambda: test_torus.check_score(seven_images, 2.0)),
    "torus: score of seven images, sigma 5": (none, lambda: test_torus.check_score(seven_images, 5.0)),
    "torus: remainder that is the period": (none, lambda: test_torus.check_wrap(torch.remainder)),
    "torus ancestral: forward noise": (none, lambda: test_torus.check_ancestral(edited(ancestral, forward_noise))),
    "torus ancestral: the flow's drift": (none, lambda: test_torus.check_ancestral(edited(ancestral, half_the_drift))),
    "torus flow: ancestral drift": (none, lambda: test_torus.check_order(lambda p, g: no_noise(ancestral(p, g)), 1.0)),
    "torus flow: Euler for order 2": (none, lambda: test_torus.check_order(flow_of(1), 2.0)),
    "torus flow: order 2 for order 3": (none, lambda: test_torus.check_order(flow_of(2), 3.0)),
    "torus flow: even steps": (none, lambda: test_torus.check_adams(edited(flow_of(2), evenly_stepped_adams), 2)),
    "Langevin: noise without its 2": (none, lambda: test_torus.check_corrector(corrector_with_noise(0.5**0.5))),
    "IGSO3: the whole Laplacian": (
        none,
        lambda: test_so3.check_density(lambda angle, sigma: igso3.log_density(angle, math.sqrt(2.0) * sigma), 0.5),
    ),
    "IGSO3: one image on either side, any sigma": (
        one_image,
        lambda: test_so3.check_density(igso3.log_density, 5.0),
    ),
    "IGSO3: angles of flat space": (flat_angles, lambda: test_so3.check_corrupt(test_so3.BALL, 1.2)),
    "SO(3): logarithm by the trace": (none, lambda: test_so3.check_log(log_by_the_trace)),
    "SO(3): score in the laboratory's frame": (
        none,
        lambda: test_so3.check_score(lambda data, x, t: (x @ data.score(x, t)[..., None])[..., 0]),
    ),
    "SO(3) walk: from the left": (none, lambda: test_so3.check_equivariance(from_the_left)),
    "SO(3) walk: half the drift": (
        none,
        lambda: test_so3.check_walk(rotations_edited(so3_solvers.geodesic_walk, half_the_drift)),
    ),
    "SO(3) flow: half the drift": (
        none,
        lambda: test_so3.check_flow(rotations_edited(so3_solvers.flow, half_the_drift)),
    ),
}


def no_noise(plan: Wrapped) -> Wrapped:
    return replace(plan, table=replace(plan.table, noise=torch.zeros_like(plan.table.noise)))
