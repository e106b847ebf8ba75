"""The U-Net of images: its published size, its blocks' formulas, where it attends."""

from __future__ import annotations

import math

import jaxtyping
import pytest
import torch
from torch.nn import functional

from diffusion_core.errors import WorkbenchError
from diffusion_core.nn.residual import Resample, ResidualBlock, group_norm
from diffusion_core.nn.unet2d import UNet2d
from tests.diffusion_core.networks import SIZE, attentions, awake, inputs, maps, unet

H = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_unet_of_ddpm_has_its_published_size():
    with torch.device("meta"):
        network = UNet2d(
            3,
            32,
            widths=(128, 256, 256, 256),
            blocks=2,
            attention=(16,),
            heads=1,
            conditioning="add",
            time_dim=128,
        )
    ours = sum(p.numel() for name, p in network.named_parameters() if name.startswith("positions"))
    # what is learned besides the paper's network: places at 16x16, where it attends, and at 4x4, its middle
    assert ours == (16 * 16 + 4 * 4) * 256
    total = sum(p.numel() for p in network.parameters()) - ours

    def convolution(inlet: int, outlet: int, kernel: int = 3) -> int:
        return (inlet * kernel**2 + 1) * outlet

    def block(inlet: int, outlet: int) -> int:
        skip = convolution(inlet, outlet, 1) if inlet != outlet else 0
        norms, shift = 2 * inlet + 2 * outlet, (512 + 1) * outlet
        return convolution(inlet, outlet) + convolution(outlet, outlet) + norms + shift + skip

    time = (128 + 1) * 512 + (512 + 1) * 512
    attend = 2 * 256 + 4 * convolution(256, 256, 1)
    down = [(128, 128)] * 2 + [(128, 256)] + [(256, 256)] * 5
    # each joined to the one of the same side on the way down
    up = [(512, 256)] * 8 + [(512 - 128, 256), (256 + 128, 128), (256, 128), (256, 128)]
    blocks = sum(block(*pair) for pair in (*down, (256, 256), (256, 256), *up))
    resample = convolution(128, 128) + 2 * convolution(256, 256) + 3 * convolution(256, 256)
    ends = convolution(3, 128) + 2 * 128 + convolution(128, 3)
    assert total == time + blocks + (2 + 1 + 3) * attend + resample + ends
    # "35.7 M", section 4 and appendix B
    assert round(total / 1e5) == 357


def formula(block: ResidualBlock, h: torch.Tensor, m: torch.Tensor | None) -> torch.Tensor:
    """The block without its modules: a second implementation."""

    def normed(x: torch.Tensor, norm: torch.nn.GroupNorm) -> torch.Tensor:
        grouped = x.reshape(len(x), norm.num_groups, -1)
        centred = grouped - grouped.mean(-1, keepdim=True)
        unit = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return unit.reshape(x.shape) * norm.weight[:, None, None] + norm.bias[:, None, None]

    def convolved(x: torch.Tensor, layer: torch.nn.Conv2d) -> torch.Tensor:
        return functional.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)

    inner = normed(h, block.first_norm)
    inner = inner * inner.sigmoid()
    if block.direction == "up":
        inner, h = (v.repeat_interleave(2, 2).repeat_interleave(2, 3) for v in (inner, h))
    if block.direction == "down":
        inner, h = (v.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5)) for v in (inner, h))
    inner = convolved(inner, block.first)
    if m is not None and block.conditioning == "add":
        inner = inner + m[:, :, None, None]
    inner = normed(inner, block.second_norm)
    if m is not None and block.conditioning == "scale_shift":
        scale, shift = m[:, : m.shape[1] // 2, None, None], m[:, m.shape[1] // 2 :, None, None]
        inner = inner * (1.0 + scale) + shift
    inner = convolved(inner * inner.sigmoid(), block.second)
    skip = convolved(h, block.skip) if isinstance(block.skip, torch.nn.Conv2d) else h
    return (skip + inner) / (math.sqrt(2.0) if block.factor != 1.0 else 1.0)


@pytest.mark.parametrize("conditioning", ["add", "scale_shift", None])
@pytest.mark.parametrize("direction", ["down", "up", None])
@pytest.mark.parametrize(("outlet", "residual_scale"), [(8, False), (12, True)])
def test_a_block_is_its_formula(conditioning, direction, outlet, residual_scale):
    block = awake(ResidualBlock(8, outlet, conditioning, direction, residual_scale))
    m = torch.randn(3, block.modulation, dtype=torch.float64) if conditioning else None
    expected = formula(block, H, m)
    assert expected.shape[-1] == {"down": 2, "up": 8, None: 4}[direction]
    torch.testing.assert_close(block(H, m), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("conditioning", ["add", "scale_shift"])
def test_a_fresh_block_is_its_skip_and_no_modulation_changes_nothing(conditioning):
    block = ResidualBlock(8, 8, conditioning).double()
    m = torch.randn(3, block.modulation, dtype=torch.float64)
    assert torch.equal(block(H, m), H)
    awake(block)
    assert not torch.allclose(block(H, m), H)
    torch.testing.assert_close(block(H, torch.zeros_like(m)), block(H), rtol=1e-12, atol=1e-12)


def test_residual_scale_keeps_the_variance_of_a_sum_of_equals():
    block = ResidualBlock(8, 8, residual_scale=True).double()
    torch.testing.assert_close(block(H), H / math.sqrt(2.0))


@pytest.mark.parametrize(("direction", "side"), [("down", 2), ("up", 8)])
def test_resampling_changes_the_side(direction, side):
    assert Resample(8, direction).double()(H).shape == (3, 8, side, side)


@pytest.mark.parametrize(("channels", "groups"), [(32, 8), (12, 6), (7, 7), (11, 1), (9, 3)])
def test_groups_divide_the_channels(channels, groups):
    assert group_norm(channels).num_groups == groups


@pytest.mark.parametrize("resample", ["conv", "block"])
@pytest.mark.parametrize(
    ("arguments", "sides"),
    [
        # two blocks on the way down and three on the way up at 4x4, one in the middle
        ({"attention": (4,), "blocks": 2, "widths": (8, 12)}, {4: 6}),
        ({"attention": (8, 4), "widths": (8, 12)}, {8: 3, 4: 4}),
        ({"attention": (8,), "widths": (8, 12, 16)}, {8: 3, 2: 1}),
        ({"attention": (4,), "widths": (8, 12), "patch": 2}, {4: 3, 2: 1}),
        ({"attention": (16,), "widths": (8,)}, {8: 1}),
    ],
)
def test_attention_is_where_it_was_promised(resample, arguments, sides):
    network = awake(unet(resample=resample, n_classes=3, **arguments))
    x, t, _ = inputs()
    output, seen = maps(network, x, t)
    assert output.shape == x.shape
    counts = {side: sum(m.shape[-1] == side**2 for m in seen.values()) for side in sides}
    assert counts == sides and sum(sides.values()) == len(attentions(network))
    assert {int(side) for side in network.positions} == set(sides)


def test_a_pixel_of_an_attended_map_knows_its_place():
    # without places the attention of a flat image would be flat but for the border
    network = awake(unet(attention=(8,)))
    x, t, _ = inputs()
    before = network(x, t)
    with torch.no_grad():
        for position in network.positions.values():
            position.copy_(position.flip(0))
    assert not torch.allclose(network(x, t), before)


def test_block_resampling_is_modulated_too():
    conv, block = unet(resample="conv"), unet(resample="block")
    # one block down and one up, of 8 and 12 channels, each with a scale and a shift
    assert block.modulation.out_features - conv.modulation.out_features == 2 * (8 + 12)
    assert sum(p.numel() for p in block.parameters()) > sum(p.numel() for p in conv.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 6, "widths": (8, 8, 8)}, "got size=6, patch=1, 3 widths; expected a size divisible by 4"),
        ({"size": 4, "widths": (8,) * 4}, "expected a size divisible by 8"),
        ({"size": 6, "patch": 2}, "got size=6, patch=2, 2 widths; expected a size divisible by 4"),
        ({"widths": ()}, r"got widths=\[\].*expected at least one of each"),
        ({"blocks": 0}, "blocks=0.*expected at least one of each"),
        ({"heads": 3, "widths": (8, 16)}, "got dim=8, heads=3; expected a multiple of the heads"),
    ],
)
def test_a_unet_that_cannot_be_built_is_refused(arguments, message):
    given = {"size": SIZE, **arguments}
    with pytest.raises(WorkbenchError, match=message):
        UNet2d(2, **given)


@pytest.mark.parametrize(("name", "known"), [("conditioning", "add or scale_shift"), ("resample", "conv or block")])
def test_an_unknown_word_is_refused(monkeypatch, name, known):
    # as in use, where no types are checked
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(WorkbenchError, match=f"got {name}='film'; expected {known}"):
        unet(**{name: "film"})


def test_fresh_attention_is_the_identity_and_then_adds_to_every_pixel_its_own_mixture():
    part = unet(residual_scale=False).middle[0].attend.double()
    h = torch.randn(3, 12, 4, 4, dtype=torch.float64)
    position = torch.randn(16, 12, dtype=torch.float64)
    assert torch.equal(part(h, position), h)
    awake(part)
    normal = part.norm(h)
    # row by row, as the positions are
    tokens = torch.stack([normal[:, :, i, j] for i in range(4) for j in range(4)], dim=1)
    mixed = part.attention(tokens + position)
    expected = torch.stack([h[:, :, i, j] + mixed[:, 4 * i + j] for i in range(4) for j in range(4)], dim=2)
    torch.testing.assert_close(part(h, position), expected.unflatten(2, (4, 4)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("resample", ["conv", "block"])
def test_the_network_is_its_blocks_joined_from_side_to_side(resample):
    network = awake(unet(resample=resample, attention=(), widths=(8, 12)))
    x, t, _ = inputs()
    c = functional.silu(network.condition.time(t)) @ network.modulation.weight.T + network.modulation.bias
    taken = 0

    def apply(part: torch.nn.Module, h: torch.Tensor) -> torch.Tensor:
        nonlocal taken
        m = c[:, taken : taken + part.modulation]
        taken += part.modulation
        if isinstance(part, Resample | ResidualBlock):
            return part(h, m)
        return part(h, m, None if part.side is None else network.positions[part.side], None)

    inlet = functional.conv2d(x, network.inlet.weight, network.inlet.bias, padding=1)
    fine = apply(network.down[0], inlet)
    shrunk = apply(network.down[1], fine)
    coarse = apply(network.down[2], shrunk)
    h = apply(network.middle[1], apply(network.middle[0], coarse))
    h = apply(network.up[0], torch.cat([h, coarse], 1))
    h = apply(network.up[2], apply(network.up[1], torch.cat([h, shrunk], 1)))
    assert h.shape[2:] == (8, 8)
    h = apply(network.up[3], torch.cat([h, fine], 1))
    h = apply(network.up[4], torch.cat([h, inlet], 1))
    assert taken == c.shape[1] and len(network.up) == 5 and len(network.down) == 3
    h = functional.silu(network.norm(h))
    expected = functional.conv2d(h, network.outlet.weight, network.outlet.bias, padding=1)
    torch.testing.assert_close(network(x, t), expected, rtol=1e-12, atol=1e-12)
