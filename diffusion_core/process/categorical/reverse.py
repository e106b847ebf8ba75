"""The reverse kernel: from ``x_t`` and an estimate of ``x0`` to ``x_s``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from diffusion_core.process.categorical.kernel import Kernel, one_hot


@dataclass(frozen=True)
class Reverse:
    """``p(x_s | x_t) = sum_x0 p(x0 | x_t) q(x_s | x_t, x0)`` for one or many pairs ``s < t``.

    Args:
        data_to_t: ``q(x_t | x0)``.
        data_to_s: ``q(x_s | x0)``.
        s_to_t: ``q(x_t | x_s)``.
    """

    data_to_t: Kernel
    data_to_s: Kernel
    s_to_t: Kernel

    def probabilities(self, logits: Float[Tensor, "*x k"], x_t: Int64[Tensor, "*x"]) -> Float64[Tensor, "*x s"]:
        """By Bayes, with ``w(x0) = p(x0 | x_t) / q(x_t | x0)``::

            p(x_s | x_t) = q(x_t | x_s) sum_x0 w(x0) q(x_s | x0)

        With the true ``p(x0 | x_t)`` this is the true reverse kernel. D3PM's eq. 4 leaves out the division by
        ``q(x_t | x0)``, and so does not give it; for absorbing states the two agree.

        Source: Austin et al. 2021, eq. 3 (arXiv 2107.03006).
        """
        likelihood = self.data_to_t.column(x_t)
        weights = excess(likelihood, logits)
        reverse = self.s_to_t.column(x_t) * self.data_to_s.push(weights)
        # a state that no data leads to, such as a class given in a sample of pure MASK, is kept as it is
        reached = (weights > 0.0).any(-1, keepdim=True)
        return torch.where(reached, reverse, one_hot(x_t, likelihood.shape[-1]))


def excess(likelihood: Float64[Tensor, "*x s"], logits: Float[Tensor, "*x k"]) -> Float64[Tensor, "*x s"]:
    """``p(x0 | x_t) / q(x_t | x0)``, 0 where the latter is and for the states that do not occur in data.

    Args:
        likelihood: ``q(x_t | x0)`` for every state x0.
        logits: of ``p(x0 | x_t)``.
    """
    classes = logits.shape[-1]
    of_class = likelihood[..., :classes]
    p_x0 = log_x0(likelihood, logits).exp()
    # both branches of `where` have gradients: the one not taken must not be infinite
    weights = torch.where(of_class > 0.0, p_x0 / of_class.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    return torch.nn.functional.pad(weights, (0, likelihood.shape[-1] - classes))


def log_x0(likelihood: Float64[Tensor, "*x s"], logits: Float[Tensor, "*x k"]) -> Float64[Tensor, "*x k"]:
    """``log p(x0 | x_t)`` of an estimate, normalised over the classes that can have led to ``x_t``.

    For absorbing states an entry that is not masked is thereby its own estimate, whatever the network says.

    Args:
        likelihood: ``q(x_t | x0)`` for every state x0.
        logits: of ``p(x0 | x_t)``.

    Source: Sahoo et al. 2024, "carry-over unmasking" (arXiv 2406.07524), here for every kernel.
    """
    logits = logits.double()
    possible = (likelihood[..., : logits.shape[-1]] > 0.0) & (logits > -torch.inf)
    ruled_out = ~possible & possible.any(-1, keepdim=True)
    return logits.masked_fill(ruled_out, -torch.inf).log_softmax(-1)
