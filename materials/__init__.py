"""Crystals: generation, structure prediction, properties, and the field's own measures of them."""
