"""Denoising diffusion GAN: four steps that need not be Gaussian."""

from __future__ import annotations

from functools import partial

from diffusion_core.report import ACCENT, MUTED, WARM, subplots
from diffusion_core.results import Estimate
from diffusion_core.solvers import ddim, ddpm
from images.lab import Lab, Report, Variant
from images.systems import Sampling


def experiment(lab: Lab) -> Report:
    """Four steps of the GAN, with and without its latent, against four of a diffusion."""
    base, labels = lab.train("system=conditional"), lab.labels()
    rate = "train.learning_rate=0.0005"
    gan = lab.train("system=denoising_gan", rate)
    blind = lab.train("system=denoising_gan", "system.latent=0", rate)
    found: dict[str, dict[str, Estimate]] = {}
    variants = []
    for name, solver in (("DDPM, 4 steps", ddpm), ("DDIM, 4 steps", partial(ddim, eta=0.0))):
        found[name] = lab.measure(lab.draw(base, Sampling(solver, 4), labels), labels)
        variants.append(Variant(name, found[name], [base.command]))
    samples = lab.draw(gan, labels=labels)
    found["GAN, 4 steps"] = lab.measure(samples, labels)
    variants.append(Variant("GAN, 4 steps", found["GAN, 4 steps"], [gan.command]))
    found["GAN, no latent"] = lab.measure(lab.draw(blind, labels=labels), labels)
    variants.append(Variant("GAN, no latent", found["GAN, no latent"], [blind.command]))
    fd = {name: m["FD"].value for name, m in found.items()}
    figure, axes = subplots(1, 2, 8.0, 2.8)
    colours = [MUTED, MUTED, ACCENT, WARM]
    for axis, metric in zip(axes[0], ("FD", "recall"), strict=True):
        values = [m[metric] for m in found.values()]
        axis.barh(list(found), [e.value for e in values], xerr=[e.stderr for e in values], color=colours)
        axis.invert_yaxis()
        axis.set(xlabel=f"{metric} [{lab.judge}]")
    axes[0, 1].set_yticklabels([])
    recall = {name: m["recall"].value for name, m in found.items()}
    return Report(
        title="Denoising diffusion GAN",
        source="Xiao, Kreis & Vahdat 2022, Tackling the Generative Learning Trilemma with Denoising Diffusion GANs "
        "(arXiv 2112.07804)",
        idea="In a large step back p(x_s | x_t) has many modes; a generator with a latent is taught by a "
        "discriminator to draw "
        "from it.",
        published="CIFAR-10: FID 3.75, recall 0.57 in 4 steps, as we remember it. Here both are told the class.",
        variants=variants,
        criterion="In 4 steps a lower FD than DDPM and DDIM with the same network and number of updates.",
        shown=fd["GAN, 4 steps"] < min(fd["DDPM, 4 steps"], fd["DDIM, 4 steps"]),
        verdict="FD in 4 steps: "
        + ", ".join(f"{name.removesuffix(', 4 steps')} {value:.2f}" for name, value in fd.items())
        + f"; recall of the GAN {recall['GAN, 4 steps']:.2f}, without its latent {recall['GAN, no latent']:.2f}.",
        samples=samples,
        figure=figure,
    )
