"""Autoencoders of images, with a Gaussian or a discrete latent, and the discriminator they are trained against."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float, Int64
from torch import Tensor, nn

from diffusion_core.errors import WorkbenchError
from diffusion_core.nn.residual import Resample, ResidualBlock, convolution, group_norm

_FACTORS = (1, 2, 4, 8)


class KlAutoencoder(nn.Module):
    """Images to Gaussians of a smaller side, and back.

    The loss is the caller's: a reconstruction and ``KL(N(mean, exp(log_variance)) || N(0, 1))``.

    Args:
        channels: of the images.
        size: their side in pixels, divisible by ``factor``.
        factor: side of the images over side of the latents: 1, 2, 4 or 8.
        latent_channels: of the latents.
        widths: channels per resolution, finest first; the last stands for all coarser ones.
        blocks: residual blocks per resolution.

    Source: Rombach et al. 2022, section 3.1 (arXiv 2112.10752), without its attention.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        factor: int,
        latent_channels: int = 4,
        widths: Sequence[int] = (16, 32),
        blocks: int = 1,
    ) -> None:
        super().__init__()
        _require("KlAutoencoder", size, factor, widths, blocks, latent_channels)
        self.image_shape = (channels, size, size)
        self.latent_shape = (latent_channels, size // factor, size // factor)
        self.encoder = _encoder(channels, factor, 2 * latent_channels, widths, blocks)
        self.decoder = _decoder(channels, factor, latent_channels, widths, blocks)

    def encode(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch latent h w"], Float[Tensor, "batch latent h w"]]:
        """The latent's ``(mean, log_variance)``; the latter within [-30, 20], so that its exponential is finite."""
        _require_shape("encode", x, self.image_shape)
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def decode(self, z: Float[Tensor, "batch latent h w"]) -> Float[Tensor, "batch channels height width"]:
        """The image of a latent; not bounded to [-1, 1]."""
        _require_shape("decode", z, self.latent_shape)
        return self.decoder(z)


class VqAutoencoder(nn.Module):
    """Images to a grid of words from a learned book, and back.

    Args:
        codes: words in the book.
        commitment: weight of the encoder's share of the quantisation error.
        channels, size, factor, latent_channels, widths, blocks: as in `KlAutoencoder`.

    Source: van den Oord et al. 2017, section 3.2, eq. 3 (arXiv 1711.00937); the book learns by gradient.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        factor: int,
        latent_channels: int = 4,
        widths: Sequence[int] = (16, 32),
        blocks: int = 1,
        codes: int = 256,
        commitment: float = 0.25,
    ) -> None:
        super().__init__()
        _require("VqAutoencoder", size, factor, widths, blocks, latent_channels)
        if codes < 2 or commitment < 0.0:
            raise WorkbenchError(
                f"VqAutoencoder: got codes={codes}, commitment={commitment}; expected at least 2 codes and a weight "
                "that is not negative."
            )
        self.image_shape = (channels, size, size)
        self.latent_shape = (latent_channels, size // factor, size // factor)
        self.commitment = commitment
        self.encoder = _encoder(channels, factor, latent_channels, widths, blocks)
        self.book = nn.Embedding(codes, latent_channels)
        # as large as a fresh encoder's output: farther words would never be the nearest, and never learn
        nn.init.normal_(self.book.weight, std=0.3)
        self.decoder = _decoder(channels, factor, latent_channels, widths, blocks)

    def encode(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch latent h w"]:
        """The latent before it is quantised."""
        _require_shape("encode", x, self.image_shape)
        return self.encoder(x)

    def quantise(
        self, z: Float[Tensor, "batch latent h w"]
    ) -> tuple[Float[Tensor, "batch latent h w"], Int64[Tensor, "batch h w"], Float[Tensor, " batch"]]:
        """Replace every latent vector by the nearest word ``e``.

        Returns:
            z_q: the words, through which z receives the gradient of z_q (straight through);
            indices: of the words;
            error: ``mean (stop(z) - e)^2 + commitment (z - stop(e))^2`` per sample, to be added to the loss.
        """
        _require_shape("quantise", z, self.latent_shape)
        vectors = z.detach().movedim(1, -1)
        # |z|^2 is the same for every word
        distance = self.book.weight.square().sum(1) - 2.0 * (vectors @ self.book.weight.T)
        indices = distance.argmin(-1)
        words = self.look_up(indices)
        error = (z.detach() - words).square() + self.commitment * (z - words.detach()).square()
        return z + (words - z).detach(), indices, error.flatten(1).mean(1)

    def look_up(self, indices: Int64[Tensor, "batch h w"]) -> Float[Tensor, "batch latent h w"]:
        """The words of the indices, ready for `decode`."""
        return self.book(indices).movedim(-1, 1)

    def decode(self, z_q: Float[Tensor, "batch latent h w"]) -> Float[Tensor, "batch channels height width"]:
        """The image of a quantised latent; not bounded to [-1, 1]."""
        _require_shape("decode", z_q, self.latent_shape)
        return self.decoder(z_q)


class PatchDiscriminator(nn.Module):
    """``x -> (batch, 1, h, w)``: a logit of "real" for patches of ``5 * 2 ** layers - 2`` pixels, each seen alone.

    Args:
        channels: of the images.
        width: channels after the first convolution; doubled by every other.
        layers: strided convolutions, each of which halves the side.

    Source: Isola et al. 2017, section 3.2.2 (arXiv 1611.07004), without its batch norms, through which samples and
    patches would see each other.
    """

    def __init__(self, channels: int, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        if min(channels, width, layers) < 1:
            raise WorkbenchError(
                f"PatchDiscriminator: got channels={channels}, width={width}, layers={layers}; expected at least 1."
            )
        self.channels, self.smallest = channels, 2**layers
        widths = [channels, *(width * 2**i for i in range(layers))]
        parts: list[nn.Module] = []
        for inlet, outlet in pairwise(widths):
            parts += [nn.Conv2d(inlet, outlet, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*parts, convolution(widths[-1], 1))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 1 h w"]:
        if x.shape[1] != self.channels or min(x.shape[2:]) < self.smallest:
            raise WorkbenchError(
                f"PatchDiscriminator: got images of the shape {tuple(x.shape[1:])}; expected {self.channels} channels "
                f"and a side of at least {self.smallest}: build it for the data, or with fewer layers."
            )
        return self.layers(x)


def _encoder(channels: int, factor: int, outlet: int, widths: Sequence[int], blocks: int) -> nn.Sequential:
    used = _widths(factor, widths)
    parts: list[nn.Module] = [convolution(channels, used[0]), *_blocks(used[0], used[0], blocks)]
    for finer, coarser in pairwise(used):
        parts += [Resample(finer, "down"), *_blocks(finer, coarser, blocks)]
    return nn.Sequential(*parts, group_norm(used[-1]), nn.SiLU(), convolution(used[-1], outlet))


def _decoder(channels: int, factor: int, inlet: int, widths: Sequence[int], blocks: int) -> nn.Sequential:
    used = _widths(factor, widths)[::-1]
    parts: list[nn.Module] = [convolution(inlet, used[0]), *_blocks(used[0], used[0], blocks)]
    for coarser, finer in pairwise(used):
        parts += [Resample(coarser, "up"), *_blocks(coarser, finer, blocks)]
    return nn.Sequential(*parts, group_norm(used[-1]), nn.SiLU(), convolution(used[-1], channels))


def _widths(factor: int, widths: Sequence[int]) -> list[int]:
    """Of every resolution from the images' to the latents'."""
    return [widths[min(level, len(widths) - 1)] for level in range(factor.bit_length())]


def _blocks(inlet: int, outlet: int, blocks: int) -> list[nn.Module]:
    return [ResidualBlock(outlet if i else inlet, outlet) for i in range(blocks)]


def _require(name: str, size: int, factor: int, widths: Sequence[int], blocks: int, latent_channels: int) -> None:
    if factor not in _FACTORS or size < factor or size % factor:
        raise WorkbenchError(
            f"{name}: got size={size}, factor={factor}; expected a factor among {_FACTORS} that divides the size."
        )
    if not widths or min(*widths, blocks, latent_channels) < 1:
        raise WorkbenchError(
            f"{name}: got widths={list(widths)}, blocks={blocks}, latent_channels={latent_channels}; expected at "
            "least one of each."
        )


def _require_shape(name: str, x: Tensor, expected: tuple[int, int, int]) -> None:
    if x.shape[1:] != expected:
        raise WorkbenchError(
            f"{name}: got the shape {tuple(x.shape[1:])}; expected {expected}: build the autoencoder for the data."
        )
