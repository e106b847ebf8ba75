"""The diffusion transformer: identity at the start, equivariant but for its positions, factorised in space and time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.nn.embed import grid_positions, sinusoidal_positions
from diffusion_core.nn.transformer import DiT
from tests.diffusion_core.networks import CHANNELS, CONTEXT, SIZE, attentions, awake, dit, inputs, maps

FRAMES, SIDE = 3, SIZE // 2


def clip() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, CHANNELS, FRAMES, SIZE, SIZE, generator=generator, dtype=torch.float64)
    return x, torch.tensor([0.2, 0.7], dtype=torch.float64)


def patches(x: Tensor) -> Tensor:
    """(batch, tokens, channels, 2, 2)"""
    x = x.unflatten(3, (SIDE, 2)).unflatten(2, (SIDE, 2))
    return x.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def assembled(tokens: Tensor) -> Tensor:
    return tokens.unflatten(1, (SIDE, SIDE)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


@pytest.mark.parametrize("frames", [1, FRAMES])
def test_a_fresh_block_is_the_identity(frames):
    block = dit(frames=frames, context_dim=CONTEXT).double().blocks[0]
    h = torch.randn(2, frames, 5, 16, dtype=torch.float64)
    c, context = torch.randn(2, 16, dtype=torch.float64), torch.randn(2, 4, CONTEXT, dtype=torch.float64)
    assert torch.equal(block(h, c, context), h)
    assert not torch.allclose(awake(block)(h, c, context), h)


def test_a_block_is_its_formula():
    block = awake(dit().blocks[0])
    h, c = torch.randn(2, 1, 5, 16, dtype=torch.float64), torch.randn(2, 16, dtype=torch.float64)
    six = (c @ block.modulation.weight.T + block.modulation.bias).reshape(2, 6, 1, 16).unbind(1)

    def normal(h: Tensor) -> Tensor:
        return (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()

    inner = h[:, 0]
    inner = inner + six[2] * block.attention(normal(inner) * (1.0 + six[1]) + six[0])
    up = (normal(inner) * (1.0 + six[4]) + six[3]) @ block.up.weight.T + block.up.bias
    gelu = 0.5 * up * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (up + 0.044715 * up**3)))
    expected = inner + six[5] * (gelu @ block.down.weight.T + block.down.bias)
    torch.testing.assert_close(block(h, c, None)[:, 0], expected, rtol=1e-10, atol=1e-10)


def test_without_positions_the_order_of_the_patches_does_not_matter():
    network = awake(dit())
    x, t, _ = inputs()
    order = torch.randperm(SIDE**2, generator=torch.Generator().manual_seed(0))
    permuted = assembled(patches(x)[:, order])
    torch.testing.assert_close(assembled(patches(x)), x)
    # with positions it does
    assert not torch.allclose(patches(network(permuted, t)), patches(network(x, t))[:, order])
    network.position.zero_()
    torch.testing.assert_close(patches(network(permuted, t)), patches(network(x, t))[:, order], rtol=1e-10, atol=1e-10)


def test_a_token_that_sees_itself_alone_answers_in_its_own_place():
    network = awake(dit())
    for part in attentions(network).values():
        part.perturbed = True
    x, t, _ = inputs()
    other = x.clone()
    other[:, :, 4:6, 2:4] += 1.0
    moved = patches((network(other, t) - network(x, t)).abs()).amax((0, 2, 3, 4))
    assert moved.nonzero().flatten().tolist() == [2 * SIDE + 1]


@pytest.mark.parametrize(("frames", "shapes"), [(1, {(3, 2, 16, 16)}), (FRAMES, {(6, 2, 16, 16), (32, 2, 3, 3)})])
def test_attention_is_in_space_and_then_in_time(frames, shapes):
    network = awake(dit(frames=frames))
    x, t = inputs()[:2] if frames == 1 else clip()
    output, seen = maps(network, x, t)
    assert output.shape == x.shape
    # of two blocks, each once
    assert {tuple(m.shape) for m in seen.values()} == shapes and len(seen) == 2 * len(shapes)


def check_frames_are_images(video: DiT, image: DiT) -> None:
    """With the gates of time shut, every frame is what the image network makes of it at that frame's position."""
    x, t = clip()
    output = video(x, t)
    for frame in range(FRAMES):
        image.position.copy_(video.position[frame])
        torch.testing.assert_close(image(x[:, :, frame], t), output[:, :, frame], rtol=1e-10, atol=1e-10)


def test_an_image_network_becomes_a_video_network_that_begins_where_it_ended():
    image, video = awake(dit()), dit(frames=FRAMES).double()
    missing, unexpected = video.load_state_dict(image.state_dict(), strict=False)
    assert not unexpected and missing and all(".temporal." in key for key in missing)
    check_frames_are_images(video, image)
    # and once the gates of time are open, it is no longer
    with pytest.raises(AssertionError):
        check_frames_are_images(awake(video), image)


def test_frames_see_each_other_through_temporal_attention_alone():
    network = awake(dit(frames=FRAMES))
    x, t = clip()
    other = x.clone()
    other[:, :, 1] += 1.0

    def moved() -> list[bool]:
        return [bool(v > 0) for v in (network(other, t) - network(x, t)).abs().amax((0, 1, 3, 4))]

    assert moved() == [True, True, True]
    for name, part in attentions(network).items():
        part.perturbed = "temporal" in name
    assert moved() == [False, True, False]


def test_a_clip_s_tokens_attend_to_its_own_context():
    network = awake(dit(frames=FRAMES, context_dim=CONTEXT))
    x, t = clip()
    context = torch.randn(2, 4, CONTEXT, dtype=torch.float64)
    other = context.clone()
    other[1] += 1.0
    moved = (network(x, t, {"context": other}) - network(x, t, {"context": context})).abs().amax((1, 3, 4))
    assert bool((moved[0] == 0).all()) and bool((moved[1] > 0).all())


def test_positions_of_a_clip_are_the_sum_of_place_and_frame():
    network = dit(frames=FRAMES)
    expected = grid_positions(SIDE, 16)[None] + sinusoidal_positions(FRAMES, 16)[:, None]
    assert torch.equal(network.position, expected)
    assert not any("position" in key for key in network.state_dict())


def test_a_transformer_has_the_size_of_the_paper_s():
    # DiT-S/2 (table 4: 33 M) of latents of 32x32x4 with learned variances and 1,000 classes
    with torch.device("meta"):
        network = DiT(4, 32, n_classes=1000, out_channels=8, patch=2, width=384, depth=12, heads=6, time_dim=256)
    total = sum(p.numel() for p in network.parameters())
    width = 384
    block = 6 * width * (width + 1) + 4 * width * (width + 1) + (8 * width + 5) * width
    ends = (16 + 1) * width + 2 * width * (width + 1) + (width + 1) * 32
    told = (256 + 1) * width + width * (width + 1) + 1001 * width
    assert total == 12 * block + ends + told
    assert round(total / 1e6) == 33


@pytest.mark.parametrize("arguments", [{"size": 7}, {"width": 18}, {"width": 20, "heads": 3}, {"frames": 0}])
def test_a_transformer_that_cannot_be_built_is_refused(arguments):
    given = {"size": SIZE, "width": 16, **arguments}
    with pytest.raises(WorkbenchError, match=r"got size=.*expected at least 1 of each, a size divisible by patch"):
        DiT(CHANNELS, **given)


def test_a_clip_of_another_length_is_refused():
    x, t = clip()
    with pytest.raises(WorkbenchError, match=r"got samples of the shape \(2, 2, 8, 8\); expected \(2, 3, 8, 8\)"):
        dit(frames=FRAMES).double()(x[:, :, :2], t)
    with pytest.raises(WorkbenchError, match=r"got samples of the shape \(2, 3, 8, 8\); expected \(2, 8, 8\)"):
        dit().double()(x, t)
