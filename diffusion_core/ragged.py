"""Samples of different lengths in one batch: padded, with a mask that says what exists.

Dense tensors need no scatter operations and compile; the price is the padding. Base noise is drawn for the padding
too, so a sample is the same in every batch only if the padded length is: give ``length``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from diffusion_core.errors import WorkbenchError


def pad(
    samples: Sequence[Tensor], length: int | None = None, value: float = 0.0
) -> tuple[Tensor, Bool[Tensor, "batch length"]]:
    """Stack samples of shape (n_i, ...) to (batch, length, ...), and the mask of what exists.

    Args:
        samples: at least one; equal but for their first axis.
        length: None: that of the longest.
        value: of the padding.

    Raises:
        WorkbenchError: no samples, or one longer than ``length``.
    """
    longest = max((len(sample) for sample in samples), default=0)
    length = longest if length is None else length
    if not samples or longest > length:
        raise WorkbenchError(
            f"pad: got {len(samples)} samples of at most {longest} entries; expected at least one, of at most {length}."
        )
    padded = samples[0].new_full((len(samples), length, *samples[0].shape[1:]), value)
    for i, sample in enumerate(samples):
        padded[i, : len(sample)] = sample
    lengths = torch.tensor([len(sample) for sample in samples], device=padded.device)
    return padded, torch.arange(length, device=padded.device) < lengths[:, None]


def unpad(padded: Tensor, mask: Bool[Tensor, "batch length"]) -> list[Tensor]:
    """The samples that `pad` stacked."""
    return [sample[exists] for sample, exists in zip(padded, mask, strict=True)]
