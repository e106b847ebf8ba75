"""Denoising diffusion GAN: each player learns from its own loss alone, and the chain is the posterior's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from diffusion_core import grid
from diffusion_core.distill import grid_pairs
from diffusion_core.distill.adversarial import denoising_duel, discriminator_loss, generator_loss
from diffusion_core.errors import WorkbenchError
from images.systems import Sampling
from images.systems.denoising_gan import DenoisingGan, Discriminator
from tests.images.systems.students import LABELS, batch, built, draws, noise, shaken


def gan(**own: object) -> DenoisingGan:
    torch.manual_seed(0)
    found = built(DenoisingGan, None, **({"latent": 4, "width": 8} | own))
    assert isinstance(found, DenoisingGan)
    shaken(found)
    return found


class Known(nn.Module):
    """A generator that knows the image, and counts what it is told."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.image, self.seen = image, list[tuple[float, tuple[str, ...]]]()

    def forward(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        self.seen.append((float(t[0]), tuple(sorted(cond))))
        return self.image.expand_as(x)


def gradients(module: nn.Module) -> list[Tensor]:
    found = [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in module.parameters()]
    module.zero_grad()
    return found


def test_each_player_learns_from_its_own_loss_alone():
    system, data = gan(), batch()
    cond = {"label": data["label"]}

    def duel():
        pairs = grid_pairs(grid.uniform(4))
        return denoising_duel(system.generate, system.schedule, data["image"], cond, draws(), pairs, 4)

    system(data, draws()).sum().backward()
    ours, theirs = gradients(system.generator), gradients(system.discriminator)
    # two players, two losses, the textbook's two steps
    generator_loss(system.discriminator, duel(), cond).sum().backward()
    expected = gradients(system.generator)
    system.zero_grad()
    discriminator_loss(system.discriminator, duel(), cond, r1_weight=system.r1_weight).sum().backward()
    for found, wanted in ((ours, expected), (theirs, gradients(system.discriminator))):
        assert max(float(w.abs().max()) for w in wanted) > 1e-4
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    assert all(float(g.abs().max()) == 0.0 for g in gradients(system.generator))


def test_a_generator_that_knows_the_image_ends_there_in_as_many_calls_as_steps():
    system = gan(steps=3)
    image = batch(1)["image"]
    system.generator = Known(torch.atanh(image))
    drawn = system.sample(LABELS, noise(), Sampling(steps=50))
    torch.testing.assert_close(drawn, image.expand(4, -1, -1, -1), atol=1e-6, rtol=0.0)
    assert [t for t, _ in system.generator.seen] == pytest.approx([1.0, 2 / 3, 1 / 3])
    assert {keys for _, keys in system.generator.seen} == {("label", "latent")}


def test_one_step_is_a_plain_generator_of_noise_and_latent():
    system, source = gan(steps=1), noise()
    x = source.normal((4, 1, 8, 8), torch.float32, torch.device("cpu"))
    z = source.normal((4, 4), torch.float32, torch.device("cpu"))
    with torch.no_grad():
        expected = system.generate(x, z, torch.ones(4, dtype=torch.float64), {"label": LABELS})
    torch.testing.assert_close(system.sample(LABELS, noise(), Sampling()), expected, atol=1e-6, rtol=0.0)


def test_the_latent_makes_the_answer_random_and_without_it_there_is_one():
    x_t, t = batch(4)["image"], torch.full((4,), 0.5, dtype=torch.float64)
    z = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    cond = {"label": LABELS}
    with torch.no_grad():
        several, one = gan(), gan(latent=0)
        assert (several.generate(x_t, z[0], t, cond) - several.generate(x_t, z[1], t, cond)).abs().max() > 1e-3
        assert torch.equal(one.generate(x_t, z[0], t, cond), one.generate(x_t, z[1], t, cond))
    one(batch(), draws()).sum().backward()
    assert one.sample(LABELS, noise(), Sampling()).shape == (4, 1, 8, 8)


@pytest.mark.parametrize("size", [5, 8, 16])
def test_the_discriminator_looks_at_all_it_is_given(size):
    torch.manual_seed(0)
    judge = Discriminator(1, size, 3, 8)
    generator = torch.Generator().manual_seed(0)
    x_s, x_t = torch.randn(2, 4, 1, size, size, generator=generator)
    t, s = torch.full((4,), 0.5, dtype=torch.float64), torch.full((4,), 0.25, dtype=torch.float64)
    x_s.requires_grad_(), x_t.requires_grad_()
    logits = judge(x_s, x_t, s, t, {"label": LABELS})
    assert logits.shape == (4,)
    slopes = torch.autograd.grad(logits[0], (x_s, x_t))
    for slope in slopes:
        # of its own sample every pixel, of the others' none: the gradient penalty counts on it
        assert (slope[0].abs() > 0.0).all() and float(slope[1:].abs().max()) == 0.0
    others = (judge(x_s, x_t, s, 1.5 * t, {"label": LABELS}), judge(x_s, x_t, s, t, {"label": (LABELS + 1) % 3}))
    assert all((other - logits).abs().max() > 1e-5 for other in others)


def test_a_discriminator_learns_to_tell_real_from_fake():
    system, data = gan(), batch()
    optimizer = torch.optim.Adam(system.discriminator.parameters(), lr=2e-3)
    found = []
    for step in range(60):
        optimizer.zero_grad()
        loss = system(data, draws(step % 4))
        found.append(float(loss.mean()))
        loss.mean().backward()
        optimizer.step()
        with torch.no_grad():
            cond = {"label": data["label"]}
    pairs = grid_pairs(grid.uniform(4))
    duel = denoising_duel(system.generate, system.schedule, data["image"], cond, draws(), pairs, 4)
    judged = discriminator_loss(system.discriminator, duel, cond, r1_weight=0.0)
    # chance is 2 log 2 = 1.39
    assert float(judged.mean()) < 0.7


def test_the_pace_changes_the_steps_of_the_generator_and_nothing_else():
    moves = []
    for pace in (1.0, 0.1):
        torch.manual_seed(0)
        system = built(DenoisingGan, None, latent=4, width=8, pace=pace)
        assert isinstance(system, DenoisingGan)

        def weights(part: nn.Module, scale: float) -> Tensor:
            return torch.cat([scale * p.detach().flatten() for p in part.parameters()])

        before = weights(system.generator, pace), weights(system.discriminator, 1.0)
        loss = system(batch(), draws()).mean()
        loss.backward()
        torch.optim.SGD(system.discriminator.parameters(), lr=1e-3).step()
        torch.optim.Adam(system.generator.parameters(), lr=1e-3, eps=1e-20).step()
        moved = weights(system.generator, pace) - before[0], weights(system.discriminator, 1.0) - before[1]
        moves.append((float(loss), before[0], *moved))
    (loss, start, ours, theirs), (slow_loss, slow_start, slow_ours, slow_theirs) = moves
    assert slow_loss == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(slow_start, start)
    torch.testing.assert_close(slow_theirs, theirs, atol=1e-7, rtol=1e-4)
    # the outlet begins with zeros: only its own weights have a gradient yet
    assert float(slow_ours.abs().max()) == pytest.approx(0.1 * float(ours.abs().max()), rel=1e-3)
    assert float(slow_ours.abs().sum()) == pytest.approx(0.1 * float(ours.abs().sum()), rel=0.02)


@pytest.mark.parametrize("own", [{"steps": 0}, {"latent": -1}, {"r1_weight": -0.1}, {"width": 0}, {"pace": 0.0}])
def test_impossible_values_are_refused(own):
    with pytest.raises(WorkbenchError, match=f"{next(iter(own))}={next(iter(own.values()))}"):
        gan(**own)
