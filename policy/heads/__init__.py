"""Heads: distributions over action chunks, all on one interface.

A head sees normalised chunks and a flat condition and knows nothing of tasks, units and cameras. Diffusion, flow
matching and consistency models are heads, and so are the baselines that papers compare them with.
"""

from policy.heads.head import Head, Parts, Shape

__all__ = ["Head", "Parts", "Shape"]
