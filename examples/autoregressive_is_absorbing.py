"""One network, two views: masked diffusion trained once is an autoregressive model in every order.

Bars on an 8 x 8 grid, horizontal or vertical, each on or off by a coin. Give a file name to save samples: bars.png.
"""

import math
import sys

import torch
from torch import nn

from diffusion_core import grid
from diffusion_core.denoise.classifier import Classifier
from diffusion_core.loss import Draws
from diffusion_core.noise import Shared
from diffusion_core.process.categorical import Absorbing
from diffusion_core.process.categorical.elbo import continuous_loss
from diffusion_core.process.categorical.orders import order_agnostic_loss, order_agnostic_nll, order_nll, random_orders
from diffusion_core.sample import sample
from diffusion_core.schedule import RectifiedFlow
from diffusion_core.solvers.categorical import ancestral, reveal

SIDE = 8
# in nats: 2 * 2^8 equally likely draws, but all off and all on are each drawn by both orientations
ENTROPY = (508 * 9 + 2 * 2 * 8) / 512 * math.log(2.0)


class Network(nn.Module):
    """Logits of every pixel from all pixels, each 0, 1 or MASK. It does not look at t: an exact denoiser never does."""

    def __init__(self, width=16, depth=4):
        super().__init__()
        self.first, self.last = nn.Embedding(3, width), nn.Linear(width, 2)
        self.mix = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(depth))

    def forward(self, x_t, t, cond):
        h = self.first(x_t)
        for layer in self.mix:
            means = [h.mean(axes, keepdim=True).expand_as(h) for axes in (1, 2, (1, 2))]
            h = h + nn.functional.silu(layer(torch.cat([h, *means], -1)))
        return self.last(h)


def bars(n, generator):
    lines = torch.randint(2, (n, SIDE, 1), generator=generator).expand(-1, -1, SIDE)
    return torch.where(torch.rand(n, 1, 1, generator=generator) < 0.5, lines.mT, lines)


def share_of_bars(x):
    return ((x == x[:, :, :1]).all((1, 2)) | (x == x[:, :1]).all((1, 2))).double().mean().item()


def main(figure=None, steps=1200):
    torch.manual_seed(0)  # the initial weights; everything else is drawn from a generator
    generator = torch.Generator().manual_seed(1)
    process = Absorbing(RectifiedFlow(), classes=2)
    denoiser = Classifier(Network(), process)
    optimizer = torch.optim.Adam(denoiser.parameters())
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        order_agnostic_loss(denoiser, bars(64, generator), None, Draws(generator)).mean().backward()
        optimizer.step()
        decay.step()

    n, entries, raster = 256, SIDE**2, torch.arange(SIDE**2)[None]
    test, noise = bars(n, generator), Shared(generator)
    with torch.no_grad():
        diffusion = torch.stack([continuous_loss(denoiser, test, None, Draws(generator)) for _ in range(64)]).mean(0)
    nats = {
        "diffusion bound": diffusion,
        "random orders": order_agnostic_nll(denoiser, test, Draws(generator)),
        "raster order": order_nll(denoiser, test, raster),
    }
    found = {name: (value.mean().item(), value.std().item() / math.sqrt(n)) for name, value in nats.items()}
    each = grid.uniform(entries)
    plans = {
        "diffusion, 64 steps": ancestral(process, each),
        "diffusion, 8 steps": ancestral(process, grid.uniform(8)),
        "raster, one pixel a step": reveal(process, each, entries, raster),
        "random, one pixel a step": reveal(process, each, entries, random_orders(n, entries, Draws(generator))),
    }
    samples = {name: sample(denoiser, p, torch.full_like(test, process.mask), noise=noise) for name, p in plans.items()}
    if figure:
        from matplotlib import pyplot as plt

        _, axes = plt.subplots(len(samples), 1, figsize=(8, 5), layout="constrained")
        for axis, (name, x) in zip(axes, samples.items(), strict=True):
            axis.imshow(nn.functional.pad(x[:12].float(), (1, 1, 1, 1), value=0.5).mT.flatten(0, 1).mT, cmap="gray_r")
            axis.set(title=f"{name}: {share_of_bars(x):.0%} are bars", xticks=[], yticks=[])
        plt.savefig(figure, dpi=120)
    return found, {name: share_of_bars(x) for name, x in samples.items()}


if __name__ == "__main__":
    nll, shares = main(*sys.argv[1:])
    lines = [f"entropy of the data: {ENTROPY:.3f} nats"]
    lines += [f"{name}: {mean:.3f} +- {stderr:.3f} nats" for name, (mean, stderr) in nll.items()]
    print("\n".join(lines + [f"{name}: {share:.1%} are bars" for name, share in shares.items()]))
