"""Absorbing diffusion is autoregression in any order.

A state of absorbing diffusion is a set of entries that are known. A denoiser that gives each unknown entry's
distribution given the known ones is therefore an autoregressive model for every order at once. The two bounds agree:
with n of D entries masked, uniformly at random,

    integral_0^1 -alpha' / (1 - alpha) E[cross-entropy of all masked entries] dt
      = sum_n 1/n E_{n masked}[cross-entropy of all masked entries]
      = E_order[ sum_i -log p(x_{order_i} | x_{order_1}, .., x_{order_{i-1}}) ],

the first equality by ``integral_0^1 m^{n-1} (1 - m)^{D-n} dm binomial(D, n) = 1/n`` with ``m = 1 - alpha_t``, so for
every schedule; the second because the next entry of a random order is a uniform one of the masked. The denoiser must
not look at t, which an exact one never does. Those here are told ``t = n / D``, the linear schedule's time.

Source: Hoogeboom et al. 2022 (arXiv 2110.02037); Uria et al. 2014 (arXiv 1310.1757).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from diffusion_core.denoise import Denoiser
from diffusion_core.denoise.classifier import Classifier
from diffusion_core.errors import WorkbenchError
from diffusion_core.loss import Draws
from diffusion_core.process import Source
from diffusion_core.process.categorical.elbo import Nats
from diffusion_core.process.categorical.redraw import Absorbing

Orders = Int64[Tensor, "batch_or_1 d"]


def random_orders(batch: int, entries: int, source: Source) -> Int64[Tensor, "batch d"]:
    """One uniform order of the entries per sample: row j lists entries, the first to be revealed first."""
    return source.uniform((batch, entries), torch.float64).argsort(1)


@torch.no_grad()
def order_nll(denoiser: Denoiser, x0: Int64[Tensor, "batch ..."], orders: Orders, cond: Any = None) -> Nats:
    """``-log p(x0)`` in nats, entry by entry in the given orders: an exact likelihood, D calls.

    Args:
        denoiser: of an `Absorbing` process.
        x0: clean indices; entries are numbered as in ``x0.flatten(1)``.
        orders: a permutation of the entries for each sample, or one for all.
        cond: passed to the denoiser.
    """
    process = _absorbing(denoiser)
    flat = x0.flatten(1)
    entries = flat.shape[1]
    orders = orders.expand(flat.shape)
    evaluate = denoiser.bind(torch.arange(entries, 0, -1, dtype=torch.float64) / entries, cond)
    x = torch.full_like(flat, process.mask)
    total = torch.zeros(flat.shape[0], dtype=torch.float64, device=x0.device)
    for i in range(entries):
        next_entry = orders[:, i : i + 1]
        log_p = evaluate(x.reshape(x0.shape), i).double().log_softmax(-1).flatten(1, -2)
        value = flat.gather(1, next_entry)
        total = (
            total - log_p.gather(1, next_entry[..., None].expand(-1, -1, process.classes))[:, 0].gather(1, value)[:, 0]
        )
        x = x.scatter(1, next_entry, value)
    return total


def order_agnostic_nll(
    denoiser: Denoiser, x0: Int64[Tensor, "batch ..."], source: Source, orders: int = 1, cond: Any = None
) -> Nats:
    """The expected `order_nll` over uniform orders, estimated with ``orders`` of them per sample; D calls each.

    It bounds ``-log p(x0)`` of the mixture of all orders, and is the continuous-time bound of the diffusion.
    """
    batch, entries = x0.flatten(1).shape
    nll = [order_nll(denoiser, x0, random_orders(batch, entries, source), cond) for _ in range(orders)]
    return torch.stack(nll).mean(0)


def order_agnostic_loss(denoiser: Classifier, x0: Int64[Tensor, "batch ..."], cond: Any, draws: Draws) -> Nats:
    """``(D / n) sum_masked -log p(x0 | x_t)`` with n uniform in 1..D: the same bound from one call per sample.

    `continuous_loss` estimates it, too; here the number of masked entries is what is uniform, not the time.

    Source: Hoogeboom et al. 2022, algorithm 2 (arXiv 2110.02037).
    """
    process = _absorbing(denoiser)
    flat = x0.flatten(1)
    entries = flat.shape[1]
    n = (draws.uniform((flat.shape[0],)) * entries).floor() + 1.0
    rank = draws.uniform(flat.shape).argsort(1).argsort(1)
    masked = rank < n[:, None]
    x_t = torch.where(masked, process.mask, flat).reshape(x0.shape)
    log_p = denoiser(x_t, n / entries, cond).double().log_softmax(-1).flatten(1, -2)
    entropies = torch.where(masked, -log_p.gather(-1, flat[..., None])[..., 0], 0.0)
    return entries / n * entropies.sum(1)


def _absorbing(denoiser: Denoiser) -> Absorbing:
    if not isinstance(denoiser.process, Absorbing):
        raise WorkbenchError(
            f"order-agnostic likelihood: got a denoiser of {denoiser.process}; expected one of an Absorbing process, "
            "whose states say which entries are known."
        )
    return denoiser.process
