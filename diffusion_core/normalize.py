"""Normalizers: fitted once on the training data, stored in the checkpoint, never guessed again."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_core.errors import WorkbenchError


class MinMax(nn.Module):
    """Each feature's range on the training data mapped linearly to [-1, 1].

    ``normalize(x) = 2 (x - low) / (high - low) - 1``; a feature that never varies is only shifted, to 0.

    Args:
        low, high: (features,) range of the training data, in its own units. Use `fit` to take it from data,
            and `empty` to make one whose values a checkpoint will fill.

    Source: Chi et al. 2023, appendix A.1 (arXiv 2303.04137).
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Float[Tensor, " features"], high: Float[Tensor, " features"]) -> None:
        super().__init__()
        self.register_buffer("low", low.to(torch.float32))
        self.register_buffer("high", high.to(torch.float32))

    @classmethod
    def fit(cls, data: Float[Tensor, "rows features"]) -> MinMax:
        """The range of ``data``.

        Raises:
            WorkbenchError: a value is not finite.
        """
        if not torch.isfinite(data).all():
            row, feature = (~torch.isfinite(data)).nonzero()[0].tolist()
            raise WorkbenchError(
                f"normalizer: got {float(data[row, feature])} in row {row}, feature {feature}; expected finite data: "
                "mend or drop this episode."
            )
        return cls(data.amin(0), data.amax(0))

    @classmethod
    def empty(cls, features: int) -> MinMax:
        """To be filled from a checkpoint; NaN until then, so that forgetting it cannot pass unseen."""
        return cls(torch.full((features,), torch.nan), torch.full((features,), torch.nan))

    @property
    def _half_range(self) -> Tensor:
        half = 0.5 * (self.high - self.low)
        return torch.where(half > 1e-6, half, torch.ones_like(half))

    def normalize(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        """To [-1, 1] on the training range; linear beyond it."""
        return (x - 0.5 * (self.low + self.high)) / self._half_range

    def unnormalize(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        """Back to the data's own units."""
        return x * self._half_range + 0.5 * (self.low + self.high)

    def check(self, x: Float[Tensor, "rows features"], name: str, slack: float = 1e-3) -> None:
        """Refuse data outside the fitted range.

        Args:
            x: data in its own units.
            name: what it is, for the message.
            slack: how far outside is still accepted, as a fraction of the half range.

        Raises:
            WorkbenchError: names the first row and feature outside.
        """
        outside = ~(self.normalize(x).abs() <= 1.0 + slack)
        if outside.any():
            row, feature = outside.nonzero()[0].tolist()
            raise WorkbenchError(
                f"{name}: got {float(x[row, feature]):.6g} at step {row}, feature {feature} "
                f"({int(outside.any(-1).sum())} of {len(x)} steps are outside); expected values in "
                f"[{float(self.low[feature]):.6g}, {float(self.high[feature]):.6g}], the range that is allowed "
                "here: mend or drop these steps, or train anew with a normalizer fitted on them."
            )
