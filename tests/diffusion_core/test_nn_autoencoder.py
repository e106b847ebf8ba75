"""Autoencoders: sizes, the words' arithmetic and gradients, the discriminator's patches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from diffusion_core.errors import WorkbenchError
from diffusion_core.nn.autoencoder import KlAutoencoder, PatchDiscriminator, VqAutoencoder
from tests.diffusion_core.networks import awake, digits, overfit

CODES, LATENT = 16, 3


def kl(factor: int = 2, **arguments: object) -> KlAutoencoder:
    torch.manual_seed(0)
    return awake(KlAutoencoder(2, 8, factor, LATENT, widths=(8, 12), **arguments))


def vq(factor: int = 2, **arguments: object) -> VqAutoencoder:
    torch.manual_seed(0)
    return awake(VqAutoencoder(2, 8, factor, LATENT, widths=(8, 12), codes=CODES, **arguments))


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("blocks", [1, 2])
def test_the_latent_s_side_is_the_image_s_over_the_factor(factor, blocks):
    latent = (LATENT, 8 // factor, 8 // factor)
    gaussian, discrete = kl(factor, blocks=blocks), vq(factor, blocks=blocks)
    mean, log_variance = gaussian.encode(images())
    assert mean.shape == log_variance.shape == (3, *latent) and gaussian.latent_shape == latent
    assert gaussian.decode(mean).shape == images().shape
    z_q, indices, error = discrete.quantise(discrete.encode(images()))
    assert z_q.shape == (3, *latent) and indices.shape == (3, *latent[1:]) and error.shape == (3,)
    assert discrete.decode(z_q).shape == images().shape


def unreached(network: nn.Module) -> list[str]:
    return [key for key, p in network.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]


def test_a_gradient_reaches_every_weight():
    gaussian, discrete, patch = kl(), vq(), awake(PatchDiscriminator(2, 4))
    mean, log_variance = gaussian.encode(images())
    (gaussian.decode(mean).square().sum() + log_variance.square().sum()).backward()
    z_q, _, error = discrete.quantise(discrete.encode(images()))
    (discrete.decode(z_q).square().sum() + error.sum()).backward()
    patch(images()).square().sum().backward()
    assert not unreached(gaussian) + unreached(discrete) + unreached(patch)


def test_samples_are_alone():
    gaussian, discrete, patch = kl(), vq(), awake(PatchDiscriminator(2, 4))
    order = torch.tensor([2, 0, 1])
    for of in (
        lambda x: torch.cat(gaussian.encode(x), 1),
        lambda x: gaussian.decode(gaussian.encode(x)[0]),
        lambda x: discrete.decode(discrete.quantise(discrete.encode(x))[0]),
        lambda x: discrete.quantise(discrete.encode(x))[2],
        patch,
    ):
        torch.testing.assert_close(of(images()[order]), of(images())[order], rtol=1e-12, atol=1e-12)


def test_the_log_variance_can_be_exponentiated():
    network = kl()
    with torch.no_grad():
        network.encoder[-1].bias[LATENT:] += 1e6
    assert bool((network.encode(images())[1] == 20.0).all())
    with torch.no_grad():
        network.encoder[-1].bias[LATENT:] -= 2e6
    assert bool((network.encode(images())[1] == -30.0).all())


def test_the_nearest_word_is_taken():
    network = vq()
    z = torch.randn(5, LATENT, 4, 4, dtype=torch.float64)
    z_q, indices, _ = network.quantise(z)
    distance = (z.movedim(1, -1)[..., None, :] - network.book.weight).square().sum(-1)
    assert torch.equal(indices, distance.argmin(-1))
    torch.testing.assert_close(z_q, network.look_up(indices), rtol=1e-14, atol=1e-14)


def test_every_word_can_be_reached():
    network = vq()
    every = torch.arange(CODES).reshape(1, 4, 4)
    _, indices, error = network.quantise(network.look_up(every).detach())
    assert torch.equal(indices, every) and float(error.detach()) < 1e-28


def test_the_latent_receives_the_gradient_of_its_word():
    network = vq()
    z = network.encode(images()).detach().requires_grad_(True)
    z_q, indices, _ = network.quantise(z)
    (straight,) = torch.autograd.grad(network.decode(z_q).square().sum(), z)
    word = network.look_up(indices).detach().requires_grad_(True)
    (expected,) = torch.autograd.grad(network.decode(word).square().sum(), word)
    torch.testing.assert_close(straight, expected, rtol=1e-10, atol=1e-10)
    # the reconstruction does not move the book: the error does
    z_q, _, _ = network.quantise(z)
    assert torch.autograd.grad(z_q.sum(), network.book.weight, allow_unused=True) == (None,)


@pytest.mark.parametrize("commitment", [0.25, 2.0])
def test_the_error_pulls_words_to_latents_and_latents_to_words(commitment):
    network = vq(commitment=commitment)
    z = torch.randn(5, LATENT, 4, 4, dtype=torch.float64, requires_grad=True)
    _, indices, error = network.quantise(z)
    gap = (z - network.look_up(indices)).detach()
    torch.testing.assert_close(error.detach(), (1.0 + commitment) * gap.square().mean((1, 2, 3)))
    of_z, of_book = torch.autograd.grad(error.sum(), (z, network.book.weight))
    count = LATENT * 4 * 4
    torch.testing.assert_close(of_z, 2.0 * commitment * gap / count)
    expected = torch.zeros_like(of_book).index_add_(
        0, indices.flatten(), -2.0 / count * gap.movedim(1, -1).flatten(0, 2)
    )
    torch.testing.assert_close(of_book, expected)


def test_eight_digits_are_learned_by_heart():
    x = digits(8)
    torch.manual_seed(0)
    gaussian, discrete = KlAutoencoder(1, 8, 2, widths=(8, 16)), VqAutoencoder(1, 8, 2, widths=(8, 16))
    assert overfit(lambda: (gaussian.decode(gaussian.encode(x)[0]) - x).square().mean(), gaussian, rate=1e-2) < 0.1

    def loss() -> Tensor:
        z_q, _, error = discrete.quantise(discrete.encode(x))
        return (discrete.decode(z_q) - x).square().mean() + error.mean()

    assert overfit(loss, discrete, rate=1e-2) < 0.1


@pytest.mark.parametrize(("layers", "patch"), [(1, 8), (2, 18)])
def test_a_logit_sees_the_patch_it_was_promised(layers, patch):
    network = awake(PatchDiscriminator(2, 4, layers))
    x = torch.randn(1, 2, 32, 32, dtype=torch.float64, requires_grad=True)
    logits = network(x)
    side = 32 // 2**layers
    assert logits.shape == (1, 1, side, side)
    (gradient,) = torch.autograd.grad(logits[0, 0, side // 2, side // 2], x)
    seen = (gradient[0].abs().sum(0) > 0).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [patch, patch]


@pytest.mark.parametrize("build", [KlAutoencoder, VqAutoencoder])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factor": 3}, r"got size=8, factor=3; expected a factor among \(1, 2, 4, 8\) that divides the size"),
        ({"size": 6, "factor": 4}, "got size=6, factor=4"),
        ({"widths": ()}, r"got widths=\[\]"),
        ({"blocks": 0}, "blocks=0"),
        ({"latent_channels": 0}, "latent_channels=0"),
    ],
)
def test_an_autoencoder_that_cannot_be_built_is_refused(build, arguments, message):
    with pytest.raises(WorkbenchError, match=message):
        build(**({"channels": 2, "size": 8, "factor": 2} | arguments))


def test_a_book_of_one_word_and_a_negative_weight_are_refused():
    for arguments in ({"codes": 1}, {"commitment": -1.0}):
        with pytest.raises(WorkbenchError, match="expected at least 2 codes and a weight that is not negative"):
            VqAutoencoder(2, 8, 2, **arguments)
    with pytest.raises(WorkbenchError, match="PatchDiscriminator: got channels=2, width=32, layers=0"):
        PatchDiscriminator(2, layers=0)


def test_images_of_another_size_are_refused():
    for network in (kl(), vq()):
        with pytest.raises(WorkbenchError, match=r"encode: got the shape \(2, 4, 4\); expected \(2, 8, 8\)"):
            network.encode(images()[..., :4, :4])
        with pytest.raises(WorkbenchError, match=r"decode: got the shape \(2, 8, 8\); expected \(3, 4, 4\)"):
            network.decode(images())
    with pytest.raises(WorkbenchError, match="expected 3 channels and a side of at least 4"):
        PatchDiscriminator(3).double()(images())
