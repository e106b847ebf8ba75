"""Networks: every weight is used, every input matters, samples do not see each other, published sizes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from diffusion_core.errors import WorkbenchError
from diffusion_core.nn.embed import Sinusoidal
from diffusion_core.nn.mlp import ResidualMLP
from diffusion_core.nn.sequence import SequenceDiT, SequenceTransformer
from diffusion_core.nn.unet1d import UNet1d

HORIZON, DIM, COND = 8, 2, 5


def build(name: str) -> nn.Module:
    """A small network with every weight moved off its (partly zero) initial value."""
    torch.manual_seed(0)
    network = {
        "mlp": lambda: ResidualMLP(HORIZON, DIM, COND, width=24, depth=2),
        "unet": lambda: UNet1d(HORIZON, DIM, COND, widths=(8, 16, 24), time_dim=16),
        "transformer": lambda: SequenceTransformer(HORIZON, DIM, COND, 1, 16, 2, 2, causal=False),
        "dit": lambda: SequenceDiT(HORIZON, DIM, COND, 16, 2, 2),
    }[name]()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return network


def inputs(batch: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, HORIZON, DIM, generator=generator),
        torch.rand(batch, generator=generator),
        torch.randn(batch, COND, generator=generator),
    )


every_network = pytest.mark.parametrize("name", ["mlp", "unet", "transformer", "dit"])


@every_network
def test_a_gradient_reaches_every_weight(name):
    network = build(name)
    network(*inputs()).square().sum().backward()
    unreached = [key for key, p in network.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]
    assert not unreached


@every_network
def test_every_entry_of_every_input_moves_every_part_of_the_output(name):
    network = build(name).double()
    arguments = [a.double().requires_grad_(True) for a in inputs(2)]
    output = network(*arguments)
    assert output.shape == arguments[0].shape
    for i, j in ((0, 0), (HORIZON // 2, 1), (HORIZON - 1, 0)):
        for gradient in torch.autograd.grad(output[0, i, j], arguments, retain_graph=True):
            assert bool((gradient[0] != 0).all())
            # and nothing crosses from one sample to another
            assert bool((gradient[1] == 0).all())


@every_network
def test_a_sample_is_the_same_alone_and_in_a_batch(name):
    network = build(name).double()
    x, t, cond = (a.double() for a in inputs(5))
    torch.testing.assert_close(network(x, t, cond)[2:3], network(x[2:3], t[2:3], cond[2:3]), rtol=1e-10, atol=1e-10)


def test_a_causal_transformer_sees_no_later_action():
    torch.manual_seed(0)
    network = SequenceTransformer(HORIZON, DIM, COND, 1, 16, 2, 2).double()
    x, t, cond = (a.double() for a in inputs(1))
    x.requires_grad_(True)
    reached = torch.autograd.grad(network(x, t, cond)[0, 3].sum(), x)[0].abs().sum(-1)[0]
    assert bool((reached[:4] > 0).all()) and bool((reached[4:] == 0).all())


def test_a_transformer_takes_a_token_for_each_observation():
    network = SequenceTransformer(HORIZON, DIM, 6, 3, 16, 1, 2)
    assert network.observed.in_features == 2
    with pytest.raises(WorkbenchError, match=r"a condition of 5 in 2 tokens; expected .* divisible by its tokens"):
        SequenceTransformer(HORIZON, DIM, 5, 2, 16, 1, 2)


@pytest.mark.parametrize("network", [ResidualMLP, SequenceDiT])
def test_a_time_for_every_token_that_is_the_same_for_all_is_one_time(network):
    torch.manual_seed(0)
    made = network(HORIZON, DIM, COND, width=16, depth=1, token_times=True)
    x, t, cond = inputs()
    torch.testing.assert_close(made(x, t[:, None].expand(-1, HORIZON), cond), made(x, t, cond))


def test_a_fresh_mlp_predicts_zero_and_its_blocks_are_the_identity():
    torch.manual_seed(0)
    network = ResidualMLP(HORIZON, DIM, COND, width=24, depth=2)
    assert torch.equal(network(*inputs()), torch.zeros(4, HORIZON, DIM))
    h, embedded = torch.randn(4, 24), torch.randn(4, network.modulation.in_features)
    assert torch.equal(network.blocks[0](h, network.modulation(embedded)[:, :72]), h)


def test_a_block_is_its_formula():
    torch.manual_seed(0)
    block = ResidualMLP(HORIZON, DIM, COND, width=6, depth=1).blocks[0]
    h, shift, scale, gate = torch.randn(4, 3, 6)
    normal = (h - h.mean(1, keepdim=True)) / (h.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    inner = normal * (1.0 + scale) + shift
    hidden = inner @ block.up.weight.T + block.up.bias
    expected = h + gate * ((hidden * hidden.sigmoid()) @ block.down.weight.T + block.down.bias)
    torch.testing.assert_close(block(h, torch.cat([shift, scale, gate], 1)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"horizon": 6},
        {"widths": (12, 16, 24)},
        {"kernel_size": 4},
        {"groups": 3},
    ],
)
def test_a_unet_that_cannot_be_built_is_refused(arguments):
    given = {"horizon": 8, "widths": (8, 16, 24), **arguments}
    with pytest.raises(WorkbenchError, match=r"got horizon.*expected a horizon divisible by 4"):
        UNet1d(dim=2, cond_dim=3, **given)


def count(cond_dim: int) -> int:
    with torch.device("meta"):
        network = UNet1d(16, 2, cond_dim, (256, 512, 1024))
    return sum(p.numel() for p in network.parameters())


def test_the_unet_of_diffusion_policy_has_its_published_size():
    def convolution(inlet: int, outlet: int, kernel: int) -> int:
        return (inlet * kernel + 1) * outlet

    def block(inlet: int, outlet: int, cond_dim: int) -> int:
        norms, film = 4 * outlet, (256 + cond_dim + 1) * 2 * outlet
        skip = convolution(inlet, outlet, 1) if inlet != outlet else 0
        return convolution(inlet, outlet, 5) + convolution(outlet, outlet, 5) + norms + film + skip

    def published(cond_dim: int) -> int:
        time = (256 + 1) * 1024 + (1024 + 1) * 256
        pairs = [(2, 256), (256, 256), (256, 512), (512, 512), (512, 1024), (1024, 1024)]
        pairs += [(1024, 1024), (1024, 1024), (2048, 512), (512, 512), (1024, 256), (256, 256)]
        halve = convolution(256, 256, 3) + convolution(512, 512, 3)
        double = convolution(512, 512, 4) + convolution(256, 256, 4)
        outlet = convolution(256, 256, 5) + 2 * 256 + convolution(256, 2, 1)
        return time + sum(block(*pair, cond_dim) for pair in pairs) + halve + double + outlet

    assert count(40) == published(40) and count(10) == published(10)
    # "65 M" for the two observations of Push-T's state
    assert round(count(10) / 1e6) == 65


def test_the_sinusoidal_embedding_is_its_formula():
    dim, t = 8, torch.tensor([0.0, 0.37, 1.0], dtype=torch.float64)
    embedded = Sinusoidal(dim).double()(t)
    for i, u in enumerate(t.tolist()):
        angles = [1000.0 * u * 10_000.0 ** (-k / 3) for k in range(4)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        # frequencies are made in float32: 6e-8 of an angle of 1000
        assert embedded[i].tolist() == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("dim", [2, 5])
def test_a_sinusoidal_embedding_of_odd_or_tiny_size_is_refused(dim):
    with pytest.raises(ValueError, match="expected an even number"):
        Sinusoidal(dim)


def test_a_unet_of_few_positions_without_gradients_computes_the_same():
    network = build("unet").double()
    x, t, cond = (part.double() for part in inputs(batch=1))
    convolved = network(x, t, cond)
    with torch.no_grad():
        multiplied = network(x, t, cond)
    assert not multiplied.requires_grad
    torch.testing.assert_close(multiplied, convolved.detach(), rtol=1e-12, atol=1e-12)
