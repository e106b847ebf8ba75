"""Absorbing diffusion of grey levels: its bound is any-order likelihood, and its samples have the model's law."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from torch import Tensor

from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.nn.unet2d import UNet2d
from diffusion_core.noise import PerSample, Shared
from diffusion_core.process.categorical.orders import order_nll
from images.experiments.autoregressive import chain_bits, orders_bits, toy
from images.systems import Parts, Sampling
from images.systems.autoregressive import AnyOrder

NETWORK = partial(UNet2d, widths=(8, 16), attention=(4,), heads=1, time_dim=16)


def model(levels: int = 5, n_classes: int = 3, shake: float = 0.1) -> AnyOrder:
    torch.manual_seed(0)
    system = AnyOrder(Parts((1, 8, 8), n_classes, NETWORK), levels=levels, width=4)
    for parameter in system.parameters():
        parameter.data += shake * torch.randn(parameter.shape)
    return system


def draws(seed: int = 0) -> Draws:
    return Draws(torch.Generator().manual_seed(seed))


def check_order_agnostic(system: AnyOrder) -> None:
    """A chain of d steps that each mask one more pixel has the bound of autoregression, averaged over all d! orders."""
    x0 = torch.cartesian_prod(*[torch.arange(2)] * 4).reshape(-1, 1, 2, 2)
    by_order = orders_bits(system, x0)
    by_step = chain_bits(system, x0)
    torch.testing.assert_close(by_step, by_order, rtol=0, atol=1e-5)
    # the orders themselves do not agree, or nothing would be averaged
    first, last = (
        order_nll(system.denoiser, x0, torch.tensor([order])) for order in (list(range(4)), list(range(4))[::-1])
    )
    assert float((first - last).abs().max()) > 1e-3


def test_absorbing_diffusion_in_as_many_steps_as_pixels_is_any_order_autoregression():
    check_order_agnostic(toy())


def test_all_probabilities_of_an_order_sum_to_one():
    x0 = torch.cartesian_prod(*[torch.arange(2)] * 4).reshape(-1, 1, 2, 2)
    for order in itertools.permutations(range(4)):
        total = (-order_nll(toy().denoiser, x0, torch.tensor([list(order)]))).exp().sum()
        assert float(total) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("steps", [1, 4])
def test_samples_have_the_probabilities_of_the_model(steps):
    """In 4 steps the mean over all orders; in 1 the product of what the network says of an empty image."""
    system, n = toy(), 20_000
    outcomes = torch.cartesian_prod(*[torch.arange(2)] * 4)
    x0 = outcomes.reshape(-1, 1, 2, 2)
    if steps == 4:
        orders = [torch.tensor([list(order)]) for order in itertools.permutations(range(4))]
        p = torch.stack([(-order_nll(system.denoiser, x0, order)).exp() for order in orders]).mean(0)
    else:
        with torch.no_grad():
            empty = torch.full((1, 1, 2, 2), system.process.mask)
            single = system.denoiser(empty, torch.ones(1, dtype=torch.float64)).double().softmax(-1).reshape(4, 2)
        p = single[torch.arange(4), outcomes].prod(1)
    noise = Shared(torch.Generator().manual_seed(0))
    images = system.sample(torch.zeros(n, dtype=torch.long), noise, Sampling(steps=steps))
    code = system.tokens(images).flatten(1) @ torch.tensor([8, 4, 2, 1])
    counts = torch.bincount(code, minlength=16).double()
    # 16 outcomes at 4.5 standard errors each
    assert bool(((counts - n * p).abs() < 4.5 * (n * p * (1 - p)).sqrt()).all())


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_levels_and_numbers_undo_each_other(levels):
    system = model(levels)
    tokens = torch.arange(levels).reshape(1, 1, 1, levels)
    images = system.images(tokens)
    assert torch.equal(system.tokens(images), tokens)
    assert float(images[..., 0]) == -1.0 and float(images[..., -1]) == 1.0
    assert int(system.tokens(torch.full((1, 1, 1, 1), 9.0))) == levels - 1


def test_a_new_model_knows_nothing():
    system = model(shake=0.0)
    data = {"image": torch.zeros(3, 1, 8, 8), "label": torch.arange(3)}
    torch.testing.assert_close(system(data, draws()), torch.full((3,), math.log2(5), dtype=torch.float64))


def test_the_network_sees_nothing_of_what_is_masked():
    system = model()
    seen: list[Tensor] = []
    system.denoiser.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    data = {"image": torch.rand(64, 1, 8, 8) * 2 - 1, "label": torch.arange(64) % 3}
    system(data, draws())
    masked, tokens = seen[0] == system.process.mask, system.tokens(data["image"])
    assert torch.equal(seen[0][~masked], tokens[~masked])
    # the number of masked pixels is uniform in 1 .. 64: its mean is 32.5 +- 18.5 / 8
    assert abs(float(masked.flatten(1).sum(1).double().mean()) - 32.5) < 4.5 * 18.5 / 8


@pytest.mark.parametrize("steps", [1, 5, 64, 1000])
def test_no_pixel_is_left_masked_and_a_sample_does_not_depend_on_its_batch(steps):
    system, labels = model(), torch.tensor([0, 1, 2])
    calls: list[int] = []
    system.denoiser.network.register_forward_pre_hook(lambda *_: calls.append(1))
    images = system.sample(labels, PerSample.from_seeds(range(3)), Sampling(steps=steps))
    assert len(calls) == min(steps, 64) and float(images.abs().max()) <= 1.0
    alone = system.sample(labels[1:2], PerSample.from_seeds([1]), Sampling(steps=steps))
    assert float((images[1:2] != alone).double().mean()) < 0.05


def test_guidance_weighs_the_label():
    system, labels = model(shake=0.3), torch.tensor([0, 1, 2])
    noise = [PerSample.from_seeds(range(3)) for _ in range(3)]
    plain = system.sample(labels, noise[0], Sampling(steps=4))
    guided = system.sample(labels, noise[1], Sampling(steps=4, guidance_scale=8.0))
    assert not torch.equal(plain, guided)
    unlabelled = model(n_classes=0)
    images = unlabelled.sample(torch.zeros(3, dtype=torch.long), noise[2], Sampling(steps=4, guidance_scale=8.0))
    assert images.shape == (3, 1, 8, 8)


def test_colours_are_entries_of_their_own():
    torch.manual_seed(0)
    system = AnyOrder(Parts((3, 8, 8), 2, NETWORK), levels=4, width=4)
    data = {"image": torch.rand(2, 3, 8, 8) * 2 - 1, "label": torch.arange(2)}
    torch.testing.assert_close(system(data, draws()), torch.full((2,), 2.0, dtype=torch.float64))
    tokens = system.tokens(data["image"])
    outlet = torch.arange(3 * 4, dtype=torch.float32)
    system.denoiser.network.network.outlet.bias.data = outlet
    logits = system.denoiser(tokens, torch.full((2,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(logits[0, :, 0, 0], outlet.reshape(3, 4))
    assert system.sample(torch.arange(2), PerSample.from_seeds(range(2)), Sampling(steps=3)).shape == (2, 3, 8, 8)


def test_the_loss_falls_in_a_few_steps():
    system = model(shake=0.0)
    optimizer = torch.optim.AdamW(system.parameters(), lr=3e-3)
    flat = torch.linspace(-1.0, 1.0, 16)[:, None, None, None].expand(16, 1, 8, 8)
    losses = []
    for step in range(40):
        loss = system({"image": flat, "label": torch.zeros(16, dtype=torch.long)}, draws(step)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"levels": 1}, "system.levels: got 1"),
        ({"levels": 999}, "system.levels"),
        ({"width": 1}, "system.width: got 1"),
    ],
)
def test_what_cannot_be_is_refused(keywords, said):
    with pytest.raises(WorkbenchError, match=said):
        AnyOrder(Parts((1, 8, 8), 3, NETWORK), **keywords)
