"""Defects of the algebra of experts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from diffusion_core.experts import Energy
from diffusion_core.process.gaussian import Gaussian, weighted_sum
from diffusion_core.schedule import Linear
from tests.diffusion_core.test_experts import (
    check_energy_through_the_denoiser,
    check_product_is_a_sum_of_scores,
    test_a_mixture_of_bare_denoisers_finds_its_shares_on_the_path,
    test_an_energy_of_the_noisy_sample_adds_its_gradient_to_the_score,
    test_conditions_of_one_denoiser_share_a_call_in_order,
)

Patch = pytest.MonkeyPatch


def estimates_are_summed_not_scores(patch: Patch) -> None:
    # right for guidance, whose exponents sum to 1, and wrong for every product: facts of two published libraries
    patch.setattr(Gaussian, "combine", lambda self, weights, times: weighted_sum(torch.zeros_like(times), weights))


def rest_is_not_divided_by_alpha(patch: Patch) -> None:
    patch.setattr(Gaussian, "combine", lambda self, weights, times: weighted_sum(1.0 - weights.sum(1), weights))


def energy_pushes_uphill(patch: Patch) -> None:
    right = Gaussian.tilt

    def wrong(self, times, of):
        tilted = right(self, times, of)
        return lambda x, estimate, gradient, i: tilted(x, estimate, -gradient, i)

    patch.setattr(Gaussian, "tilt", wrong)


def variance_for_deviation_on_the_path(patch: Patch) -> None:
    right = Gaussian.posterior

    def wrong(self, t, s):
        a, b, std = right(self, t, s)
        return a, b, std.sqrt()

    patch.setattr(Gaussian, "posterior", wrong)


def parts_in_the_wrong_order(patch: Patch) -> None:
    from diffusion_core.experts import batched

    right = batched._chunks
    patch.setattr(batched, "_chunks", lambda estimate, n: right(estimate, n)[::-1])


def none(patch: Patch) -> None:
    """The defect is in what the check is given."""


DEFECTS: dict[str, tuple[Callable[[Patch], None], Callable[[], None]]] = {
    "estimates summed instead of scores": (
        estimates_are_summed_not_scores,
        lambda: check_product_is_a_sum_of_scores(lambda a, b: a * b**0.7, Linear()),
    ),
    "rest not divided by alpha": (
        rest_is_not_divided_by_alpha,
        lambda: check_product_is_a_sum_of_scores(lambda a, b: a * b**0.7, Linear()),
    ),
    "energy uphill": (
        energy_pushes_uphill,
        lambda: test_an_energy_of_the_noisy_sample_adds_its_gradient_to_the_score(Linear()),
    ),
    "gradient stopped at the estimate": (
        none,
        lambda: check_energy_through_the_denoiser(lambda cost: Energy(cost, through="estimate")),
    ),
    "cost of x_t for x0_hat": (
        none,
        lambda: check_energy_through_the_denoiser(lambda cost: Energy(lambda x, t: cost(x), on="x_t")),
    ),
    "mixture for product": (none, lambda: check_product_is_a_sum_of_scores(lambda a, b: a | b, Linear())),
    "parts in the wrong order": (parts_in_the_wrong_order, test_conditions_of_one_denoiser_share_a_call_in_order),
    "path: variance for deviation": (
        variance_for_deviation_on_the_path,
        test_a_mixture_of_bare_denoisers_finds_its_shares_on_the_path,
    ),
}
