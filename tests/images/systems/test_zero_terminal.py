"""Zero terminal SNR: the schedule's ends, guidance in its limits, and digits in both polarities."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from diffusion_core import grid
from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.noise import PerSample
from diffusion_core.schedule import scaled_linear_betas
from diffusion_core.solvers import ddim
from images.data.sources import load
from images.model import assemble
from images.systems import Sampling
from images.systems.diffusion import Diffusion
from images.systems.zero_terminal import RescaledGuidance, latent_betas
from images.zoo import configuration

WORDS = ("task=digits_inverted", "preset=smoke", "network=unet2d_small", "system=zero_terminal")
TIMES = torch.linspace(0.0, 1.0, 11, dtype=torch.float64)


@pytest.fixture(scope="module")
def config():
    return configuration(WORDS)


@pytest.fixture
def system(config) -> RescaledGuidance:
    torch.manual_seed(0)
    built = assemble(config, 20)
    assert isinstance(built, RescaledGuidance)
    # a new network answers 0 to everything: let its last layer speak
    for parameter in built.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return built.eval()


def how(scale: float) -> Sampling:
    return Sampling(partial(ddim, eta=0.0), 4, partial(grid.trailing, 1000), scale)


def drawn(system, scale: float) -> torch.Tensor:
    labels = torch.tensor([0, 7, 13])
    return system.sample(labels, PerSample.from_seeds(range(3)), how(scale))


def test_rescaled_betas_leave_nothing_and_published_ones_what_latent_diffusion_leaves():
    plain, zero = latent_betas(64, rescale=False), latent_betas(64)
    torch.testing.assert_close(plain.alpha(TIMES), scaled_linear_betas().alpha(TIMES), rtol=0, atol=1e-12)
    assert float(plain.alpha(TIMES[-1:])) == pytest.approx(0.0047**0.5, rel=0.01)  # the paper's sqrt(alpha_bar_T)
    assert float(zero.alpha(TIMES[-1:])) == 0.0 and float(zero.sigma(TIMES[-1:])) == 1.0
    assert bool((zero.alpha(TIMES)[1:] < plain.alpha(TIMES)[1:]).all())


def test_a_smaller_image_keeps_as_much_of_its_mean():
    # signal to noise of the mean of size^2 pixels: alpha^2 / (sigma^2 / size^2)
    def of_mean(size: int) -> torch.Tensor:
        return latent_betas(size, rescale=False).log_snr(TIMES[1:]) + 2.0 * torch.tensor(float(size)).log()

    torch.testing.assert_close(of_mean(8), of_mean(64), rtol=0, atol=1e-6)


def test_the_configuration_follows_the_task_and_starts_at_the_last_step(config):
    assert config.schedule["size"] == config.task.size == 8 and config.prediction == "v"
    scenes = configuration(["task=scenes", "system=zero_terminal"])
    assert scenes.schedule["size"] == 16


def test_without_guidance_or_rescaling_it_is_the_diffusion(system):
    inner = system.diffusion
    assert isinstance(inner, Diffusion)
    torch.testing.assert_close(drawn(system, 1.0), drawn(inner, 1.0), rtol=0, atol=0)
    system.phi = 0.0
    torch.testing.assert_close(drawn(system, 3.0), drawn(inner, 3.0), rtol=0, atol=1e-4)
    system.phi = 0.7
    assert float((drawn(system, 3.0) - drawn(inner, 3.0)).abs().max()) > 1e-3


def test_the_loss_is_the_diffusions(system):
    batch = load(configuration(WORDS).task, "train").batch(torch.arange(6))
    losses = [of(batch, Draws(torch.Generator().manual_seed(1))) for of in (system, system.diffusion)]
    assert torch.equal(*losses) and losses[0].shape == (6,)


def test_every_digit_is_there_in_both_polarities():
    for split, n in (("train", 1297), ("test", 500)):
        both, plain = load(configuration(WORDS).task, split), load(configuration(["task=digits"]).task, split)
        assert len(both) == 2 * n and both.n_classes == 20 and both.classes[13] == "3 inverted"
        torch.testing.assert_close(both.images()[:n], plain.images(), rtol=0, atol=0)
        torch.testing.assert_close(both.images()[n:], -plain.images(), rtol=0, atol=0)
        assert torch.equal(both.labels, torch.cat([plain.labels, plain.labels + 10]))


@pytest.mark.parametrize(
    "words", [("system.phi=1.5", "got 1.5"), ("schedule.size=0", "got size=0"), ("prediction=eps", "x0 or v")]
)
def test_impossible_values_are_refused(words):
    override, said = words
    with pytest.raises(WorkbenchError, match=said):
        assemble(configuration([*WORDS, override]), 20)


def test_eps_is_good_enough_where_signal_is_left():
    assemble(configuration([*WORDS, "prediction=eps", "schedule.rescale=false"]), 20)
