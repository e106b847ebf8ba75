"""The cascade: what the network is told, where the noise of the small image comes from, and what it is the limit of."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from diffusion_core import grid, sample
from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.nn.unet2d import UNet2d
from diffusion_core.noise import PerSample
from diffusion_core.schedule import Cosine
from diffusion_core.solvers import ddim, heun
from images.systems import Parts, Sampling
from images.systems.cascade import Cascade, blurred
from images.systems.diffusion import Diffusion
from images.systems.low_res import LowRes

NETWORK = partial(UNet2d, widths=(8, 16), attention=(4,), heads=1, time_dim=16)
PARTS = Parts(shape=(1, 8, 8), n_classes=3, build_network=NETWORK)
HOW = Sampling(partial(ddim, eta=0.0), 4)
LABELS = torch.tensor([0, 1, 2, 0, 1])


def shaken(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights that are not zero, so that the network's output is not."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module


def base(parts: Parts = PARTS) -> LowRes:
    found = shaken(LowRes(parts))
    assert isinstance(found, LowRes)
    return found


def cascade(parts: Parts = PARTS, **keywords: object) -> Cascade:
    with_base = Parts(parts.shape, parts.n_classes, parts.build_network, parent=base(parts))
    made = Cascade(with_base, **keywords)  # type: ignore[arg-type]
    shaken(made.denoiser, 1)
    return made


def noise(first: int = 0, n: int = 5) -> PerSample:
    return PerSample.from_seeds(range(first, first + n))


def draws(seed: int = 0) -> Draws:
    return Draws(torch.Generator().manual_seed(seed))


def batch(n: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {"image": torch.rand(n, 1, 8, 8, generator=generator) * 2 - 1, "label": torch.arange(n) % 3}


def test_the_base_is_a_diffusion_of_averaged_images():
    system, data = base(), batch()
    small = data["image"].reshape(5, 1, 4, 2, 4, 2).mean((3, 5))
    torch.testing.assert_close(system.shrink(data["image"]), small, rtol=0, atol=1e-6)
    alone = system.diffusion(data | {"image": system.shrink(data["image"])}, draws())
    assert torch.equal(system(data, draws()), alone)
    assert system.sample(LABELS, noise(), HOW).shape == (5, 1, 8, 8)


def test_enlarging_keeps_the_mean_of_even_images():
    system = base()
    flat = torch.full((1, 1, 4, 4), 0.3)
    torch.testing.assert_close(system.enlarge(flat), torch.full((1, 1, 8, 8), 0.3))


@pytest.mark.parametrize("solver", [partial(ddim, eta=0.0), heun])
def test_a_truncated_base_stops_on_the_way_of_the_whole_one(solver):
    system, how = base(), Sampling(solver, 4)
    whole = system.diffusion.sample(LABELS, noise(), how)
    assert torch.equal(system.draw_small(LABELS, noise(), how), whole)
    z = noise().normal((5, 1, 4, 4), torch.float32, torch.device("cpu"))
    table = solver(system.diffusion.denoiser.schedule, grid.uniform(4))
    states = sample.trajectory(system.diffusion.denoiser, table, z, system.diffusion.condition(LABELS))
    reached = {round(float(state.t), 6): state.x for state in states}
    torch.testing.assert_close(system.draw_small(LABELS, noise(), how, until=0.5), reached[0.5], rtol=0, atol=1e-5)
    torch.testing.assert_close(system.draw_small(LABELS, noise(), how, until=1.0), z, rtol=0, atol=1e-6)


def test_at_level_0_the_network_is_told_the_small_image_itself_and_at_level_1_nothing_of_it():
    system = cascade()
    small = system.parent.shrink(batch()["image"])
    eps = torch.randn(small.shape, generator=torch.Generator().manual_seed(0))
    clean = system.condition(small, torch.zeros(5, dtype=torch.float64), eps, LABELS)
    torch.testing.assert_close(clean["image"], system.parent.enlarge(small), rtol=0, atol=1e-6)
    system.level = 1.0
    enhanced = [system.enhance(image, LABELS, noise(), HOW) for image in (small, -small)]
    torch.testing.assert_close(*enhanced, rtol=0, atol=1e-4)
    system.level = 0.0
    enhanced = [system.enhance(image, LABELS, noise(), HOW) for image in (small, -small)]
    assert float((enhanced[0] - enhanced[1]).abs().mean()) > 0.01


def test_the_level_and_the_noise_of_the_condition_belong_together():
    system = cascade()
    small = torch.full((4000, 1, 4, 4), 0.5)
    s = torch.full((4000,), 0.3, dtype=torch.float64)
    eps = torch.randn(small.shape, generator=torch.Generator().manual_seed(0))
    z_s = system.condition(small, s, eps, torch.zeros(4000, dtype=torch.long))["image"]
    # the corner of a bilinear enlargement is the corner's own pixel
    corner, schedule, t = z_s[:, 0, 0, 0].double(), Cosine(), torch.tensor(0.3, dtype=torch.float64)
    sigma = float(schedule.sigma(t))
    assert abs(float(corner.mean()) - 0.5 * float(schedule.alpha(t))) < 4.5 * sigma / 4000**0.5
    assert abs(float(corner.std()) / sigma - 1.0) < 4.5 / (2 * 4000) ** 0.5


def test_training_never_shows_a_level_beyond_the_largest():
    seen: list[Tensor] = []
    for largest in (0.0, 0.25):
        system = cascade(max_level=largest, level=0.0)
        system.denoiser.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]["level"]))
        system(batch(64), draws())
        assert float(seen[-1].max()) <= largest
    assert float(seen[-1].max()) > 0.15 and float(seen[-1].min()) < 0.1


def test_only_the_second_half_is_trained_and_both_are_saved():
    system = cascade(blur=0.5)
    system(batch(), draws()).mean().backward()
    assert all(p.grad is None and not p.requires_grad for p in system.parent.parameters())
    assert any(p.grad is not None and float(p.grad.abs().max()) > 0.0 for p in system.denoiser.parameters())
    assert any(name.startswith("parent.diffusion.") for name in system.state_dict())


def test_a_large_image_does_not_depend_on_its_batch():
    for augmentation in ("non_truncated", "truncated"):
        system = cascade(augmentation=augmentation, level=0.3)
        together = system.sample(LABELS, noise(), HOW)
        alone = system.sample(LABELS[2:3], noise(2, 1), HOW)
        torch.testing.assert_close(together[2:3], alone, rtol=0, atol=1e-5)


def test_guidance_changes_the_image_and_scale_1_is_none():
    system = cascade()
    plain = system.sample(LABELS, noise(), HOW)
    assert torch.equal(plain, system.sample(LABELS, noise(), Sampling(HOW.solver, 4, guidance_scale=1.0)))
    guided = system.sample(LABELS, noise(), Sampling(HOW.solver, 4, guidance_scale=3.0))
    assert float((guided - plain).abs().max()) > 1e-3


def test_without_classes_there_is_no_label():
    parts = Parts(shape=(1, 8, 8), n_classes=0, build_network=NETWORK)
    system = cascade(parts)
    data = batch() | {"label": torch.zeros(5, dtype=torch.long)}
    assert torch.isfinite(system(data, draws())).all()
    images = system.sample(torch.zeros(5, dtype=torch.long), noise(), Sampling(HOW.solver, 2, guidance_scale=2.0))
    assert torch.isfinite(images).all()


def test_blur_is_the_convolution_with_a_gaussian():
    images = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.4, 0.6])
    found = blurred(images, sigma)
    for image, width, got in zip(images, sigma, found, strict=True):
        distance = torch.tensor([[2.0, 1.0, 2.0], [1.0, 0.0, 1.0], [2.0, 1.0, 2.0]])
        kernel = torch.exp(-0.5 * distance / width**2)
        kernel = kernel / kernel.sum()
        padded = torch.nn.functional.pad(image[None], (1, 1, 1, 1), mode="replicate")
        expected = torch.nn.functional.conv2d(padded, kernel[None, None])[0]
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(blurred(images, torch.full((2,), 0.05)), images, rtol=0, atol=1e-6)


def test_the_loss_falls_in_a_few_steps():
    torch.manual_seed(0)
    system = Cascade(Parts((1, 8, 8), 3, NETWORK, parent=base()))
    optimizer = torch.optim.AdamW(system.denoiser.parameters(), lr=3e-3)
    losses = []
    flat = torch.linspace(-1.0, 1.0, 32)[:, None, None, None].expand(32, 1, 8, 8)
    for step in range(40):
        loss = system(batch(32) | {"image": flat}, draws(step)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LowRes(PARTS, factor=3), "system.factor: got 3 for images of 8 pixels"),
        (lambda: LowRes(PARTS, factor=1), "system.factor: got 1"),
        (lambda: Cascade(PARTS), "parent: got none; expected the base of a cascade"),
        (lambda: Cascade(Parts((1, 8, 8), 3, NETWORK, parent=Diffusion(PARTS))), "parent: got Diffusion"),
        (lambda: cascade(level=0.5, max_level=0.2), "system.level: got level=0.5, max_level=0.2"),
        (lambda: cascade(augmentation="none"), "system.augmentation: got 'none'"),
        (lambda: cascade(blur=1.5), "system.blur: got blur=1.5"),
        (lambda: cascade(blur_sigma=(0.6, 0.4)), "system.blur"),
    ],
)
def test_what_cannot_be_is_refused(make, said):
    with pytest.raises(WorkbenchError, match=said):
        make()
