"""Latent diffusion: the losses of its first stage, the scale of its latents, and its limit without an encoder."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from diffusion_core.draws import Draws
from diffusion_core.ema import Ema
from diffusion_core.errors import WorkbenchError
from diffusion_core.nn.unet2d import UNet2d
from diffusion_core.noise import PerSample
from diffusion_core.solvers import ddim
from images.systems import Parts, Sampling
from images.systems.autoencoder import Autoencoder
from images.systems.diffusion import Diffusion
from images.systems.latent import LatentDiffusion

# of 1 x 1 pixels a group norm needs two channels per group
NETWORK = partial(UNet2d, widths=(16, 16), attention=(4,), heads=1, time_dim=16)
PARTS = Parts(shape=(1, 8, 8), n_classes=3, build_network=NETWORK)
HOW = Sampling(partial(ddim, eta=0.0), 3)
LABELS = torch.tensor([0, 1, 2, 0])


def draws(seed: int = 0) -> Draws:
    return Draws(torch.Generator().manual_seed(seed))


def noise(first: int = 0, n: int = 4) -> PerSample:
    return PerSample.from_seeds(range(first, first + n))


def batch(n: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {"image": torch.rand(n, 1, 8, 8, generator=generator) * 2 - 1, "label": torch.arange(n) % 3}


def first_stage(**keywords: object) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(PARTS, widths=(8, 16), **keywords)  # type: ignore[arg-type]


def latent(parent: Autoencoder) -> LatentDiffusion:
    torch.manual_seed(1)
    system = LatentDiffusion(Parts(PARTS.shape, 3, NETWORK, parent=parent))
    for parameter in system.diffusion.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return system


class Identity(nn.Module):
    """An autoencoder that does nothing, without variance."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.full_like(x, -30.0)

    def decode(self, z: Tensor) -> Tensor:
        return z


def test_the_loss_of_kl_is_the_squared_error_and_the_divergence_per_pixel():
    x = batch()["image"]
    heavy, light = first_stage(kl_weight=2.0), first_stage(kl_weight=0.0)
    mean, log_variance = heavy.model.encode(x)
    q = Normal(mean, (0.5 * log_variance).exp())
    divergence = kl_divergence(q, Normal(0.0, 1.0)).flatten(1).sum(1) / 64
    difference = heavy(batch(), draws()) - light(batch(), draws())
    torch.testing.assert_close(difference, 2.0 * divergence, rtol=1e-5, atol=1e-6)
    z = mean + q.scale * draws().normal(mean.shape)
    error = (light.model.decode(z) - x).square().flatten(1).mean(1)
    torch.testing.assert_close(light(batch(), draws()), error, rtol=1e-6, atol=1e-7)


def test_the_loss_of_vq_is_the_squared_error_and_that_of_the_words():
    x, system = batch()["image"], first_stage(kind="vq", codes=8)
    z_q, indices, error = system.model.quantise(system.encode(x))
    expected = (system.model.decode(z_q) - x).square().flatten(1).mean(1) + error
    torch.testing.assert_close(system(batch(), draws()), expected)
    words = system.model.look_up(indices)
    torch.testing.assert_close(system.decode(words), system.decode(words + 1e-4), rtol=0, atol=1e-4)
    torch.testing.assert_close(system.reconstructed(x), system.model.decode(words), rtol=0, atol=1e-4)


def check_contest(system: Autoencoder) -> None:
    """Each player's gradient is that of its own loss alone."""
    assert system.discriminator is not None
    x = batch()["image"]
    decoded = system.reconstructed(x).requires_grad_()
    system.contest(x, decoded).sum().backward()
    theirs = [p.grad.clone() for p in system.discriminator.parameters() if p.grad is not None]
    through = decoded.grad
    assert through is not None and theirs
    real, fake = system.discriminator(x), system.discriminator(decoded.detach())
    own = (torch.relu(1.0 - real) + torch.relu(1.0 + fake)).flatten(1).mean(1).sum()
    for got, expected in zip(theirs, torch.autograd.grad(own, list(system.discriminator.parameters())), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    again = decoded.detach().requires_grad_()
    (expected,) = torch.autograd.grad(-system.discriminator(again).flatten(1).mean(1).sum(), again)
    torch.testing.assert_close(through, expected, rtol=0, atol=1e-6)


def test_in_the_contest_each_player_holds_the_other_one_still():
    check_contest(first_stage(adversarial=0.5))
    system = first_stage(adversarial=0.5)
    total = system(batch(), draws())
    decoded, regular = system.trained_on(batch()["image"], draws())
    alone = (decoded - batch()["image"]).square().flatten(1).mean(1) + regular
    torch.testing.assert_close(total - alone, 0.5 * system.contest(batch()["image"], decoded), rtol=0, atol=1e-5)


def test_where_nothing_is_encoded_it_is_the_diffusion_of_pixels():
    parent = first_stage(factor=1, latent_channels=1)
    parent.model = Identity()  # type: ignore[assignment]
    system = latent(parent)
    system.scale.fill_(1.0)
    pixels = system.diffusion
    assert torch.equal(system(batch(), draws()), pixels(batch(), draws()))
    assert torch.equal(system.sample(LABELS, noise(), HOW), pixels.sample(LABELS, noise(), HOW))


def test_the_scale_is_measured_on_the_first_batch_and_stays():
    parent = first_stage()
    system = latent(parent)
    assert float(system.scale) == 0.0
    system(batch(64), draws())
    z = parent.encode(batch(64)["image"])
    assert float((system.scale * z).std()) == pytest.approx(1.0, abs=1e-5)
    kept = system.scale.clone()
    system(batch(2), draws())
    assert torch.equal(system.scale, kept)
    average = Ema().shadow(latent(parent))
    Ema().update(average, system, 1)
    assert torch.equal(average.state_dict()["scale"], kept)
    resumed = latent(parent)
    resumed.load_state_dict(system.state_dict())
    assert torch.equal(resumed(batch(), draws()), system(batch(), draws()))


def test_another_scale_of_the_latents_is_another_parent_and_the_same_images():
    """An encoder times c with a decoder by c leaves losses and samples as they are."""
    parent, c = first_stage(), 7.0
    system, scaled = latent(parent), latent(parent)
    system(batch(), draws())

    class Scaled(nn.Module):
        def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
            mean, log_variance = model.encode(x)
            return c * mean, log_variance

        def decode(self, z: Tensor) -> Tensor:
            return model.decode(z / c)

    model = parent.model
    other = first_stage()
    other.model = Scaled()  # type: ignore[assignment]
    scaled.parent = other
    torch.testing.assert_close(scaled(batch(), draws()), system(batch(), draws()), rtol=1e-4, atol=1e-4)
    found = scaled.sample(LABELS, noise(), HOW)
    torch.testing.assert_close(found, system.sample(LABELS, noise(), HOW), rtol=0, atol=1e-3)


def test_only_the_diffusion_is_trained_and_both_are_saved():
    system = latent(first_stage())
    system(batch(), draws()).mean().backward()
    assert all(p.grad is None and not p.requires_grad for p in system.parent.parameters())
    assert any(p.grad is not None and float(p.grad.abs().max()) > 0.0 for p in system.diffusion.parameters())
    assert {"scale"} < system.state_dict().keys() and any(k.startswith("parent.model.") for k in system.state_dict())


@pytest.mark.parametrize("kind", ["kl", "vq"])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_every_compression_draws_images_of_the_tasks_size(kind, factor):
    system = latent(first_stage(kind=kind, factor=factor))
    system(batch(), draws())
    images = system.sample(LABELS, noise(), HOW)
    assert images.shape == (4, 1, 8, 8) and not images.requires_grad
    torch.testing.assert_close(images[1:2], system.sample(LABELS[1:2], noise(1, 1), HOW), rtol=0, atol=1e-4)


@pytest.mark.parametrize("keywords", [{"kind": "kl"}, {"kind": "vq"}, {"kind": "kl", "adversarial": 0.1}])
def test_the_loss_falls_in_a_few_steps(keywords):
    system = first_stage(**keywords)
    optimizer = torch.optim.AdamW(system.parameters(), lr=3e-3)
    flat = torch.linspace(-1.0, 1.0, 16)[:, None, None, None].expand(16, 1, 8, 8)
    errors = []
    for step in range(30):
        loss = system({"image": flat}, draws(step)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float((system.reconstructed(flat) - flat).square().mean()))
    assert errors[-1] < 0.6 * errors[0]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: first_stage(kind="gan"), "system.kind: got 'gan'"),
        (lambda: first_stage(kl_weight=-1.0), "kl_weight=-1.0"),
        (lambda: first_stage(factor=3), "factor=3"),
        (lambda: LatentDiffusion(PARTS), "parent: got none; expected an autoencoder"),
        (lambda: LatentDiffusion(Parts((1, 8, 8), 3, NETWORK, parent=Diffusion(PARTS))), "parent: got Diffusion"),
        (lambda: latent(first_stage(factor=8)), "UNet2d: got size=1"),
    ],
)
def test_what_cannot_be_is_refused(make, said):
    with pytest.raises(WorkbenchError, match=said):
        make()
