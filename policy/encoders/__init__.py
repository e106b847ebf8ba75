"""Encoders: networks that see a camera's image and give features."""

from policy.encoders.encoder import Encoder

__all__ = ["Encoder"]
