"""Attention, with a hook through which its maps can be stored and replaced."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from diffusion_core.errors import WorkbenchError

Hook = Callable[[Float[Tensor, "batch heads queries keys"]], Float[Tensor, "batch heads queries keys"]]
"""Sees the attention map of every call and returns the one to use."""


class Attention(nn.Module):
    """Multi-head attention of tokens to themselves, or to a context.

    Args:
        dim: features of a token.
        heads: divides ``dim``.
        context_dim: features of a context token; None: self-attention.

    Attributes:
        perturbed: the map is the identity: every token sees itself alone.
        hook: set to store or replace maps; the map is then made explicitly, which is slower.

    Source: Vaswani et al. 2017, section 3.2 (arXiv 1706.03762).
    """

    def __init__(self, dim: int, heads: int = 4, context_dim: int | None = None) -> None:
        super().__init__()
        if dim % heads:
            raise WorkbenchError(f"Attention: got dim={dim}, heads={heads}; expected a multiple of the heads.")
        self.heads, self.cross = heads, context_dim is not None
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(context_dim or dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.perturbed = False
        self.hook: Hook | None = None

    def forward(
        self, x: Float[Tensor, "batch queries dim"], context: Float[Tensor, "batch keys context"] | None = None
    ) -> Float[Tensor, "batch queries dim"]:
        query = self._split(self.query(x))
        key, value = (self._split(v) for v in self.key_value(x if context is None else context).chunk(2, -1))
        if self.perturbed:
            mixed = value
        elif self.hook is None:
            mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        else:
            attention = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
            mixed = self.hook(attention) @ value
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
