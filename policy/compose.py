"""Composed policies: several that were trained on different data, what is unwanted, and costs made at test time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_core.denoise import Denoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts import Energy, Product, given, start
from diffusion_core.noise import Noise
from diffusion_core.sample import sample
from diffusion_core.solvers import Table
from policy.model import Observations, Policy

Cost = Callable[[Float[Tensor, "batch horizon action"], Observations], Float[Tensor, " batch"]]
"""``cost(actions, obs)``: of chunks in the environment's units, given what is observed; differentiable."""


@dataclass(frozen=True)
class Wish:
    """A cost and how much it weighs.

    Args:
        cost: in the environment's units.
        strength: factor of the cost: the density is multiplied by ``exp(-strength cost)``.
        through: see `diffusion_core.experts.Energy`.
    """

    cost: Cost
    strength: float = 1.0
    through: Literal["denoiser", "estimate"] = "estimate"


class Composition(nn.Module):
    """``prod_k p_k(chunk | obs)^w_k exp(-sum_j strength_j cost_j)``, used where a policy is.

    A weight below 0 is a negative prompt: the behaviour of that policy is avoided, as in ``p (p / q)^w``. All factors
    must be diffusions over the same normalised chunks: the later ones are trained with ``units=<run of the first>``.
    A product of noised densities is not the noised product (`diffusion_core.correct` has what that costs), and where
    its exponents do not sum to 1 the grid must begin a little below t = 1 (``grid.start=0.99``).

    Args:
        policies: of the same shape and units.
        weights: an exponent each.
        wishes: costs made at test time.

    Raises:
        WorkbenchError: policies that cannot be multiplied.

    Source: Wang et al. 2024, "PoCo: policy composition" (arXiv 2402.02511); classifier-free guidance with a negative:
    Ho & Salimans 2022 (arXiv 2207.12598).
    """

    def __init__(self, policies: Sequence[Policy], weights: Sequence[float], wishes: Sequence[Wish] = ()) -> None:
        super().__init__()
        if not policies or len(policies) != len(weights):
            raise WorkbenchError(
                f"composition: got {len(policies)} policies and {len(weights)} weights; expected a weight each."
            )
        self.policies = nn.ModuleList(policies)
        self.weights, self.wishes = list(weights), list(wishes)
        for i, other in enumerate(policies[1:], 1):
            _check(self.first, other, i)
        first = self.first
        self.horizon, self.n_obs_steps, self.n_action_steps = first.horizon, first.n_obs_steps, first.n_action_steps

    @property
    def first(self) -> Policy:
        """The policy whose process and units all others have."""
        found = self.policies[0]
        assert isinstance(found, Policy)
        return found

    @torch.no_grad()
    def plan(self, obs: Observations, table: Table | None, noise: Noise) -> Float[Tensor, "batch horizon action"]:
        """Draw one chunk per observation, in the environment's units; see `Policy.plan`."""
        if table is None:
            raise WorkbenchError("composition: got no solver's table; expected one: all its policies are diffusions.")
        density, low = self.density(obs), self.first.action_normalizer.low
        shape = (len(next(iter(obs.values()))), self.horizon, len(low) // self.horizon)
        z = noise.normal(shape, low.dtype, low.device)
        return self.first.actions(sample(density, table, start(density, z, float(table.times[0])), None, noise), obs)

    def density(self, obs: Observations) -> Denoiser:
        """The product for these observations."""
        whole: Any = None
        for policy, weight in zip(self.policies, self.weights, strict=True):
            assert isinstance(policy, Policy)
            factor = given(policy.denoiser, policy.condition(obs)) ** weight
            whole = factor if whole is None else whole * factor
        for wish in self.wishes:
            whole = whole * Energy(self._cost(wish, obs), through=wish.through) ** wish.strength
        assert isinstance(whole, Product)
        return whole

    def executed(self, chunk: Float[Tensor, "batch horizon action"]) -> Any:
        """See `Policy.executed`."""
        return self.first.executed(chunk)

    def seen(self, observation: Any) -> dict[str, Tensor]:
        """What every policy sees."""
        found: dict[str, Tensor] = {}
        for policy in self.policies:
            assert isinstance(policy, Policy)
            found |= policy.seen(observation)
        return found

    def _cost(self, wish: Wish, obs: Observations) -> Callable[[Tensor], Tensor]:
        first = self.first
        return lambda x0_hat: wish.cost(first.actions(x0_hat, obs), obs)


def _check(one: Policy, other: Policy, i: int) -> None:
    """Refuse a policy whose chunks are not the first one's."""
    for name in ("horizon", "n_obs_steps", "reference"):
        if getattr(one, name) != getattr(other, name):
            raise WorkbenchError(
                f"composition: policy {i} has {name}={getattr(other, name)}; expected {getattr(one, name)}."
            )
    same = all(
        torch.allclose(getattr(one.action_normalizer, end), getattr(other.action_normalizer, end))
        for end in ("low", "high")
    )
    if not same:
        raise WorkbenchError(
            f"composition: policy {i} has actions of other units than the first; expected the same scale: train it "
            "with units=<run of the first>."
        )
    times = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    if not torch.allclose(one.denoiser.schedule.log_snr(times), other.denoiser.schedule.log_snr(times)):
        raise WorkbenchError(f"composition: policy {i} has another schedule than the first; expected the same.")
