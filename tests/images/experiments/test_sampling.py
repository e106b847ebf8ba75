"""DDIM, predictions, zero terminal SNR, rectified flow: what they measure is right, and every row can be written."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib import import_module
from itertools import pairwise

import pytest
import torch

from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.schedule import Cosine, linear_betas
from diffusion_core.solvers import ddpm
from images.evaluate import judge_of
from images.experiments import ddim, panels, predictions, rectified_flow, zero_terminal
from images.lab import TIERS, Lab
from images.metrics import frechet_distance
from images.reference import write
from images.systems import Parts
from images.systems.diffusion import Diffusion


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    smoke = TIERS["smoke"]
    few = replace(smoke, words=(*smoke.words, "train.steps=10"), n=20)
    return Lab(few, tmp_path_factory.mktemp("zoo"))


class Gaussian(torch.nn.Module):
    """The exact noise estimate for images of independent Gaussian pixels."""

    def __init__(self, schedule, mean: float = -0.4, std: float = 0.3) -> None:
        super().__init__()
        self.schedule, self.mean, self.std = schedule, mean, std

    def forward(self, x, t, cond=None):
        alpha, sigma = (f(t.double())[:, None, None, None].float() for f in (self.schedule.alpha, self.schedule.sigma))
        return sigma * (x - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)


def exact(schedule) -> Diffusion:
    parts = Parts((1, 8, 8), 0, lambda **_: Gaussian(schedule), schedule, "eps", 1.0)
    return Diffusion(parts, conditional=False)


def test_an_image_comes_back_the_better_the_more_steps_and_its_noise_is_the_exact_one():
    schedule = linear_betas()
    x0 = -0.4 + 0.3 * torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = exact(schedule)
    errors = []
    for steps in (50, 100, 200, 400):
        back = ddim.there_and_back(model, x0, steps)[1]
        errors.append(float((back - x0).square().mean().sqrt()))
    # first order: half the error with twice the steps
    assert all(1.85 < a / b < 2.1 for a, b in pairwise(errors)), errors
    # the flow of a Gaussian keeps quantiles: its width is sqrt(alpha^2 s^2 + sigma^2) at the first step and at the last
    ends = torch.tensor([0.001, 1.0], dtype=torch.float64)
    alpha, width = schedule.alpha(ends), (schedule.alpha(ends) ** 2 * 0.09 + schedule.sigma(ends) ** 2).sqrt()
    flow = alpha[1] * -0.4 + (x0.double() - alpha[0] * -0.4) * width[1] / width[0]
    coarse, fine = (float((ddim.there_and_back(model, x0, n)[0] - flow).abs().max()) for n in (100, 200))
    assert fine < 0.6 * coarse and fine < 0.1


def test_psnr_is_its_definition():
    x = torch.zeros(3, 1, 4, 4)
    found = ddim.psnr(x + 0.02, x)
    assert found.value == pytest.approx(10.0 * math.log10(4.0 / 0.0004), abs=1e-4) and found.n == 3


def test_slerp_keeps_its_ends_and_the_length_of_noise():
    a, b = torch.randn(2, 4, 1, 16, 16, generator=torch.Generator().manual_seed(0)).unbind()
    torch.testing.assert_close(ddim.slerp(a, b, 0.0), a)
    torch.testing.assert_close(ddim.slerp(a, b, 1.0), b)
    b = b * (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1))[:, None, None, None]
    middle = ddim.slerp(a, b, 0.3)
    torch.testing.assert_close(middle.flatten(1).norm(dim=1), a.flatten(1).norm(dim=1))


def test_eta_one_is_ancestral_sampling_and_the_same_noise_is_the_same_image():
    schedule = linear_betas()
    one, other = (ddim.how(name, 10).table(schedule) for name in ("DDPM (eta = 1)", "DDPM, large noise"))
    ancestral = ddpm(schedule, ddim.grid.trailing(1000, 10))
    for name in ("x", "estimate", "noise"):
        torch.testing.assert_close(getattr(one, name), getattr(ancestral, name), rtol=0, atol=1e-12)
    assert bool((other.noise[:-1] > one.noise[:-1]).all())
    model, start = exact(schedule), torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(2, dtype=torch.long)
    images = [model.sample(labels, ddim.Fixed(start), ddim.how("DDIM (eta = 0)", n)) for n in (100, 200, 400)]
    coarse, fine = (float((a - b).square().mean().sqrt()) for a, b in pairwise(images))
    assert 1.7 < coarse / fine < 2.3 and fine < 0.01


def test_an_exact_model_has_the_posterior_error_and_only_eps_is_refused():
    schedule = Cosine()
    images = -0.4 + 0.3 * torch.randn(400, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = exact(schedule)
    model.denoiser.clip = None
    labels = torch.zeros(400, dtype=torch.long)
    for t in (0.2, 0.7):
        alpha, sigma = (float(f(torch.tensor(t, dtype=torch.float64))) for f in (schedule.alpha, schedule.sigma))
        expected = 0.3 * sigma / math.sqrt(alpha**2 * 0.09 + sigma**2)
        found = predictions.error_of_x0(model, images, labels, t)
        assert abs(found.value - expected) < 4 * found.stderr
    assert "eps prediction: at t=1" in predictions.refusal(model)
    for kind in ("x0", "v"):
        model.denoiser = NetworkDenoiser(model.denoiser.network, schedule, kind)
        assert predictions.refusal(model) == ""


def test_a_straight_path_has_no_bend_and_a_half_circle_that_of_its_formula():
    a, b = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()
    share = torch.linspace(0.0, 1.0, 65, dtype=torch.float64)
    line = a + share[:, None, None, None, None] * (b - a)
    assert float(rectified_flow.bend(line).max()) < 1e-20
    # halfway round a circle of radius 1 at constant speed: mean |v - c|^2 / |c|^2 = pi^2 / 4 - 1
    angle = math.pi * torch.linspace(0.0, 1.0, 2001, dtype=torch.float64)
    circle = torch.stack([angle.cos(), angle.sin()], 1).reshape(-1, 1, 1, 1, 2)
    assert float(rectified_flow.bend(circle)) == pytest.approx(math.pi**2 / 4 - 1, rel=1e-5)
    along, aside = rectified_flow.plane(circle[:, 0])
    assert along[0] == 0.0 and along[-1] == pytest.approx(1.0) and max(aside) == pytest.approx(0.5, rel=1e-6)


def test_the_brightness_error_is_the_shift_and_nothing_between_equals():
    generator = torch.Generator().manual_seed(0)
    images = 0.2 * torch.randn(300, 1, 1, 1, generator=generator) + torch.zeros(300, 1, 4, 4)
    assert zero_terminal.brightness_error(images, images).value == 0.0
    shifted = zero_terminal.brightness_error(images + 0.1, images)
    assert shifted.value == pytest.approx(0.1, abs=1e-3) and 0.005 < shifted.stderr < 0.03
    both = torch.cat([images * 0 - 0.4, images * 0 + 0.4])
    assert zero_terminal.brightness_error(torch.zeros_like(both), both).value == pytest.approx(0.4, abs=1e-3)


def test_inverted_digits_are_turned_back_for_the_judge(lab):
    data = zero_terminal.load(replace(lab_task(lab), name="digits_inverted", source="digits_inverted"), "test")
    images, labels = zero_terminal.upright(lab, data, data.images(), data.labels)
    torch.testing.assert_close(images, lab.test_data.images().repeat(2, 1, 1, 1), rtol=0, atol=0)
    assert torch.equal(labels, lab.test_data.labels.repeat(2))


def lab_task(lab: Lab):
    return lab.train("system=ddpm").config.task


def test_a_sheet_shows_every_image_where_it_belongs():
    from diffusion_core.report import subplots

    images = torch.linspace(-1.0, 1.0, 6).reshape(2, 3, 1, 1, 1).expand(2, 3, 1, 4, 4)
    figure, axes = subplots(1, 1, 2.0, 2.0)
    panels.sheet(axes[0, 0], images, ["a", "b"], "title")
    pixels = axes[0, 0].images[0].get_array()
    assert pixels.shape == (9, 14)
    assert [int(pixels[r, c]) for r in (1, 6) for c in (1, 6, 11)] == [0, 51, 102, 153, 204, 255]
    import matplotlib.pyplot as plt

    plt.close(figure)


ROWS = {"ddim": 15, "predictions": 16, "zero_terminal": 7, "rectified_flow": 16}


@pytest.mark.parametrize("name", ROWS)
def test_the_experiment_makes_its_row(name, lab, tmp_path, monkeypatch):
    judge = judge_of(lab_task(lab))[1]
    real = judge(lab.test_data.images())[0]
    monkeypatch.setattr(ddim, "STEPS", (5, 10, 20, 50))
    monkeypatch.setattr(ddim, "FINE", 25)
    # all of Lab.measure, seventeen times, would be most of this test
    monkeypatch.setattr(lab, "measure", lambda x, labels=None: {"FD": frechet_distance(judge(x)[0], real, resamples=2)})
    report = import_module(f"images.experiments.{name}").experiment(lab)
    write(report, lab, name, tmp_path / name, 1.0)
    row = json.loads((tmp_path / name / "row.json").read_text())
    assert len(row["variants"]) == ROWS[name] and row["task"] == "digits"
    assert all(
        v["commands"][0].startswith("python -m images.train task=digits") for v in row["variants"] if v["commands"]
    )
    assert "FD" in row["variants"][0]["metrics"] and row["verdict"] and len(report.samples) >= 20
    assert {p.name for p in (tmp_path / name).iterdir()} == {"row.json", "samples.png", "figure.png"}
