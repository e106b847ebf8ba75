"""Defects of particle weights and resampling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diffusion_core import particles
from diffusion_core.particles import Resampling, offspring
from tests.diffusion_core.test_particles import (
    check_cost,
    check_counts,
    check_path,
    check_unbiased,
    test_a_group_does_not_depend_on_the_others,
    test_resampling_is_triggered_by_each_groups_own_effective_size,
)

Patch = pytest.MonkeyPatch
ALWAYS = Resampling(1.1)


def none(patch: Patch) -> None:
    """The defect is in what the check is given."""


def heaviest_only(weights: Tensor, uniform: Tensor, method: str) -> Tensor:
    return weights.argsort(1, descending=True).clamp(max=2)


def one_late(weights: Tensor, uniform: Tensor, method: str) -> Tensor:
    return (offspring(weights, uniform, method) + 1) % weights.shape[1]


def places_from_the_lower_end(weights: Tensor, uniform: Tensor, method: str) -> Tensor:
    """Every stratum looked up at its beginning."""
    return offspring(weights, torch.zeros_like(uniform), method)


def kernel_forgotten(patch: Patch) -> None:
    patch.setattr(particles._Kernel, "log_density", lambda self, x_s, x_t, x0_hat, i: x_s.new_zeros(x_s.shape[0]))


def normal_without_its_constant(patch: Patch) -> None:
    patch.setattr(particles, "_log_normal", lambda x, std: -0.5 * (x / std).square().flatten(1).sum(1))


def normalizer_of_the_last_weights_only(patch: Patch) -> None:
    patch.setattr(particles, "_log_mean", lambda log_weights: torch.zeros_like(log_weights[:, 0]))


def exponents_taken_to_sum_to_one(patch: Patch) -> None:
    patch.setattr(particles, "_exponents", lambda denoiser, times: [1.0] * len(times))


def groups_mixed(patch: Patch) -> None:
    patch.setattr(particles, "_rows", lambda chosen: chosen.flatten())


def effective_share_of_all(patch: Patch) -> None:
    right = particles.effective_share
    patch.setattr(particles, "effective_share", lambda w: right(w).mean().expand(len(w)))


def noise_cooled_in_one_kernel_only(patch: Patch) -> None:
    patch.setattr(particles._Kernel, "log_density", hot_density)


def hot_density(self: particles._Kernel, x_s: Tensor, x_t: Tensor, x0_hat: Tensor, i: int) -> Tensor:
    return particles._log_normal(x_s - self.mean(x_t, x0_hat, i), 2.0**0.5 * self.std[i])


DEFECTS: dict[str, tuple[Callable[[Patch], None], Callable[[], None]]] = {
    "resampling: the heaviest only": (none, lambda: check_counts(heaviest_only)),
    "resampling: off by one": (none, lambda: check_counts(one_late)),
    "resampling: no randomness": (none, lambda: check_counts(places_from_the_lower_end)),
    "density: kernel's density forgotten": (kernel_forgotten, check_unbiased),
    "density: kernel's density of other noise": (noise_cooled_in_one_kernel_only, check_unbiased),
    "density: Gaussian without its constant": (normal_without_its_constant, check_unbiased),
    "density: normaliser dropped at resampling": (
        normalizer_of_the_last_weights_only,
        lambda: check_unbiased(resampling=ALWAYS),
    ),
    "path: exponents that sum to one": (exponents_taken_to_sum_to_one, lambda: check_path((0.9, 0.4))),
    "path: the cost's pull not weighed": (kernel_forgotten, check_cost),
    "groups: rows of the first": (groups_mixed, lambda: test_a_group_does_not_depend_on_the_others("density")),
    "groups: one trigger for all": (
        effective_share_of_all,
        lambda: test_a_group_does_not_depend_on_the_others("path"),
    ),
    "trigger: never": (
        lambda patch: patch.setattr(particles, "effective_share", lambda w: torch.ones_like(w[:, 0])),
        test_resampling_is_triggered_by_each_groups_own_effective_size,
    ),
}
