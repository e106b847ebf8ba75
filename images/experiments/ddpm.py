"""DDPM: the simple loss against the bound, the two fixed variances, bits per dimension, and interpolation in noise."""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_core import grid, results, sample
from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.likelihood import Steps as Chain
from diffusion_core.likelihood import bits_per_dim, discretised, hutchinson, log_likelihood, probes, variational_bound
from diffusion_core.noise import PerSample
from diffusion_core.ode import integrate
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.report import ACCENT, MUTED, WARM, subplots
from diffusion_core.results import Estimate
from diffusion_core.solvers import ddim, ddpm
from images.data.pictures import Pictures
from images.experiments import panels
from images.lab import Lab, Report, Variant
from images.systems import Sampling
from images.systems.diffusion import Diffusion

N_TRAIN, CHAIN, STEPS = 1000, 200, 100


def gaussian_fit(data: Pictures, n: int) -> tuple[Float[Tensor, "n c h w"], torch.distributions.MultivariateNormal]:
    """``n`` draws of the Gaussian with the data's mean and covariance, and the Gaussian."""
    x = data.images().flatten(1).double()
    # dequantised, as for its likelihood: some pixels never change
    covariance = x.T.cov() + torch.eye(x.shape[1]).double() * (2.0 / data.levels) ** 2 / 12.0
    law = torch.distributions.MultivariateNormal(x.mean(0), covariance)
    eps = torch.randn(n, x.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (law.loc + eps @ law.scale_tril.T).float().reshape(n, *data.shape), law


def dequantised(data: Pictures, n: int) -> Tensor:
    """Held-out images, each level spread evenly over its bin, so that a density can be compared with probabilities."""
    images = data.images()[:n]
    u = torch.rand(images.shape, generator=torch.Generator().manual_seed(1)) - 0.5
    return images + u * bin_width(data)


def bin_width(data: Pictures) -> float:
    """Distance of two levels in [-1, 1]."""
    return 2.0 / (data.levels - 1)


def by_bound(model: Diffusion, data: Pictures, n: int) -> Estimate:
    """Bits per dimension by the variational bound of `CHAIN` steps, with the discretised decoder."""
    images, decoder = data.images()[:n], partial(discretised, levels=data.levels)
    chain = Chain(model.denoiser.schedule, grid.trailing(N_TRAIN, CHAIN), "large", decoder)
    found = variational_bound(model.denoiser, chain, images, torch.Generator().manual_seed(0))
    return results.mean(bits_per_dim(found.nats, images[0].numel()).tolist(), "bits/dim")


def by_flow(model: Diffusion, data: Pictures, n: int) -> Estimate:
    """Bits per dimension by the density along the probability flow, of dequantised images."""
    images = dequantised(data, n)
    trained = model.denoiser
    free = NetworkDenoiser(trained.network, trained.schedule, trained.prediction)
    directions = hutchinson(probes(images, torch.Generator().manual_seed(2)))
    found = log_likelihood(
        free, images, start=1.0 / N_TRAIN, divergence=directions, solve=partial(integrate, rtol=1e-3, atol=1e-3)
    )
    return results.mean(bits_per_dim(-found.nats, images[0].numel(), bin_width(data)).tolist(), "bits/dim")


def interpolated(model: Diffusion, a: Tensor, b: Tensor, at: int, steps: int = 7) -> Float[Tensor, "steps c h w"]:
    """From a to b: both noised to step ``at`` of 1,000, mixed there, and denoised.

    Source: Ho et al. 2020, section 4.3.
    """
    share = torch.linspace(0.0, 1.0, steps)[:, None, None, None]
    # one noise for both ends, so that what lies between is as noisy as they are
    noise = PerSample.from_seeds([5]).normal((1, *a.shape), torch.float32, a.device).expand(steps, -1, -1, -1)
    t = torch.full((steps,), at / N_TRAIN, dtype=torch.float64)
    x = Gaussian(model.denoiser.schedule).corrupt((1.0 - share) * a + share * b, t, noise)
    plan = ddim(model.denoiser.schedule, torch.linspace(at / N_TRAIN, 0.0, 51, dtype=torch.float64))
    return sample.sample(model.denoiser, plan, x)


def experiment(lab: Lab) -> Report:
    """FD and bits per dimension of both losses, both variances, and a Gaussian."""
    simple = lab.train("system=ddpm")
    bound = lab.train("system=ddpm", "system.objective=vlb", f"system.levels={lab.train_data.levels}")
    labels, n_bits = lab.labels(), min(100, lab.tier.n)
    drawn, law = gaussian_fit(lab.train_data, len(labels))
    nats = -law.log_prob(dequantised(lab.test_data, n_bits).flatten(1).double())
    gauss_bits = results.mean(bits_per_dim(nats, drawn[0].numel(), bin_width(lab.test_data)).tolist(), "bits/dim")
    variants = [Variant("Gaussian with the data's covariance", lab.measure(drawn) | {"flow": gauss_bits})]
    fd, bits, flow, samples = {"gaussian": variants[0].metrics["FD"]}, {}, {}, {}
    for name, trained in (("L_simple", simple), ("L", bound)):
        model = trained.component
        assert isinstance(model, Diffusion)
        bits[name], flow[name] = by_bound(model, lab.test_data, n_bits), by_flow(model, lab.test_data, n_bits)
        for variance in ("small", "large"):
            how = Sampling(partial(ddpm, variance=variance), STEPS, partial(grid.trailing, N_TRAIN))
            samples[name, variance] = lab.draw(trained, how, labels)
            metrics = lab.measure(samples[name, variance], copies=True)
            fd[f"{name}, {variance}"] = metrics["FD"]
            if variance == "small":
                metrics = metrics | {"bound": bits[name], "flow": flow[name]}
            variants.append(Variant(f"{name}, {variance} variance", metrics, [trained.command]))
    model = simple.component
    assert isinstance(model, Diffusion)
    real = lab.test_data.images()
    sheet = torch.stack([interpolated(model, real[0], real[7], at) for at in (125, 250, 500, 750, 1000)])
    figure, axes = subplots(2, 1, 5.5, 6.4)
    names = list(fd)
    axes[0, 0].barh(
        names,
        [fd[k].value for k in names],
        xerr=[fd[k].stderr for k in names],
        color=[MUTED, ACCENT, ACCENT, WARM, WARM],
    )
    axes[0, 0].invert_yaxis()
    axes[0, 0].set(xlabel=f"FD [{lab.judge}]", xscale="log")
    panels.sheet(
        axes[1, 0], sheet, [f"t = {at}" for at in (125, 250, 500, 750, 1000)], "Two held-out images, mixed at t"
    )
    ours = fd["L_simple, small"]
    return Report(
        title="DDPM",
        source="Ho, Jain & Abbeel 2020, Denoising Diffusion Probabilistic Models (arXiv 2006.11239)",
        idea="Predict the noise of a noised image; sum of squares, all times alike. Sampling undoes 1,000 small steps.",
        published="CIFAR-10: FID 3.17 and at most 3.75 bits/dim with L_simple; 13.51 and at most 3.70 with the bound "
        "L. Here "
        "100 of the 1,000 steps, and bits per dimension over the data's own levels by a chain of 200.",
        variants=variants,
        criterion="L_simple: FD below a fifth of the Gaussian's, and not above that of L; the bound of L not above "
        "that of "
        "L_simple; the flow's bits per dimension below the Gaussian's, and not above the bound.",
        shown=ours.value < 0.2 * fd["gaussian"].value
        and ours.value <= fd["L, small"].value
        and bits["L"].value <= bits["L_simple"].value
        and flow["L_simple"].value < min(gauss_bits.value, bits["L_simple"].value),
        verdict=f"FD: L_simple {ours.value:.2f}, L {fd['L, small'].value:.2f}, Gaussian {fd['gaussian'].value:.1f}. "
        f"Bits/dim by "
        f"the bound: L_simple {bits['L_simple'].value:.2f}, L {bits['L'].value:.2f}; by the flow "
        f"{flow['L_simple'].value:.2f} and "
        f"{flow['L'].value:.2f}; Gaussian {gauss_bits.value:.2f}.",
        samples=samples["L_simple", "small"],
        figure=figure,
    )
