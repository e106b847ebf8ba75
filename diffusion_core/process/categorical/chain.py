"""Processes given by matrices: a rate matrix in continuous time, or one transition matrix per step."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.process.categorical.kernel import Kernel, Matrix, one_hot, trailing
from diffusion_core.process.categorical.process import Categorical
from diffusion_core.process.categorical.survival import check, hazard, survival
from diffusion_core.schedule import Schedule, Times


# compared by identity: tensors have no truth value
@dataclass(frozen=True, eq=False)
class Rates(Categorical):
    """A Markov chain with rate matrix Q, run for the time ``B(t) = -log alpha_t``.

    ``q(x_t | x_s) = exp((B(t) - B(s)) Q)``. `Absorbing` and `uniform` are two such chains, in closed form.

    Args:
        schedule: its ``alpha_t`` is the survival of a state that is left at rate 1. Where it is 0, the chain is taken
            to have run for 700 units of its own time: rates far below 1/700 do not reach their stationary state.
        matrix: (S, S) rates per unit of ``B``, from row to column; rows sum to 0.
        classes: how many of the S states occur in data, the first ones.

    Source: Campbell et al. 2022 (arXiv 2205.14987).
    """

    schedule: Schedule
    matrix: Float64[Tensor, "s s"] = field(repr=False)
    classes: int

    def __post_init__(self) -> None:
        check(self.schedule, self.classes)
        off_diagonal = self.matrix - self.matrix.diag().diag()
        size = float(self.matrix.abs().max())
        if (off_diagonal < 0.0).any() or self.matrix.sum(1).abs().max() > 1e-9 * size or self.classes > self.states:
            raise WorkbenchError(
                f"rate matrix: got {self.states} states for {self.classes} classes, smallest rate "
                f"{float(off_diagonal.min()):.4g}, largest row sum {float(self.matrix.sum(1).abs().max()):.4g}; "
                "expected at least one state per class, rates >= 0 off the diagonal and rows that sum to 0."
            )

    @property
    def states(self) -> int:  # type: ignore[override]
        return self.matrix.shape[0]

    def kernel(self, t: Times, s: Times) -> Kernel:
        elapsed = -survival(self.schedule, t, s).clamp(min=torch.finfo(torch.float64).tiny).log()
        matrix = torch.linalg.matrix_exp(elapsed.clamp(max=700.0)[..., None, None] * self.matrix.to(t.device))
        matrix = matrix.clamp(min=0.0)
        return Matrix(matrix / matrix.sum(-1, keepdim=True))

    def rates(self, x_t: Int64[Tensor, "*x"], t: Times) -> Float64[Tensor, "*x s"]:
        rates = self.matrix.to(x_t.device).mT[x_t] * (1.0 - one_hot(x_t, self.states))
        return trailing(hazard(self.schedule, t), rates.ndim) * rates


# compared by identity: tensors have no truth value
@dataclass(frozen=True, eq=False)
class Steps(Categorical):
    """A discrete-time chain: step i of n has its own transition matrix and sits at ``t = i / n``.

    Args:
        matrices: (n, S, S); row i of each is the distribution after a state i.
        classes: how many of the S states occur in data, the first ones.

    Source: Austin et al. 2021, section 3 (arXiv 2107.03006).
    """

    matrices: Float64[Tensor, "n s s"] = field(repr=False)
    classes: int

    def __post_init__(self) -> None:
        sums = self.matrices.sum(-1)
        if (self.matrices < 0.0).any() or (sums - 1.0).abs().max() > 1e-9 or not 1 <= self.classes <= self.states:
            raise WorkbenchError(
                f"transition matrices: got {self.states} states for {self.classes} classes, smallest entry "
                f"{float(self.matrices.min()):.4g}, row sums {float(sums.min()):.6g} to {float(sums.max()):.6g}; "
                "expected at least one state per class, entries >= 0 and rows that sum to 1."
            )

    @property
    def states(self) -> int:  # type: ignore[override]
        return self.matrices.shape[-1]

    @cached_property
    def _from_data(self) -> Float64[Tensor, "n_plus_1 s s"]:
        products = [torch.eye(self.states, dtype=torch.float64, device=self.matrices.device)]
        for matrix in self.matrices:
            products.append(products[-1] @ matrix)
        return torch.stack(products)

    def kernel(self, t: Times, s: Times) -> Kernel:
        steps_t, steps_s = self._steps(t), self._steps(s)
        pairs, which = torch.unique(torch.stack([steps_t.flatten(), steps_s.flatten()]), dim=1, return_inverse=True)
        products = torch.stack([self._product(i, j) for i, j in pairs.T.tolist()]).to(t.device)
        return Matrix(products[which.to(t.device)].reshape(*t.shape, self.states, self.states))

    def rates(self, x_t: Int64[Tensor, "*x"], t: Times) -> Float64[Tensor, "*x s"]:
        raise WorkbenchError(
            f"continuous-time bound: got a process of {len(self.matrices)} discrete steps; expected one in continuous "
            "time (Absorbing, Uniform, Marginal, Rates), or use the sum over steps."
        )

    def _product(self, i: int, j: int) -> Tensor:
        if j == 0:
            return self._from_data[i]
        product = torch.eye(self.states, dtype=torch.float64, device=self.matrices.device)
        for matrix in self.matrices[j:i]:
            product = product @ matrix
        return product

    def _steps(self, t: Times) -> Tensor:
        steps = (t * len(self.matrices)).round()
        if ((t * len(self.matrices) - steps).abs() > 1e-6).any():
            raise WorkbenchError(
                f"categorical process: got a time that is none of its {len(self.matrices)} steps, i / n; "
                "expected a grid or training times made of them (grid.trailing, uniform_times with n_train)."
            )
        return steps.long()


def nearest_neighbour(classes: int) -> Float64[Tensor, "k k"]:
    """Rates of ordered classes that jump one up or one down, each at rate 1/2; the ends jump inwards only.

    The relaxation time is about ``2 (classes / pi)^2`` units of ``B``: choose a schedule that runs this long.
    """
    up = torch.diag(torch.full((classes - 1,), 0.5, dtype=torch.float64), 1)
    return up + up.T - (up + up.T).sum(1).diag()


def discretised_gaussian(betas: Float64[Tensor, " n"], classes: int) -> Float64[Tensor, "n k k"]:
    """Transition matrices of ordered classes, Gaussian in the distance.

    ``Q_ij = exp(-4 |i - j|^2 / ((K - 1)^2 beta)) / sum_{m = -(K-1)}^{K-1} exp(-4 m^2 / ((K - 1)^2 beta))`` for
    ``i != j``, and what is missing to 1 on the diagonal: doubly stochastic, so the prior is uniform.

    Source: Austin et al. 2021, appendix A.2.3 (arXiv 2107.03006).
    """
    index = torch.arange(classes, dtype=torch.float64, device=betas.device)
    distances = torch.arange(-(classes - 1), classes, dtype=torch.float64, device=betas.device)
    scale = -4.0 / ((classes - 1) ** 2 * betas)
    total = torch.exp(scale[:, None] * distances**2).sum(1)
    matrices = torch.exp(scale[:, None, None] * (index[:, None] - index) ** 2) / total[:, None, None]
    matrices = matrices - matrices.diagonal(dim1=1, dim2=2).diag_embed()
    return matrices + (1.0 - matrices.sum(-1)).diag_embed()
