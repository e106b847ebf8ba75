"""What both networks of images promise: every key matters, samples are alone, mistakes are said in one line."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.nn.embed import grid_positions, sinusoidal_positions
from diffusion_core.nn.transformer import DiT
from diffusion_core.nn.unet2d import UNet2d
from tests.diffusion_core.networks import (
    BUILD,
    CHANNELS,
    CLASSES,
    CONTEXT,
    KEYS,
    SIZE,
    attentions,
    awake,
    digits,
    inputs,
    maps,
    overfit,
)

every_network = pytest.mark.parametrize("build", BUILD.values(), ids=BUILD.keys())


def changed(key: str, value: Tensor) -> Tensor:
    """The value with its second sample changed."""
    other = value.clone()
    other[1] = (other[1] + 1) % CLASSES if key == "label" else other[1] + 0.3
    return other


@every_network
def test_a_fresh_network_predicts_exactly_zero(build):
    x, t, cond = inputs()
    assert torch.equal(build(**KEYS).double()(x, t, cond), torch.zeros_like(x))


@every_network
def test_a_gradient_reaches_every_weight(build):
    network = awake(build(**KEYS))
    network(*inputs()).square().sum().backward()
    assert not [key for key, p in network.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]


@every_network
@pytest.mark.parametrize("key", ["x", "t", "label", "image", "level", "latent", "context"])
def test_every_input_moves_its_own_sample_and_no_other(build, key):
    network = awake(build(**KEYS))
    x, t, cond = inputs()
    before = network(x, t, cond)
    given = {"x": x, "t": t, **cond}
    given[key] = changed(key, given[key])
    after = network(given.pop("x"), given.pop("t"), given)
    moved = (after - before).abs().amax((1, 2, 3))
    assert moved[1] > 1e-6
    assert moved[[0, 2]].max() < 1e-12


@every_network
def test_the_order_of_the_batch_does_not_matter(build):
    network = awake(build(**KEYS))
    x, t, cond = inputs()
    order = torch.tensor([2, 0, 1])
    permuted = network(x[order], t[order], {key: value[order] for key, value in cond.items()})
    torch.testing.assert_close(permuted, network(x, t, cond)[order], rtol=1e-12, atol=1e-12)


@every_network
def test_no_label_is_the_null_label(build):
    network = awake(build(n_classes=CLASSES))
    x, t, cond = inputs()
    null = network(x, t, {"label": torch.full((3,), CLASSES)})
    torch.testing.assert_close(network(x, t), null, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(network(x, t, {"label": cond["label"]}), null)


@every_network
def test_without_a_context_the_network_is_the_one_that_never_knew_it(build):
    network, plain = awake(build(context_dim=CONTEXT)), build().double()
    plain.load_state_dict({key: value for key, value in network.state_dict().items() if "cross" not in key})
    x, t, cond = inputs()
    assert torch.equal(network(x, t), plain(x, t))
    assert not torch.allclose(network(x, t, {"context": cond["context"]}), plain(x, t))


@every_network
def test_every_map_is_seen_sums_to_one_and_may_be_replaced(build):
    network = awake(build(**KEYS))
    x, t, cond = inputs()
    before = network(x, t, cond)
    output, seen = maps(network, x, t, cond)
    torch.testing.assert_close(output, before, rtol=1e-10, atol=1e-10)
    assert seen.keys() == attentions(network).keys()
    for name, attention in seen.items():
        torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))
        part = attentions(network)[name]
        part.hook = lambda attention: torch.full_like(attention, 1.0 / attention.shape[-1])
        # every single one acts on the output
        assert not torch.allclose(network(x, t, cond), before, rtol=1e-7, atol=1e-9), name
        part.hook = None


@every_network
def test_the_learned_variance_has_channels_of_its_own(build):
    x, t, _ = inputs()
    assert build(out_channels=2 * CHANNELS).double()(x, t).shape == (3, 2 * CHANNELS, SIZE, SIZE)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (UNet2d, {"widths": (8, 12), "attention": (4,)}),
        (DiT, {"width": 16, "depth": 2, "heads": 2}),
    ],
)
def test_patches_of_two_are_a_quarter_of_the_pixels_with_four_times_the_channels(kind, arguments):
    coarse = awake(kind(CHANNELS, SIZE, patch=2, **arguments))
    fine = kind(4 * CHANNELS, SIZE // 2, patch=1, **arguments).double()
    fine.load_state_dict(coarse.state_dict())
    x, t, _ = inputs()
    half = SIZE // 2
    unfolded = x.reshape(3, CHANNELS, half, 2, half, 2).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    expected = fine(unfolded, t).reshape(3, CHANNELS, 2, 2, half, half).permute(0, 1, 4, 2, 5, 3).reshape(x.shape)
    torch.testing.assert_close(coarse(x, t), expected, rtol=1e-12, atol=1e-12)


@every_network
def test_eight_digits_are_learned_by_heart(build):
    torch.manual_seed(0)
    arguments = {"widths": (16, 32)} if build is BUILD["unet"] else {"width": 32, "depth": 2}
    network = type(build())(1, 8, n_classes=8, **arguments)
    eps, t = torch.randn(8, 1, 8, 8), torch.full((8,), 0.5)
    x_t, cond = 0.5**0.5 * (digits(8) + eps), {"label": torch.arange(8)}
    assert overfit(lambda: (network(x_t, t, cond) - eps).square().mean(), network) < 0.1


@every_network
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": torch.tensor([0, 1, CLASSES + 1])}, r"labels from 0 to 4; expected 0 to 2, or 3 for none"),
        ({"label": torch.tensor([0, -1, 2])}, r"labels from -1 to 2; expected 0 to 2"),
        ({"label": torch.tensor([0, 1])}, r"cond\['label'\]: got the shape \(2,\); expected \(3,\)"),
        ({"image": torch.zeros(3, 1, 4, 4)}, r"cond\['image'\]: got the shape \(3, 1, 4, 4\); expected \(3, 1, 8, 8\)"),
        ({"latent": torch.zeros(3, 4)}, r"cond\['latent'\]: got the shape \(3, 4\); expected \(3, 5\)"),
        ({"context": torch.zeros(3, 4, 5)}, r"cond\['context'\].*expected \(3, 4, 6\)"),
        ({"context": torch.zeros(3)}, r"cond\['context'\].*got the shape \(3,\)"),
        ({"text": torch.zeros(3)}, r"got the keys .*'text'.*no others than \['context', 'image', 'label'"),
        ({"image": None}, r"got the keys .*expected \['image', 'latent', 'level'\]"),
        ({"level": None}, r"got the keys .*expected \['image', 'latent', 'level'\]"),
        ({"latent": None}, r"got the keys .*expected \['image', 'latent', 'level'\]"),
    ],
)
def test_a_wrong_condition_is_refused_in_one_line(build, change, message):
    x, t, cond = inputs()
    cond = {key: value for key, value in (cond | change).items() if value is not None}
    with pytest.raises(WorkbenchError, match=message) as caught:
        build(**KEYS).double()(x, t, cond)
    assert "\n" not in str(caught.value)


@every_network
def test_a_condition_given_to_a_network_that_has_none_is_refused(build):
    x, t, cond = inputs()
    with pytest.raises(WorkbenchError, match=r"got the keys \['label'\]; expected \[\], and no others than \[\]"):
        build().double()(x, t, {"label": cond["label"]})


@every_network
@pytest.mark.parametrize("shape", [(CHANNELS, SIZE // 2, SIZE // 2), (CHANNELS + 1, SIZE, SIZE)])
def test_images_of_another_size_are_refused(build, shape):
    with pytest.raises(WorkbenchError, match=r"expected \(2, 8, 8\): build the network for the size of the data"):
        build()(torch.zeros(3, *shape), torch.zeros(3))


@every_network
@pytest.mark.parametrize("arguments", [{"n_classes": -1}, {"context_dim": 0}, {"heads": 5}, {"patch": 3}])
def test_counts_that_cannot_be_are_refused(build, arguments):
    with pytest.raises(WorkbenchError, match=r"got .*; expected"):
        build(**arguments)


def test_positions_are_their_formula_row_by_row():
    side, dim = 3, 8
    table = grid_positions(side, dim)
    for row in range(side):
        for column in range(side):
            expected = []
            for place in (row, column):
                angles = torch.tensor([place * 10_000.0**-f for f in (0.0, 0.5)])
                expected += [angles.sin(), angles.cos()]
            torch.testing.assert_close(table[row * side + column], torch.cat(expected))
    # no two places are the same, up to the largest image that has attention
    assert len(grid_positions(32, 64).unique(dim=0)) == 32 * 32
    assert len(sinusoidal_positions(64, 16).unique(dim=0)) == 64
