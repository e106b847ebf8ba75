"""The algebra of experts: an expert is a factor of a density, and densities multiply.

    a * b          product, p_a(x) p_b(x)
    a / b          quotient, p_a(x) / p_b(x)
    a ** w         power; w a number or a function of time
    a | b          mixture, p_a(x) + p_b(x)
    Energy(cost)   exp(-cost), a factor made at test time
    Known(m, v)    the data is known to be v where m is set

So classifier-free guidance is ``uncond * (cond / uncond) ** w``, a plan is ``prior * Energy(obstacles) ** w *
Known(mask, ends)``. Products are multiplied out when they are written: what is left is one list of denoisers,
each with one exponent for every time. Denoisers are combined in *score space*, where a product is a sum;
combining x0, v or velocity is the same only for exponents that sum to 1.

Everything is settled in `bind`, before the loop: a denoiser whose exponent is 0 at a time is not called there, and
conditions of the same denoiser share one batched call.

What is not exact. The noised product ``(p_a p_b)_t`` is not the product of the noised ``p_a,t p_b,t`` unless the
exponents select one of them: sampling with the summed scores is biased at every t > 0. ``diffusion_core.correct``
has the corrections and what they cost.
"""

from diffusion_core.experts.factors import Energy, Given, HasLogDensity, Known, given
from diffusion_core.experts.product import Product, Strength, power, product, start
from diffusion_core.experts.union import Union, union

__all__ = [
    "Energy",
    "Given",
    "HasLogDensity",
    "Known",
    "Product",
    "Strength",
    "Union",
    "given",
    "power",
    "product",
    "start",
    "union",
]
