"""What adaLN-Zero is measured against: a diffusion transformer whose blocks act from the first step on."""

from __future__ import annotations

import torch

from diffusion_core.errors import WorkbenchError
from diffusion_core.nn.transformer import DiT
from images.systems import Parts
from images.systems.diffusion import Diffusion


@torch.no_grad()
def open_gates(parts: Parts, label_dropout: float = 0.1) -> Diffusion:
    """The diffusion of ``parts`` with every gate of its DiT at 1 instead of 0 when training begins.

        h + gate(c) attention(m(h)),    gate(c) = W c + b with W = 0, b = 1

    Args:
        parts: what it is put together from.
        label_dropout: share of labels that training replaces by none.

    Raises:
        WorkbenchError: the network is no DiT.

    Source: Peebles & Xie 2023, section 3.2 (arXiv 2212.09748), whose adaLN without "Zero" has no gates at all.
    """
    model = Diffusion(parts, label_dropout=label_dropout)
    network = model.denoiser.network
    if not isinstance(network, DiT):
        raise WorkbenchError(f"network: got a {type(network).__name__}; expected a DiT, whose gates open: network=dit.")
    for block in network.blocks:
        bias = block.modulation.bias  # type: ignore[union-attr]
        # shift, scale, gate, of the attention and of the perceptron
        bias.view(6, -1)[[2, 5]] = 1.0  # type: ignore[union-attr, index, operator]
    return model
