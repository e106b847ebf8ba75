"""Plans for class indices: rows that draw, where a Gaussian field's rows are linear.

What is drawn depends on the estimate through a softmax, so there is no table of coefficients; what does not depend on
it, the kernels of every row, is made before the loop, in float64 (``process.categorical.kernel`` says why).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.grid import Grid, check_grid
from diffusion_core.noise import Noise
from diffusion_core.plan import Advance, Plan
from diffusion_core.process.categorical.kernel import inverse_cdf, one_hot
from diffusion_core.process.categorical.process import Categorical
from diffusion_core.process.categorical.redraw import Absorbing


class Drawn(Plan):
    """A plan of one draw a row: every row evaluates, draws and ends a step."""

    @property
    def bound(self) -> Tensor:  # type: ignore[override]
        return self.times

    @property
    def ends_step(self) -> Bool[Tensor, " n"]:  # type: ignore[override]
        return torch.ones(len(self.times), dtype=torch.bool)

    @property
    def evaluates(self) -> Bool[Tensor, " n"]:  # type: ignore[override]
        return torch.ones(len(self.times), dtype=torch.bool)

    @property
    def noisy(self) -> bool:
        return True


@dataclass(frozen=True, eq=False)
class Ancestral(Drawn):
    """Each row draws ``x_s`` from ``sum_x0 p(x0 | x_t) q(x_s | x_t, x0)``, every entry for itself.

    Args:
        process: what the denoiser undoes.
        times: t of each row; more axes than one are times per sample or per token.
        reached: s of each row.
        through: r <= s of each row: it goes back to r and noises again to s.
        temperature: of ``p(x0 | x_t)``; 0 takes the likeliest class.
    """

    process: Categorical
    times: Float64[Tensor, "n *extra"]
    reached: Float64[Tensor, "n *extra"]
    through: Float64[Tensor, "n *extra"]
    temperature: float = 1.0

    def begin(self, x: Tensor, noise: Noise | None) -> Advance:
        source = _need(noise)
        t, s, r = (times.to(x.device) for times in (self.times, self.reached, self.through))
        reverse = [self.process.reverse(*pair) for pair in zip(t, r, strict=True)]
        again = [None if torch.equal(a, b) else self.process.kernel(a, b) for a, b in zip(s, r, strict=True)]

        def advance(x: Tensor, logits: Tensor, i: int) -> Tensor:
            probabilities = reverse[i].probabilities(_tempered(logits, self.temperature), x)
            forward = again[i]
            if forward is not None:
                probabilities = forward.push(probabilities)
            return inverse_cdf(probabilities, source.uniform(x.shape, torch.float64, x.device))

        return advance


def ancestral(
    process: Categorical, grid: Float64[Tensor, "n_plus_1 *extra"], churn: float = 0.0, temperature: float = 1.0
) -> Ancestral:
    """Draw from the reverse kernel, step by step along ``grid``.

    Entries are drawn independently of one another. So with an exact denoiser one entry has the right distribution at
    any number of steps; several have their joint one as the steps grow small, or one is drawn at a time (`reveal`).

    Args:
        process: what the denoiser undoes.
        grid: falling times; more axes than one are times per sample (n + 1, batch) or token.
        churn: 0 is plain ancestral sampling. With c each step goes on to ``r = (1 - c) s`` and is noised from there
            to s again, which leaves the marginals as they are and lets an entry be drawn anew. For absorbing states
            this is ReMDM's remasking with ``sigma_t = 1 - alpha_s / alpha_r`` (Wang et al. 2025, arXiv 2503.00307).
        temperature: of ``p(x0 | x_t)``; 0 takes the likeliest class.

    Source: Austin et al. 2021, eq. 3 (arXiv 2107.03006), by the posterior of x0 itself.
    """
    columns = grid.reshape(len(grid), -1)
    for k in range(columns.shape[1]):
        check_grid(columns[:, k])
    if not bool((columns.diff(dim=0) < 0.0).all()) or not 0.0 <= churn <= 1.0 or temperature < 0.0:
        raise WorkbenchError(
            f"ancestral sampling of classes: got churn={churn}, temperature={temperature} and a grid from "
            f"{float(columns[0, 0]):.6g} to {float(columns[-1, 0]):.6g}; expected churn in [0, 1], temperature >= 0 "
            "and falling times: noising draws at random and cannot be inverted."
        )
    return Ancestral(process, grid[:-1], grid[1:], (1.0 - churn) * grid[1:], temperature)


@dataclass(frozen=True, eq=False)
class Reveal(Drawn):
    """Each row fills in a fixed number of masked entries: in given orders, or the most confident ones first.

    Args:
        process: absorbing states.
        times, reached: t and s of each row.
        left: how many entries are still masked after each row.
        rank: (batch or 1, D) place of every entry in its order; None orders by confidence.
        temperature: of ``p(x0 | x_t)``; 0 takes the likeliest class.
        choice_temperature: how far confidence is blurred by Gumbel noise, times t; 0 not at all.
    """

    process: Absorbing
    times: Float64[Tensor, " n"]
    reached: Float64[Tensor, " n"]
    left: Int64[Tensor, " n"]
    rank: Int64[Tensor, "b d"] | None = None
    temperature: float = 1.0
    choice_temperature: float = 0.0

    def begin(self, x: Tensor, noise: Noise | None) -> Advance:
        source = _need(noise)
        left, blur = self.left.tolist(), (self.choice_temperature * self.times).tolist()
        fixed = None if self.rank is None else self.rank.to(x.device)

        def advance(x: Tensor, logits: Tensor, i: int) -> Tensor:
            flat = x.flatten(1)
            probabilities = _tempered(logits, self.temperature).softmax(-1).flatten(1, -2)
            drawn = inverse_cdf(probabilities, source.uniform(flat.shape, torch.float64, x.device))
            masked = flat == self.process.mask
            rank = fixed
            if rank is None:
                # the model's own, untempered: at temperature 0 all draws would be equally sure
                log_p = logits.double().log_softmax(-1).flatten(1, -2)
                confidence = log_p.gather(-1, drawn[..., None])[..., 0]
                if blur[i] > 0.0:
                    u = source.uniform(flat.shape, torch.float64, x.device)
                    confidence = confidence - blur[i] * (-torch.log1p(-u)).log()
                confidence = confidence.masked_fill(~masked, torch.inf)
                rank = confidence.argsort(dim=1, descending=True, stable=True).argsort(1)
            return torch.where(masked & (rank < flat.shape[1] - left[i]), drawn, flat).reshape(x.shape)

        return advance


def reveal(
    process: Absorbing,
    grid: Grid,
    entries: int,
    orders: Int64[Tensor, "b d"] | None = None,
    temperature: float = 1.0,
    choice_temperature: float = 0.0,
) -> Reveal:
    """Fill in masked entries so that ``(1 - alpha_t) entries``, rounded, are left at each time of ``grid``.

    With `grid.uniform` of as many steps as entries and a linear schedule this is autoregressive sampling, exact for
    an exact denoiser. By confidence (``orders=None``) it is MaskGIT's sampler, with ``Cosine(0)`` as there: a
    heuristic, which prefers likely samples.

    Args:
        process: absorbing states.
        grid: falling times, the last one 0.
        entries: how many a sample has.
        orders: (batch or 1, entries) entries in the order in which they are revealed, as for `orders.order_nll`.
        temperature: of ``p(x0 | x_t)``; 0 takes the likeliest class.
        choice_temperature: Gumbel noise on the confidence, times t.

    Source: Chang et al. 2022, section 3.2 (arXiv 2202.04200); Hoogeboom et al. 2022, algorithm 1 (arXiv 2110.02037).
    """
    check_grid(grid)
    if (orders is not None and orders.shape[1] != entries) or float(grid[0]) <= float(grid[-1]):
        raise WorkbenchError(
            f"revealing: got orders of {entries if orders is None else orders.shape[1]} entries for samples of "
            f"{entries} and a grid from {float(grid[0]):.6g} to {float(grid[-1]):.6g}; expected as many, falling times."
        )
    left = ((1.0 - process.schedule.alpha(grid[1:])) * entries).round().long()
    rank = None if orders is None else orders.argsort(1)
    return Reveal(process, grid[:-1], grid[1:], left, rank, temperature, choice_temperature)


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    """Logits in float64, divided by the temperature; at 0 all weight is on the first of the likeliest classes."""
    logits = logits.double()
    return logits / temperature if temperature > 0.0 else one_hot(logits.argmax(-1), logits.shape[-1]).log()


def _need(noise: Noise | None) -> Noise:
    if noise is None:
        raise WorkbenchError(
            "sampling: this solver draws classes and got noise=None; expected a diffusion_core.noise source."
        )
    return noise
