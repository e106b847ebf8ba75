"""Defects of distillation losses, each with the check that guards against it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_core.distill import adversarial, consistency, estimate, jump, matching, process_of, score
from diffusion_core.distill.progressive import progressive_target
from diffusion_core.loss import Draws, denoising_loss
from diffusion_core.predict import align
from diffusion_core.schedule import Schedule
from tests.diffusion_core import test_distill_adversarial as adversarial_tests
from tests.diffusion_core import test_distill_consistency as consistency_tests
from tests.diffusion_core import test_distill_matching as matching_tests
from tests.diffusion_core import test_distill_progressive as progressive_tests
from tests.diffusion_core import test_distill_score as score_tests

Patch = pytest.MonkeyPatch


def none(patch: Patch) -> None:
    """The defect is in what the check is given."""


def denominator_without_the_ratio(teacher: Any, x_t: Tensor, t: Tensor, middle: Tensor, s: Tensor) -> Tensor:
    """``(x_s - (sigma_s / sigma_t) x_t) / alpha_s``: right at s = 0 and nowhere else."""
    schedule = process_of(teacher).schedule
    x_middle = jump(schedule, x_t, estimate(teacher, x_t, t), t, middle)
    x_s = jump(schedule, x_middle, estimate(teacher, x_middle, middle), middle, s)
    ratio, alpha_s = (align(c, x_t) for c in (schedule.sigma(s) / schedule.sigma(t), schedule.alpha(s)))
    return (x_s - ratio * x_t) / alpha_s


def second_estimate_at_the_first_sample(teacher: Any, x_t: Tensor, t: Tensor, middle: Tensor, s: Tensor) -> Tensor:
    """The teacher's second step starts where the first one started."""
    schedule = process_of(teacher).schedule
    ours = progressive_target(teacher, x_t, t, middle, s)
    x_middle = jump(schedule, x_t, estimate(teacher, x_t, t), t, middle)
    return ours + estimate(teacher, x_t, middle) - estimate(teacher, x_middle, middle)


def no_boundary(denoiser: Any, x_t: Tensor, t: Tensor, cond: object, t_min: float) -> Tensor:
    """f is the network's x0_hat."""
    return denoiser.x0_hat(x_t, t, cond)


def other_noise_for_the_second_sample(student: Any, x0: Tensor, cond: object, draws: Any, grid: Tensor, **plain: Any):
    """Training whose ``x_s`` has the data of ``x_t`` and a noise of its own."""
    other = draws.normals[0].flip(0)

    def solve(x_t: Tensor, t: Tensor, s: Tensor, cond: object) -> Tensor:
        return process_of(student).corrupt(x0, s, other)

    return consistency.consistency_distillation(student, solve, x0, cond, draws, grid, **plain)


def tangent_without_time(patch: Patch) -> None:
    """The derivative of f along x alone: its own time stands still."""
    right = torch.func.jvp

    def wrong(function: Any, at: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> Any:
        return right(function, at, (along[0], torch.zeros_like(along[1])))

    patch.setattr(torch.func, "jvp", wrong)


def sign_of_the_tangent(*arguments: Any) -> Tensor:
    """F moves with the change of f and so makes it larger: the value of the loss does not show it."""
    student, *_ = arguments
    right = consistency.continuous_consistency(*arguments)
    return right if not right.requires_grad else -right + 0.0 * sum(p.sum() for p in student.parameters())


def levels_for_their_logarithms(schedule: Schedule, grid: Tensor, draws: Draws, batch: int) -> tuple[Tensor, Tensor]:
    """The lognormal law read off log-SNR, twice too wide and upside down."""
    return consistency.lognormal_neighbours(schedule, grid, draws, batch, mean=2.2, std=4.0)


def penalty_at_the_fake(discriminator: Any, duel: Any, *rest: Any) -> Tensor:
    swapped = duel._replace(real=duel.fake.detach(), fake=duel.real)
    plain = rest[:2]
    right = adversarial.discriminator_loss(discriminator, duel, *plain)
    with_penalty = adversarial.discriminator_loss(discriminator, swapped, *rest)
    return right + with_penalty - adversarial.discriminator_loss(discriminator, swapped, *plain)


def posterior_with_prior_noise(patch: Patch) -> None:
    """x0 noised afresh to s, the pair's own x_t forgotten."""

    def wrong(process: Any, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor, noise: Tensor) -> Tensor:
        return process.corrupt(x0, s, noise)

    patch.setattr(adversarial, "posterior_sample", wrong)


def real_pair_noised_independently(patch: Patch) -> None:
    """Both from x0, each with its own noise: the joint law is lost, both marginals are right."""
    right = adversarial.Gaussian.forward

    def wrong(self: Any, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        alpha_ts, variance_ts = right(self, t, s)
        return 0.0 * alpha_ts, variance_ts + (alpha_ts * self.schedule.sigma(s)) ** 2

    patch.setattr(adversarial.Gaussian, "forward", wrong)


def teacher_steps_in_one(student: Any, teacher: Any, *rest: Any) -> Any:
    players = adversarial.teaching_duel(student, teacher, *rest)
    schedule = process_of(teacher).schedule
    real = jump(schedule, players.x_t, estimate(teacher, players.x_t, players.t), players.t, players.s)
    return players._replace(real=real)


def sign(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *arguments, **options: -loss(*arguments, **options)


def weight_without_alpha(schedule: Schedule, t: Tensor, x: Tensor, x0_hat: Tensor) -> Tensor:
    return 1.0 / (x - x0_hat).abs().flatten(1).mean(1)


def fake_that_moves_the_samples(fake: Any, x: Tensor, cond: object, draws: Draws) -> Tensor:
    return denoising_loss(fake, x, cond, draws)


def through_the_network(x: Tensor, cond: object, denoiser: Any, draws: Draws, times: Any) -> Tensor:
    """The squared error itself, with the network's own derivative in its gradient."""
    schedule, t = denoiser.schedule, times(draws, len(x))
    x_t = process_of(denoiser).corrupt(x, t, draws.normal(x.shape, x.dtype))
    error = (x.detach() - denoiser.x0_hat(x_t, t, cond)) ** 2
    return 0.5 * schedule.alpha(t) * schedule.sigma(t) * error.mean(1)


def eps_not_rewritten(x: Tensor, cond: object, denoiser: Any, draws: Draws, times: Any) -> Tensor:
    """The weight of the difference of eps on the difference of x0."""

    def weight(schedule: Schedule, t: Tensor, x: Tensor, x0_hat: Tensor) -> Tensor:
        return schedule.sigma(t) ** 2

    return score.sds(x, cond, denoiser, draws, times, weight)


def another_noise_for_the_source(*arguments: Any) -> Tensor:
    x, cond, source, source_cond, denoiser, draws = arguments
    return score.sds(x, cond, denoiser, draws) - score.sds(x + 0.0 * source, source_cond, denoiser, draws)


def conditions_swapped(x: Tensor, cond: object, uncond: object, denoiser: Any, draws: Draws) -> Tensor:
    return score.csd(x, uncond, cond, denoiser, draws)


DEFECTS: dict[str, tuple[Callable[[Patch], None], Callable[[], None]]] = {
    "progressive: denominator without the ratio": (
        none,
        lambda: progressive_tests.check_target(denominator_without_the_ratio),
    ),
    "progressive: second step from the first sample": (
        none,
        lambda: progressive_tests.check_target(second_estimate_at_the_first_sample),
    ),
    "consistency: no boundary": (none, lambda: consistency_tests.check_boundary(no_boundary)),
    "consistency: no boundary, in the loss": (
        lambda patch: patch.setattr(consistency, "consistency_function", no_boundary),
        consistency_tests.check_exact_map,
    ),
    "consistency: another sample's noise": (
        none,
        lambda: consistency_tests.check_training_is_distillation(other_noise_for_the_second_sample),
    ),
    "consistency: tangent without time": (tangent_without_time, consistency_tests.check_continuous),
    "consistency: sign of the tangent": (none, lambda: consistency_tests.check_limit(sign_of_the_tangent)),
    "consistency: levels for their logarithms": (
        none,
        lambda: consistency_tests.check_lognormal(levels_for_their_logarithms),
    ),
    "adversarial: penalty at the fake": (none, lambda: adversarial_tests.check_r1(penalty_at_the_fake)),
    "adversarial: fake forgets x_t": (posterior_with_prior_noise, adversarial_tests.check_denoising_duel),
    "adversarial: real pair independent": (real_pair_noised_independently, adversarial_tests.check_denoising_duel),
    "adversarial: hinge and logistic swapped": (
        lambda patch: patch.setattr(adversarial_tests, "HINGE", adversarial.NON_SATURATING),
        adversarial_tests.check_criteria,
    ),
    "adversarial: teacher takes one step": (none, lambda: adversarial_tests.check_teaching_duel(teacher_steps_in_one)),
    "matching: sign": (none, lambda: matching_tests.check_divergence(sign(matching.matching_loss))),
    "matching: weight without alpha": (none, lambda: matching_tests.check_weight(weight_without_alpha)),
    "matching: fake denoiser moves the samples": (
        none,
        lambda: matching_tests.check_fake_loss(fake_that_moves_the_samples),
    ),
    "score: through the network": (none, lambda: score_tests.check_no_gradient_through(through_the_network)),
    "score: weight of eps on x0": (none, lambda: score_tests.check_papers_eps(eps_not_rewritten)),
    "score: weight of eps on x0, mean": (none, lambda: score_tests.check_sds(eps_not_rewritten)),
    "score: sign": (none, lambda: score_tests.check_sds(sign(score.sds))),
    "score: DDS with two noises": (none, lambda: score_tests.check_dds(another_noise_for_the_source)),
    "score: CSD upside down": (none, lambda: score_tests.check_csd(conditions_swapped)),
}
