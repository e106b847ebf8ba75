"""Classifier guidance: probabilities, the guided estimate, what is trained, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from diffusion_core.configure import plain
from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.noise import PerSample
from images import evaluate
from images.config import configuration
from images.model import assemble, sampling
from images.systems import Component
from images.systems.diffusion import Diffusion
from images.systems.noisy_classifier import ClassifierGuidance, NoisyEncoder
from tests.images.conftest import SMOKE


def build(parent: str = "ddpm", **more: object) -> Component:
    config = configuration([*SMOKE, "system=classifier_guidance"])
    config.system |= more
    config.parent_config = plain(configuration([*SMOKE, f"system={parent}"])) if parent else {}
    torch.manual_seed(0)
    return assemble(config, 10)


def awake(system: ClassifierGuidance) -> ClassifierGuidance:
    """Every weight random: the zeros of fresh networks hide errors."""
    generator = torch.Generator().manual_seed(1)
    for p in system.parameters():
        p.data = 0.2 * torch.randn(p.shape, generator=generator)
    system.classifier.head.weight.data *= 50.0
    return system


def noisy(n: int) -> torch.Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def test_probabilities_sum_to_one_and_the_null_label_says_nothing():
    system = awake(build())
    x, t = noisy(5), torch.full((5,), 0.3, dtype=torch.float64)
    every = torch.stack([system.log_prob(x, t, torch.full((5,), k)).exp() for k in range(10)])
    torch.testing.assert_close(every.sum(0), torch.ones(5))
    assert (every.std(0) > 1e-3).all()
    assert torch.equal(system.log_prob(x, t, torch.full((5,), 10)), torch.zeros(5))


def test_one_time_for_all_is_the_same_time_for_each():
    system, labels = awake(build()), torch.arange(4)
    each = system.log_prob(noisy(4), torch.full((4,), 0.7, dtype=torch.float64), labels)
    assert torch.equal(each, system.log_prob(noisy(4), torch.tensor(0.7, dtype=torch.float64), labels))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_guided_estimate_is_the_parents_moved_along_the_classifiers_gradient(scale):
    # x0_hat + scale sigma^2 / alpha grad log p(y | x_t): Dhariwal & Nichol's eps - scale sigma grad, as an image
    system, x, labels = awake(build()), noisy(3), torch.tensor([1, 4, 7])
    times = torch.tensor([0.4], dtype=torch.float64)
    schedule = system.parent.denoiser.schedule
    leaf = x.clone().requires_grad_()
    gradient = torch.autograd.grad(system.log_prob(leaf, times[0], labels).sum(), leaf)[0]
    with torch.no_grad():
        plain = system.parent.denoiser.bind(times)(x, 0)
        factor = float(scale * schedule.sigma(times)[0] ** 2 / schedule.alpha(times)[0])
        got = system.guided(labels, scale).bind(times)(x, 0)
    torch.testing.assert_close(got, plain + factor * gradient, atol=1e-5, rtol=1e-5)
    assert (factor * gradient).abs().max() > 1e-2


@pytest.mark.parametrize(("label", "scale"), [(3, 0.0), (10, 5.0)])
def test_without_scale_or_without_label_the_images_are_the_parents(label, scale):
    system = awake(build())
    how = replace(sampling(configuration([*SMOKE, "system=ddpm", "steps=4"])), guidance_scale=scale)
    labels = torch.full((3,), label)
    got = evaluate.generate(system, labels, how, seed=7)
    expected = system.parent.sample(labels, PerSample.from_seeds(range(7, 10)), replace(how, guidance_scale=1.0))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_the_classifier_learns_and_the_parent_stays():
    system = build()
    batch = {"image": noisy(32).sign(), "label": torch.arange(32) % 10}
    # the class is in the image: a learnable task
    batch["image"][:, 0, 0, :] = (batch["label"][:, None] > torch.arange(8)).float() * 2.0 - 1.0
    before = {name: p.clone() for name, p in system.parent.named_parameters()}
    optimizer = torch.optim.Adam([p for p in system.parameters() if p.requires_grad], 3e-3)
    losses = []
    for step in range(40):
        loss = system(batch, Draws(torch.Generator().manual_seed(step % 4))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    assert abs(losses[0] - 2.3026) < 0.5
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in system.parent.named_parameters())


def test_the_time_reaches_every_image_alone():
    network = awake(build()).classifier
    x, t = noisy(2), torch.tensor([0.2, 0.8])
    together = network(x, t)
    torch.testing.assert_close(together[1:], network(x[1:], t[1:]))
    assert (network(x, t.flip(0)) - together).abs().max() > 1e-3


def test_larger_images_are_seen_in_patches():
    network = NoisyEncoder(3, 16, 24, (16, 32), 2, patch=2)
    assert network.position.shape == (16, 32)
    assert network(torch.randn(2, 3, 16, 16), torch.rand(2)).shape == (2, 24)


def test_what_cannot_be_is_refused():
    with pytest.raises(WorkbenchError, match="system=ddpm"):
        build(parent="")
    with pytest.raises(WorkbenchError, match="told the label"):
        build(parent="conditional")
    with pytest.raises(WorkbenchError, match="divisible by 16"):
        build(widths=[8, 8, 8, 8, 8])
    with pytest.raises(WorkbenchError, match="guidance_scale"):
        awake(build()).guided(torch.zeros(1, dtype=torch.int64), float("nan"))


def test_a_checkpoint_holds_the_parent():
    system = build()
    assert isinstance(system, ClassifierGuidance) and isinstance(system.parent, Diffusion)
    assert isinstance(system.parent.denoiser.network, nn.Module)
    assert any(name.startswith("parent.") for name in system.state_dict())
