"""Defects of correctors, among them those of a published composition library."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from diffusion_core import correct
from diffusion_core.correct import Hmc, Mala, Ula
from tests.diffusion_core.test_correct import (
    Textbook,
    check_energy,
    check_mala,
    check_own,
    check_stationary,
    test_ula_is_stationary_at_its_closed_form,
)

Patch = pytest.MonkeyPatch


def none(patch: Patch) -> None:
    """The defect is in what the check is given."""


def one_decision_for_the_batch(patch: Patch) -> None:
    right = correct.accepts
    patch.setattr(correct, "accepts", lambda gain, uniform: right(gain.sum().expand_as(gain), uniform))


def momentum_updated_in_place(patch: Patch) -> None:
    # the start's momentum is the end's by the time its energy is taken
    patch.setattr(correct, "kinetic", lambda p: p.new_zeros(p.shape[0]))


def kinetic_energy_without_its_half(patch: Patch) -> None:
    patch.setattr(correct, "kinetic", lambda p: p.square().flatten(1).sum(1))


def always_accepted(patch: Patch) -> None:
    patch.setattr(correct, "accepts", lambda gain, uniform: torch.ones_like(gain, dtype=torch.bool))


def acceptance_upside_down(patch: Patch) -> None:
    right = correct.accepts
    patch.setattr(correct, "accepts", lambda gain, uniform: right(-gain, uniform))


def simpson_without_its_middle(patch: Patch) -> None:
    patch.setitem(correct.LOBATTO, 1, ((0.5,), (1.0 / 6.0, 1.0 / 3.0)))


def score_for_scaled_score(patch: Patch) -> None:
    right = correct.bind_pull

    def wrong(denoiser, times, cond):
        pull, sigmas = right(denoiser, times, cond)
        return (lambda x, i: pull(x, i) / sigmas[i] ** 2), sigmas

    patch.setattr(correct, "bind_pull", wrong)


DEFECTS: dict[str, tuple[Callable[[Patch], None], Callable[[], None]]] = {
    "MALA: 2 h for 4 h in the proposal's density": (none, lambda: check_stationary(Textbook(40, 0.5, spread=2.0))),
    "MALA: 2 h for 4 h, second implementation": (none, lambda: check_mala(Mala(10, 0.5), Textbook(10, 0.5, 2.0))),
    "MALA: accept summed over the batch": (one_decision_for_the_batch, lambda: check_own(Mala(3, 0.4))),
    "MALA: accept summed over the batch, law": (one_decision_for_the_batch, lambda: check_stationary(Mala(40, 0.5))),
    "MALA: accept without proposal densities": (momentum_updated_in_place, lambda: check_stationary(Mala(40, 0.5))),
    "MALA: accepts everything": (always_accepted, lambda: check_stationary(Mala(40, 0.5))),
    "MALA: accepts by the inverse": (acceptance_upside_down, lambda: check_stationary(Mala(40, 0.5))),
    "MALA: Simpson's rule": (simpson_without_its_middle, lambda: check_stationary(Mala(40, 0.5, 1))),
    "HMC: momentum in place": (momentum_updated_in_place, lambda: check_stationary(Hmc(25, 0.5, 4))),
    "HMC: momentum in place, energy": (momentum_updated_in_place, check_energy),
    "HMC: |p|^2 for |p|^2 / 2": (kinetic_energy_without_its_half, check_energy),
    "HMC: |p|^2 for |p|^2 / 2, law": (kinetic_energy_without_its_half, lambda: check_stationary(Hmc(25, 0.5, 4))),
    "ULA for MALA": (none, lambda: check_stationary(Ula(40, 0.5))),
    "ULA: step not in units of sigma^2": (
        score_for_scaled_score,
        lambda: test_ula_is_stationary_at_its_closed_form(0.5),
    ),
}
